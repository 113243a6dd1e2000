//! When warm sandboxes give memory away that they do not touch: a few pages at a time, between requests.
//!
//! What comes for a sandbox meanwhile calls the step off and waits for its end, which is milliseconds away.

use std::time::{Duration, Instant};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::Command,
    ids::{SandboxId, SnapshotId},
    sandbox::{Phase, SandboxState},
};

use super::{Action, DedupFailed, Driver, Entry, Event, busy};

/// Pages of the first step that takes any, of the smallest, and of the largest: 1 MiB, 256 KiB and 32 MiB.
const PAGES_FIRST: usize = 256;
const PAGES_MIN: usize = 64;
const PAGES_MAX: usize = 8192;
/// The next step is twice as large if no more than one in so many pages was missed, and half as large otherwise.
const MISSED_ONE_IN: u64 = 8;
/// From a request's end to a step.
const GAP: Duration = Duration::from_millis(200);
/// From one step to the next.
const PAUSE: Duration = Duration::from_secs(2);
/// The same where pages were missed, or a step failed.
const PAUSE_AFTER_MISSES: Duration = Duration::from_secs(8);
/// Until it is looked again whether something has become cold.
const REST: Duration = Duration::from_secs(60);
/// What may wait for the end of a step.
const DEFERRED_MAX: usize = 64;

/// A step that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// Pages that were there and are not any more.
    pub taken_pages: u64,
    /// There are more that may be cold.
    pub has_more: bool,
    /// Pages that it has ever had to wait for.
    pub missed_pages: u64,
    /// All bytes kept for it.
    pub stored_bytes: u64,
    /// Base snapshots that these refer to.
    pub bases: Vec<SnapshotId>,
    /// How long each part of it took.
    pub phases: Vec<Phase>,
}

/// What is known of one sandbox.
#[derive(Debug)]
pub(super) struct Trim {
    pages_max: usize,
    /// `None`: never again.
    not_before: Option<Instant>,
    /// Pages that the last step took.
    taken_pages: u64,
    /// Pages and requests there had been by then.
    missed_pages: u64,
    requests: u64,
    /// A step is under way, and this waits for its end.
    deferred: Option<Vec<Event>>,
}

impl Trim {
    pub(super) const fn new(now: Instant) -> Self {
        let not_before = Some(now);
        Self {
            pages_max: PAGES_FIRST,
            not_before,
            taken_pages: 0,
            missed_pages: 0,
            requests: 0,
            deferred: None,
        }
    }

    /// Whether a step is under way.
    pub(super) const fn is_under_way(&self) -> bool {
        self.deferred.is_some()
    }

    /// It has come back from somewhere: what it misses is not due to the last step.
    pub(super) const fn begin_anew(&mut self) {
        self.taken_pages = 0;
    }

    /// What was taken before was right, or not: that is how much may be taken now.
    fn judge(&mut self, now: Instant, trimmed: &Trimmed) {
        let missed = trimmed.missed_pages.saturating_sub(self.missed_pages);
        let is_right = missed.saturating_mul(MISSED_ONE_IN) <= self.taken_pages;
        if self.taken_pages > 0 {
            let pages_max = if is_right { self.pages_max * 2 } else { self.pages_max / 2 };
            self.pages_max = pages_max.clamp(PAGES_MIN, PAGES_MAX);
        }
        let pause = match (is_right || self.taken_pages == 0, trimmed.has_more) {
            (false, _) => PAUSE_AFTER_MISSES,
            (true, true) => PAUSE,
            (true, false) => REST,
        };
        self.not_before = Some(now + pause);
        (self.taken_pages, self.missed_pages) = (trimmed.taken_pages, trimmed.missed_pages);
    }
}

impl Entry {
    /// Whether somebody else has its processes in hand.
    pub(super) const fn is_worked_on(&self) -> bool {
        self.command.is_some() || self.trim.is_under_way()
    }

