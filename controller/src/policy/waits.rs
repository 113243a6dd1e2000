//! How long something waited for its next use, each time, and what that says about one that waits now.
//!
//! Steps are as wide as what happens in them asks for: doubling up to a minute (sandboxes of a busy function are told apart by seconds), then
//! minutes up to four hours (timers). Who was given up before its next use says that it waited at least so long; without it, only
//! the short waits of those that were used would be known (Kaplan and Meier, "Nonparametric Estimation from Incomplete Observations", 1958).

use std::cell::Cell;
use std::iter;
use std::time::Duration;

/// Where the steps within the first minute begin, in seconds.
const FIRST: [f64; 8] = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0];
const MINUTE: f64 = 60.0;
/// Minutes that are told apart: four hours.
pub(super) const MINUTES: usize = 240;
const STEPS: usize = FIRST.len() + MINUTES - 1;

/// What is believed before anything was seen: one wait of which half is over after a minute, half of the rest after two
/// more, and so on. The idle times of functions are spread over all orders of magnitude.
const PRIOR_WEIGHT: f64 = 1.0;
const PRIOR_SECONDS: f64 = 60.0;

/// How waits ended, by their length.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waits {
    used: Box<[u32; STEPS]>,
    given_up: Box<[u32; STEPS]>,
    /// Of four hours and more, however they ended.
    beyond: u64,
    known: Demands,
}

/// Demands that were asked for since the last change, each at its moment's place.
#[derive(Debug, Clone, Default)]
struct Demands([Cell<Option<(u64, f64)>>; 32]);

impl PartialEq for Demands {
    /// What was asked for makes no difference.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Default for Waits {
    fn default() -> Self {
        let none = || Box::new([0; STEPS]);
        Self { used: none(), given_up: none(), beyond: 0, known: Demands::default() }
    }
}

/// Beginning of a step, in seconds.
fn start(step: usize) -> f64 {
    FIRST.get(step).copied().unwrap_or((step + 1).saturating_sub(FIRST.len()) as f64 * MINUTE)
}

/// The step of a wait; `None` beyond four hours.
fn step(seconds: f64) -> Option<usize> {
    let step = match seconds < MINUTE {
        true => FIRST.partition_point(|start| *start <= seconds).saturating_sub(1),
        false => (seconds / MINUTE) as usize + FIRST.len() - 1,
    };
    (step < STEPS).then_some(step)
}

/// A number for each moment of waiting, and when it begins: in between nothing is learnt that would change an order.
fn moment(waited: Duration) -> (u64, f64) {
    let seconds = waited.as_secs();
    let (number, start) = match seconds {
        0..16 => (seconds, seconds),
        16..60 => (16 + (seconds - 16) / 4, seconds / 4 * 4),
        _ => (27 + (seconds - 60) / 15, seconds / 15 * 15),
    };
    (number, start as f64)
}

impl Waits {
    /// One ended with a use.
    pub(super) fn used(&mut self, after: Duration) {
        self.known = Demands::default();
        match step(after.as_secs_f64()).and_then(|step| self.used.get_mut(step)) {
            Some(count) => *count = count.saturating_add(1),
            None => self.beyond += 1,
        }
    }

    /// One was not waited to its end.
    pub(super) fn given_up(&mut self, after: Duration) {
        self.known = Demands::default();
        match step(after.as_secs_f64()).and_then(|step| self.given_up.get_mut(step)) {
            Some(count) => *count = count.saturating_add(1),
            None => self.beyond += 1,
        }
    }

    /// Uses after so many minutes; `None` beyond four hours.
    pub(super) fn in_minute(&self, minute: usize) -> Option<u32> {
        match minute {
            0 => Some(self.used.iter().take(FIRST.len()).fold(0, |sum, count| sum.saturating_add(*count))),
            _ => self.used.get(minute + FIRST.len() - 1).copied(),
        }
    }

    /// How often something that has waited for `waited` may be expected to be used, in uses per second of waiting: the best
    /// that any time to wait has to offer (the Gittins index of the next use). Without a past it falls as one over the time.
    pub(super) fn demand(&self, waited: Duration) -> f64 {
        let (moment, start) = moment(waited);
        let place = usize::try_from(moment).unwrap_or(0) % self.known.0.len();
        let Some(known) = self.known.0.get(place) else { return 0.0 };
        match known.get() {
            Some((of, demand)) if of == moment => demand,
            _ => {
                let demand = self.demand_after(start);
                known.set(Some((moment, demand)));
                demand
            }
        }
    }

