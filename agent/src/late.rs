//! The late way back: CRIU makes the processes with next to no memory, the pager takes them over before their first instruction, and memory comes
//! as it is touched. What is known of what they will touch is pushed while they run.
//!
//! Only where all bases of the image are here as a whole: a page that is missed cannot wait for another node.

use std::{collections::BTreeMap, fs::File, num::NonZeroUsize, sync::Arc};

use medes_dedup::{
    image::DedupImage,
    page::{PAGE_BYTES, Page, PageIndex},
};

use crate::{
    bases::{HeldPages, local::Snapshot},
    criu::{
        images::{ImageSet, Owner, PagesFile, ReadImagesError},
        thin::{self, Thinned},
    },
    dump::Folder,
    memory_file::{MappedFile, NewFile},
    page_work,
    pager::{Learnt, Missing},
    restore::{LaidOut, RestoreError},
    roads::blocking,
    skeleton::{self, UnpackError},
};

/// Lays out what CRIU puts back at once, and tells what comes later.
pub(crate) async fn lay_out(
    threads: NonZeroUsize,
    image: DedupImage<MappedFile>,
    (bases, whole, learnt): (HeldPages, Vec<Arc<Snapshot>>, Learnt),
    folder: Folder,
) -> Result<(LaidOut, Missing), RestoreError> {
    blocking(move || {
        let path = folder.path();
        let unpacked = skeleton::unpack_files(&image.sections()?, image.pages(), path)?;
        let set = read(&folder, &unpacked.pages)?;
        let mut pages = BTreeMap::new();
        let mut now = Vec::new();
        for (thinned, first) in
            set.thin(path).map_err(ReadImagesError::from)?.into_iter().zip(starts(&set.pages))
        {
            let Thinned { file, now: at_once, later } = thinned;
            let index = |position: u64| u32::try_from(first + position).unwrap_or(u32::MAX);
            let created = create(&folder, &file)?;
            now.push((created, at_once.into_iter().map(|at| PageIndex(index(at))).collect::<Vec<_>>()));
            if let (Owner::Process { pid }, false) = (file.owner, later.is_empty()) {
                thin::write_pagemap(path, &file).map_err(ReadImagesError::from)?;
                pages.insert(pid, later.into_iter().map(|(page, at)| (page, index(at))).collect());
            }
        }
        let mut out: Vec<(PageIndex, &mut Page)> = now
            .iter_mut()
            .flat_map(|(file, at)| at.iter().copied().zip(file.as_mut().as_chunks_mut::<PAGE_BYTES>().0))
            .collect();
        page_work::rebuild_some(&image, &bases, &mut out, threads)?;
        let laid = LaidOut { masks: unpacked.masks, pipe: unpacked.pipe, files: set.pages, folder };
        Ok((laid, Missing { image: Arc::new(image), bases: whole, pages, learnt }))
    })
    .await
}

/// The images as they were dumped, with pages files of nothing but holes.
fn read(folder: &Folder, pages: &[(String, u64)]) -> Result<ImageSet, RestoreError> {
    for (name, pages) in pages {
        let path = folder.path().join(name);
        let made = File::create_new(&path).and_then(|file| file.set_len(pages * PAGE_BYTES as u64));
        made.map_err(|source| UnpackError::Write { path, source })?;
    }
    let set = ImageSet::read(folder.path())?;
    // Positions are counted in the order of the image's own list.
    let listed = set.pages.iter().map(|file| (&file.name, file.pages));
    match listed.eq(pages.iter().map(|(name, pages)| (name, *pages))) {
        true => Ok(set),
        false => Err(UnpackError::Table.into()),
    }
}

/// The position of the first page of each file in the image.
fn starts(files: &[PagesFile]) -> impl Iterator<Item = u64> {
    files.iter().scan(0, |next, file| {
        let first = *next;
        *next += file.pages;
        Some(first)
    })
}

fn create(folder: &Folder, file: &PagesFile) -> Result<NewFile, UnpackError> {
    let path = folder.path().join(&file.name);
    let created =
        std::fs::remove_file(&path).and_then(|()| NewFile::create(&path, file.pages * PAGE_BYTES as u64));
    created.map_err(|source| UnpackError::Write { path, source })
}
