//! How fast each stage is on one core, and what one page costs.

use anyhow::Result;
use medes_dedup::page::ZERO_PAGE;
use serde::Serialize;

use super::{
    clock::{best_of, timed},
    dump::Dump,
    ours::{self, Base, Level, Reader},
};
use medes_load::dice::Dice;

/// Every stage is timed so often, and the shortest time counts.
pub(super) const ATTEMPTS: usize = 3;
/// Images opened anew for the first page of each.
const COLD: usize = 25;
/// Pages read from an open image.
const WARM: usize = 10_000;

/// Times of one target, or of several.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    plain_bytes: u64,
    base_bytes: u64,
    index_bytes: u64,
    fingerprint_seconds: f64,
    index_seconds: f64,
    pub(super) fast: OfLevel,
    pub(super) small: OfLevel,
}

/// Times of one level.
#[derive(Debug, Clone, Default)]
pub(super) struct OfLevel {
    align_seconds: f64,
    encode_seconds: f64,
    decode_seconds: f64,
    open_us: Vec<f64>,
    cold_us: Vec<f64>,
    warm_us: Vec<f64>,
}

/// As the report has them. MB are millions of bytes of sandbox memory.
#[derive(Debug, Serialize)]
pub(super) struct Speeds {
    pub(super) fingerprint_mb_s: f64,
    pub(super) index_mb_s: f64,
    /// Memory of the index by that of the base's pages.
    pub(super) index_to_base: f64,
    pub(super) fast: LevelSpeeds,
    pub(super) small: LevelSpeeds,
}

#[derive(Debug, Serialize)]
pub(super) struct LevelSpeeds {
    pub(super) align_mb_s: f64,
    /// All of it: alignment, learning, coding, hashing and the proof.
    pub(super) encode_mb_s: f64,
    /// Rebuilding, each page's hash checked.
    pub(super) decode_mb_s: f64,
    /// Opening an image: checksum, seal, recipes and tables.
    pub(super) open_ms_p50: f64,
    /// The first page of an image just opened.
    pub(super) page_cold_us_p50: f64,
    pub(super) page_warm_us_p50: f64,
    pub(super) page_warm_us_p99: f64,
}

impl Times {
    pub(super) fn measure(target: &Dump, base_dump: &Dump) -> Result<Self> {
        let base = Base::new(base_dump)?;
        let mut problem = Ok(());
        let index_seconds = best_of(ATTEMPTS, || {
            if let Err(error) = Base::new(base_dump) {
                problem = Err(error);
            }
        });
        problem?;
        let mut chunks = 0;
        let fingerprint_seconds = best_of(ATTEMPTS, || chunks = ours::fingerprint(target));
        anyhow::ensure!(chunks > 0, "no page has a fingerprint");
        Ok(Self {
            plain_bytes: target.bytes.len() as u64,
            base_bytes: base_dump.bytes.len() as u64,
            index_bytes: base.memory_bytes() as u64,
            fingerprint_seconds,
            index_seconds,
            fast: OfLevel::measure(target, &base, Level::Fast)?,
            small: OfLevel::measure(target, &base, Level::Small)?,
        })
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.plain_bytes += other.plain_bytes;
        self.base_bytes += other.base_bytes;
        self.index_bytes += other.index_bytes;
        self.fingerprint_seconds += other.fingerprint_seconds;
        self.index_seconds += other.index_seconds;
        self.fast.add(&other.fast);
        self.small.add(&other.small);
    }

    pub(super) fn speeds(&self) -> Speeds {
        let bytes = self.plain_bytes as f64;
        Speeds {
            fingerprint_mb_s: bytes / 1e6 / self.fingerprint_seconds,
            index_mb_s: self.base_bytes as f64 / 1e6 / self.index_seconds,
            index_to_base: self.index_bytes as f64 / self.base_bytes as f64,
            fast: self.fast.speeds(bytes),
            small: self.small.speeds(bytes),
        }
    }
}

