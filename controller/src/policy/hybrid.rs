//! The hybrid histogram policy (Shahrad et al., "Serverless in the Wild", ATC'20, section 4): each function is unloaded and
//! loaded again when its own idle times say so.
//!
//! 1. Half of the idle times are out of the histogram's bounds: what the average of them says, with a margin of 15 %. The paper
//!    fits an ARIMA model here, for less than 1 % of all requests; an exponentially weighted average stands in for it.
//! 2. Too few idle times, or they are spread too evenly: kept for the histogram's four hours.
//! 3. Otherwise from the 5th to the 99th percentile of the idle times, with a margin of 10 %: unloaded at once if the first is not
//!    zero, loaded again then, purged behind the last.

use std::time::Duration;

use super::{
    FunctionView, IdleLife, IdleTimes, Policy, Review, SandboxView, Verdict, View, idle_times::BINS,
};

/// Fewer idle times say nothing.
const TIMES_MIN: u64 = 10;
/// A histogram of which the counts vary less is none.
const VARIATION_MIN: f64 = 2.0;
/// A share of idle times out of bounds from which on these count.
const BEYOND_MIN: f64 = 0.5;
const HEAD: f64 = 0.05;
const TAIL: f64 = 0.99;
const MARGIN: f64 = 0.10;
const MARGIN_BEYOND: f64 = 0.15;
const RETRY: Duration = Duration::from_secs(5);

/// When a function should be loaded, counted from the end of its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Loaded {
    from: Duration,
    until: Duration,
    because: &'static str,
}

/// The policy.
#[derive(Debug, Clone, Copy)]
pub struct Hybrid;

fn loaded(times: &IdleTimes) -> Loaded {
    if times.beyond_share() >= BEYOND_MIN
        && let Some(average) = times.average()
    {
        return Loaded {
            from: average.mul_f64(1.0 - MARGIN_BEYOND),
            until: average.mul_f64(1.0 + MARGIN_BEYOND),
            because: "most idle times are longer than four hours: around their average",
        };
    }
    if times.within() < TIMES_MIN || times.variation() < VARIATION_MIN {
        return Loaded {
            from: Duration::ZERO,
            until: Duration::from_secs(60 * BINS as u64),
            because: "its idle times show no pattern yet: four hours",
        };
    }
    let ((head, _), (_, tail)) = (times.percentile(HEAD), times.percentile(TAIL));
    Loaded {
        from: head.mul_f64(1.0 - MARGIN),
        until: tail.mul_f64(1.0 + MARGIN),
        because: "between the 5th and the 99th percentile of its idle times",
    }
}

impl Policy for Hybrid {
    fn name(&self) -> &'static str {
        "hybrid"
    }

    /// At once: it may have to go at the end of its request.
    fn first_review(&self, _life: IdleLife) -> Duration {
        Duration::ZERO
    }

    fn review(&self, view: &dyn View, function: &FunctionView<'_>, _sandbox: &SandboxView) -> Review {
        let Loaded { from, until, because } = loaded(function.idle_times);
        let keep = |again| Review {
            verdict: Verdict::Keep,
            because,
            rejected: vec![
                (Verdict::Purge, "its next request is expected"),
                (Verdict::Dedup, "this policy does not dedup"),
            ],
            again,
            prewarm: None,
        };
        let Some(end) = function.idle_times.last_end() else {
            // It has not served yet, or another sandbox of the function does.
            return keep(RETRY);
        };
        let idle = view.now().saturating_sub(end);
        let purge = |because, prewarm| Review {
            verdict: Verdict::Purge,
            because,
            rejected: vec![(Verdict::Keep, "its next request is not expected now")],
            again: RETRY,
            prewarm,
        };
        if idle >= until {
            purge("idle for longer than nearly all of its idle times", None)
        } else if idle < from {
            purge("no request is expected before it is loaded again", Some(from - idle))
        } else {
            keep(until - idle)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    const MINUTE: Duration = Duration::from_secs(60);

    fn times(minutes: &[u32]) -> IdleTimes {
        let mut times = IdleTimes::default();
        let mut now = Duration::ZERO;
        for idle in minutes {
            times.end(now);
            now += MINUTE * *idle;
            times.begin(now);
        }
        times
    }

    /// The review `idle` after the end of the last request.
    fn after(mut times: IdleTimes, idle: Duration) -> Review {
        times.end(Duration::from_secs(1_000_000));
        at(&Hybrid, Duration::from_secs(1_000_000) + idle, &times, |_, _| ())
    }

    #[test]
    fn a_pattern_unloads_and_loads_again() {
        // All between 20 and 21 minutes: loaded from 18 (0.9 * 20) to 23.1 (1.1 * 21).
        let regular = || times(&[20; 12]);
        let review = after(regular(), Duration::ZERO);
        assert_eq!((review.verdict, review.prewarm), (Verdict::Purge, Some(MINUTE * 18)));
        let review = after(regular(), MINUTE * 8);
        assert_eq!(review.prewarm, Some(MINUTE * 10));
        let review = after(regular(), MINUTE * 20);
        assert_eq!((review.verdict, review.again), (Verdict::Keep, Duration::from_secs(186)));
        let review = after(regular(), MINUTE * 24);
        assert_eq!((review.verdict, review.prewarm), (Verdict::Purge, None));
    }

    #[test]
    fn frequent_requests_are_not_unloaded() {
        // All below a minute: head 0.
        let review = after(times(&[0; 12]), Duration::from_secs(10));
        assert_eq!((review.verdict, review.again), (Verdict::Keep, Duration::from_secs(56)));
    }

    #[test]
    fn few_or_even_idle_times_are_kept_for_four_hours() {
        for times in [times(&[20; 9]), times(&(0..240).collect::<Vec<_>>())] {
            let review = after(times.clone(), MINUTE * 239);
            assert_eq!((review.verdict, review.again), (Verdict::Keep, MINUTE));
            assert_eq!(after(times, MINUTE * 240).verdict, Verdict::Purge);
        }
    }

    #[test]
    fn long_idle_times_go_by_their_average() {
        // 300 minutes each: loaded from 255 to 345.
        let rare = || times(&[300; 4]);
        assert_eq!(after(rare(), Duration::ZERO).prewarm, Some(MINUTE * 255));
        assert_eq!(after(rare(), MINUTE * 300).verdict, Verdict::Keep);
        assert_eq!(after(rare(), MINUTE * 346).prewarm, None);
    }

    #[test]
    fn nothing_happens_while_a_request_runs() {
        let running = times(&[20; 12]);
        assert_eq!(at(&Hybrid, MINUTE, &running, |_, _| ()).verdict, Verdict::Keep);
    }
}
