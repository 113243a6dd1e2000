//! Keeps every sandbox until its node needs the memory: what warm starts are possible at all, and what they cost.

use std::time::Duration;

use super::{FunctionView, IdleLife, Policy, Review, SandboxView, Verdict, View};

/// How often a sandbox is looked at, to no effect.
const AGAIN: Duration = Duration::from_secs(3_600);

/// The policy.
#[derive(Debug, Clone, Copy)]
pub struct NeverUnload;

/// Nothing happens to the sandbox until memory is needed.
pub(super) fn keep(because: &'static str) -> Review {
    let rejected =
        vec![(Verdict::Purge, "nobody needs its memory"), (Verdict::Dedup, "this policy does not dedup")];
    Review { verdict: Verdict::Keep, because, rejected, again: AGAIN, prewarm: None }
}

impl Policy for NeverUnload {
    fn name(&self) -> &'static str {
        "never-unload"
    }

    fn first_review(&self, _life: IdleLife) -> Duration {
        AGAIN
    }

    fn review(&self, _view: &dyn View, _function: &FunctionView<'_>, _sandbox: &SandboxView) -> Review {
        keep("sandboxes are kept until their memory is needed")
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn a_day_changes_nothing() {
        let review = of(&NeverUnload, |_, s| s.idle = Duration::from_secs(86_400));
        assert_eq!(review.verdict, Verdict::Keep);
        let worth = |idle| worth_of(&NeverUnload, |_, s| s.idle = Duration::from_secs(idle));
        assert!(worth(10) > worth(20), "the longest idle goes first");
    }
}
