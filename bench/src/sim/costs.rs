//! What starts, dedups and restores take and hold, as measured on real sandboxes by `bench restore`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Of one function.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    /// Its name where it was measured.
    pub(super) function: String,
    /// From nothing to ready.
    pub(super) cold: Duration,
    /// From a dedup image to ready.
    pub(super) restore: Duration,
    /// From warm to a dedup image.
    pub(super) dedup: Duration,
    /// What a warm sandbox holds.
    pub(super) warm_bytes: u64,
    /// What a dedup image holds.
    pub(super) stored_bytes: u64,
    /// What one holds that was made without a base.
    pub(super) alone_bytes: u64,
}

/// Of all functions that were measured. Functions of a trace take their turns with them, as in the paper's evaluation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Costs(Vec<Cost>);

#[derive(Debug, Deserialize)]
struct File {
    rows: Vec<Row>,
}

/// Rows of functions that were not measured have other fields.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Row {
    Measured(Box<Measured>),
    Other(serde::de::IgnoredAny),
}

/// Times in milliseconds, to the first answer.
#[derive(Debug, Deserialize)]
struct Measured {
    function: String,
    cold: Median,
    restore: Median,
    warm: Median,
    dedup: Median,
    page_bytes: Median,
    stored_bytes: Median,
    same_pages: SamePages,
}

/// The same pages stored in other ways, as fractions.
#[derive(Debug, Clone, Copy, Deserialize)]
struct SamePages {
    zstd_fraction: f64,
}

/// Page by page and with recipes, pages take so much more than in one zstd frame: 1.11 (linalg) to 1.17 (auth), measured on dumps
/// of seven of the ten functions.
const BY_PAGE: f64 = 1.16;

#[derive(Debug, Clone, Copy, Deserialize)]
struct Median {
    p50: f64,
}

impl Costs {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let doing = || format!("read what was measured from {}", path.display());
        let text = fs::read_to_string(path).with_context(doing)?;
        Self::parse(&text).with_context(doing)
    }

    fn parse(text: &str) -> Result<Self> {
        let file: File = serde_json::from_str(text)?;
        let time = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1e3);
        let costs: Vec<Cost> = file
            .rows
            .into_iter()
            .filter_map(|row| match row {
                Row::Measured(row) => Some(Cost {
                    // The first answer holds a request's own time, which is the trace's here.
                    cold: time(row.cold.p50 - row.warm.p50),
                    restore: time(row.restore.p50 - row.warm.p50),
                    dedup: time(row.dedup.p50),
                    warm_bytes: row.page_bytes.p50 as u64,
                    stored_bytes: row.stored_bytes.p50 as u64,
                    alone_bytes: (row.page_bytes.p50 * row.same_pages.zstd_fraction * BY_PAGE) as u64,
                    function: row.function,
                }),
                Row::Other(_) => None,
            })
            .collect();
        ensure!(!costs.is_empty(), "no function was measured");
        Ok(Self(costs))
    }

    /// Of function `number` of a trace.
    pub(super) fn of(&self, number: u32) -> &Cost {
        &self.0[number as usize % self.0.len()]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::sim) const TEXT: &str = r#"{"rows": [
        {"outcome": "measured", "function": "vanilla", "cold": {"p50": 80.0}, "restore": {"p50": 60.0},
         "warm": {"p50": 20.0}, "dedup": {"p50": 70.0}, "page_bytes": {"p50": 9e6}, "stored_bytes": {"p50": 3e5},
         "same_pages": {"zstd_fraction": 0.25}},
        {"outcome": "skipped", "function": "linalg", "reason": "no numpy"}]}"#;

    pub(in crate::sim) fn costs() -> Costs {
        Costs::parse(TEXT).unwrap()
    }

    #[test]
    fn a_start_is_what_its_first_answer_takes_longer_than_a_warm_one() {
        let ms = Duration::from_millis;
        let cost = Cost {
            function: "vanilla".into(),
            cold: ms(60),
            restore: ms(40),
            dedup: ms(70),
            warm_bytes: 9_000_000,
            stored_bytes: 300_000,
            alone_bytes: 2_610_000,
        };
        assert_eq!(costs(), Costs(vec![cost]));
        assert_eq!(costs().of(0), costs().of(5));
    }

    #[test]
    fn without_a_measured_function_there_is_nothing_to_simulate() {
        assert!(Costs::parse(r#"{"rows": [{"function": "x"}]}"#).is_err());
        assert!(Costs::parse("[]").is_err());
    }
}
