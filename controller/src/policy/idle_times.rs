//! How long a function was idle, each time: the histogram of the hybrid policy.
//!
//! An idle time is from the end of a request to the beginning of the next one (Shahrad et al., "Serverless in the Wild",
//! ATC'20, section 4.2): 240 bins of a minute, longer ones only counted.

use std::time::Duration;

/// Bins of a minute: four hours.
pub(super) const BINS: usize = 240;

const BIN: Duration = Duration::from_secs(60);

/// Weight of the newest in the average of the idle times.
const WEIGHT: f64 = 0.25;

/// The idle times of one function. Time is any steadily rising time since a fixed origin.
#[derive(Debug, Clone, PartialEq)]
pub struct IdleTimes {
    bins: Box<[u32; BINS]>,
    /// All counts of the bins together, and all their squares.
    sum: u64,
    squares: u64,
    /// Idle times of four hours and more.
    beyond: u64,
    /// Running average over all of them, in seconds.
    average: Option<f64>,
    /// Of the last request, if none has begun since.
    last_end: Option<Duration>,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self { bins: Box::new([0; BINS]), sum: 0, squares: 0, beyond: 0, average: None, last_end: None }
    }
}

impl IdleTimes {
    /// A request begins.
    pub fn begin(&mut self, at: Duration) {
        let Some(end) = self.last_end.take() else { return };
        let idle = at.saturating_sub(end);
        let seconds = idle.as_secs_f64();
        self.average = Some(self.average.map_or(seconds, |old| old + WEIGHT * (seconds - old)));
        let bin = usize::try_from(idle.as_secs() / BIN.as_secs()).unwrap_or(usize::MAX);
        let Some(count) = self.bins.get_mut(bin) else {
            self.beyond += 1;
            return;
        };
        // (c + 1)^2 - c^2
        self.squares += 2 * u64::from(*count) + 1;
        self.sum += 1;
        *count = count.saturating_add(1);
    }

    /// A request ends.
    pub const fn end(&mut self, at: Duration) {
        self.last_end = Some(at);
    }

    /// When the last request ended; `None` while one runs, and before the first one.
    pub const fn last_end(&self) -> Option<Duration> {
        self.last_end
    }

    /// Idle times of less than four hours.
    pub const fn within(&self) -> u64 {
        self.sum
    }

    /// The share of idle times of four hours and more.
    pub fn beyond_share(&self) -> f64 {
        let all = self.sum + self.beyond;
        if all == 0 { 0.0 } else { self.beyond as f64 / all as f64 }
    }

    /// Standard deviation of the bins' counts over their mean: how much the idle times are alike. 0 if there are none.
    pub fn variation(&self) -> f64 {
        if self.sum == 0 {
            return 0.0;
        }
        let mean = self.sum as f64 / BINS as f64;
        let variance = self.squares as f64 / BINS as f64 - mean * mean;
        variance.max(0.0).sqrt() / mean
    }

    /// Begin of the bin in which this share of the idle times within four hours is reached, and its end.
    pub fn percentile(&self, share: f64) -> (Duration, Duration) {
        let wanted = (self.sum as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reached = self.bins.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        });
        let bin = u32::try_from(reached.unwrap_or(0)).unwrap_or(0);
        (BIN * bin, BIN * (bin + 1))
    }

    /// Running average of all idle times.
    pub fn average(&self) -> Option<Duration> {
        self.average.map(Duration::from_secs_f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(minutes: &[u64]) -> IdleTimes {
        let mut times = IdleTimes::default();
        let mut now = Duration::ZERO;
        for idle in minutes {
            times.end(now);
            now += BIN * u32::try_from(*idle).unwrap();
            times.begin(now);
        }
        times
    }

    #[test]
    fn a_request_that_begins_while_another_runs_is_no_idle_time() {
        let mut times = IdleTimes::default();
        times.begin(BIN);
        times.begin(BIN * 2);
        assert_eq!((times.within(), times.last_end()), (0, None));
        times.end(BIN * 3);
        times.begin(BIN * 4);
        assert_eq!((times.within(), times.average()), (1, Some(BIN)));
    }

    #[test]
    fn the_spread_of_the_bins_is_what_their_counts_say() {
        // One bin with all four: mean 4/240, variance 16/240 - (4/240)^2, so sqrt(240 - 1).
        assert!((of(&[7; 4]).variation() - 239f64.sqrt()).abs() < 1e-9);
        // Every bin once: no spread at all.
        let all: Vec<u64> = (0..240).collect();
        assert!(of(&all).variation() < 1e-6);
        assert_eq!(IdleTimes::default().variation(), 0.0);
    }

    #[test]
    fn percentiles_are_bins() {
        let times = of(&[2, 2, 2, 2, 2, 2, 2, 2, 2, 9]);
        assert_eq!(times.percentile(0.05), (BIN * 2, BIN * 3));
        assert_eq!(times.percentile(0.9), (BIN * 2, BIN * 3));
        assert_eq!(times.percentile(0.99), (BIN * 9, BIN * 10));
    }

    #[test]
    fn four_hours_are_out_of_bounds() {
        let times = of(&[239, 240, 1_000, 3]);
        assert_eq!((times.within(), times.beyond_share()), (2, 0.5));
    }
}
