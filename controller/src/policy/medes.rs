//! The paper's two policies (section 5): how many of a function's sandboxes should be in dedup.
//!
//! Of `C` sandboxes of a function `W` are warm and `D` in dedup. Requests come at the rate `l`, at most; a warm sandbox is free
//! again after `R_W` (start and execution), one in dedup after `R_D`. Then (numbers as in the paper)
//!
//! ```text
//! (1)  W + D = C
//! (2)  W / R_W + D / R_D > l                                   they can serve what comes
//! (3)  M = W m_W + D m_D                                       what they hold
//! (4)  S = (W/R_W s_W + D/R_D s_D) / l                         how long a start takes on average
//! P1   least M with S < alpha s_W            D <= (alpha l R_W - C) / (c s_D/s_W - 1),   c = R_W / R_D
//! P2   least S with M < M0                   D >= (C m_W - M0) / (m_W - m_D)
//! (2) says                                   D <= (C - l R_W) / (1 - c)
//! ```
//!
//! Each idle sandbox is asked about by itself, as in the prototype: more are put in dedup while there are fewer than that.
//! Where the prototype differs from the paper we follow the paper: what is measured counts (it had footprints in its
//! configuration), sandboxes on their way count, bases are not counted twice, and a sandbox that has been in dedup
//! before is treated like any other. The memory that a restore takes for a moment (the paper's `m_R`) is not known here and left out.

use std::time::Duration;

use super::{
    FixedSettings, FunctionView, IdleLife, Policy, Review, SandboxView, Verdict, View,
    storing::{RETRY, keep, needs_base, store},
};

/// Minutes over which the busiest one gives the rate.
const RATE_MINUTES: usize = 10;

/// A restore, until one has been seen (the prototype's number).
const RESTORE_UNSEEN: Duration = Duration::from_millis(300);

/// A warm start, until one has been seen.
const WARM_UNSEEN: Duration = Duration::from_millis(1);

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// P1: starts take on average at most `alpha` times as long as warm ones, at the least memory.
    Latency {
        /// More than 1; the paper's evaluation has 2.5.
        alpha: f64,
    },
    /// P2: the function's part of the cluster's memory, in proportion to its rate, at the least latency.
    Memory {
        /// The share of the cluster's memory that is given out; the prototype has 0.95.
        share: f64,
    },
}

/// The policy.
#[derive(Debug, Clone, Copy)]
pub struct Medes {
    /// What is to be reached.
    pub objective: Objective,
    /// When it is asked, and how long what it keeps is kept.
    pub periods: FixedSettings,
}

