//! FaasCache: sandboxes are cached objects of different sizes and costs, kept by greedy-dual (Fuerst and Sharma, ASPLOS'21).
//!
//! Nothing is purged for its age. When memory is needed, idle sandboxes go in order of
//! `clock + frequency * cost / size`: requests served by the function's present sandboxes, what a cold start takes
//! longer than a warm one, memory. The clock is that of the sandbox's last use, and rises to the worth of what is ended.

use std::time::Duration;

use medes_proto::ids::FunctionName;

use super::{FunctionView, IdleLife, Policy, Review, SandboxView, View, never_unload};

const AGAIN: Duration = Duration::from_secs(3_600);

/// The unit of sizes. Any will do, as worths are only compared.
const SIZE_UNIT: f64 = 1e6;

/// The policy.
#[derive(Debug, Clone, Copy)]
pub struct GreedyDual;

impl Policy for GreedyDual {
    fn name(&self) -> &'static str {
        "greedy-dual"
    }

    fn first_review(&self, _life: IdleLife) -> Duration {
        AGAIN
    }

    fn review(&self, _view: &dyn View, _function: &FunctionView<'_>, _sandbox: &SandboxView) -> Review {
        never_unload::keep("sandboxes are kept until their memory is needed for ones of more worth")
    }

    fn worth(&self, view: &dyn View, function: &FunctionName, sandbox: &SandboxView) -> f64 {
        // What belongs to no function any more serves nobody.
        let Some(function) = view.function(function) else { return f64::NEG_INFINITY };
        let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
        let cost = (seconds(function.cold_start) - seconds(function.warm_start)).max(0.0);
        let bytes = sandbox.private_bytes.max(sandbox.stored_bytes).max(1);
        sandbox.clock + function.uses as f64 * cost / (bytes as f64 / SIZE_UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, super::tests::*, *};

    #[test]
    fn worth_is_clock_and_frequency_times_cost_over_size() {
        let worth = |uses, cold_ms, bytes, clock| {
            worth_of(&GreedyDual, |f, s| {
                (f.uses, f.cold_start) = (uses, Some(Duration::from_millis(cold_ms)));
                (f.warm_start, s.private_bytes, s.clock) = (Some(Duration::from_millis(100)), bytes, clock);
            })
        };
        // 5 + 10 * (1.1 - 0.1) s / 20 MB
        assert!((worth(10, 1_100, 20_000_000, 5.0) - 5.5).abs() < 1e-9);
        assert!(worth(10, 1_100, 40_000_000, 5.0) < 5.5, "the larger one goes first");
        assert!(worth(10, 50, 20_000_000, 5.0) == 5.0, "what is not slower to start has no cost");
    }

    #[test]
    fn nothing_is_purged_for_its_age() {
        assert_eq!(of(&GreedyDual, |_, s| s.idle = Duration::from_secs(86_400)).verdict, Verdict::Keep);
    }
}
