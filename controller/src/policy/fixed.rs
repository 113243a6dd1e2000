//! Fixed periods, as the paper's section 5 has them: idle, then base or dedup; purge after keep-alive or keep-dedup.

use std::time::Duration;

use super::{FunctionView, IdleLife, Policy, Review, SandboxView, Verdict, View};

/// How long to ask again when the wish could not be fulfilled now: a base is being made, dumps are blocked.
const RETRY: Duration = Duration::from_secs(5);

/// The periods. Defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedSettings {
    /// Warm and idle for this long: base or dedup.
    pub idle: Duration,
    /// Warm and idle for this long: purge.
    pub keep_alive: Duration,
    /// In dedup for this long: purge.
    pub keep_dedup: Duration,
    /// Dedup sandboxes one base is good for (the paper's T).
    pub dedups_per_base: u32,
    /// `false`: idle sandboxes are only ever kept or purged.
    pub dedup: bool,
}

impl Default for FixedSettings {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            keep_alive: Duration::from_secs(600),
            keep_dedup: Duration::from_secs(900),
            dedups_per_base: 40,
            dedup: true,
        }
    }
}

/// The policy.
#[derive(Debug, Clone, Copy)]
pub struct Fixed(pub FixedSettings);

impl Fixed {
    /// The paper's D/B test: a function without a base, or with too many dedup sandboxes for its bases.
    fn needs_base(&self, function: &FunctionView<'_>) -> bool {
        let room = function.bases.saturating_mul(self.0.dedups_per_base as usize);
        function.bases == 0 || function.dedup > room
    }

    fn warm(&self, function: &FunctionView<'_>, sandbox: &SandboxView) -> Review {
        const TOO_EARLY: (Verdict, &str) = (Verdict::Purge, "keep_alive is not over");
        let keep_left = self.0.keep_alive.saturating_sub(sandbox.idle);
        if keep_left.is_zero() {
            let rejected = vec![(Verdict::Keep, "keep_alive is over")];
            return Review {
                verdict: Verdict::Purge,
                because: "idle for keep_alive",
                rejected,
                again: RETRY,
            };
        }
        let keep = |because, again: Duration| {
            let rejected = vec![(Verdict::Dedup, because), TOO_EARLY];
            Review { verdict: Verdict::Keep, because, rejected, again: again.min(keep_left) }
        };
        let act = |verdict, because, other| Review {
            verdict,
            because,
            rejected: vec![other, (Verdict::Keep, "idle for the idle period"), TOO_EARLY],
            again: RETRY.min(keep_left),
        };
        if !self.0.dedup {
            return keep("dedup is switched off", keep_left);
        }
        if sandbox.idle < self.0.idle {
            return keep("the idle period is not over", self.0.idle.saturating_sub(sandbox.idle));
        }
        if !sandbox.quiet {
            // Its agent says so when it is; that brings the next review.
            return keep("its agent still sees work in it", keep_left);
        }
        if let Some(blocked) = sandbox.dump_blocked {
            return keep("a dump of it failed, and is not tried again yet", blocked.max(RETRY));
        }
        let coming = function.bases_coming > 0;
        match self.needs_base(function) {
            // One at a time. Nothing to refer to yet: wait, rather than store the sandbox whole.
            true if coming && function.bases == 0 => keep("its function's first base is being made", RETRY),
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
}

fn millis(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}

impl Policy for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn first_review(&self, life: IdleLife) -> Duration {
        match life {
            IdleLife::Warm => self.0.idle.min(self.0.keep_alive),
            IdleLife::Dedup => self.0.keep_dedup,
        }
    }

    fn review(&self, _view: &dyn View, function: &FunctionView<'_>, sandbox: &SandboxView) -> Review {
        match sandbox.life {
            IdleLife::Warm => self.warm(function, sandbox),
            IdleLife::Dedup => match self.0.keep_dedup.saturating_sub(sandbox.in_life) {
                Duration::ZERO => Review {
                    verdict: Verdict::Purge,
                    because: "in dedup for keep_dedup",
                    rejected: vec![(Verdict::Keep, "keep_dedup is over")],
                    again: RETRY,
                },
                left => Review {
                    verdict: Verdict::Keep,
                    because: "keep_dedup is not over",
                    rejected: vec![
                        (Verdict::Purge, "keep_dedup is not over"),
                        (Verdict::Restore, "no request asks for it"),
                    ],
                    again: left,
                },
            },
        }
    }

    fn limits(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("idle_limit_ms", millis(self.0.idle)),
            ("keep_alive_ms", millis(self.0.keep_alive)),
            ("keep_dedup_ms", millis(self.0.keep_dedup)),
            ("dedups_per_base", self.0.dedups_per_base.into()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Arrivals, ClusterView};
    use medes_proto::ids::{FunctionName, SandboxId};

    struct Nothing;

    impl View for Nothing {
        fn cluster(&self) -> ClusterView {
            ClusterView::default()
        }
        fn function(&self, _name: &FunctionName) -> Option<FunctionView<'_>> {
            None
        }
        fn functions(&self) -> Vec<FunctionView<'_>> {
            Vec::new()
        }
    }

