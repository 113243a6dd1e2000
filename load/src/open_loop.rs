//! Requests go out when they are due, whether earlier ones have been answered or not: a caller in the world does not wait either.
//!
//! So many may be under way at a time. One that is due then has to wait, and its time counts from when it was due all the same.

use std::{future::Future, time::Duration};

use futures::stream::{FuturesUnordered, StreamExt as _};
use medes_proto::{ids::FunctionName, sandbox::StartKind};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{schedule::Due, tally::Tally};

/// A request that is sent by so much after it was due is late. What a timer is off by is less.
const LATE: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

/// Where requests go.
pub trait Target {
    /// Sends one, and waits for its answer. Ends by itself after some time, whatever happens.
    fn ask(&self, function: &FunctionName, number: u64) -> impl Future<Output = Result<StartKind, Failed>>;
}

/// A request that was not answered well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// One word to count it by.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// Where a run stands, told once a second.
#[derive(Debug)]
pub struct Progress<'r> {
    /// Since its beginning.
    pub elapsed: Duration,
    /// Requests under way.
    pub under_way: usize,
    /// Requests that are not due yet, or wait to be sent.
    pub left: usize,
    /// All that was sent.
    pub tally: &'r Tally,
}

/// Sends requests until all were sent, or `stop` comes about, and waits for the answers of those under way. `targets`: for each function
/// of the trace the one that stands for it.
pub async fn run<T: Target>(
    dues: &[Due],
    targets: &[Option<FunctionName>],
    target: &T,
    under_way_max: usize,
    stop: impl Future<Output = ()>,
    mut tell: impl FnMut(&Progress<'_>),
) -> Tally {
    let mapped = |due: &&Due| targets.get(due.function as usize).is_some_and(Option::is_some);
    let mut left = dues.iter().filter(mapped).count();
    let mut dues = dues.iter().filter(mapped);
    let mut next = dues.next();
    let (mut tally, began) = (Tally::default(), Instant::now());
    let mut under_way = FuturesUnordered::new();
    let mut seconds = interval(SECOND);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut stop = std::pin::pin!(stop);
    let mut stopped = false;
    while next.is_some() || !under_way.is_empty() {
        let due_at = next.map_or(began, |due| began + due.at);
        let may_send = next.is_some() && under_way.len() < under_way_max.max(1);
        tokio::select! {
            biased;
            () = &mut stop, if !stopped => (stopped, next, left) = (true, None, 0),
            () = sleep_until(due_at), if may_send => {
                let Some(due) = next else { continue };
                let Some(function) = &targets[due.function as usize] else { continue };
                let delay = due_at.elapsed();
                if delay >= LATE {
                    tally.late += 1;
                    tally.late_max = tally.late_max.max(delay);
                }
                let number = tally.sent;
                tally.sent += 1;
                under_way.push(async move { (target.ask(function, number).await, due_at) });
                next = dues.next();
                left -= 1;
            }
            Some((answer, due_at)) = under_way.next() => match answer {
                Ok(start) => tally.answered(start, due_at.elapsed()),
                Err(Failed { kind, message }) => tally.failed(&kind, &message),
            },
            _ = seconds.tick() => {
                let (elapsed, under_way) = (began.elapsed(), under_way.len());
                tell(&Progress { elapsed, under_way, left, tally: &tally });
            }
        }
    }
    tell(&Progress { elapsed: began.elapsed(), under_way: 0, left, tally: &tally });
    tally
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending};

    use super::*;
    use tokio::time::sleep;

    /// Takes its time, and notes when it was asked for what.
    struct Slow {
        took: Duration,
        began: Instant,
        asked: RefCell<Vec<(Duration, String)>>,
    }

    impl Slow {
        fn new(took: Duration) -> Self {
            Self { took, began: Instant::now(), asked: RefCell::default() }
        }
    }

    impl Target for Slow {
        async fn ask(&self, function: &FunctionName, number: u64) -> Result<StartKind, Failed> {
            self.asked.borrow_mut().push((self.began.elapsed(), function.to_string()));
            sleep(self.took).await;
            match number {
                1 => Err(Failed { kind: "busy".into(), message: "not now".into() }),
                _ => Ok(StartKind::Warm),
            }
        }
    }

    fn every(gap: Duration, count: u32) -> Vec<Due> {
        (0..count).map(|number| Due { at: gap * number, function: number % 2 }).collect()
    }

    fn targets() -> Vec<Option<FunctionName>> {
        vec![Some("a".parse().unwrap()), Some("b".parse().unwrap())]
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_goes_out_when_it_is_due_though_others_are_not_answered() {
        let slow = Slow::new(Duration::from_secs(30));
        let dues = every(Duration::from_secs(1), 4);
        let mut told = 0;
        let tally = run(&dues, &targets(), &slow, 100, pending(), |_| told += 1).await;
        let asked = slow.asked.into_inner();
        let seconds: Vec<_> = asked.iter().map(|(at, name)| (at.as_secs(), name.as_str())).collect();
        assert_eq!(seconds, [(0, "a"), (1, "b"), (2, "a"), (3, "b")]);
        assert_eq!((tally.sent, tally.late, tally.answers(), tally.failure_count()), (4, 0, 3, 1));
        assert_eq!(tally.failures["busy"].first, "not now");
        assert!((30..=35).contains(&told), "once a second and at the end: {told}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_had_to_wait_counts_from_when_it_was_due() {
        let slow = Slow::new(Duration::from_secs(10));
        let tally = run(&every(Duration::from_secs(1), 3), &targets(), &slow, 1, pending(), |_| ()).await;
        // Sent after 0, 10 and 20 s, due after 0, 1 and 2 s; the second fails.
        assert_eq!((tally.sent, tally.late, tally.late_max.as_secs()), (3, 2, 18));
        let (all, ms) = (tally.all(), 1e3);
        assert!((all.p50_ms - 10.0 * ms).abs() < 50.0 && (all.max_ms - 28.0 * ms).abs() < 50.0, "{all:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_can_be_ended_and_loses_no_answer() {
        let slow = Slow::new(Duration::from_secs(10));
        let dues = every(Duration::from_secs(1), 100);
        let mut last = (0, 0);
        let stop = sleep(Duration::from_millis(2_500));
        let tally = run(&dues, &targets(), &slow, 100, stop, |at| last = (at.under_way, at.left)).await;
        assert_eq!((tally.sent, tally.answers() + tally.failure_count(), last), (3, 3, (0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_stands_for_is_left_out() {
        let slow = Slow::new(Duration::from_secs(1));
        let targets = [None, Some("b".parse().unwrap())];
        let tally = run(&every(Duration::from_secs(1), 10), &targets, &slow, 9, pending(), |_| ()).await;
        assert_eq!(tally.sent, 5);
    }
}
