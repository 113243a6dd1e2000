//! How long a function was idle, each time: the histogram of the hybrid policy.
//!
//! An idle time is from the end of a request to the beginning of the next one (Shahrad et al., "Serverless in the Wild",
//! ATC'20, section 4.2): 240 bins of a minute, longer ones only counted.

use std::time::Duration;

use super::waits::{MINUTES, Waits};

/// Bins of a minute: four hours.
pub(super) const BINS: usize = MINUTES;

const BIN: Duration = Duration::from_secs(60);

/// Weight of the newest in the average of the idle times.
const WEIGHT: f64 = 0.25;

/// The idle times of one function. Time is any steadily rising time since a fixed origin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IdleTimes {
    waits: Waits,
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

impl IdleTimes {
    /// A request begins.
    pub fn begin(&mut self, at: Duration) {
        let Some(end) = self.last_end.take() else { return };
        let idle = at.saturating_sub(end);
        let seconds = idle.as_secs_f64();
        self.average = Some(self.average.map_or(seconds, |old| old + WEIGHT * (seconds - old)));
        let bin = usize::try_from(idle.as_secs() / BIN.as_secs()).unwrap_or(usize::MAX);
        match self.waits.in_minute(bin) {
            Some(count) => {
                // (c + 1)^2 - c^2
                self.squares += 2 * u64::from(count) + 1;
                self.sum += 1;
            }
            None => self.beyond += 1,
        }
        self.waits.used(idle);
    }

    /// A time of idling had no end that would say anything: what waited was given up.
    pub fn give_up(&mut self, idle: Duration) {
        self.waits.given_up(idle);
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
        let reached = (0..BINS).position(|bin| {
            seen += u64::from(self.waits.in_minute(bin).unwrap_or(0));
            seen >= wanted
        });
        let bin = u32::try_from(reached.unwrap_or(0)).unwrap_or(0);
        (BIN * bin, BIN * (bin + 1))
    }

    /// A time of idling that was not a whole function's is over: one of its sandboxes was used again.
    pub fn count(&mut self, idle: Duration) {
        let last_end = self.last_end.replace(Duration::ZERO);
        self.begin(idle);
        self.last_end = last_end;
    }

    /// How often something that has been idle for `idle` may be expected to be used, in uses per second of waiting ([`Waits::demand`]).
    pub fn demand(&self, idle: Duration) -> f64 {
        self.waits.demand(idle)
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

    /// The past of `times`, each idle time so many minutes and a half.
    fn halves(times: &[u64]) -> IdleTimes {
        let mut all = IdleTimes::default();
        times.iter().for_each(|minutes| all.count(BIN * u32::try_from(*minutes).unwrap() + BIN / 2));
        all
    }

    #[test]
    fn without_a_past_demand_falls_as_one_over_the_time() {
        let none = IdleTimes::default();
        let at = |seconds| none.demand(Duration::from_secs(seconds));
        assert!((at(0) - 1.0 / 60.0).abs() < 1e-3, "{}", at(0));
        assert!((at(540) - 1.0 / 600.0).abs() < 1e-4, "{}", at(540));
    }

    #[test]
    fn demand_is_the_best_that_waiting_has_to_offer() {
        // A hundred times in the eleventh minute: by then, nearly all; of each 10 minutes and a half on average.
        let regular = halves(&[10; 100]);
        let first = regular.demand(Duration::ZERO);
        assert!((first - 1.0 / 630.0).abs() < 2e-4, "{first}");
        // The nearer, the more.
        let near = regular.demand(BIN * 10);
        assert!((near - 1.0 / 30.0).abs() < 2e-3, "{near}");
        // What should have come and has not is no better than the unknown.
        let late = regular.demand(BIN * 30);
        assert!(late < 1.0 / 1_000.0, "{late}");
        // Where it mostly comes at once, the rare long wait does not count.
        let mixed = halves(&[[0; 90].as_slice(), &[200; 10]].concat());
        // (Between half a minute and a whole one, as far as is known.)
        assert!(mixed.demand(Duration::ZERO) > 1.0 / 55.0);
        assert!(mixed.demand(BIN * 2) < 1.0 / 1_500.0);
    }

    #[test]
    fn a_single_use_leaves_the_functions_own_idle_time_alone() {
        let mut times = IdleTimes::default();
        times.end(BIN);
        times.count(BIN * 3);
        assert_eq!((times.last_end(), times.within()), (Some(BIN), 1));
    }

    #[test]
    fn four_hours_are_out_of_bounds() {
        let times = of(&[239, 240, 1_000, 3]);
        assert_eq!((times.within(), times.beyond_share()), (2, 0.5));
    }
}
