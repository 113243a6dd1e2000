//! What the kernel programs say, checked: rows of words become values that make sense.

use std::time::Duration;

use medes_agent_ebpf::{ActivityWords, FaultWords, HEAT_ONE, HeatWords, decayed, fault, is_seen, word};

use super::Key;

/// A record that makes no sense: not of these kernel programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the kernel programs cannot be understood: {problem}")]
pub struct RecordError {
    problem: &'static str,
}

/// What the tasks of one sandbox did since it is watched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Whether one of its tasks runs now or could.
    pub runnable: bool,
    /// Time its tasks spent on CPUs. A stretch counts when it ends.
    pub ran: Duration,
    /// When one of its tasks last went off a CPU: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ran_ns: u64,
    /// The same, without what was woken by a timer and used little CPU time.
    pub last_work_ns: u64,
    /// When the last task that could run ceased to, if that is known: nanoseconds of `CLOCK_MONOTONIC`, by the kernel.
    pub idle_since_ns: Option<u64>,
    /// What only the kernel programs can see.
    pub counts: Option<Counts>,
}

/// What only the kernel programs can see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// How often the sandbox as a whole went from idle to runnable.
    pub wakes: u64,
    /// How often of these a timer did it.
    pub timer_wakes: u64,
    /// How often one of its tasks went off a CPU.
    pub switches: u64,
    /// Processes and threads begun.
    pub forks: u64,
    /// Processes and threads ended.
    pub exits: u64,
    /// Faults seen while they were asked for.
    pub faults: u64,
}

impl Activity {
    /// How long it has done no work; `None` while it could run.
    pub fn idle(&self, now_ns: u64) -> Option<Duration> {
        (!self.runnable).then(|| Duration::from_nanos(now_ns.saturating_sub(self.last_work_ns)))
    }

    /// `missed`: tasks that ended unseen and are still counted as runnable. `faults`: those seen while they were wanted.
    pub(super) fn from_words(words: &ActivityWords, missed: i64, faults: u64, now_ns: u64) -> Self {
        let counted = words[word::RUNNABLE].cast_signed().saturating_sub(missed) > 0;
        let seen_ns = words[word::SEEN_NS];
        let runnable = counted || is_seen(seen_ns, words[word::LAST_RAN_NS], now_ns);
        let idle_since_ns = (!runnable && words[word::IDLE_NS] > 0).then_some(words[word::IDLE_NS]);
        Self {
            runnable,
            ran: Duration::from_nanos(words[word::RUN_NS]),
            last_ran_ns: words[word::LAST_RAN_NS],
            last_work_ns: words[word::LAST_WORK_NS].max(seen_ns),
            idle_since_ns,
            counts: Some(Counts {
                wakes: words[word::WAKES],
                timer_wakes: words[word::TIMER_WAKES],
                switches: words[word::SWITCHES],
                forks: words[word::FORKS],
                exits: words[word::EXITS],
                faults,
            }),
        }
    }
}

/// One fault of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Of which sandbox.
    pub key: Key,
    /// The kernel's number of the process.
    pub process: u32,
    /// What was touched.
    pub address: u64,
    /// Whether it was a write.
    pub write: bool,
    /// Whether the kernel touched it for the process.
    pub in_kernel: bool,
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

impl Fault {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (words, rest) = bytes.as_chunks::<8>();
        let wrong = |problem| Err(RecordError { problem });
        let (&[key, address, at_ns, last], []) = (words, rest) else { return wrong("not four words") };
        let [key, address, at_ns, last]: FaultWords = [key, address, at_ns, last].map(u64::from_ne_bytes);
        if last & !fault::ALL != 0 {
            return wrong("unknown bits");
        }
        let Some(key) = Key::new(key) else { return wrong("no sandbox") };
        let process = u32::try_from(last & u64::from(u32::MAX)).unwrap_or_default();
        if process == 0 {
            return wrong("no process");
        }
        let (write, in_kernel) = (last & fault::WRITE != 0, last & fault::IN_KERNEL != 0);
        Ok(Self { key, process, address, write, in_kernel, at_ns })
    }
}

