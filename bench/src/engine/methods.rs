//! The ways to store a target that are compared. Each gives back every page, and is seen to do so.
//!
//! A new way is one more line in [`METHODS`].

use std::{collections::HashSet, fs, process::Command, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use medes_dedup::page::{PAGE_BYTES, Page, is_zero};
use serde::Serialize;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, get_error_name};

use super::{
    clock::timed,
    dump::Dump,
    ours::{self, Base, Hinted, Level, Registry},
};

/// One way.
pub(super) struct Method {
    /// Its name in engine.json.
    pub(super) name: &'static str,
    /// Its name in the table.
    pub(super) head: &'static str,
    /// Slow ways are tried on some targets only, unless everything was asked for.
    pub(super) effort: Effort,
    run: fn(&Dump, &Base<'_>) -> Result<Measured>,
}

/// How much work a way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// Every target.
    Light,
    /// The first target of each base.
    Heavy,
    /// The first target of each base, if it is small.
    Extreme,
}

/// More than this is not small.
const SMALL_BYTES_MAX: usize = 30_000_000;

impl Effort {
    /// Whether a target is worth it: its position among those of its base, and its size.
    pub(super) const fn covers(self, position: usize, bytes: usize, full: bool) -> bool {
        match self {
            Self::Light => true,
            Self::Heavy => full || position == 0,
            Self::Extreme => full || position == 0 && bytes < SMALL_BYTES_MAX,
        }
    }
}

/// What a way made of a target, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Measured {
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
    /// Beside coded pages: recipes, tables, header. Of our images only.
    pub(super) overhead_bytes: u64,
    pub(super) encode_seconds: f64,
    /// Part of encoding: finding out what to predict a page from.
    pub(super) align_seconds: f64,
    pub(super) decode_seconds: f64,
}