    /// When its next step is due, if it can be trimmed now. Each step waits for a request after the last one: without that nobody knows
    /// what was right.
    fn trim_due(&self, now: Instant) -> Option<Instant> {
        let rests = self.state == SandboxState::Warm && self.open_requests == 0;
        let is_free = !self.is_worked_on() && self.doomed.is_none() && self.undumpable.is_none();
        let due = self.trim.not_before.filter(|due| *due <= now)?;
        let can = rests && is_free;
        let was_used = self.requests > self.trim.requests && now.duration_since(self.last_used) >= GAP;
        (can && was_used).then_some(due)
    }
}

impl Driver {
    /// From now on warm sandboxes give away what they do not touch.
    #[must_use]
    pub const fn trimming(mut self) -> Self {
        self.trims = true;
        self
    }

    /// One sandbox at a time, and only while nothing else is under way.
    pub(super) fn trim_one(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.trims || self.shrinking || self.sandboxes.values().any(Entry::is_worked_on) {
            return;
        }
        let due = self.sandboxes.iter_mut().filter_map(|(id, entry)| Some((entry.trim_due(now)?, id, entry)));
        let Some((_, &sandbox, entry)) = due.min_by_key(|(due, ..)| *due) else { return };
        entry.trim.requests = entry.requests;
        entry.trim.deferred = Some(Vec::new());
        out.push(Action::Trim { sandbox, pages_max: entry.trim.pages_max });
    }

    /// Puts off what comes for a sandbox in the middle of a step, which is called off; gives back what need not wait.
    pub(super) fn defer(&mut self, event: Event, out: &mut Vec<Action>) -> Option<Event> {
        let sandbox = match &event {
            Event::Command { command, .. } => of(command),
            Event::RequestAsked { sandbox, .. } => Some(*sandbox),
            _ => None,
        };
        let entry = sandbox.and_then(|sandbox| Some((sandbox, self.sandboxes.get_mut(&sandbox)?)));
        let Some((sandbox, entry)) = entry else { return Some(event) };
        let state = entry.state;
        let Some(deferred) = &mut entry.trim.deferred else { return Some(event) };
        out.push(Action::CancelPark { sandbox });
        if deferred.len() < DEFERRED_MAX {
            deferred.push(event);
            return None;
        }
        match event {
            Event::RequestAsked { ticket, .. } => {
                out.push(Action::Refuse { ticket, why: busy(sandbox, state, "invoke") });
            }
            Event::Command { id, .. } => {
                out.push(Action::Reply { command: id, result: Err(busy(sandbox, state, "work on")) });
            }
            other => return Some(other),
        }
        None
    }

    pub(super) fn trimmed(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        result: Result<Trimmed, DedupFailed>,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        let deferred = entry.trim.deferred.take().unwrap_or_default();
        match result {
            Ok(trimmed) => {
                entry.trim.judge(now, &trimmed);
                (entry.stored_bytes, entry.bases) = (trimmed.stored_bytes, trimmed.bases);
                self.remove_if_doomed(sandbox, out);
            }
            Err(DedupFailed { failure, lost: true }) => self.end(sandbox, failure, out),
            Err(DedupFailed { failure, lost: false }) => {
                entry.trim.not_before = not_before(now, &failure);
                self.remove_if_doomed(sandbox, out);
            }
        }
        for event in deferred {
            self.apply(now, event, out);
        }
    }
}

/// When to try again after a failure.
fn not_before(now: Instant, failure: &Failure) -> Option<Instant> {
    match failure.kind {
        FailureKind::Cancelled => Some(now + PAUSE),
        // It forks, or something else looks after its memory: that is how it is.
        FailureKind::DumpRefused => None,
        _ => Some(now + PAUSE_AFTER_MISSES),
    }
}

/// The sandbox that a command is about, if it is about one that is here.
const fn of(command: &Command) -> Option<SandboxId> {
    match command {
        Command::Dedup { sandbox, .. }
        | Command::Park { sandbox, .. }
        | Command::CancelPark { sandbox }
        | Command::Restore { sandbox, .. }
        | Command::MakeBase { sandbox, .. }
        | Command::Purge { sandbox }
        | Command::Offer { sandbox, .. } => Some(*sandbox),
        Command::Start { .. }
        | Command::Take { .. }
        | Command::Replicate { .. }
        | Command::DropSnapshot { .. } => None,
    }
}
