//! Ours: every idle sandbox is in the state that is worth most, by what a byte costs on its node just now.
//!
//! ```text
//! g   uses to be expected per second of waiting (IdleTimes::demand)
//! p   price of a byte for a second on the node: what the last sandboxes that had to go for room were worth (falls by half
//!     in a few minutes without)
//! L   loss of a start, from its latency; 0 for warm, r for restore, c for cold
//!
//! worth of a state  =  g (c - L)  -  p bytes        warm: L = 0, its memory    dedup: L = r, its image
//! ```
//!
//! As long as nobody needs memory the price is zero and everything stays warm. When somebody does, what is worth least per
//! byte goes first, whatever function it is of ([`Policy::worth`]); this sets the price, and at that price others are better
//! deduplicated than warm; when it has fallen, some come back before they are asked for. A change of state has to bring more than the
//! work it takes, and a margin: so nothing goes to and fro. Nothing is purged before its memory is needed: that takes no time.
//!
//! Who had to go for room comes back before the next request where that is due at a certain time (a timer), once it is worth more than
//! who would have to go for it.
//!
//! A base costs as much as the sandbox it is made of, and what it saves is the difference between an image with and without
//! it: it is made when a function's images save more together than it costs. Until then an image goes without, or finds a related
//! function's base through the registry.

use std::time::Duration;

use medes_proto::ids::FunctionName;

use super::{
    FunctionView, IdleLife, Policy, Review, SandboxView, Verdict, View, idle_times::BINS, storing::RETRY,
};

/// Until they have been seen.
const COLD_UNSEEN: Duration = Duration::from_millis(500);
const RESTORE_UNSEEN: Duration = Duration::from_millis(100);

/// What an image takes of a sandbox's memory with a base of its function and without, until one has been seen: a bit more
/// than the ten functions of `bench` take (dedup/README.md).
const STORED: f64 = 0.1;
const STORED_ALONE: f64 = 0.3;

/// A base, with the index that alignment needs, for each byte of the sandbox.
const BASE: f64 = 1.5;

/// A second of the processor for a dedup, in seconds that a request waits.
const WORK: f64 = 0.2;

/// A state must be better by this part of the whole loss, or all stays as it is.
const MARGIN: f64 = 0.1;

/// Where so much of a node's memory is free nobody would have any use for more: what it was worth at the last rush is past.
const FREE_ENOUGH: f64 = 0.1;

/// The time a dedup takes, for each byte.
const DEDUP_SECONDS_PER_BYTE: f64 = 1.0 / 80e6;

/// Longest and shortest time between two looks at a sandbox.
const AGAIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));

/// Steps in which is looked for the time at which a sandbox will be worth its memory again.
const LOOK_AHEAD: Duration = Duration::from_secs(60);

/// The unit of memory: worths are seconds of latency per second and MiB.
const SIZE_UNIT: f64 = 1048576.0;

/// A function used within this time of its sandbox was used in this sandbox.
const SAME: Duration = Duration::from_secs(1);

/// The policy.
#[derive(Debug, Clone, Copy)]
pub struct Marginal {
    /// Slow starts count more than in proportion: a latency to this power. 1 is for the mean, more is for the tail.
    pub tail: f64,
    /// Idle for so long before its memory may be taken, so that nobody is dumped between two requests.
    pub idle: Duration,
}

/// A sandbox's choices in numbers.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// Uses to be expected per second.
    demand: f64,
    /// Losses of starts.
    cold: f64,
    restore: f64,
    /// MiB of its states.
    warm: f64,
    stored: f64,
    /// The work of a dedup, as a loss.
    work: f64,
}

impl Marginal {
    fn loss(&self, latency: f64) -> f64 {
        latency.max(0.0).powf(self.tail)
    }

