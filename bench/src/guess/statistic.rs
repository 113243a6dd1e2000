//! Whether two samples can be told apart: how often a value of one is above a value of the other, and how likely that is by chance.
//!
//! The area and its spread are those of Mann and Whitney, "On a test of whether one of two random variables is stochastically larger
//! than the other" (1947).

use std::f64::consts::SQRT_2;

use medes_load::dice::Dice;
use serde::Serialize;

/// Relabelings that the probability is estimated by.
const RELABELINGS: u32 = 9_999;

/// Of two samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Apart {
    /// Probability that a value of the first is above one of the second, ties half: 0.5 if nothing tells them apart, 0 or 1 if
    /// everything does. Mann and Whitney's U divided by the number of pairs.
    pub(super) area: f64,
    /// How often labels given out anew by chance tell the samples apart at least as well: a permutation test, counted as Phipson and
    /// Smyth do (2010), so never 0.
    pub(super) chance: f64,
    /// The same by another way, which draws nothing: U taken as normal. It agrees with `chance` unless the samples are small or one of
    /// both is wrong.
    pub(super) normal: f64,
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
        let chance = f64::from(as_far + 1) / f64::from(RELABELINGS + 1);
        Self { area, chance, normal: normal(first, second) }
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
    wins / pairs(first.len(), second.len())
}

fn pairs(first: usize, second: usize) -> f64 {
    (first * second).max(1) as f64
}

/// Two-sided probability of an area as far from one half, by the normal approximation without a correction for continuity. Ties make
/// the spread smaller by Kruskal and Wallis's factor (1952).
fn normal(first: &[f64], second: &[f64]) -> f64 {
    let mut all = [first, second].concat();
    all.sort_by(f64::total_cmp);
    let cube = |count: usize| (count as f64).powi(3) - count as f64;
    let tied: f64 = all.chunk_by(|a, b| a == b).map(|same| cube(same.len())).sum();
    // Zero if everything is one value: nothing is told.
    let left = 1.0 - tied / cube(all.len()).max(1.0);
    let spread = spread(first.len(), second.len()) * left.max(0.0).sqrt();
    let told = !first.is_empty() && !second.is_empty() && spread > 0.0;
    if told { beyond((area(first, second) - 0.5).abs() / spread) } else { 1.0 }
}

/// Standard deviation of the area of two samples of these sizes that nothing tells apart, without ties.
pub(super) fn spread(first: usize, second: usize) -> f64 {
    ((first + second + 1) as f64 / (12.0 * pairs(first, second))).sqrt()
}

/// How often a standard normal value is further from zero than this: the complementary error function by Abramowitz and Stegun's
/// formula 7.1.26, right to 1.5e-7.
fn beyond(deviations: f64) -> f64 {
    const P: f64 = 0.327_591_1;
    const A: [f64; 5] = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let x = deviations / SQRT_2;
    let t = 1.0 / (1.0 + P * x);
    A.iter().rev().fold(0.0, |sum, a| (sum + a) * t) * (-x * x).exp()
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
        // (64 - 32) / sqrt(64 * 17 / 12) = 3.3607 deviations.
        assert!((apart.normal - 0.000_777).abs() < 2e-6, "{apart:?}");
        let same = Apart::of(&low, &low, 1);
        assert_eq!((same.area, same.chance), (0.5, 1.0));
        assert!((same.normal - 1.0).abs() < 1e-6, "{same:?}");
    }

    #[test]
    fn the_normal_way_is_what_a_hand_computes() {
        // U = 0 of 9, its mean 4.5, its variance 3 * 3 * 7 / 12 = 5.25: 1.9640 deviations.
        assert!((normal(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]) - 0.049_535).abs() < 2e-6);
        // U = 1. Three 2s and two 3s: 5.25 * (1 - (24 + 6) / 210) = 4.5, and 3.5 / sqrt(4.5) = 1.6499 deviations.
        assert!((normal(&[1.0, 2.0, 2.0], &[2.0, 3.0, 3.0]) - 0.098_960).abs() < 2e-5);
        // Nothing differs, or nothing is there.
        assert_eq!(normal(&[5.0; 4], &[5.0; 4]), 1.0);
        assert_eq!(normal(&[], &[]), 1.0);
        // The usual two of a table of the normal distribution.
        assert!((beyond(1.959_964) - 0.05).abs() < 1e-6 && (beyond(3.290_527) - 0.001).abs() < 1e-6);
    }

    #[test]
    fn both_ways_agree_where_samples_are_not_small() {
        let mut dice = Dice(11);
        for lead in [0, 100, 250, 400] {
            let mut sample = |more: u32| -> Vec<f64> {
                (0..30).map(|_| f64::from(more + dice.below(1_000) / 50 * 50)).collect()
            };
            let apart = Apart::of(&sample(lead), &sample(0), 3);
            assert!((apart.chance - apart.normal).abs() < 0.03, "{lead}: {apart:?}");
        }
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