/// How warm a page is: about how many touches in the last ten seconds, older ones counting less.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageHeat {
    /// The kernel's number of the process.
    pub process: u32,
    /// Address / 4096.
    pub page: u64,
    /// Faults of any kind, decayed.
    pub touches: f64,
    /// Writes among them, decayed.
    pub writes: f64,
}

impl PageHeat {
    pub(super) fn from_words(words: &HeatWords, now_ns: u64) -> Option<Self> {
        let &[_, process, page, touches, writes, last_ns] = words;
        let age_ns = now_ns.saturating_sub(last_ns);
        let heat = |heat: u64| decayed(heat, age_ns) as f64 / HEAT_ONE as f64;
        let process = u32::try_from(process).ok()?;
        Some(Self { process, page, touches: heat(touches), writes: heat(writes) })
    }
}

#[cfg(test)]
mod tests {
    use medes_agent_ebpf::SEEN_FOR_NS;

    use super::*;

    fn bytes(words: FaultWords) -> Vec<u8> {
        words.into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    #[test]
    fn a_fault_is_understood_and_nonsense_refused() {
        let seen = Fault::parse(&bytes([7, 0x1000, 5, 42 | fault::WRITE])).unwrap();
        assert_eq!((seen.key.get(), seen.process, seen.address, seen.at_ns), (7, 42, 0x1000, 5));
        assert!(seen.write && !seen.in_kernel);
        assert!(Fault::parse(&bytes([0, 0, 0, 42])).is_err(), "no sandbox");
        assert!(Fault::parse(&bytes([7, 0, 0, 0])).is_err(), "no process");
        assert!(Fault::parse(&bytes([7, 0, 0, 1 << 60 | 42])).is_err(), "unknown bits");
        assert!(Fault::parse(&bytes([7, 0, 0, 42])[..31]).is_err(), "too short");
        assert!(Fault::parse(&[]).is_err());
    }

    #[test]
    fn a_sandbox_is_idle_since_its_last_work_unless_it_could_run() {
        let mut words = ActivityWords::default();
        words[word::LAST_WORK_NS] = 100;
        words[word::LAST_RAN_NS] = 900;
        let asleep = Activity::from_words(&words, 0, 0, 1_000);
        assert_eq!(asleep.idle(1_000), Some(Duration::from_nanos(900)));
        assert_eq!(asleep.idle(50), Some(Duration::ZERO), "a clock read before the event");
        assert_eq!(asleep.idle_since_ns, None, "it was never seen to run");
        words[word::IDLE_NS] = 901;
        assert_eq!(Activity::from_words(&words, 0, 0, 1_000).idle_since_ns, Some(901));
        words[word::RUNNABLE] = 1;
        let running = Activity::from_words(&words, 0, 0, 1_000);
        assert_eq!((running.idle(1_000), running.idle_since_ns), (None, None));
        assert!(Activity::from_words(&words, 1, 0, 1_000).idle(1_000).is_some(), "the task has ended unseen");
        words[word::RUNNABLE] = u64::MAX;
        assert!(!Activity::from_words(&words, 0, 0, 1_000).runnable, "below zero");
    }

    #[test]
    fn a_task_that_only_ticks_saw_makes_it_runnable_until_it_leaves_or_is_seen_no_more() {
        let mut words = ActivityWords::default();
        words[word::LAST_RAN_NS] = 900;
        words[word::SEEN_NS] = 950;
        let seen = Activity::from_words(&words, 0, 0, 1_000);
        assert_eq!((seen.runnable, seen.last_work_ns), (true, 950));
        let later = Activity::from_words(&words, 0, 0, 950 + SEEN_FOR_NS);
        assert_eq!(
            (later.runnable, later.idle(950 + SEEN_FOR_NS)),
            (false, Some(Duration::from_millis(100)))
        );
        words[word::LAST_RAN_NS] = 960;
        assert!(!Activity::from_words(&words, 0, 0, 1_000).runnable, "it left its CPU");
    }
}
