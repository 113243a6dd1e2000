//! What the driver tells about its decisions: it decides, the shell counts, logs and shows.

use medes_proto::{
    failure::Failure,
    ids::{NodeId, SandboxId},
    trace::{About, Cause, EventId, NodeChange, StateChange, Trouble, What},
};

use super::{Action, Driver, state::Life};
use crate::now::Now;

/// An event without its time of day: the driver has no clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Other events name it by this.
    pub id: EventId,
    /// What it is about.
    pub about: About,
    /// What.
    pub what: What,
}

/// Why a sandbox is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurgeReason {
    /// Idle for longer than the policy keeps it.
    Policy,
    /// Its memory is needed.
    Evicted,
    /// Its function is gone or has changed.
    Unwanted,
    /// It failed, or nobody knows what state it is in.
    Broken,
    /// Somebody asked for it.
    Asked,
    /// Its node is being drained.
    Drained,
}

impl PurgeReason {
    /// The word in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Evicted => "evicted",
            Self::Unwanted => "unwanted",
            Self::Broken => "broken",
            Self::Asked => "asked",
            Self::Drained => "drained",
        }
    }
}

impl Driver {
    /// The next event's number. After 2^32 events of one controller's life the lower half begins anew.
    pub(super) fn next_event(&mut self) -> EventId {
        self.event_counter = self.event_counter.wrapping_add(1).max(1);
        let number = u64::from(self.settings.incarnation) << 32 | u64::from(self.event_counter);
        EventId::new(number).unwrap_or_else(|| unreachable!("the counter is never zero"))
    }

    pub(super) fn tell(&mut self, about: About, what: What, out: &mut Vec<Action>) -> EventId {
        let id = self.next_event();
        out.push(Action::Tell(Box::new(Told { id, about, what })));
        id
    }

    /// Tells something about a sandbox; whatever is known of it is filled in.
    pub(super) fn tell_of(&mut self, id: SandboxId, what: What, out: &mut Vec<Action>) -> EventId {
        let about = self.about(id);
        self.tell(about, what, out)
    }

    /// Tells a decision about a sandbox: what happens to it from here on is because of it.
    pub(super) fn decide(&mut self, id: SandboxId, what: What, out: &mut Vec<Action>) {
        let event = self.tell_of(id, what, out);
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.decided = Some(event);
        }
    }

    pub(super) fn tell_node(
        &mut self,
        node: &NodeId,
        change: NodeChange,
        sandboxes: usize,
        out: &mut Vec<Action>,
    ) {
        let about = About { node: Some(node.clone()), ..About::default() };
        let sandboxes = u32::try_from(sandboxes).unwrap_or(u32::MAX);
        self.tell(about, What::Node { change, sandboxes }, out);
    }

    /// Tells that something about a sandbox failed. The last lines of its output are not part of it.
    pub(super) fn tell_failed(
        &mut self,
        id: SandboxId,
        doing: &str,
        why: &Failure,
        pause: Option<std::time::Duration>,
        out: &mut Vec<Action>,
    ) {
        let trouble = Trouble { doing: doing.into(), kind: why.kind, message: why.message.clone(), pause };
        self.tell_of(id, What::Error(trouble), out);
    }

    pub(super) fn about(&self, id: SandboxId) -> About {
        let known = self.sandboxes.get(&id);
        About {
            node: known.map(|sandbox| sandbox.node.clone()),
            sandbox: Some(id),
            function: known.map(|sandbox| sandbox.function.clone()),
        }
    }

    /// A sandbox enters a life; it is told if people are shown another state from now on.
    pub(super) fn enter(&mut self, now: Now, id: SandboxId, life: Life, cause: Cause, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        let (from, to) = (sandbox.life.shown(false), life.shown(false));
        sandbox.enter(life, now);
        let decision = sandbox.decided;
        if from != to {
            let change = StateChange { from: Some(from), to: Some(to), cause, decision };
            self.tell_of(id, What::State(change), out);
        }
    }

    /// A sandbox has come into the books.
    pub(super) fn tell_arrived(&mut self, id: SandboxId, cause: Cause, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let (to, decision) = (Some(sandbox.life.shown(false)), sandbox.decided);
        self.tell_of(id, What::State(StateChange { from: None, to, cause, decision }), out);
    }

    /// A sandbox is about to leave the books.
    pub(super) fn tell_leaving(&mut self, id: SandboxId, cause: Cause, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let (from, decision) = (Some(sandbox.life.shown(false)), sandbox.decided);
        self.tell_of(id, What::State(StateChange { from, to: None, cause, decision }), out);
    }
}
