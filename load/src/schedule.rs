//! The moments at which requests are due. A trace says how many a function had in a minute; when in it each came is drawn evenly, each by
//! itself, so the same seed gives the same moments, to a cluster and to its simulation.

use std::time::Duration;

use crate::{dice::Dice, trace::Trace};

const MINUTE: Duration = Duration::from_secs(60);

/// A request that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// Since the beginning.
    pub at: Duration,
    /// Number of its function in the trace.
    pub function: u32,
}

/// A trace played back, minute by minute.
#[derive(Debug)]
pub struct Schedule<'t> {
    trace: &'t Trace,
    dice: Dice,
    minute: usize,
    speedup: f64,
}

impl<'t> Schedule<'t> {
    /// From the trace's beginning, so many times as fast as it was recorded.
    pub const fn new(trace: &'t Trace, seed: u64, speedup: f64) -> Self {
        Self { trace, dice: Dice(seed), minute: 0, speedup }
    }

    /// How long a minute of the trace takes.
    pub fn minute(&self) -> Duration {
        MINUTE.div_f64(self.speedup)
    }

    /// Requests of the next minute, in order; `None` when the trace is over.
    pub fn next_minute(&mut self) -> Option<Vec<Due>> {
        let minute = self.minute;
        if minute >= self.trace.minutes() {
            return None;
        }
        self.minute += 1;
        let mut dues = Vec::new();
        for (function, of) in (0..).zip(&self.trace.functions) {
            for _ in 0..of.counts.get(minute).copied().unwrap_or(0) {
                let into = Duration::from_micros(self.dice.below(60_000_000).into());
                let at = (MINUTE * minute as u32 + into).div_f64(self.speedup);
                dues.push(Due { at, function });
            }
        }
        dues.sort_unstable();
        Some(dues)
    }

    /// All that are left.
    pub fn all(mut self) -> Vec<Due> {
        std::iter::from_fn(|| self.next_minute()).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_many_as_counted_and_in_order() {
        let trace = Trace::parse("name,avg_ms,m1,m2\na,15,0,3\nb,20,1,0\n").unwrap();
        let all = Schedule::new(&trace, 7, 1.0).all();
        assert_eq!(all.iter().map(|due| due.function).collect::<Vec<_>>(), [1, 0, 0, 0]);
        assert!(all.is_sorted() && all[0].at < MINUTE, "{all:?}");
        assert!(all[1..].iter().all(|due| (MINUTE..MINUTE * 2).contains(&due.at)), "{all:?}");
        assert_eq!(all, Schedule::new(&trace, 7, 1.0).all());
        assert_ne!(all, Schedule::new(&trace, 8, 1.0).all());
    }

    #[test]
    fn a_speedup_brings_the_same_requests_sooner() {
        let trace = Trace::parse("name,avg_ms,m1\na,15,9\n").unwrap();
        let (plain, fast) = (Schedule::new(&trace, 7, 1.0).all(), Schedule::new(&trace, 7, 10.0).all());
        for (plain, fast) in plain.iter().zip(&fast) {
            assert_eq!(plain.at.div_f64(10.0), fast.at);
        }
        assert_eq!(Schedule::new(&trace, 7, 10.0).minute(), Duration::from_secs(6));
    }
}