impl Measured {
    fn of(target: &Dump, stored_bytes: usize) -> Self {
        let plain_bytes = target.bytes.len() as u64;
        Self { plain_bytes, stored_bytes: stored_bytes as u64, ..Self::default() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self { plain_bytes, stored_bytes, overhead_bytes, encode_seconds, align_seconds, decode_seconds } =
            *other;
        self.plain_bytes += plain_bytes;
        self.stored_bytes += stored_bytes;
        self.overhead_bytes += overhead_bytes;
        self.encode_seconds += encode_seconds;
        self.align_seconds += align_seconds;
        self.decode_seconds += decode_seconds;
    }

    /// Fraction of the plain bytes; not a number where nothing was measured.
    pub(super) fn fraction(&self) -> f64 {
        self.stored_bytes as f64 / self.plain_bytes as f64
    }
}

impl Method {
    pub(super) fn run(&self, target: &Dump, base: &Base<'_>) -> Result<Measured> {
        (self.run)(target, base).with_context(|| self.name)
    }
}

/// All of them, in the order of the table.
pub(super) const METHODS: &[Method] = &[
    light("identical_pages", "SAME", identical),
    light("paper", "PAPER", |target, base| hinted(target, base, Hinted::Paper)),
    Method { effort: Effort::Heavy, ..light("xdelta3_per_page", "XDELTA", xdelta) },
    light("lz4", "LZ4", |target, _| lz4(target)),
    light("zstd_1", "ZSTD-1", |target, _| zstd_alone(target, 1)),
    light("zstd_3", "ZSTD-3", |target, _| zstd_alone(target, 3)),
    light("patch_from_1", "PATCH-1", |target, base| patch(target, base, 1)),
    light("patch_from_3", "PATCH-3", |target, base| patch(target, base, 3)),
    Method { effort: Effort::Heavy, ..light("patch_from_9", "PATCH-9", |t, b| patch(t, b, 9)) },
    Method { effort: Effort::Extreme, ..light("patch_from_19", "PATCH-19", |t, b| patch(t, b, 19)) },
    light("level_0", "LEVEL 0", |target, base| hinted(target, base, Hinted::Default)),
    light(FAST, "FAST", |target, base| words(target, base, Level::Fast)),
    light(SMALL_GENERIC, "GENERIC", |target, base| words(target, base, Level::SmallGeneric)),
    light(SMALL, "SMALL", |target, base| words(target, base, Level::Small)),
];

pub(super) const FAST: &str = "fast";
/// Small, without what is known of CPython.
pub(super) const SMALL_GENERIC: &str = "small_generic";
pub(super) const SMALL: &str = "small";
pub(super) const ZSTD_ALONE: &str = "zstd_1";

const fn light(name: &'static str, head: &'static str, run: Run) -> Method {
    Method { name, head, effort: Effort::Light, run }
}

type Run = fn(&Dump, &Base<'_>) -> Result<Measured>;

/// What a recipe takes in an image of level 0. Knowing which page of the base it is costs as much here.
const RECIPE_BYTES: usize = 24;

/// Pages of zeros and pages equal to any page of the base, at the price of a recipe each; the others whole.
fn identical(target: &Dump, base: &Base<'_>) -> Result<Measured> {
    let known: HashSet<&Page> = base.dump().pages().iter().collect();
    let pages = target.pages();
    let found = pages.iter().filter(|page| is_zero(page) || known.contains(*page)).count();
    Ok(Measured::of(target, pages.len() * RECIPE_BYTES + (pages.len() - found) * PAGE_BYTES))
}

fn lz4(target: &Dump) -> Result<Measured> {
    let (stored, encode_seconds) = timed(|| lz4_flex::compress(&target.bytes));
    let (plain, decode_seconds) = timed(|| lz4_flex::decompress(&stored, target.bytes.len()));
    ensure!(plain? == target.bytes, "the dump does not come back");
    Ok(Measured { encode_seconds, decode_seconds, ..Measured::of(target, stored.len()) })
}

fn zstd_alone(target: &Dump, level: i32) -> Result<Measured> {
    let (stored, encode_seconds) = timed(|| zstd::bulk::compress(&target.bytes, level));
    let stored = stored?;
    let (plain, decode_seconds) = timed(|| zstd::bulk::decompress(&stored, target.bytes.len()));
    ensure!(plain? == target.bytes, "the dump does not come back");
    Ok(Measured { encode_seconds, decode_seconds, ..Measured::of(target, stored.len()) })
}

/// What `zstd --patch-from BASE --long` does: the base in front of the file, one window over both.
fn patch(target: &Dump, base: &Base<'_>, level: i32) -> Result<Measured> {
    let (base, bytes) = (&base.dump().bytes, &target.bytes);
    let window = (base.len() + bytes.len()).next_power_of_two().trailing_zeros().clamp(10, 31);
    let mut stored = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    let (done, encode_seconds) = timed(|| {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level))?;
        context.set_parameter(CParameter::WindowLog(window))?;
        context.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
        context.ref_prefix(base)?;
        context.compress2(&mut stored, bytes)
    });
    done.map_err(zstd_error)?;
    let mut plain = Vec::with_capacity(bytes.len());
    let (done, decode_seconds) = timed(|| {
        let mut context = DCtx::create();
        context.set_parameter(DParameter::WindowLogMax(window))?;
        context.ref_prefix(base)?;
        context.decompress(&mut plain, &stored)
    });
    done.map_err(zstd_error)?;
    ensure!(plain == *bytes, "the dump does not come back");
    Ok(Measured { encode_seconds, decode_seconds, ..Measured::of(target, stored.len()) })
}

fn zstd_error(code: usize) -> anyhow::Error {
    anyhow::anyhow!("zstd: {}", get_error_name(code))
}

/// Pages given to xdelta3 for one target. Each is a process of its own, so not all of them.
const SAMPLE: usize = 400;

/// The paper's candidates with the paper's codec: the xdelta3 program on single pages, each with its base page. Where
/// it is not installed there is no figure. Sizes are those of a sample, evenly spread, times its spacing; pages without
/// a candidate stay whole, pages that are zero or the same cost a recipe as in our images.
fn xdelta(target: &Dump, base: &Base<'_>) -> Result<Measured> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let [page_file, base_file, delta_file, back_file] =
        ["page", "base", "delta", "back"].map(|name| folder.path().join(name));
    let choices = Registry::new(base, Hinted::Paper).choices(target, Hinted::Paper);
    let pages = target.pages();
    let step = pages.len().div_ceil(SAMPLE);
    let (mut taken, mut stored, mut seconds) = (0, 0, 0.0);
    for (page, chosen) in pages.iter().zip(&choices).step_by(step) {
        taken += 1;
        stored += RECIPE_BYTES;
        if is_zero(page) {
            continue;
        }
        let Some(from) = chosen.first().and_then(|chosen| ours::base_page(base, *chosen)) else {
            stored += PAGE_BYTES;
            continue;
        };
        if from == page {
            continue;
        }
        fs::write(&page_file, page)?;
        fs::write(&base_file, from)?;
        // No checksum, no file names, no secondary compression, the lightest level: as little as it can write.
        let mut encode = Command::new("xdelta3");
        encode.args(["-e", "-f", "-1", "-n", "-A", "-S", "none", "-s"]);
        encode.args([&base_file, &page_file, &delta_file]);
        // Another process: what it takes shows on the clock on the wall only.
        let start = Instant::now();
        let status = encode.status();
        seconds += start.elapsed().as_secs_f64();
        match status {
            Ok(status) => ensure!(status.success(), "xdelta3 ended with {status}"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Measured::default()),
            Err(error) => bail!("start xdelta3: {error}"),
        }
        let mut decode = Command::new("xdelta3");
        decode.args(["-d", "-f", "-s"]).args([&base_file, &delta_file, &back_file]);
        ensure!(decode.status()?.success(), "xdelta3 does not read its own delta");
        ensure!(fs::read(&back_file)? == page, "a page does not come back");
        stored += usize::try_from(fs::metadata(&delta_file)?.len())?.min(PAGE_BYTES);
    }
    // Of whole sampled pages, so that the fraction is exact for what was looked at.
    let scale = pages.len() as f64 / taken.max(1) as f64;
    let encode_seconds = seconds * scale;
    Ok(Measured { encode_seconds, ..Measured::of(target, (stored as f64 * scale) as usize) })
}

