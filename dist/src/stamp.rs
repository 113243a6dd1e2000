//! Which version, as of when, for which kind of machine.

use std::env;

/// What every artifact says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Of the workspace.
    pub version: String,
    /// Seconds since 1970 at which everything is said to have been written.
    pub moment: u64,
}

/// The last moment that a tar header has room for.
const MOMENT_MAX: u64 = 0o77_777_777_777;

/// `SOURCE_DATE_EPOCH` is no moment.
#[derive(Debug, thiserror::Error)]
#[error("SOURCE_DATE_EPOCH={0:?} is no number of seconds up to {MOMENT_MAX}")]
pub struct MomentError(String);

impl Stamp {
    /// This version, as of `SOURCE_DATE_EPOCH`, or of the beginning of time: a clock would make two builds differ.
    ///
    /// # Errors
    /// When the variable holds something else.
    pub fn from_environment() -> Result<Self, MomentError> {
        let moment = match env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => moment(&text).ok_or(MomentError(text))?,
            Err(_) => 0,
        };
        Ok(Self { version: env!("CARGO_PKG_VERSION").into(), moment })
    }

    /// As RFC 3339 has it.
    pub fn rfc3339(&self) -> String {
        let (days, seconds) = (self.moment / 86_400, self.moment % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// `NAME-VERSION-KIND`, the beginning of an artifact's name.
    pub fn name(&self) -> String {
        format!("medes-{}-{}-linux", self.version, env::consts::ARCH)
    }

    /// The kind of machine as Debian and container registries call it.
    pub fn architecture(&self) -> &'static str {
        match env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }
}

fn moment(text: &str) -> Option<u64> {
    text.parse().ok().filter(|moment| *moment <= MOMENT_MAX)
}

/// Year, month and day of a day since 1970-01-01: eras of 400 years that begin in March, so that a leap day ends its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        let at = |moment| Stamp { version: "1".into(), moment }.rfc3339();
        // As `date -u -d @N` has them.
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_moment_is_a_number_that_a_tar_header_holds() {
        assert_eq!(moment("1700000000"), Some(1_700_000_000));
        for bad in ["", "now", "-1", "8589934592"] {
            assert_eq!(moment(bad), None, "{bad}");
        }
    }
}