    /// The same after exactly so many seconds.
    fn demand_after(&self, waited: f64) -> f64 {
        let prior = waited + PRIOR_SECONDS;
        let Some(first) = step(waited) else {
            return PRIOR_WEIGHT / prior / (self.beyond as f64 + PRIOR_WEIGHT);
        };
        // Of the step it is in, what lies behind already is taken to be spread evenly.
        let left_of_first = (start(first + 1) - waited) / (start(first + 1) - start(first));
        let counts = self.used.iter().zip(self.given_up.iter()).skip(first);
        let parts = iter::once(left_of_first).chain(iter::repeat(1.0));
        let steps = counts
            .zip(parts)
            .map(|((used, given_up), part)| (f64::from(*used) * part, f64::from(*given_up) * part));
        let seen: f64 = steps.clone().map(|(used, given_up)| used + given_up).sum();
        let mut at_risk = seen + self.beyond as f64 + PRIOR_WEIGHT;
        let mut best = PRIOR_WEIGHT / prior / at_risk;
        // Of one that waits now: the chance that it still does, that it was used, and how long it has waited by then.
        let (mut waiting, mut used, mut long, mut before) = (1.0, 0.0, 0.0, 0.0);
        for (number, (uses, given_up)) in (first + 1..).zip(steps) {
            let ahead = start(number) - waited;
            let prior_uses = PRIOR_WEIGHT * (prior / (prior + before) - prior / (prior + ahead));
            // Who was given up in this step was there for half of it.
            let share = ((uses + prior_uses) / (at_risk - given_up / 2.0).max(f64::MIN_POSITIVE)).min(1.0);
            used += waiting * share;
            // Who is used in this step waits for half of it.
            long += waiting * (ahead - before) * (1.0 - share / 2.0);
            if long > 0.0 {
                best = f64::max(best, used / long);
            }
            waiting *= 1.0 - share;
            at_risk -= uses + prior_uses + given_up;
            before = ahead;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_has_its_step() {
        for (seconds, number) in
            [(0.0, 0), (0.4, 0), (0.5, 1), (29.9, 6), (59.9, 7), (60.0, 8), (119.9, 8), (120.0, 9)]
        {
            assert_eq!(step(seconds), Some(number), "{seconds}");
            assert!(start(number) <= seconds && seconds < start(number + 1), "{seconds}");
        }
        assert_eq!(step(4.0 * 3600.0 - 0.1), Some(STEPS - 1));
        assert_eq!((step(4.0 * 3600.0), start(STEPS)), (None, 4.0 * 3600.0));
    }

    #[test]
    fn moments_are_in_order_and_begin_before_they_are() {
        let all = (0..20_000).map(|seconds| (seconds as f64, moment(Duration::from_secs(seconds))));
        let all: Vec<_> = all.collect();
        assert!(all.iter().all(|(seconds, (_, start))| start <= seconds && seconds - start < 15.0));
        assert!(all.windows(2).all(|two| two[0].1.0 <= two[1].1.0 && two[1].1.0 - two[0].1.0 <= 1));
        assert!(all.windows(2).all(|two| (two[0].1.0 == two[1].1.0) == (two[0].1.1 == two[1].1.1)));
    }

    #[test]
    fn within_a_minute_the_longer_idle_is_wanted_less() {
        // Three of four are used again within two seconds, the rest within a minute.
        let mut waits = Waits::default();
        for _ in 0..75 {
            waits.used(Duration::from_millis(1_500));
        }
        for second in 0..25 {
            waits.used(Duration::from_secs(30 + second));
        }
        let at = |seconds| waits.demand(Duration::from_secs(seconds));
        assert!(at(0) > 0.4, "{}", at(0));
        assert!(at(3) < at(0) / 8.0, "{}", at(3));
        assert!(at(45) > at(3), "all of those that are left come soon: {}", at(45));
    }

    #[test]
    fn who_was_given_up_was_not_used() {
        let mut waits = Waits::default();
        (0..10).for_each(|_| waits.used(Duration::from_secs(3)));
        let naive = waits.demand(Duration::from_secs(0));
        (0..90).for_each(|_| waits.given_up(Duration::from_secs(20)));
        let seen = waits.demand(Duration::from_secs(0));
        // A tenth is used within four seconds, where it was nearly all of them.
        assert!(naive > 0.2 && seen < naive / 5.0, "{naive} {seen}");
        // By hand: 101 at risk at four seconds, of these a sliver of the prior; then 90 given up between 15 and 30 seconds.
        assert!(waits.demand(Duration::from_secs(4)) < 0.02);
        assert_eq!(waits.in_minute(0), Some(10), "and it is no use");
    }
}
