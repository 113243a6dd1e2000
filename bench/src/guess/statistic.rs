//! Whether two samples can be told apart: how often a value of one is above a value of the other, and how likely that is by chance.

use medes_load::dice::Dice;
use serde::Serialize;

/// Relabelings that the probability is estimated by.
const RELABELINGS: u32 = 9_999;

/// Of two samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Apart {
    /// Probability that a value of the first is above one of the second, ties half: 0.5 if nothing tells them apart, 0 or 1 if
    /// everything does. Mann and Whitney's U divided by the number of pairs (1947).
    pub(super) area: f64,
    /// How often labels given out anew by chance tell the samples apart at least as well: a permutation test, counted as Phipson and
    /// Smyth do (2010), so never 0.
    pub(super) chance: f64,
}

impl Apart {
    /// The same `seed` gives the same relabelings.
    pub(super) fn of(first: &[f64], second: &[f64], seed: u64) -> Self {
        let area = area(first, second);
        let mut all = [first, second].concat();
        let mut dice = Dice(seed);
        // Sums of the same halves in another order.
        const SAME: f64 = 1e-9;
        let mut as_far = 0;
        for _ in 0..RELABELINGS {
            shuffle(&mut all, &mut dice);
            let (one, other) = all.split_at(first.len());
            if (self::area(one, other) - 0.5).abs() + SAME >= (area - 0.5).abs() {
                as_far += 1;
            }
        }
        Self { area, chance: f64::from(as_far + 1) / f64::from(RELABELINGS + 1) }
    }
}

fn area(first: &[f64], second: &[f64]) -> f64 {
    let wins: f64 = first
        .iter()
        .flat_map(|a| second.iter().map(move |b| a.partial_cmp(b)))
        .map(|order| match order {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        })
        .sum();
    wins / (first.len() * second.len()).max(1) as f64
}

/// Every order is as likely as any other (Fisher and Yates).
pub(super) fn shuffle<T>(values: &mut [T], dice: &mut Dice) {
    for last in (1..values.len()).rev() {
        let end = u32::try_from(last + 1).unwrap_or(u32::MAX);
        values.swap(last, dice.below(end) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_that_are_won() {
        assert_eq!(area(&[3.0, 4.0], &[1.0, 2.0]), 1.0);
        assert_eq!(area(&[1.0, 2.0], &[3.0, 4.0]), 0.0);
        assert_eq!(area(&[1.0, 2.0], &[1.0, 2.0]), 0.5);
        // 2 beats 1 and ties with 2; 0 loses both.
        assert_eq!(area(&[2.0, 0.0], &[1.0, 2.0]), 0.375);
    }

    #[test]
    fn what_is_apart_is_not_so_by_chance_and_the_same_is() {
        let (low, high): (Vec<f64>, Vec<f64>) = (0..8).map(|n| (f64::from(n), f64::from(n + 100))).unzip();
        let apart = Apart::of(&high, &low, 1);
        // 2 of the 12,870 ways to choose 8 of 16 are as far: 0.00016, and one of 10,000 is added.
        assert!(apart.area == 1.0 && (0.000_1..0.001).contains(&apart.chance), "{apart:?}");
        let same = Apart::of(&low, &low, 1);
        assert_eq!((same.area, same.chance), (0.5, 1.0));
    }

    #[test]
    fn chance_is_spread_evenly_where_there_is_no_difference() {
        let mut dice = Dice(7);
        let mut sample = || -> Vec<f64> { (0..10).map(|_| f64::from(dice.below(1_000))).collect() };
        let below: usize =
            (0..40).filter(|&seed| Apart::of(&sample(), &sample(), seed).chance < 0.25).count();
        // 10 of 40 are expected; 25 or more come up less than once in a million.
        assert!((1..25).contains(&below), "{below}");
    }
}
