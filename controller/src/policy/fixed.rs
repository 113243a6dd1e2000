//! Fixed periods, as the paper's section 5 has them: idle, then base or dedup; purge after keep-alive or keep-dedup.

use std::time::Duration;

use super::{
    FunctionView, IdleLife, Policy, Review, SandboxView, Verdict, View,
    storing::{RETRY, keep, store},
};

/// A dedup takes about so long: then another one may begin.
const NEXT: Duration = Duration::from_millis(500);

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

impl FixedSettings {
    /// What the periods say of a warm sandbox by themselves: `Err`. Else how long it may still be kept.
    pub(super) fn before_storing(&self, view: &dyn View, sandbox: &SandboxView) -> Result<Duration, Review> {
        let keep_left = self.keep_alive.saturating_sub(sandbox.idle);
        if keep_left.is_zero() {
            return Err(Review {
                verdict: Verdict::Purge,
                because: "idle for keep_alive",
                rejected: vec![(Verdict::Keep, "keep_alive is over")],
                again: RETRY,
                prewarm: None,
            });
        }
        if !self.dedup {
            return Err(keep("dedup is switched off", keep_left, keep_left));
        }
        if sandbox.idle < self.idle {
            let left = self.idle.saturating_sub(sandbox.idle);
            return Err(keep("the idle period is not over", left, keep_left));
        }
        if !sandbox.quiet {
            // Its agent says so when it is; that brings the next review.
            return Err(keep("its agent still sees work in it", keep_left, keep_left));
        }
        match sandbox.dump_blocked {
            Some(blocked) => {
                let because = "a dump of it failed, and is not tried again yet";
                Err(keep(because, blocked.max(RETRY), keep_left))
            }
            None => {
                let gain = view.gain(sandbox.id);
                let because = "its node takes others first, which bring more memory for the same work";
                if gain.ahead < gain.slots { Ok(keep_left) } else { Err(keep(because, NEXT, keep_left)) }
            }
        }
    }

    /// What they say of a sandbox in dedup.
    pub(super) fn in_dedup(&self, sandbox: &SandboxView) -> Review {
        match self.keep_dedup.saturating_sub(sandbox.in_life) {
            Duration::ZERO => Review {
                verdict: Verdict::Purge,
                because: "in dedup for keep_dedup",
                rejected: vec![(Verdict::Keep, "keep_dedup is over")],
                again: RETRY,
                prewarm: None,
            },
            left => Review {
                verdict: Verdict::Keep,
                because: "keep_dedup is not over",
                rejected: vec![
                    (Verdict::Purge, "keep_dedup is not over"),
                    (Verdict::Restore, "no request asks for it"),
                ],
                again: left,
                prewarm: None,
            },
        }
    }

    pub(super) fn first_review(&self, life: IdleLife) -> Duration {
        match life {
            IdleLife::Warm => self.idle.min(self.keep_alive),
            IdleLife::Dedup => self.keep_dedup,
        }
    }

    pub(super) fn limits(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("idle_limit_ms", millis(self.idle)),
            ("keep_alive_ms", millis(self.keep_alive)),
            ("keep_dedup_ms", millis(self.keep_dedup)),
            ("dedups_per_base", self.dedups_per_base.into()),
        ]
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
        self.0.first_review(life)
    }

    fn review(&self, view: &dyn View, function: &FunctionView<'_>, sandbox: &SandboxView) -> Review {
        match sandbox.life {
            IdleLife::Dedup => self.0.in_dedup(sandbox),
            IdleLife::Warm => match self.0.before_storing(view, sandbox) {
                Ok(keep_left) => store(function, self.0.dedups_per_base, keep_left),
                Err(review) => review,
            },
        }
    }

    fn limits(&self) -> Vec<(&'static str, u64)> {
        self.0.limits()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Gain,
            tests::{among, of},
        },
        *,
    };

    fn verdict(change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView)) -> Review {
        of(&Fixed(FixedSettings::default()), change)
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
    fn who_brings_more_memory_for_the_work_goes_first() {
        let ranked = Gain { ahead: 2, among: 3, slots: 2, ..Gain::default() };
        let waits = among(&Fixed(FixedSettings::default()), ranked, |_, _| {});
        assert_eq!((waits.verdict, waits.again), (Verdict::Keep, NEXT));
        assert_eq!(waits.rejected[0], (Verdict::Dedup, waits.because));
        let gain = |won_bytes, work_pages| Gain { won_bytes, work_pages, ..Gain::default() };
        assert!(gain(10, 5).is_above(&gain(10, 6)) && !gain(10, 6).is_above(&gain(10, 5)));
        assert!(gain(u64::MAX, 1).is_above(&gain(u64::MAX, 2)), "no overflow");
        assert!(!gain(0, 0).is_above(&gain(0, 9)), "nothing is as good as nothing");
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