    fn verdict(change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView)) -> Review {
        let (name, arrivals) = ("f".parse().unwrap(), Arrivals::default());
        let mut function = FunctionView {
            name: &name,
            warm: 1,
            running: 0,
            dedup: 0,
            starting: 0,
            bases: 1,
            bases_coming: 0,
            queued: 0,
            arrivals: &arrivals,
            warm_bytes: None,
            dedup_bytes: None,
            cold_start: None,
            restore: None,
            execution: None,
        };
        let mut sandbox = SandboxView {
            id: SandboxId::new(1).unwrap(),
            life: IdleLife::Warm,
            idle: Duration::from_secs(60),
            in_life: Duration::from_secs(60),
            quiet: true,
            private_bytes: 0,
            stored_bytes: 0,
            is_base_source: false,
            dump_blocked: None,
        };
        change(&mut function, &mut sandbox);
        Fixed(FixedSettings::default()).review(&Nothing, &function, &sandbox)
    }

    #[test]
    fn an_idle_sandbox_is_deduplicated() {
        assert_eq!(verdict(|_, _| ()).verdict, Verdict::Dedup);
    }

    #[test]
    fn the_first_idle_sandbox_becomes_the_base_and_the_second_waits_for_it() {
        assert_eq!(verdict(|f, _| f.bases = 0).verdict, Verdict::MakeBase);
        let waits = verdict(|f, _| (f.bases, f.bases_coming) = (0, 1));
        assert_eq!((waits.verdict, waits.again), (Verdict::Keep, RETRY));
    }

    #[test]
    fn more_than_t_dedups_for_each_base_make_another_base() {
        assert_eq!(verdict(|f, _| f.dedup = 40).verdict, Verdict::Dedup);
        assert_eq!(verdict(|f, _| f.dedup = 41).verdict, Verdict::MakeBase);
        assert_eq!(verdict(|f, _| (f.dedup, f.bases_coming) = (41, 1)).verdict, Verdict::Dedup);
        assert_eq!(verdict(|f, _| (f.dedup, f.bases) = (80, 2)).verdict, Verdict::Dedup);
    }

    #[test]
    fn a_sandbox_that_cannot_be_dumped_is_left_alone_until_keep_alive() {
        let blocked = verdict(|_, s| s.dump_blocked = Some(Duration::from_secs(300)));
        assert_eq!((blocked.verdict, blocked.again), (Verdict::Keep, Duration::from_secs(300)));
        let old = verdict(|_, s| {
            s.dump_blocked = Some(Duration::from_secs(300));
            s.idle = Duration::from_secs(600);
        });
        assert_eq!(old.verdict, Verdict::Purge);
    }

    #[test]
    fn work_that_only_the_agent_sees_keeps_a_sandbox_warm() {
        assert_eq!(verdict(|_, s| s.quiet = false).verdict, Verdict::Keep);
    }

    #[test]
    fn a_verdict_says_why_and_what_was_rejected() {
        let acts = verdict(|f, _| f.bases = 0);
        assert_eq!(acts.because, "its function has no base");
        assert_eq!(acts.rejected[0], (Verdict::Dedup, "there is nothing to refer to"));
        let keeps = verdict(|_, s| s.quiet = false);
        assert_eq!(keeps.rejected[0], (Verdict::Dedup, keeps.because));
        for review in [acts, keeps, verdict(|_, s| s.idle = Duration::from_secs(600))] {
            assert!(review.rejected.iter().all(|(verdict, _)| *verdict != review.verdict), "{review:?}");
        }
    }

    #[test]
    fn dedup_lasts_as_long_as_keep_dedup() {
        let at =
            |seconds| verdict(|_, s| (s.life, s.in_life) = (IdleLife::Dedup, Duration::from_secs(seconds)));
        assert_eq!((at(899).verdict, at(899).again), (Verdict::Keep, Duration::from_secs(1)));
        assert_eq!(at(900).verdict, Verdict::Purge);
    }
}
