//! The sending end: what a node says of a sandbox that it offers, and its bytes.

use std::{io, iter, path::PathBuf};

use bytes::Bytes;
use futures::{Stream, stream};
use medes_proto::{
    limits::{IMAGE_PART_BYTES_MAX, MOVED_FILES_BYTES_MAX},
    moving::ImageHead,
    sandbox::PageClasses,
    wire::{ImagePart, image_part::Part},
};

use super::monotonic;
use crate::{earlier::Origin, memory_file::MappedFile, private_files, roads::Stored};

/// What of a sandbox goes to another node.
#[derive(Debug)]
pub struct Parcel {
    image: MappedFile,
    /// The folder of its private files.
    folder: PathBuf,
    origin: Origin,
    record: Record,
}

/// What the driver of its node knows of a sandbox that is in dedup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// What became of its pages.
    pub pages: PageClasses,
    /// Requests it has answered.
    pub requests: u64,
    /// How often it came back.
    pub starts_from_dedup: u64,
}

impl Parcel {
    /// Of a sandbox that stays where it is meanwhile.
    pub fn of(stored: &Stored, record: Record) -> Self {
        let (image, origin) = (stored.image.clone(), stored.origin.clone());
        Self { image, folder: stored.housing.private_dir().to_owned(), origin, record }
    }

    /// Packs the private files and counts the hash. Blocks.
    ///
    /// # Errors
    /// The files cannot be read (the sandbox was removed meanwhile), or are too many.
    pub fn pack(self) -> io::Result<Packed> {
        let Self { image, folder, origin, record } = self;
        let bytes_max = usize::try_from(MOVED_FILES_BYTES_MAX).unwrap_or(usize::MAX);
        let files = private_files::pack(&folder, bytes_max)?;
        if files.len() > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(image.as_ref()).update(&files);
        let Record { pages, requests, starts_from_dedup } = record;
        let head = ImageHead {
            image_bytes: image.as_ref().len() as u64,
            file_bytes: files.len() as u64,
            hash: *hasher.finalize().as_bytes(),
            places: origin.places.into_values().collect(),
            aligned_with: origin.aligned_with,
            pages,
            requests,
            starts_from_dedup,
            monotonic: monotonic(),
        };
        Ok(Packed { head, image, files: files.into() })
    }
}

/// Ready to be sent.
#[derive(Debug)]
pub struct Packed {
    pub(super) head: ImageHead,
    pub(super) image: MappedFile,
    pub(super) files: Bytes,
}

impl Packed {
    /// All of it, part by part. Nothing is copied here: a part is a piece of the mapped image, or of the packed files.
    pub fn parts(self) -> impl Stream<Item = ImagePart> + Send + 'static {
        let Self { head, image, files } = self;
        let bytes = pieces(Bytes::from_owner(image)).chain(pieces(files)).map(Part::Bytes);
        let parts = iter::once(Part::Head(head.into())).chain(bytes);
        stream::iter(parts.map(|part| ImagePart { part: Some(part) }))
    }
}

fn pieces(bytes: Bytes) -> impl Iterator<Item = Bytes> + Send + 'static {
    let starts = (0..bytes.len()).step_by(IMAGE_PART_BYTES_MAX);
    starts.map(move |start| bytes.slice(start..bytes.len().min(start + IMAGE_PART_BYTES_MAX)))
}
