//! When a function's requests came: counts per minute, for a bounded past.

use std::{collections::VecDeque, time::Duration};

/// Minutes kept. Histogram policies of later issues look back hours; four are 2 KiB per function.
const MINUTES_MAX: usize = 240;
const MINUTE: Duration = Duration::from_secs(60);

/// Requests per minute. Time is any steadily rising time since a fixed origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Minute of the last bucket.
    minute: u64,
    /// Oldest first.
    buckets: VecDeque<u32>,
    total: u64,
}

impl Arrivals {
    /// A request came.
    pub fn count(&mut self, at: Duration) {
        let minute = at.as_secs() / MINUTE.as_secs();
        if self.buckets.is_empty() {
            self.buckets.push_back(0);
        } else {
            let missing = minute.saturating_sub(self.minute).min(MINUTES_MAX as u64);
            self.buckets.extend((0..missing).map(|_minute| 0));
        }
        self.minute = self.minute.max(minute);
        while self.buckets.len() > MINUTES_MAX {
            self.buckets.pop_front();
        }
        if let Some(bucket) = self.buckets.back_mut() {
            *bucket = bucket.saturating_add(1);
        }
        self.total += 1;
    }

    /// All requests ever.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Counts of the last `minutes` minutes, newest first; minutes without a request are there too.
    pub fn last_minutes(&self, now: Duration, minutes: usize) -> impl Iterator<Item = u32> + '_ {
        let silent = (now.as_secs() / MINUTE.as_secs()).saturating_sub(self.minute);
        let silent = usize::try_from(silent).unwrap_or(usize::MAX).min(minutes);
        let known = self.buckets.iter().rev().copied().chain(std::iter::repeat(0));
        std::iter::repeat_n(0, silent).chain(known).take(minutes)
    }

    /// The paper's maximum arrival rate: the busiest of the last `minutes` minutes, in requests per second.
    pub fn rate_max(&self, now: Duration, minutes: usize) -> f64 {
        f64::from(self.last_minutes(now, minutes).max().unwrap_or(0)) / MINUTE.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: u64) -> Duration {
        MINUTE * u32::try_from(minute).unwrap()
    }

    #[test]
    fn silent_minutes_count_as_zero() {
        let mut arrivals = Arrivals::default();
        for minute in [5, 5, 8] {
            arrivals.count(at(minute));
        }
        assert_eq!(arrivals.last_minutes(at(9), 6).collect::<Vec<_>>(), [0, 1, 0, 0, 2, 0]);
        assert_eq!(arrivals.rate_max(at(9), 10), 2.0 / 60.0);
        assert_eq!(arrivals.rate_max(at(60), 10), 0.0);
        assert_eq!(arrivals.total(), 3);
    }

    #[test]
    fn the_past_is_bounded() {
        let mut arrivals = Arrivals::default();
        for minute in 0..1_000 {
            arrivals.count(at(minute));
        }
        assert_eq!(arrivals.buckets.len(), MINUTES_MAX);
        arrivals.count(at(100_000));
        assert_eq!(arrivals.buckets.len(), MINUTES_MAX);
        assert_eq!(arrivals.last_minutes(at(100_000), 3).collect::<Vec<_>>(), [1, 0, 0]);
    }
}