impl OfLevel {
    fn measure(target: &Dump, base: &Base<'_>, level: Level) -> Result<Self> {
        let mut times = Self { align_seconds: f64::INFINITY, ..Self::default() };
        times.encode_seconds = f64::INFINITY;
        times.decode_seconds = f64::INFINITY;
        let mut kept = None;
        for _ in 0..ATTEMPTS {
            let stored = ours::store(target, base, level)?;
            times.align_seconds = times.align_seconds.min(stored.align);
            times.encode_seconds = times.encode_seconds.min(stored.align + stored.code);
            times.decode_seconds = times.decode_seconds.min(ours::prove(&stored, target, base)?);
            kept = Some(stored);
        }
        if let Some(stored) = kept {
            times.read_pages(stored.file(), target, base)?;
        }
        Ok(times)
    }

    /// One page at a time, at random.
    fn read_pages(&mut self, file: &[u8], target: &Dump, base: &Base<'_>) -> Result<()> {
        let pages = u32::try_from(target.pages().len())?;
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut out = Box::new(ZERO_PAGE);
        for _ in 0..COLD {
            let (reader, seconds) = timed(|| Reader::open(file));
            self.open_us.push(seconds * 1e6);
            let (mut reader, page) = (reader?, dice.below(pages));
            let (read, seconds) = timed(|| reader.page(page, base, &mut out));
            read?;
            self.cold_us.push(seconds * 1e6);
        }
        let mut reader = Reader::open(file)?;
        for _ in 0..WARM {
            let page = dice.below(pages);
            let (read, seconds) = timed(|| reader.page(page, base, &mut out));
            read?;
            self.warm_us.push(seconds * 1e6);
        }
        Ok(())
    }

    fn add(&mut self, other: &Self) {
        self.align_seconds += other.align_seconds;
        self.encode_seconds += other.encode_seconds;
        self.decode_seconds += other.decode_seconds;
        self.open_us.extend(&other.open_us);
        self.cold_us.extend(&other.cold_us);
        self.warm_us.extend(&other.warm_us);
    }

    fn speeds(&self, bytes: f64) -> LevelSpeeds {
        LevelSpeeds {
            align_mb_s: bytes / 1e6 / self.align_seconds,
            encode_mb_s: bytes / 1e6 / self.encode_seconds,
            decode_mb_s: bytes / 1e6 / self.decode_seconds,
            open_ms_p50: quantile(&self.open_us, 0.5) / 1e3,
            page_cold_us_p50: quantile(&self.cold_us, 0.5),
            page_warm_us_p50: quantile(&self.warm_us, 0.5),
            page_warm_us_p99: quantile(&self.warm_us, 0.99),
        }
    }
}

/// The value that this share of all values does not exceed; not a number when there is none.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::{super::methods::tests::process, *};

    #[test]
    fn times_become_speeds() {
        let level = OfLevel {
            align_seconds: 1.0,
            encode_seconds: 2.0,
            decode_seconds: 0.5,
            open_us: vec![2000.0],
            cold_us: vec![9.0, 1.0, 5.0],
            warm_us: (1..=100).map(f64::from).collect(),
        };
        let speeds = level.speeds(10e6);
        assert_eq!((speeds.align_mb_s, speeds.encode_mb_s, speeds.decode_mb_s), (10.0, 5.0, 20.0));
        assert_eq!((speeds.open_ms_p50, speeds.page_cold_us_p50, speeds.page_warm_us_p99), (2.0, 5.0, 99.0));
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn every_stage_of_a_real_target_is_timed() {
        let times =
            Times::measure(&process(0x5550_0000_0000, 20, 1), &process(0x5660_0000_0000, 20, 2)).unwrap();
        let speeds = times.speeds();
        for speed in
            [speeds.fingerprint_mb_s, speeds.index_mb_s, speeds.fast.encode_mb_s, speeds.small.decode_mb_s]
        {
            assert!(speed.is_finite() && speed > 0.0, "{speeds:?}");
        }
        assert_eq!((times.fast.warm_us.len(), times.small.cold_us.len()), (WARM, COLD));
        let mut twice = times.clone();
        twice.add(&times);
        assert!((twice.speeds().index_mb_s - speeds.index_mb_s).abs() < 1e-6);
    }
}