    fn terms(&self, now: Duration, function: &FunctionView<'_>, sandbox: &SandboxView) -> Terms {
        let seconds = |time: Option<Duration>, unseen: Duration| time.unwrap_or(unseen).as_secs_f64();
        let cold = self.loss(seconds(function.cold_start, COLD_UNSEEN));
        let restore = self.loss(seconds(function.restore, RESTORE_UNSEEN)).min(cold);
        // The sandbox used last is used when the function is; any other one only when one is not enough.
        let idle_of_all = function.idle_times.last_end().map(|end| now.saturating_sub(end));
        let (times, idle) = match idle_of_all {
            // One that was started before it was needed has been idle for less than its function.
            Some(idle) if sandbox.idle <= idle + SAME => (function.idle_times, idle),
            _ => (function.reuses, sandbox.idle),
        };
        let warm_bytes = match sandbox.private_bytes {
            0 => function.warm_bytes.unwrap_or_default(),
            bytes => bytes,
        } as f64;
        let stored_bytes = match (sandbox.life, function.dedup_bytes) {
            (IdleLife::Dedup, _) => sandbox.stored_bytes as f64,
            (IdleLife::Warm, Some(seen)) => seen as f64,
            (IdleLife::Warm, None) if function.bases > 0 => warm_bytes * STORED,
            (IdleLife::Warm, None) => warm_bytes * STORED_ALONE,
        };
        Terms {
            demand: times.demand(idle),
            cold,
            restore,
            warm: warm_bytes / SIZE_UNIT,
            stored: stored_bytes / SIZE_UNIT,
            work: WORK * warm_bytes * DEDUP_SECONDS_PER_BYTE,
        }
    }

    /// What a warm sandbox of a function is worth when nobody has used it for so long.
    fn worth_after(&self, function: &FunctionView<'_>, idle: Duration) -> Option<f64> {
        let cold = self.loss(function.cold_start.unwrap_or(COLD_UNSEEN).as_secs_f64());
        Some(function.idle_times.demand(idle) * cold / (function.warm_bytes? as f64 / SIZE_UNIT).max(1e-3))
    }

    /// Whether images of the function will save more with a base than it costs.
    fn base_pays(function: &FunctionView<'_>, sandbox: &SandboxView) -> bool {
        let warm = sandbox.private_bytes as f64;
        let alone = function.dedup_bytes.map_or(warm * STORED_ALONE, |bytes| bytes as f64);
        let saved = (alone - warm * STORED).max(0.0);
        function.bases == 0 && function.bases_coming == 0 && (function.dedup + 1) as f64 * saved > warm * BASE
    }
}

impl Terms {
    /// What each state is worth at this price: warm, dedup.
    fn worths(&self, price: f64) -> [f64; 2] {
        [
            self.demand * self.cold - price * self.warm,
            self.demand * (self.cold - self.restore) - price * self.stored,
        ]
    }

    /// What is better than the present state by more than it takes to get there, if anything is.
    fn better(&self, life: IdleLife, price: f64) -> Option<Verdict> {
        let [warm, dedup] = self.worths(price);
        let margin = MARGIN * self.demand * self.cold;
        // Work is done once, and what it brings comes until the next use.
        let work = self.work * self.demand;
        let (verdict, other, now) = match life {
            IdleLife::Warm => (Verdict::Dedup, dedup, warm),
            IdleLife::Dedup => (Verdict::Restore, warm, dedup),
        };
        (other > now + margin + work).then_some(verdict)
    }
}

