//! How an event's parts look as JSON: enums as their words, durations in microseconds, ids as people read them.

/// Microseconds.
pub(super) mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::trace) fn serialize<S: Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
    }

    pub(in crate::trace) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

/// Microseconds, or null.
pub(super) mod optional_micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "the shape serde asks for")]
    pub(in crate::trace) fn serialize<S: Serializer>(
        took: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)).serialize(to)
    }

    pub(in crate::trace) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_micros))
    }
}

/// An enum of the wire that people know by a word.
pub(super) trait Worded: Copy + PartialEq + 'static {
    /// All values that may stand in a file.
    fn all() -> Vec<Self>;
    fn word(self) -> String;
}

macro_rules! worded {
    ($name:ty, $prefix:literal, $last:expr) => {
        impl Worded for $name {
            fn all() -> Vec<Self> {
                (1..=$last as i32).filter_map(|number| Self::try_from(number).ok()).collect()
            }

            fn word(self) -> String {
                self.as_str_name().trim_start_matches($prefix).to_ascii_lowercase()
            }
        }
    };
}

worded!(crate::sandbox::SandboxState, "SANDBOX_STATE_", crate::sandbox::SandboxState::Parked);
worded!(crate::sandbox::StartKind, "START_KIND_", crate::sandbox::StartKind::Clone);
worded!(crate::failure::FailureKind, "FAILURE_KIND_", crate::failure::FailureKind::Internal);
worded!(super::Cause, "CAUSE_", super::Cause::NodeLost);
worded!(super::NodeChange, "CHANGE_", super::NodeChange::Resting);

fn from_word<T: Worded, E: serde::de::Error>(text: &str) -> Result<T, E> {
    let found = T::all().into_iter().find(|value| value.word() == text);
    found.ok_or_else(|| E::custom("an unknown word"))
}

/// An enum as its word.
pub(super) mod word {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Worded;

    pub(in crate::trace) fn serialize<T: Worded, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.word())
    }

    pub(in crate::trace) fn deserialize<'d, T: Worded, D: Deserializer<'d>>(from: D) -> Result<T, D::Error> {
        super::from_word(&String::deserialize(from)?)
    }
}

/// An enum as its word, or null.
pub(super) mod optional_word {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Worded;

    #[expect(clippy::ref_option, reason = "the shape serde asks for")]
    pub(in crate::trace) fn serialize<T: Worded, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(Worded::word).serialize(to)
    }

    pub(in crate::trace) fn deserialize<'d, T: Worded, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        Option::<String>::deserialize(from)?.map(|text| super::from_word(&text)).transpose()
    }
}

/// `[{"name": "dump", "micros": 1200}]`.
pub(super) mod phases {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::sandbox::Phase;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        name: String,
        micros: u64,
    }

    pub(in crate::trace) fn serialize<S: Serializer>(phases: &[Phase], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(phases.iter().map(|phase| Step {
            name: phase.name.clone(),
            micros: u64::try_from(phase.took.as_micros()).unwrap_or(u64::MAX),
        }))
    }

    pub(in crate::trace) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<Phase>, D::Error> {
        let steps = Vec::<Step>::deserialize(from)?;
        Ok(steps.into_iter().map(|step| Phase::new(step.name, Duration::from_micros(step.micros))).collect())
    }
}

/// `{"zero": 1, "same": 2, ...}`.
pub(super) mod pages {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::sandbox::PageClasses;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Classes {
        zero: u64,
        same: u64,
        delta: u64,
        whole: u64,
        // Recordings from before these were counted have none.
        #[serde(default)]
        hot_skipped: u64,
        #[serde(default)]
        reused: u64,
    }

    pub(in crate::trace) fn serialize<S: Serializer>(pages: &PageClasses, to: S) -> Result<S::Ok, S::Error> {
        let PageClasses { zero, same, delta, whole, hot_skipped, reused } = *pages;
        Classes { zero, same, delta, whole, hot_skipped, reused }.serialize(to)
    }

    pub(in crate::trace) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<PageClasses, D::Error> {
        let Classes { zero, same, delta, whole, hot_skipped, reused } = Classes::deserialize(from)?;
        Ok(PageClasses { zero, same, delta, whole, hot_skipped, reused })
    }
}

/// `base-1-2`.
pub(super) mod snapshot {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::ids::SnapshotId;

    pub(super) fn parse(text: &str) -> Option<SnapshotId> {
        let (upper, lower) = text.strip_prefix("base-")?.split_once('-')?;
        let (upper, lower): (u32, u32) = (upper.parse().ok()?, lower.parse().ok()?);
        SnapshotId::new(u64::from(upper) << 32 | u64::from(lower))
    }

    pub(in crate::trace) fn serialize<S: Serializer>(id: &SnapshotId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(in crate::trace) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<SnapshotId, D::Error> {
        let text = String::deserialize(from)?;
        parse(&text).ok_or_else(|| serde::de::Error::custom("not a base snapshot"))
    }
}

/// `["base-1-2"]`.
pub(super) mod snapshots {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::ids::SnapshotId;

    pub(in crate::trace) fn serialize<S: Serializer>(ids: &[SnapshotId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub(in crate::trace) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Vec<SnapshotId>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let ids: Option<Vec<_>> = texts.iter().map(|text| super::snapshot::parse(text)).collect();
        ids.ok_or_else(|| serde::de::Error::custom("not a base snapshot"))
    }
}
