//! What is remembered: a ring of events for each sandbox, what explains its state, and a ring of all events.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use medes_proto::{
    ids::SandboxId,
    trace::{Event, EventId, Explanation, What},
};

/// Events kept for one sandbox.
const SANDBOX_EVENTS_MAX: usize = 64;
/// Sandboxes with events, living and gone.
const SANDBOXES_MAX: usize = 4_096;
/// Events of all sandboxes together: some hundred bytes each.
const EVENTS_MAX: usize = 32_768;
/// Events of all kept, for decisions that their sandbox's ring has lost.
const RECENT_MAX: usize = 4_096;

const _: () = assert!(SANDBOX_EVENTS_MAX <= medes_proto::limits::TRACE_EVENTS_MAX);

#[derive(Debug, Default)]
pub(super) struct History {
    sandboxes: BTreeMap<SandboxId, Story>,
    /// The sandboxes by their last events.
    by_last: BTreeMap<EventId, SandboxId>,
    /// In all sandboxes' rings.
    events: usize,
    recent: VecDeque<Arc<Event>>,
}

/// What is remembered of one sandbox.
#[derive(Debug, Default)]
struct Story {
    events: VecDeque<Arc<Event>>,
    forgotten: u64,
    /// Its last change of state, the decision behind it, and the policy's last word: kept beyond the ring.
    change: Option<Arc<Event>>,
    decision: Option<Arc<Event>>,
    review: Option<Arc<Event>>,
}

impl History {
    pub(super) fn keep(&mut self, event: &Arc<Event>) {
        if let Some(id) = event.about.sandbox {
            let decision = match &event.what {
                What::State(change) => change.decision.and_then(|decision| self.find(id, decision)),
                _ => None,
            };
            let story = self.sandboxes.entry(id).or_default();
            self.events -= story.events.len();
            if let Some(last) = story.events.back() {
                self.by_last.remove(&last.id);
            }
            story.keep(event, decision);
            self.events += story.events.len();
            self.by_last.insert(event.id, id);
            self.bound();
        }
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Arc::clone(event));
    }

    /// A decision about a sandbox: it is among its last events, or among the last of all.
    fn find(&self, sandbox: SandboxId, id: EventId) -> Option<Arc<Event>> {
        let story = self.sandboxes.get(&sandbox);
        let known =
            story.into_iter().flat_map(|story| story.decision.iter().chain(story.events.iter().rev()));
        known.chain(self.recent.iter().rev()).find(|event| event.id == id).cloned()
    }

    /// Sandboxes whose last events are the oldest are forgotten when there are too many.
    fn bound(&mut self) {
        while self.sandboxes.len() > SANDBOXES_MAX || self.events > EVENTS_MAX {
            let Some((_, oldest)) = self.by_last.pop_first() else { return };
            if let Some(story) = self.sandboxes.remove(&oldest) {
                self.events -= story.events.len();
            }
        }
    }

    /// The last events with a greater number than this, at most so many.
    pub(super) fn recent(&self, after: u64, most: usize) -> Vec<Event> {
        let new = self.recent.iter().rev().take_while(|event| event.id.get() > after).take(most);
        let mut events: Vec<_> = new.map(|event| Event::clone(event)).collect();
        events.reverse();
        events
    }

    pub(super) fn explain(&self, id: SandboxId) -> Option<Explanation> {
        let story = self.sandboxes.get(&id)?;
        let copy = |event: &Option<Arc<Event>>| event.as_deref().cloned();
        Some(Explanation {
            now: None,
            change: copy(&story.change),
            decision: copy(&story.decision),
            review: copy(&story.review),
            history: story.events.iter().map(|event| Event::clone(event)).collect(),
            forgotten: story.forgotten,
        })
    }
}

impl Story {
    fn keep(&mut self, event: &Arc<Event>, decision: Option<Arc<Event>>) {
        match &event.what {
            What::State(_) => (self.change, self.decision) = (Some(Arc::clone(event)), decision),
            What::Review(_) => self.review = Some(Arc::clone(event)),
            _ => {}
        }
        if self.events.len() >= SANDBOX_EVENTS_MAX {
            self.events.pop_front();
            self.forgotten = self.forgotten.saturating_add(1);
        }
        self.events.push_back(Arc::clone(event));
    }
}