impl Policy for Marginal {
    fn name(&self) -> &'static str {
        "marginal"
    }

    fn first_review(&self, life: IdleLife) -> Duration {
        match life {
            IdleLife::Warm => self.idle,
            IdleLife::Dedup => AGAIN.0,
        }
    }

    fn review(&self, view: &dyn View, function: &FunctionView<'_>, sandbox: &SandboxView) -> Review {
        let terms = self.terms(view.now(), function, sandbox);
        let wish = terms.better(sandbox.life, sandbox.price);
        // The longer it has been idle the slower its prospects change.
        let again = (sandbox.idle / 4).clamp(AGAIN.0, AGAIN.1);
        let keep = |because, again| {
            let other = if sandbox.life == IdleLife::Warm { Verdict::Dedup } else { Verdict::Restore };
            let rejected = vec![(other, because), (Verdict::Purge, because)];
            Review { verdict: Verdict::Keep, because, rejected, again, prewarm: None }
        };
        let act = |verdict, because| Review {
            verdict,
            because,
            rejected: vec![(Verdict::Keep, "it is worth less as it is, at the price of memory on its node")],
            again: RETRY,
            prewarm: None,
        };
        match wish {
            None => keep("no other state is worth enough more, at the price of memory on its node", again),
            Some(Verdict::Restore) => act(Verdict::Restore, "a request is likely enough to have it ready"),
            Some(Verdict::Dedup) if sandbox.free >= FREE_ENOUGH => {
                keep("its node has memory enough that nobody uses", again)
            }
            Some(Verdict::Dedup) if sandbox.idle < self.idle => {
                keep("the idle period is not over", self.idle - sandbox.idle)
            }
            Some(Verdict::Dedup) if !sandbox.quiet => keep("its agent still sees work in it", AGAIN.0),
            Some(Verdict::Dedup) if let Some(blocked) = sandbox.dump_blocked => {
                keep("a dump of it failed, and is not tried again yet", blocked)
            }
            Some(Verdict::Dedup)
                if let gain = view.gain(sandbox.id)
                    && gain.ahead >= gain.slots =>
            {
                keep("its node takes others first, which bring more memory for the same work", RETRY)
            }
            Some(Verdict::Dedup) if Self::base_pays(function, sandbox) => {
                act(Verdict::MakeBase, "its function's images save more with a base than it costs")
            }
            Some(_) => act(
                Verdict::Dedup,
                "its memory costs more than a restore, at the price of memory on its node",
            ),
        }
    }

    /// What its next use is worth, for each MiB and second that it is kept.
    fn worth(&self, view: &dyn View, function: &FunctionName, sandbox: &SandboxView) -> f64 {
        // What belongs to no function any more serves nobody.
        let Some(function) = view.function(function) else { return f64::NEG_INFINITY };
        let terms = self.terms(view.now(), &function, sandbox);
        let [warm, dedup] = terms.worths(0.0);
        let (worth, held) = match sandbox.life {
            IdleLife::Warm => (warm, terms.warm),
            IdleLife::Dedup => (dedup, terms.stored),
        };
        worth / held.max(1e-3)
    }

    /// When its worth will have risen above the price: for functions that are used at regular times.
    fn back_after(&self, view: &dyn View, function: &FunctionView<'_>, price: f64) -> Option<Duration> {
        let idle = view.now().saturating_sub(function.idle_times.last_end()?);
        let wanted = price * (1.0 + MARGIN);
        let ahead = (0..BINS as u32).map(|step| LOOK_AHEAD * step);
        ahead
            .take_while(|wait| idle + *wait < LOOK_AHEAD * BINS as u32)
            .find(|wait| self.worth_after(function, idle + *wait).is_some_and(|worth| worth > wanted))
    }

    fn worth_of_new(&self, view: &dyn View, function: &FunctionView<'_>) -> Option<f64> {
        let idle = view.now().saturating_sub(function.idle_times.last_end()?);
        Some(self.worth_after(function, idle)? / (1.0 + MARGIN))
    }

    fn limits(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("idle_limit_ms", u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX)),
            ("tail_per_mille", (self.tail * 1e3) as u64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Gain, super::IdleTimes, super::tests::*, *};

    const OURS: Marginal = Marginal { tail: 1.0, idle: Duration::from_secs(60) };

    /// 100 MiB warm, 10 MiB as an image; a second cold, 0.1 s from its image.
    fn change(f: &mut FunctionView<'_>, s: &mut SandboxView) {
        (s.private_bytes, s.stored_bytes, f.dedup_bytes) = (100 << 20, 10 << 20, Some(10 << 20));
        (f.cold_start, f.restore) = (Some(Duration::from_secs(1)), Some(Duration::from_millis(100)));
        s.idle = Duration::from_secs(540);
    }

    /// Idle for nine minutes, and nothing known: one use in 600 s is expected.
    fn verdict(life: IdleLife, price: f64) -> Verdict {
        of(&OURS, |f, s| {
            change(f, s);
            (s.life, s.price) = (life, price);
        })
        .verdict
    }

    #[test]
    fn by_hand() {
        // Warm: 1/600 - 100 p; dedup: 0.9/600 - 10 p. A change costs a fifth of 1.31 s of work, 0.262/600, and a margin of 0.1/600:
        // dedup from 90 p > 0.462/600 on, p > 8.6e-6.
        assert_eq!(verdict(IdleLife::Warm, 0.0), Verdict::Keep);
        assert_eq!(verdict(IdleLife::Warm, 8.0e-6), Verdict::Keep);
        assert_eq!(verdict(IdleLife::Warm, 9.0e-6), Verdict::Dedup);
        assert_eq!(
            verdict(IdleLife::Warm, 1.0),
            Verdict::Dedup,
            "nothing is purged before its memory is needed"
        );
        // The margin is as much as a restore is worth here: it waits for the request.
        assert_eq!(verdict(IdleLife::Dedup, 0.0), Verdict::Keep);
        // A restore of 0.6 s is worth 0.6/600: back again from 90 p < 0.238/600 on, p < 4.4e-6.
        let slow = |price| {
            of(&OURS, |f, s| {
                change(f, s);
                f.restore = Some(Duration::from_millis(600));
                (s.life, s.price) = (IdleLife::Dedup, price);
            })
        };
        assert_eq!(slow(4.3e-6).verdict, Verdict::Restore);
        assert_eq!(slow(4.5e-6).verdict, Verdict::Keep);
    }

    #[test]
    fn nothing_goes_to_and_fro_at_one_price() {
        for exponent in 0..60 {
            let price = 1e-7 * 1.2f64.powi(exponent);
            let after_dedup = verdict(IdleLife::Dedup, price);
            assert!(
                verdict(IdleLife::Warm, price) != Verdict::Dedup || after_dedup == Verdict::Keep,
                "at {price}: dedup, then {after_dedup:?}"
            );
        }
    }

    #[test]
    fn a_base_comes_when_its_images_save_more_than_it_costs() {
        let with = |dedup, bases| {
            of(&OURS, |f, s| {
                change(f, s);
                // Without a base an image takes 30 MiB; with one it would take 10.
                (f.dedup, f.bases, f.dedup_bytes, s.price) = (dedup, bases, Some(30 << 20), 2e-5);
            })
            .verdict
        };
        assert_eq!(with(6, 0), Verdict::Dedup, "7 * 20 < 150");
        assert_eq!(with(7, 0), Verdict::MakeBase, "8 * 20 > 150");
        assert_eq!(with(7, 1), Verdict::Dedup, "there is one");
    }

    #[test]
    fn who_is_worth_least_for_its_memory_goes_first() {
        let worth = |life, mib: u64, idle| {
            worth_of(&OURS, |f, s| {
                change(f, s);
                (s.life, s.private_bytes, s.stored_bytes) = (life, mib << 20, mib << 20);
                s.idle = Duration::from_secs(idle);
            })
        };
        assert!(worth(IdleLife::Warm, 100, 60) > worth(IdleLife::Warm, 200, 60), "the larger one goes first");
        assert!(
            worth(IdleLife::Warm, 100, 60) > worth(IdleLife::Warm, 100, 600),
            "the longer idle one goes first"
        );
        assert!(worth(IdleLife::Dedup, 10, 600) > worth(IdleLife::Warm, 100, 600), "an image holds little");
    }

    #[test]
    fn a_sandbox_that_works_or_cannot_be_dumped_stays() {
        for change_more in [
            (|s: &mut SandboxView| s.quiet = false) as fn(&mut SandboxView),
            |s| s.dump_blocked = Some(Duration::from_secs(9)),
            // Nobody would have any use for its memory.
            |s| s.free = 0.1,
        ] {
            let review = of(&OURS, |f, s| {
                change(f, s);
                s.price = 1e-5;
                change_more(s);
            });
            assert_eq!(review.verdict, Verdict::Keep);
        }
        let dear = |f: &mut FunctionView<'_>, s: &mut SandboxView| {
            change(f, s);
            s.price = 1e-5;
        };
        assert_eq!(among(&OURS, Gain { slots: 1, ..Gain::default() }, dear).verdict, Verdict::Dedup);
        assert_eq!(among(&OURS, Gain::default(), dear).verdict, Verdict::Keep);
    }

    #[test]
    fn a_function_with_regular_times_is_back_before_the_next_one() {
        const MINUTE: Duration = Duration::from_secs(60);
        let regular = || {
            let mut times = IdleTimes::default();
            (0..12).for_each(|_| times.count(MINUTE * 20));
            times
        };
        // A use is expected between 20 and 21 minutes. 19 minutes after the last one 12 of 13 come within two minutes, which is 1,200 s of
        // waiting: 0.01 a second, and 1e-4 for a MiB. A minute earlier 1,980 s: 6.1e-5. With a margin of a tenth:
        let after = |price| back_after(&OURS, regular(), MINUTE, price);
        assert_eq!(after(5e-5), Some(MINUTE * 17), "from 18 minutes on");
        assert_eq!(after(8e-5), Some(MINUTE * 18));
        assert_eq!(after(1.0), None, "never worth it");
        assert_eq!(back_after(&OURS, regular(), MINUTE * 22, 5e-5), None, "it did not come");
        assert_eq!(back_after(&OURS, IdleTimes::default(), MINUTE, 5e-4), None, "nothing is known of it");
    }

    #[test]
    fn the_tail_counts_more_with_a_higher_power() {
        // A cold start of 10 s against one of 1 s: ten times as much, or a hundred times.
        let worth = |tail, cold| {
            worth_of(&Marginal { tail, ..OURS }, |f, s| {
                change(f, s);
                f.cold_start = Some(Duration::from_secs(cold));
            })
        };
        assert!((worth(1.0, 10) / worth(1.0, 1) - 10.0).abs() < 1e-6);
        assert!((worth(2.0, 10) / worth(2.0, 1) - 100.0).abs() < 1e-6);
    }
}