fn hinted(target: &Dump, base: &Base<'_>, how: Hinted) -> Result<Measured> {
    measured(&ours::store_hinted(target, base, how)?, target, base)
}

fn words(target: &Dump, base: &Base<'_>, level: Level) -> Result<Measured> {
    measured(&ours::store(target, base, level)?, target, base)
}

fn measured(stored: &ours::Stored, target: &Dump, base: &Base<'_>) -> Result<Measured> {
    let decode_seconds = ours::prove(stored, target, base)?;
    Ok(Measured {
        plain_bytes: target.bytes.len() as u64,
        stored_bytes: stored.bytes(),
        overhead_bytes: stored.overhead_bytes(),
        encode_seconds: stored.align + stored.code,
        align_seconds: stored.align,
        decode_seconds,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use medes_dedup::mapping::{Backing, Mapping, Mappings};

    use super::*;

    /// A process with `pages` pages of words, some of them pointers, at an address of its own.
    pub(crate) fn process(start: u64, pages: usize, own: u8) -> Dump {
        let mut bytes = vec![0; pages * PAGE_BYTES];
        for (at, word) in (0_u64..).zip(bytes.as_chunks_mut::<8>().0) {
            let value =
                if at % 3 == 0 { start + at * 8 % 4096 } else { at.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
            *word = value.to_le_bytes();
        }
        bytes[5000] = own;
        let end = start + bytes.len() as u64;
        let mapping = Mapping { start, end, backing: Backing::Heap };
        let addresses = (start..end).step_by(PAGE_BYTES).collect();
        let mut dump = Dump::default();
        dump.push(&bytes, addresses, Mappings::new([mapping]).unwrap());
        dump
    }

    #[test]
    fn every_way_gives_pages_back_and_ours_sees_through_addresses() {
        let (base, target) = (process(0x5550_0000_0000, 20, 1), process(0x5660_0000_0000, 20, 2));
        let base = Base::new(&base).unwrap();
        let mut fractions = std::collections::BTreeMap::new();
        for method in METHODS {
            let measured = method.run(&target, &base).unwrap_or_else(|e| panic!("{e:#}"));
            fractions.insert(method.name, measured.fraction());
        }
        assert!(fractions[SMALL] < 0.1, "{fractions:?}");
        assert!(fractions[FAST] < fractions["zstd_3"] / 2.0, "{fractions:?}");
        assert!(fractions["identical_pages"] > 0.9, "every page has pointers: {fractions:?}");
    }

    #[test]
    fn slow_ways_are_for_some_targets() {
        let small = SMALL_BYTES_MAX - 1;
        assert!(Effort::Light.covers(1, usize::MAX, false));
        assert!(Effort::Heavy.covers(0, usize::MAX, false) && !Effort::Heavy.covers(1, small, false));
        assert!(Effort::Extreme.covers(0, small, false) && !Effort::Extreme.covers(0, small + 1, false));
        assert!(Effort::Extreme.covers(1, usize::MAX, true), "asked for");
    }

    #[test]
    fn what_was_not_measured_is_no_fraction() {
        assert!(Measured::default().fraction().is_nan());
        let mut sum = Measured { plain_bytes: 100, stored_bytes: 10, ..Measured::default() };
        sum.add(&Measured { plain_bytes: 300, stored_bytes: 10, ..Measured::default() });
        assert_eq!(sum.fraction(), 0.05);
    }
}
