//! Byte sizes and durations as people write them in files: `512MiB`, `30s`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. In files: a number with B, KiB, MiB or GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time. In files: a number with ms, s, m or h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct UnitError {
    text: String,
    expected: &'static str,
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

impl std::str::FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (number, unit) = split(text.trim())?;
            let scale = match unit {
                "B" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                _ => return None,
            };
            number.checked_mul(scale).map(Self)
        };
        parse().ok_or_else(|| UnitError {
            text: text.chars().take(64).collect(),
            expected: "a size (a whole number with B, KiB, MiB or GiB)",
        })
    }
}

impl std::str::FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (number, unit) = split(text.trim())?;
            let millis = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            number.checked_mul(millis).map(|ms| Self(Duration::from_millis(ms)))
        };
        parse().ok_or_else(|| UnitError {
            text: text.chars().take(64).collect(),
            expected: "a duration (a whole number with ms, s, m or h)",
        })
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scale = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match scale.iter().find(|(shift, _)| self.0 != 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(out, "{}{unit}", self.0 >> shift),
            None => write!(out, "{}B", self.0),
        }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        let scale = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match scale.iter().find(|(unit_ms, _)| ms != 0 && ms.is_multiple_of(*unit_ms)) {
            Some((unit_ms, unit)) => write!(out, "{}{unit}", ms / unit_ms),
            None => write!(out, "{ms}ms"),
        }
    }
}

macro_rules! serde_by_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
                output.collect_str(self)
            }
        }
    };
}

serde_by_text!(ByteSize);
serde_by_text!(Span);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "5", "MiB", "-1s", "1.5GiB", "5MB", "99999999999GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn quantities_read_as_they_print(number in any::<u64>()) {
            prop_assert_eq!(ByteSize(number).to_string().parse(), Ok(ByteSize(number)));
            let span = Span(Duration::from_millis(number >> 12));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
