//! Many measurements of one thing, as they came: whoever needs another one draws one of them.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use medes_load::dice::Dice;

const SAMPLES_MAX: usize = 1_000;
/// Ten minutes: nothing here takes longer.
const MS_MAX: f64 = 600_000.0;

/// Milliseconds, in any order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// To a microsecond. What is less than nothing, as a difference of two measurements may be, is nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        Self(values.into_iter().map(|ms| (ms.max(0.0) * 1e3).round() / 1e3).collect())
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self(values) = self;
        ensure!(
            (1..=SAMPLES_MAX).contains(&values.len()),
            "{} samples are not 1 to {SAMPLES_MAX}",
            values.len()
        );
        let good = |ms: &f64| ms.is_finite() && (0.0..=MS_MAX).contains(ms);
        ensure!(values.iter().all(good), "a time is not one of 0 to {MS_MAX} ms");
        Ok(())
    }

    /// The middle one; of an even number the lower.
    pub(crate) fn p50(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    }

    /// One of them.
    pub(crate) fn draw(&self, dice: &mut Dice) -> Duration {
        let at = match u32::try_from(self.0.len()) {
            Ok(count @ 2..) => dice.below(count) as usize,
            _ => 0,
        };
        Duration::from_secs_f64(self.0.get(at).copied().unwrap_or(0.0) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_was_measured() {
        let samples = Samples::of([3.0, 1.0, 2.0]);
        assert_eq!((samples.p50(), Samples::of([2.0, 1.0]).p50()), (2.0, 1.0));
        let mut dice = Dice(1);
        let drawn: std::collections::BTreeSet<_> =
            (0..100).map(|_| samples.draw(&mut dice).as_millis()).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn times_are_rounded_and_never_negative() {
        assert_eq!(Samples::of([-0.5, 1.234_567_8]), Samples(vec![0.0, 1.235]));
        assert_eq!(Samples::default().p50(), 0.0);
    }
}