/// What becomes of a sandbox that is idle long enough, and why.
type Wish = (Verdict, &'static str);

/// A function in the paper's terms; times in seconds, sizes in bytes.
#[derive(Debug, Clone, Copy)]
struct Terms {
    all: f64,
    dedup: f64,
    rate: f64,
    warm_start: f64,
    restore: f64,
    warm_reuse: f64,
    dedup_reuse: f64,
}

impl Terms {
    fn of(function: &FunctionView<'_>, now: Duration) -> Self {
        let execution = function.execution.unwrap_or_default();
        let warm_start = function.warm_start.unwrap_or(WARM_UNSEEN).max(Duration::from_micros(1));
        let restore = function.restore.unwrap_or(RESTORE_UNSEEN);
        Self {
            all: (function.warm + function.starting + function.dedup) as f64,
            dedup: function.dedup as f64,
            rate: function.arrivals.rate_max(now, RATE_MINUTES),
            warm_start: warm_start.as_secs_f64(),
            restore: restore.as_secs_f64(),
            warm_reuse: (warm_start + execution).as_secs_f64(),
            dedup_reuse: (restore + execution).as_secs_f64(),
        }
    }

    /// `c`.
    fn reuse(&self) -> f64 {
        self.warm_reuse / self.dedup_reuse
    }

    /// Most sandboxes in dedup with which all requests can be served, by (2). Negative if not even all of them warm can.
    fn dedup_for_rate(&self) -> f64 {
        let spare = self.all - self.rate * self.warm_reuse;
        match 1.0 - self.reuse() {
            slower if slower > 0.0 => spare / slower,
            // Restores are as fast as warm starts: any number does, if any does.
            _ => spare.signum() * f64::INFINITY,
        }
    }

    /// Most sandboxes in dedup with which starts are fast enough. Negative if there are more sandboxes than that rate has use for.
    fn dedup_for_latency(&self, alpha: f64) -> f64 {
        let spare = alpha * self.rate * self.warm_reuse - self.all;
        match self.restore / self.warm_start * self.reuse() - 1.0 {
            slower if slower > 0.0 => spare / slower,
            _ => f64::INFINITY,
        }
    }

    fn for_latency(&self, alpha: f64) -> Wish {
        let (rate, latency) = (self.dedup_for_rate(), self.dedup_for_latency(alpha));
        if rate < 0.0 {
            (Verdict::Keep, "all sandboxes are needed warm for the rate of requests")
        } else if latency < 0.0 {
            (Verdict::Purge, "there are more sandboxes than the rate of requests has use for")
        } else if self.dedup < rate.min(latency) {
            (Verdict::Dedup, "starts stay fast enough with one more in dedup")
        } else {
            (Verdict::Keep, "starts would be too slow with one more in dedup")
        }
    }

    fn for_memory(&self, budget: f64, warm_bytes: f64, dedup_bytes: f64) -> Wish {
        if warm_bytes <= dedup_bytes {
            return (Verdict::Keep, "dedup would win no memory");
        }
        let memory = (self.all * warm_bytes - budget) / (warm_bytes - dedup_bytes);
        if memory < 0.0 {
            (Verdict::Keep, "its function's budget is enough for all sandboxes warm")
        } else if memory > self.all {
            (Verdict::Dedup, "its function's budget is not enough with all sandboxes in dedup")
        } else if memory >= self.dedup_for_rate() {
            (Verdict::Dedup, "its function's budget is not enough for the rate of requests")
        } else if self.dedup < memory {
            (Verdict::Dedup, "its function's budget is not enough with one less in dedup")
        } else {
            (Verdict::Keep, "its function's budget is enough with those in dedup")
        }
    }
}

impl Medes {
    fn wish(&self, view: &dyn View, function: &FunctionView<'_>, sandbox: &SandboxView) -> Wish {
        let cluster = view.cluster();
        let terms = Terms::of(function, view.now());
        match self.objective {
            Objective::Latency { alpha } => terms.for_latency(alpha),
            Objective::Memory { .. } if cluster.cap_bytes == 0 => {
                (Verdict::Keep, "the cluster's memory has no bound")
            }
            Objective::Memory { share } => {
                let rates = view.rates_max(RATE_MINUTES);
                let part = if rates > 0.0 { terms.rate / rates } else { 0.0 };
                let warm = function.warm_bytes.unwrap_or(sandbox.private_bytes) as f64;
                // Until one has been seen: half, so that the first one shows what it really is.
                let dedup = function.dedup_bytes.map_or(warm / 2.0, |bytes| bytes as f64);
                terms.for_memory(share * cluster.cap_bytes as f64 * part, warm, dedup)
            }
        }
    }
}

impl Policy for Medes {
    fn name(&self) -> &'static str {
        match self.objective {
            Objective::Latency { .. } => "medes-latency",
            Objective::Memory { .. } => "medes-memory",
        }
    }

    fn first_review(&self, life: IdleLife) -> Duration {
        self.periods.first_review(life)
    }

    fn review(&self, view: &dyn View, function: &FunctionView<'_>, sandbox: &SandboxView) -> Review {
        if sandbox.life == IdleLife::Dedup {
            return self.periods.in_dedup(sandbox);
        }
        let keep_left = match self.periods.before_storing(view, sandbox) {
            Ok(keep_left) => keep_left,
            Err(review) => return review,
        };
        let (verdict, because) = self.wish(view, function, sandbox);
        // The test for a base overrides what the objective says, as in the paper.
        if verdict == Verdict::Dedup || needs_base(function, self.periods.dedups_per_base) {
            return store(function, self.periods.dedups_per_base, keep_left);
        }
        match verdict {
            Verdict::Purge => Review {
                verdict,
                because,
                rejected: vec![(Verdict::Keep, because), (Verdict::Dedup, because)],
                again: RETRY,
                prewarm: None,
            },
            // As often as the paper asks: once in each idle period.
            _ => keep(because, self.periods.idle.max(RETRY), keep_left),
        }
    }

    fn limits(&self) -> Vec<(&'static str, u64)> {
        let mut limits = self.periods.limits();
        limits.push(match self.objective {
            Objective::Latency { alpha } => ("alpha_per_mille", (alpha * 1e3) as u64),
            Objective::Memory { share } => ("budget_per_mille", (share * 1e3) as u64),
        });
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    fn seconds(seconds: f64) -> Option<Duration> {
        Some(Duration::from_secs_f64(seconds))
    }

    /// R_W = 1 s, R_D = 1.3 s, so c = 0.769; s_D / s_W = 4.
    fn terms(warm: f64, dedup: f64, rate: f64) -> Terms {
        Terms {
            all: warm + dedup,
            dedup,
            rate,
            warm_start: 0.1,
            restore: 0.4,
            warm_reuse: 1.0,
            dedup_reuse: 1.3,
        }
    }

    #[test]
    fn the_latency_objective_by_hand() {
        // D <= (4 - 2) / (1 - 0.769) = 8.67 for the rate; D <= (2.5 * 2 - 4) / (4 * 0.769 - 1) = 0.48 for the latency.
        assert!((terms(4.0, 0.0, 2.0).dedup_for_rate() - 8.6667).abs() < 1e-3);
        assert!((terms(4.0, 0.0, 2.0).dedup_for_latency(2.5) - 0.4815).abs() < 1e-3);
        let wish = |warm, dedup, rate| terms(warm, dedup, rate).for_latency(2.5).0;
        assert_eq!(wish(4.0, 0.0, 2.0), Verdict::Dedup);
        assert_eq!(wish(3.0, 1.0, 2.0), Verdict::Keep);
        assert_eq!(wish(4.0, 0.0, 1.0), Verdict::Purge, "2.5 * 1 < 4: too many sandboxes");
        assert_eq!(wish(4.0, 0.0, 5.0), Verdict::Keep, "4 < 5: too few sandboxes");
    }

    #[test]
    fn the_memory_objective_by_hand() {
        let wish = |warm, dedup, rate| terms(warm, dedup, rate).for_memory(475e6, 100e6, 20e6).0;
        // D >= (600 - 475) / 80 = 1.56
        assert_eq!(wish(5.0, 1.0, 2.0), Verdict::Dedup);
        assert_eq!(wish(4.0, 2.0, 2.0), Verdict::Keep);
        assert_eq!(wish(4.0, 0.0, 2.0), Verdict::Keep, "400 < 475: all of them fit");
        assert_eq!(wish(60.0, 0.0, 2.0), Verdict::Dedup, "D >= 69 of 60: it never fits");
        assert_eq!(wish(4.0, 2.0, 5.9), Verdict::Dedup, "D <= 0.43 for the rate: infeasible");
        assert_eq!(terms(5.0, 0.0, 2.0).for_memory(0.0, 10e6, 20e6).0, Verdict::Keep, "nothing is won");
    }

    #[test]
    fn restores_as_fast_as_warm_starts_cost_nothing() {
        let same = Terms { restore: 0.1, dedup_reuse: 1.0, ..terms(4.0, 3.0, 2.0) };
        assert_eq!(same.for_latency(2.5).0, Verdict::Dedup);
        assert_eq!(Terms { rate: 8.0, ..same }.for_latency(2.5).0, Verdict::Keep);
    }

    #[test]
    fn the_objective_decides_about_sandboxes_that_may_be_stored() {
        let latency =
            |alpha| Medes { objective: Objective::Latency { alpha }, periods: FixedSettings::default() };
        let change = |f: &mut FunctionView<'_>, _: &mut SandboxView| {
            (f.warm, f.dedup, f.warm_start, f.restore, f.execution) =
                (4, 0, seconds(0.1), seconds(0.4), seconds(0.9));
        };
        // Two a second over the last minutes.
        let review = |alpha| busy(&latency(alpha), 120, change);
        assert_eq!(review(2.5).verdict, Verdict::Dedup);
        assert_eq!(review(1.1).verdict, Verdict::Purge);
        let early = busy(&latency(1.1), 120, |f, s| {
            change(f, s);
            s.idle = Duration::from_secs(59);
        });
        assert_eq!(early.verdict, Verdict::Keep);
        let baseless = busy(&latency(1.1), 120, |f, s| {
            change(f, s);
            f.bases = 0;
        });
        assert_eq!(baseless.verdict, Verdict::MakeBase, "the base test overrides");
    }

    #[test]
    fn the_budget_goes_by_the_rate() {
        let policy =
            Medes { objective: Objective::Memory { share: 0.95 }, periods: FixedSettings::default() };
        let of = |warm, dedup| {
            busy(&policy, 120, |f, _| {
                (f.warm, f.dedup, f.warm_bytes, f.dedup_bytes) =
                    (warm, dedup, Some(100 << 20), Some(20 << 20));
                (f.warm_start, f.restore, f.execution) = (seconds(0.1), seconds(0.4), seconds(0.9));
            })
        };
        // The only function of a cluster of 1000 MiB: D >= (1200 - 950) / 80 = 3.1 of 12.
        assert_eq!(of(9, 3).verdict, Verdict::Dedup);
        assert_eq!(of(8, 4).verdict, Verdict::Keep);
    }
}
