//! Many measurements of one thing in three numbers.

use serde::Serialize;

/// Median and extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) p50: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of any number of measurements; all three are NaN (null in JSON) when there is none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self { p50: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let middle = sorted.len() / 2;
        let p50 = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Self { p50, min, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_found_in_any_order() {
        assert_eq!(Spread::of([9.0, 1.0, 5.0]), Spread { p50: 5.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 100.0]), Spread { p50: 3.0, min: 1.0, max: 100.0 });
        assert_eq!(Spread::of([7.0]), Spread { p50: 7.0, min: 7.0, max: 7.0 });
    }

    #[test]
    fn nothing_measured_is_not_a_number() {
        let none = Spread::of([]);
        assert!(none.p50.is_nan() && none.min.is_nan() && none.max.is_nan());
        assert_eq!(serde_json::to_string(&none).unwrap(), r#"{"p50":null,"min":null,"max":null}"#);
    }
}
