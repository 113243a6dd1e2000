//! How long the last answers took, by start kind: what is shown to people who look. A ring for each kind; metrics have histograms.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use medes_proto::sandbox::StartKind;

/// Answers of each kind that are kept.
const RECENT_MAX: usize = 512;

/// In the order of what they cost.
const KINDS: [StartKind; 5] =
    [StartKind::Warm, StartKind::Unpark, StartKind::Restore, StartKind::Clone, StartKind::Cold];

/// The answers of one kind.
#[derive(Debug, Default)]
struct Recent {
    all: u64,
    last: VecDeque<Duration>,
}

/// What is said of one kind. The percentiles are of the last answers, the count of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) start: StartKind,
    pub(crate) all: u64,
    pub(crate) recent: usize,
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
}

/// Answers since the controller's start.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Mutex<[Recent; KINDS.len()]>);

impl Latencies {
    /// One more answer.
    pub(crate) fn keep(&self, start: StartKind, took: Duration) {
        let Some(at) = KINDS.iter().position(|kind| *kind == start) else { return };
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = &mut kinds[at];
        recent.all = recent.all.saturating_add(1);
        if recent.last.len() >= RECENT_MAX {
            recent.last.pop_front();
        }
        recent.last.push_back(took);
    }

    /// Of every kind.
    pub(crate) fn told(&self) -> [Told; KINDS.len()] {
        let kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        KINDS.map(|start| {
            let Recent { all, last } = &kinds[at];
            at += 1;
            let mut sorted: Vec<_> = last.iter().copied().collect();
            sorted.sort_unstable();
            // The smallest one that so many of a hundred do not exceed.
            let percentile = |percent: usize| {
                let rank = (sorted.len() * percent).div_ceil(100).max(1);
                sorted.get(rank - 1).copied().unwrap_or_default()
            };
            let (p50, p90, p99) = (percentile(50), percentile(90), percentile(99));
            Told { start, all: *all, recent: sorted.len(), p50, p90, p99 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn percentiles_are_of_the_last_answers_and_counts_of_all() {
        let latencies = Latencies::default();
        for took in (1..=100).rev() {
            latencies.keep(StartKind::Unpark, ms(took));
        }
        latencies.keep(StartKind::Cold, ms(7));
        let [warm, unpark, _, _, cold] = latencies.told();
        assert_eq!((warm.all, warm.recent, warm.p99), (0, 0, ms(0)));
        assert_eq!((unpark.start, unpark.all), (StartKind::Unpark, 100));
        assert_eq!((unpark.p50, unpark.p90, unpark.p99), (ms(50), ms(90), ms(99)));
        assert_eq!((cold.p50, cold.p90, cold.p99), (ms(7), ms(7), ms(7)));
        for _ in 0..RECENT_MAX {
            latencies.keep(StartKind::Unpark, ms(1_000));
        }
        let unpark = latencies.told()[1];
        assert_eq!((unpark.all, unpark.recent, unpark.p50), (612, RECENT_MAX, ms(1_000)));
        latencies.keep(StartKind::Unspecified, ms(1));
    }
}
