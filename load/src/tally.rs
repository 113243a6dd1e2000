//! What came back: how many, by how their sandbox came to be ready, and how long they took from when they were due.

use std::{collections::BTreeMap, time::Duration};

use medes_proto::sandbox::StartKind;
use serde::Serialize;

/// Kinds of failures that are told apart.
const KINDS_MAX: usize = 32;
const OTHER: &str = "other";

/// Times, every single one of them.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<u32>);

/// Some times in a few numbers, in milliseconds. A percentile is the smallest that so many are not above; of no times all are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many they are.
    pub count: u64,
    /// Their mean.
    pub mean_ms: f64,
    /// Half of them.
    pub p50_ms: f64,
    /// Nine of ten.
    pub p90_ms: f64,
    /// 99 of a hundred.
    pub p99_ms: f64,
    /// 999 of a thousand.
    pub p999_ms: f64,
    /// All.
    pub max_ms: f64,
}

impl Times {
    /// One more. Kept to a microsecond, and as an hour when it is longer.
    pub fn add(&mut self, time: Duration) {
        self.0.push(u32::try_from(time.as_micros()).unwrap_or(3_600_000_000));
    }

    /// In a few numbers.
    pub fn percentiles(&self) -> Percentiles {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let ms = |micros: u32| f64::from(micros) / 1e3;
        let at = |per_mille: usize| {
            let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
            sorted.get(rank - 1).copied().map_or(0.0, ms)
        };
        let sum: u64 = sorted.iter().map(|micros| u64::from(*micros)).sum();
        Percentiles {
            count: sorted.len() as u64,
            mean_ms: sum as f64 / 1e3 / sorted.len().max(1) as f64,
            p50_ms: at(500),
            p90_ms: at(900),
            p99_ms: at(990),
            p999_ms: at(999),
            max_ms: at(1000),
        }
    }

    /// So many points of their distribution, evenly spread, the last one the longest: the part of all that is not above, and that time in milliseconds.
    pub fn distribution(&self, points: usize) -> Vec<(f64, f64)> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |point: usize| {
            let rank = (sorted.len() * point).div_ceil(points).max(1);
            Some((point as f64 / points as f64, f64::from(*sorted.get(rank - 1)?) / 1e3))
        };
        (1..=points).filter_map(at).collect()
    }
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

/// All requests of a run.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests that were sent.
    pub sent: u64,
    /// Of them: later than they were due, because too many were under way or this machine was busy.
    pub late: u64,
    /// The longest of these delays.
    pub late_max: Duration,
    starts: BTreeMap<&'static str, Times>,
    all: Times,
    /// By kind.
    pub failures: BTreeMap<String, Failures>,
}

impl Tally {
    /// One was answered so long after it was due.
    pub fn answered(&mut self, start: StartKind, took: Duration) {
        self.starts.entry(start.word()).or_default().add(took);
        self.all.add(took);
    }

    /// One was not answered well.
    pub fn failed(&mut self, kind: &str, message: &str) {
        let known = self.failures.contains_key(kind) || self.failures.len() < KINDS_MAX;
        let kind = if known { kind } else { OTHER };
        let new = || Failures { count: 0, first: message.chars().take(200).collect() };
        self.failures.entry(kind.into()).or_insert_with(new).count += 1;
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.all.0.len() as u64
    }

    /// Failures so far.
    pub fn failure_count(&self) -> u64 {
        self.failures.values().map(|failures| failures.count).sum()
    }

    /// Answers so far whose sandbox came to be ready in this way.
    pub fn of(&self, start: StartKind) -> u64 {
        self.starts.get(start.word()).map_or(0, |times| times.0.len() as u64)
    }

    /// All answers.
    pub fn all(&self) -> Percentiles {
        self.all.percentiles()
    }

    /// Points of the distribution of all answers.
    pub fn distribution(&self, points: usize) -> Vec<(f64, f64)> {
        self.all.distribution(points)
    }

    /// The same by how their sandbox came to be ready.
    pub fn by_start(&self) -> impl Iterator<Item = (&'static str, Percentiles)> {
        self.starts.iter().map(|(start, times)| (*start, times.percentiles()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut times = Times::default();
        (1..=1000).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
        let found = times.percentiles();
        assert_eq!((found.p50_ms, found.p90_ms, found.p99_ms), (500.0, 900.0, 990.0));
        assert_eq!((found.p999_ms, found.max_ms, found.mean_ms, found.count), (999.0, 1000.0, 500.5, 1000));
        assert_eq!(Times::default().percentiles(), Percentiles::default());
        let mut one = Times::default();
        one.add(Duration::from_micros(1_500));
        assert_eq!((one.percentiles().p50_ms, one.percentiles().p999_ms), (1.5, 1.5));
    }

    #[test]
    fn a_distribution_ends_with_the_longest() {
        let mut times = Times::default();
        (1..=10).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
        assert_eq!(times.distribution(2), [(0.5, 5.0), (1.0, 10.0)]);
        assert_eq!(Times::default().distribution(3), []);
    }

    #[test]
    fn a_time_that_does_not_fit_is_an_hour() {
        let mut times = Times::default();
        times.add(Duration::MAX);
        assert_eq!(times.percentiles().max_ms, 3_600_000.0);
    }

    #[test]
    fn answers_are_told_apart_by_start_and_failures_by_kind() {
        let mut tally = Tally::default();
        tally.answered(StartKind::Cold, Duration::from_millis(80));
        tally.answered(StartKind::Warm, Duration::from_millis(3));
        tally.answered(StartKind::Warm, Duration::from_millis(5));
        assert_eq!((tally.answers(), tally.of(StartKind::Warm), tally.of(StartKind::Clone)), (3, 2, 0));
        let by_start: Vec<_> = tally.by_start().map(|(start, times)| (start, times.max_ms)).collect();
        assert_eq!(by_start, [("cold", 80.0), ("warm", 5.0)]);
        (0..100).for_each(|kind| tally.failed(&format!("k{kind}"), "no"));
        tally.failed("k0", "again");
        assert_eq!((tally.failure_count(), tally.failures.len()), (101, KINDS_MAX + 1));
        assert_eq!(tally.failures["k0"], Failures { count: 2, first: "no".into() });
        assert_eq!(tally.failures[OTHER].count, 100 - KINDS_MAX as u64);
    }
}
