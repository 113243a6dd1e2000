//! The pages of one dedup image, stored in other ways: compressed alone, and by the paper's rule.
//!
//! The pages are rebuilt from the image itself, so all ways store exactly the same bytes.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use medes_agent::{
    bases::{HeldPages, local::Snapshot},
    engine::Engine,
    page_work,
    roads::blocking,
};
use medes_controller::registry::{PageIndex, Registry as _, Table, TableSettings};
use medes_dedup::{
    candidate::{self, FanOut},
    fingerprint::Fingerprint,
    image::{DedupImage, ImageBuilder},
    page::{BasePage, PAGE_BYTES, Page, SnapshotId},
    paper,
};
use medes_proto::{
    fleet::EngineSettings,
    registry::{Fingerprints, Hint, SnapshotPlace},
};

use crate::station::{KEY, Station, threads};

/// zstd's level that the design compares with.
const ZSTD_LEVEL: i32 = 1;
/// This node, as candidates know it.
const HERE: candidate::NodeId = candidate::NodeId(0);

/// Bytes of the same pages, stored in other ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compared {
    /// One zstd frame of all pages: nothing but the pages in it, and no page readable alone.
    pub(super) zstd_bytes: u64,
    /// A dedup image made by the paper's rule, skeleton and private files included as in ours.
    pub(super) paper_bytes: u64,
}

/// Stores the pages of `image` in the other ways. `private_bytes` are files that stay, whatever the image is.
pub(super) async fn compare(
    station: &Station,
    base: &Arc<Snapshot>,
    image: Vec<u8>,
    places: &BTreeMap<SnapshotId, SnapshotPlace>,
    private_bytes: u64,
) -> Result<Compared> {
    let settings = EngineSettings { sampling: paper::sampling(), ..EngineSettings::default() };
    let engine = Engine::new(KEY, settings, threads());
    let image = DedupImage::open(image, engine.key())?;
    let mut wanted: Vec<BasePage> = image.reads().iter().map(|read| read.base).collect();
    if wanted.is_empty() {
        // The paper's rule may find something all the same.
        wanted.push(BasePage { snapshot: base.id, page: PageIndex(0) });
    }
    // The one snapshot there is: with one page of it, all can be read.
    let bases = station.roads.bases.read(&wanted, places).await?;
    let base = base.clone();
    blocking(move || {
        let bytes = rebuild(&image, &bases)?;
        let zstd_bytes = zstd::bulk::compress(&bytes, ZSTD_LEVEL).context("compress the pages")?.len() as u64;
        let image_bytes = by_papers_rule(&engine, &base, &bases, &bytes, &image)?;
        Ok(Compared { zstd_bytes, paper_bytes: image_bytes + private_bytes })
    })
    .await
}

/// All pages of an image, one after the other.
fn rebuild(image: &DedupImage<Vec<u8>>, bases: &HeldPages) -> Result<Vec<u8>> {
    let mut bytes = vec![0; image.pages() as usize * PAGE_BYTES];
    let mut pages: Vec<&mut Page> = bytes.as_chunks_mut::<PAGE_BYTES>().0.iter_mut().collect();
    page_work::rebuild(image, bases, &mut pages, threads()).context("rebuild the pages")?;
    Ok(bytes)
}

/// Bytes of a dedup image of these pages as the paper would make it, with the sections of the real one.
fn by_papers_rule(
    engine: &Engine,
    base: &Snapshot,
    bases: &HeldPages,
    bytes: &[u8],
    image: &DedupImage<Vec<u8>>,
) -> Result<u64> {
    let fingerprinter = engine.fingerprinter();
    let table = Table::new(TableSettings::default());
    let base_pages: Vec<&Page> = base.pages().collect();
    let known = page_work::fingerprint(&base_pages, &fingerprinter, threads());
    table.register(base.id, PageIndex(0), &flat(&known));

    let pages: Vec<&Page> = bytes.as_chunks::<PAGE_BYTES>().0.iter().collect();
    let asked = page_work::fingerprint(&pages, &fingerprinter, threads());
    let hints: Vec<Vec<candidate::Hint>> =
        table.lookup(&flat(&asked), &|_| true).iter().map(|page| page.iter().map(here).collect()).collect();
    let mut fan_out = FanOut::new(engine.candidate_rules(), HERE);
    fan_out.plan(hints.iter().map(Vec::as_slice));
    let choices: Vec<Vec<BasePage>> = hints
        .iter()
        .map(|hints| {
            let mut chosen = Vec::new();
            fan_out.choose(hints, &mut chosen);
            chosen
        })
        .collect();
    let runs = page_work::encode(&pages, &choices, bases, (engine.key(), engine.encode_rules()), threads())?;
    let mut built = ImageBuilder::new(engine.key());
    runs.iter().try_for_each(|run| built.append(run))?;
    for (name, data) in image.sections()?.iter() {
        built.section(name, data.to_vec())?;
    }
    Ok(built.finish()?.len() as u64)
}

fn here(hint: &Hint) -> candidate::Hint {
    candidate::Hint { base: hint.base, node: HERE, votes: hint.votes.into() }
}

fn flat(pages: &[Fingerprint]) -> Fingerprints {
    let mut flat = Fingerprints::default();
    pages.iter().for_each(|page| flat.push(page.hashes()));
    flat
}
