//! A moment, as the driver sees it: an argument, never a clock that is read.

use std::time::Duration;

/// Time since an origin that lies well before the controller's start, so that moments before the start
/// (an agent reports how old its sandboxes are) have a place too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(Duration);

impl Now {
    /// When the controller starts. A year after the origin: no sandbox is older.
    pub const START: Self = Self(Duration::from_secs(365 * 86_400));

    /// From `earlier` to here; zero if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Since the origin, for histories.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// `by` later.
    #[must_use]
    pub const fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// `by` earlier.
    #[must_use]
    pub const fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards() {
        let later = Now::START.after(Duration::from_secs(3));
        assert_eq!(later.since(Now::START), Duration::from_secs(3));
        assert_eq!(Now::START.since(later), Duration::ZERO);
        assert_eq!(later.before(Duration::from_secs(3)), Now::START);
    }
}
