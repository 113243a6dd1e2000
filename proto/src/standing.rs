//! What a node is given to do: all, no new sandboxes, or nothing; in the last case its sandboxes leave it, or rest there.

use crate::{WireError, wire};

pub use wire::Standing;

impl Standing {
    /// The word people see, and the one that is stored.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Resting => "resting",
        }
    }

    /// The standing of that word.
    pub fn of_word(word: &str) -> Option<Self> {
        let all = [Self::Open, Self::Cordoned, Self::Draining, Self::Resting];
        all.into_iter().find(|standing| standing.word() == word)
    }

    /// As a message has it.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn from_wire(raw: i32, field: &'static str) -> Result<Self, WireError> {
        match Self::try_from(raw) {
            Ok(Self::Unspecified) | Err(_) => {
                Err(WireError::invalid(field, "not open, cordoned, draining or resting"))
            }
            Ok(standing) => Ok(standing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_standing_has_a_word_of_its_own_and_nothing_else_is_one() {
        for standing in [Standing::Open, Standing::Cordoned, Standing::Draining, Standing::Resting] {
            assert_eq!(Standing::of_word(standing.word()), Some(standing));
            assert_eq!(Standing::from_wire(standing.into(), "x"), Ok(standing));
        }
        assert_eq!(Standing::of_word("unknown"), None);
        assert!(Standing::from_wire(0, "x").is_err() && Standing::from_wire(5, "x").is_err());
    }
}
