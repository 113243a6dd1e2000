//! From the wish to take a sandbox's memory to the deed: sometimes a base has to come first.

use std::time::Duration;

use super::{FunctionView, Review, Verdict};

/// How long to ask again when the wish could not be fulfilled now: a base is being made, dumps are blocked.
pub(super) const RETRY: Duration = Duration::from_secs(5);

pub(super) const TOO_EARLY: (Verdict, &str) = (Verdict::Purge, "keep_alive is not over");

/// The paper's D/B test: a function without a base, or with too many dedup sandboxes for its bases.
pub(super) fn needs_base(function: &FunctionView<'_>, dedups_per_base: u32) -> bool {
    let room = function.bases.saturating_mul(dedups_per_base as usize);
    function.bases == 0 || function.dedup > room
}

/// Takes the sandbox's memory, or makes a base of it, or waits for one that is being made.
pub(super) fn store(function: &FunctionView<'_>, dedups_per_base: u32, keep_left: Duration) -> Review {
    let act = |verdict, because, other| Review {
        verdict,
        because,
        rejected: vec![other, (Verdict::Keep, "idle for the idle period"), TOO_EARLY],
        again: RETRY.min(keep_left),
        prewarm: None,
    };
    let coming = function.bases_coming > 0;
    match needs_base(function, dedups_per_base) {
        // One at a time. Nothing to refer to yet: wait, rather than store the sandbox whole.
        true if coming && function.bases == 0 => {
            keep("its function's first base is being made", RETRY, keep_left)
        }
        true if !coming && function.bases == 0 => act(
            Verdict::MakeBase,
            "its function has no base",
            (Verdict::Dedup, "there is nothing to refer to"),
        ),
        true if !coming => act(
            Verdict::MakeBase,
            "its function has more dedup sandboxes than its bases are good for",
            (Verdict::Dedup, "another base comes first"),
        ),
        true => act(
            Verdict::Dedup,
            "idle and quiet, and its function has a base",
            (Verdict::MakeBase, "another base is being made"),
        ),
        false => act(
            Verdict::Dedup,
            "idle and quiet, and its function has a base",
            (Verdict::MakeBase, "its function has bases enough"),
        ),
    }
}

/// Leaves it warm, and asks again after a while, or when keep-alive is over.
pub(super) fn keep(because: &'static str, again: Duration, keep_left: Duration) -> Review {
    let rejected = vec![(Verdict::Dedup, because), TOO_EARLY];
    Review { verdict: Verdict::Keep, because, rejected, again: again.min(keep_left), prewarm: None }
}
