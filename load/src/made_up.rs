//! A trace when there is no file: functions that are asked for steadily, in bursts and hardly ever, as recorded ones are.

use std::time::Duration;

use crate::{
    dice::Dice,
    trace::{Trace, TraceFunction},
};

/// Requests in a minute of the function that is asked for least and most.
const RATES: (f64, f64) = (0.05, 6.0);
/// Minutes that a burst, or a pause between two, takes at most.
const SPELL_MAX: u32 = 12;

/// So many functions for so many minutes. The same seed gives the same trace.
pub fn trace(functions: u32, minutes: usize, seed: u64) -> Trace {
    let mut dice = Dice(seed);
    let function = |number| TraceFunction {
        name: format!("f{number}"),
        execution: Duration::from_millis(20 + u64::from(dice.below(480))),
        counts: counts(minutes, &mut dice),
    };
    Trace { functions: (0..functions).map(function).collect() }
}

fn counts(minutes: usize, dice: &mut Dice) -> Vec<u32> {
    let (least, most) = RATES;
    // Rates differ by their powers: most functions are asked for seldom.
    let rate = least * (most / least).powf(dice.part());
    let in_bursts = dice.below(2) == 0;
    let (mut on, mut left) = (true, 0);
    let mut counts = Vec::with_capacity(minutes);
    for _ in 0..minutes {
        if in_bursts && left == 0 {
            (on, left) = (!on, 1 + dice.below(SPELL_MAX));
        }
        left = u32::saturating_sub(left, 1);
        // Twice as many in half of the time.
        let rate = if in_bursts { 2.0 * rate } else { rate };
        counts.push(if on { poisson(rate, dice) } else { 0 });
    }
    counts
}

/// How often something happens that happens so often on average.
fn poisson(mean: f64, dice: &mut Dice) -> u32 {
    let (limit, mut product, mut count) = ((-mean).exp(), dice.part(), 0);
    while product > limit {
        product *= dice.part();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_trace() {
        assert_eq!(trace(10, 30, 1), trace(10, 30, 1));
        assert_ne!(trace(10, 30, 1), trace(10, 30, 2));
        assert_eq!((trace(10, 30, 1).functions.len(), trace(10, 30, 1).minutes()), (10, 30));
    }

    #[test]
    fn some_are_asked_for_often_and_some_hardly_ever() {
        let trace = trace(100, 100, 3);
        let mut totals: Vec<u32> = trace.functions.iter().map(|one| one.counts.iter().sum()).collect();
        totals.sort_unstable();
        assert!(totals[5] < 20 && totals[95] > 300, "{totals:?}");
    }

    #[test]
    fn it_happens_as_often_as_it_should() {
        let mut dice = Dice(4);
        let total: u32 = (0..10_000).map(|_| poisson(2.5, &mut dice)).sum();
        assert!((24_000..26_000).contains(&total), "{total}");
    }
}
