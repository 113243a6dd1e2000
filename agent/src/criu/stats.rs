//! How long the phases of a dump or restore took, as CRIU counted them.

use std::path::Path;
use std::time::Duration;

use super::image_file::{self, Entries};
use super::wire::images;

/// The statistics of one request, if CRIU left any: they are never worth failing for.
pub(super) fn read(folder: &Path, name: &str) -> Option<images::Stats> {
    let bytes = image_file::read(&folder.join(name), image_file::SMALL_BYTES_MAX).ok()?;
    Entries::service(&bytes, image_file::STATS_MAGIC).ok()?.next()?.ok()
}

pub(super) fn micros(us: u32) -> Duration {
    Duration::from_micros(us.into())
}