#[cfg(test)]
mod tests {
    use medes_proto::{
        sandbox::SandboxState,
        trace::{About, Cause, StateChange},
    };

    use super::*;

    fn event(number: u64, sandbox: u32, what: What) -> Arc<Event> {
        let about = About { sandbox: SandboxId::of(1, sandbox), ..About::default() };
        Arc::new(Event { id: EventId::new(number).unwrap(), unix_micros: number, about, what })
    }

    fn asked(number: u64, sandbox: u32) -> Arc<Event> {
        event(number, sandbox, What::Asked { operation: "dedup".into() })
    }

    fn changed(number: u64, sandbox: u32, decision: u64) -> Arc<Event> {
        let (from, to) = (Some(SandboxState::Warm), Some(SandboxState::Deduping));
        let decision = EventId::new(decision);
        event(number, sandbox, What::State(StateChange { from, to, cause: Cause::Decided, decision }))
    }

    #[test]
    fn the_decision_behind_a_state_outlives_the_ring() {
        let mut history = History::default();
        history.keep(&asked(1, 7));
        history.keep(&changed(2, 7, 1));
        let most = u64::try_from(SANDBOX_EVENTS_MAX).unwrap();
        (3..3 + most + 5).for_each(|number| history.keep(&asked(number, 7)));
        let explained = history.explain(SandboxId::of(1, 7).unwrap()).unwrap();
        assert_eq!(explained.decision.unwrap().id.get(), 1);
        assert_eq!(explained.change.unwrap().id.get(), 2);
        assert_eq!((explained.history.len(), explained.forgotten), (SANDBOX_EVENTS_MAX, 7));
        // Also for a change that comes later because of the same decision.
        history.keep(&changed(9_999, 7, 1));
        assert_eq!(history.explain(SandboxId::of(1, 7).unwrap()).unwrap().decision.unwrap().id.get(), 1);
        assert!(history.explain(SandboxId::of(1, 8).unwrap()).is_none());
    }

    #[test]
    fn who_has_seen_some_is_told_what_is_new() {
        let mut history = History::default();
        (1..=10).for_each(|number| history.keep(&asked(number, 1)));
        let numbers = |after, most| {
            history.recent(after, most).into_iter().map(|event| event.id.get()).collect::<Vec<_>>()
        };
        assert_eq!((numbers(7, 100), numbers(0, 2), numbers(10, 5)), (vec![8, 9, 10], vec![9, 10], vec![]));
    }

    #[test]
    fn everything_kept_is_bounded() {
        let mut history = History::default();
        let most = u32::try_from(SANDBOXES_MAX).unwrap();
        for sandbox in 1..=most + 10 {
            history.keep(&asked(sandbox.into(), sandbox));
        }
        assert_eq!((history.sandboxes.len(), history.recent.len()), (SANDBOXES_MAX, RECENT_MAX));
        let known = |sandbox| history.explain(SandboxId::of(1, sandbox).unwrap()).is_some();
        assert!(!known(10) && known(11) && known(most + 10));

        let mut history = History::default();
        let full = u32::try_from(EVENTS_MAX / SANDBOX_EVENTS_MAX).unwrap();
        let mut number = 0;
        for sandbox in (1..=full + 3).flat_map(|sandbox| [sandbox; SANDBOX_EVENTS_MAX + 1]) {
            number += 1;
            history.keep(&asked(number, sandbox));
            let in_rings: usize = history.sandboxes.values().map(|story| story.events.len()).sum();
            assert!(in_rings == history.events && in_rings <= EVENTS_MAX);
        }
        let known: Vec<_> = history.sandboxes.keys().map(|id| id.get()).collect();
        let expected = (4..=full + 3).map(|sandbox| SandboxId::of(1, sandbox).unwrap().get());
        assert_eq!(known, expected.collect::<Vec<_>>(), "those that were heard of last");
    }
}
