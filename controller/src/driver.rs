//! The one owner of the controller's state: events in, actions out. No I/O, no clock, no lock, no random source,
//! so the same events always give the same actions.
//!
//! | room | idea |
//! |---|---|
//! | `event` | what comes in and what goes out |
//! | `decision` | what is told of every decision and change |
//! | `why` | what a decision looked at and rejected |
//! | `requests` | a request's way: queue, sent, answered or refused |
//! | `schedule` | which sandbox serves, which is started, where |
//! | `evict` | a node's memory: what it will use, and who makes room |
//! | `fullness` | nodes in the order in which they are filled |
//! | `commands` | what agents are told; answered, overdue or cut off |
//! | `under_way` | commands under way, by node and by sandbox |
//! | `outcomes` | what the end of a start, restore, dedup or purge changes |
//! | `standing` | nodes that are cordoned or being drained |
//! | `reports` | nodes: attach, heartbeat, silence, loss |
//! | `bases` | base snapshots: leases, references, dropping |
//! | `keys` | which tenants' keys each node is told |
//! | `clones` | init snapshots, and what is a clone of them |
//! | `idle` | reviews by the policy |
//! | `operations` | what people ask for |
//! | `rows` | what people are shown |

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::Success,
    function::FunctionSpec,
    ids::{FunctionName, NodeId, SandboxId, SnapshotId},
    standing::Standing,
};

use crate::{now::Now, policy::Policy};

mod bases;
mod clones;
mod commands;
mod copies;
mod decision;
mod event;
mod evict;
mod fullness;
mod gain;
mod idle;
mod keys;
mod moving;
mod operations;
mod outcomes;
mod prewarm;
mod reports;
mod requests;
mod rows;
mod schedule;
mod settings;
mod standing;
mod state;
#[cfg(test)]
mod tests;
mod under_way;
mod why;

pub use decision::{PurgeReason, Told};
pub use event::{
    Action, CloseReason, ConnectionId, Event, Operation, Refusal, RequestEnd, RequestId, Target, Ticket,
};
pub use rows::{FunctionRow, NodeRow, SandboxRow};
pub use settings::{Keeping, Settings, Tuning};

use fullness::Fullness;
use state::{Function, Ghost, Node, Request, Sandbox, Snapshot, Timer};
use under_way::UnderWay;

/// Functions that are tried again after one event: what an event costs must not grow with how many wait.
const TRIED_MAX: usize = 64;

/// Owns every function, node, sandbox, snapshot, request and command of the controller.
#[derive(Debug)]
pub struct Driver {
    settings: Settings,
    policy: Box<dyn Policy>,
    functions: BTreeMap<FunctionName, Function>,
    nodes: BTreeMap<NodeId, Node>,
    /// Nodes that are not open, also those that are away.
    standings: BTreeMap<NodeId, Standing>,
    connections: BTreeMap<ConnectionId, NodeId>,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// By function name, also of functions that are gone: sandboxes outlive them.
    by_function: BTreeMap<FunctionName, BTreeSet<SandboxId>>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// By node: what it holds, as far as anybody knows; none empty.
    held: BTreeMap<NodeId, BTreeSet<SnapshotId>>,
    /// By function name, none empty.
    bases_of: BTreeMap<FunctionName, BTreeSet<SnapshotId>>,
    /// Those of these functions that are no more.
    orphaned: BTreeSet<FunctionName>,
    /// Init snapshots of texts that their functions had before.
    outdated: BTreeSet<SnapshotId>,
    requests: BTreeMap<RequestId, Request>,
    under_way: UnderWay,
    /// What each node will use, kept as reports, changes and commands come and go.
    fullness: Fullness,
    /// Claims on snapshots that no report shows yet.
    leases: BTreeMap<SandboxId, BTreeSet<SnapshotId>>,
    ghosts: BTreeMap<SandboxId, Ghost>,
    timers: BTreeSet<(Now, Timer)>,
    /// Functions to look at before `apply` returns.
    dirty: BTreeSet<FunctionName>,
    /// Functions whose queue is not empty.
    waiting: BTreeSet<FunctionName>,
    /// Those of them that more sandboxes could not be started for when they were last looked at.
    starved: BTreeSet<FunctionName>,
    /// The last one of those that was tried again.
    tried: Option<FunctionName>,
    /// The arrival rates of all functions together, in this second and over so many minutes.
    rates: Cell<Option<((u64, usize), f64)>>,
    /// Some reference has gone: look for snapshots to drop.
    check_bases: bool,
    /// Snapshots that images refer to and that fewer nodes hold than should.
    short: BTreeSet<SnapshotId>,
    /// Something has changed for these: look whether they can be copied.
    check_copies: bool,
    stopping: bool,
    settled_at: Now,
    sandbox_counter: u32,
    snapshot_counter: u32,
    command_counter: u64,
    event_counter: u32,
}

impl Driver {
    /// A driver that knows the functions of the store and no node yet.
    pub fn new(
        now: Now,
        settings: Settings,
        policy: Box<dyn Policy>,
        functions: impl IntoIterator<Item = (FunctionSpec, u64)>,
    ) -> Self {
        let settled_at = now.after(settings.settle);
        let mut driver = Self {
            settings,
            policy,
            functions: BTreeMap::new(),
            nodes: BTreeMap::new(),
            standings: BTreeMap::new(),
            connections: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            by_function: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            bases_of: BTreeMap::new(),
            orphaned: BTreeSet::new(),
            outdated: BTreeSet::new(),
            requests: BTreeMap::new(),
            under_way: UnderWay::default(),
            fullness: Fullness::default(),
            held: BTreeMap::new(),
            leases: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            timers: BTreeSet::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            starved: BTreeSet::new(),
            tried: None,
            rates: Cell::new(None),
            check_bases: false,
            short: BTreeSet::new(),
            check_copies: false,
            stopping: false,
            settled_at,
            sandbox_counter: 0,
            snapshot_counter: 0,
            command_counter: 0,
            event_counter: 0,
        };
        driver.timers.insert((settled_at, Timer::Nodes));
        for (spec, revision) in functions {
            driver.functions.insert(spec.name.clone(), Function::new(spec, revision));
        }
        driver
    }

    /// Takes one event; what is to be done is added to `out`, in order.
    pub fn apply(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        self.stood_still(now);
        match event {
            Event::Attached { connection, hello } => self.attached(now, connection, *hello, out),
            Event::Detached { connection } => self.detached(now, connection, out),
            Event::Reported { connection, inventory } => self.reported(now, connection, *inventory, out),
            Event::Done { connection, command, result } => {
                self.command_done(now, connection, command, *result, out);
            }
            Event::Idle { connection, sandbox, idle } => self.said_idle(now, connection, sandbox, idle, out),
            Event::Gone { connection, sandbox, why } => self.sandbox_gone(connection, sandbox, &why, out),
            Event::Requested { request, function, prefer, deadline } => {
                self.requested(now, request, function, prefer, deadline, out);
            }
            Event::Ended { request, end } => self.request_ended(now, request, end, out),
            Event::Abandoned { request } => self.abandoned(request),
            Event::Applied { function, revision } => self.applied(now, *function, revision, out),
            Event::Removed { function } => self.removed(now, &function, out),
            Event::TenantDeleted { tenant } => self.tenant_deleted(&tenant, out),
            Event::Tuned(tuning) => self.tuned(now, &tuning, out),
            Event::Stands { node, standing } => self.stand(now, &node, standing, out),
            Event::Asked { ticket, operation } => self.asked(now, ticket, operation, out),
            Event::Acquire { ticket, acquire } => self.acquire(ticket, acquire, out),
            Event::Tick => {}
            Event::Stop => self.stop(out),
        }
        self.fire_timers(now, out);
        self.settle(now, out);
    }

    /// When the driver wants an [`Event::Tick`] if nothing else happens before.
    pub fn wake_at(&self) -> Option<Now> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Whether agents of nodes with warm sandboxes have had the time to connect again.
    pub fn is_settled(&self, now: Now) -> bool {
        now >= self.settled_at
    }

    fn arm(&mut self, at: Now, timer: Timer) {
        self.timers.insert((at, timer));
    }

    /// Timers are never taken back: each one looks whether it still means something.
    fn fire_timers(&mut self, now: Now, out: &mut Vec<Action>) {
        // Work done by a timer may arm others, but always for later: the loop ends.
        while let Some(&(at, timer)) = self.timers.first().filter(|&&(at, _)| at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Request(request) => self.request_overdue(now, request, out),
                Timer::Command(command) => self.command_overdue(now, command, out),
                Timer::Review(sandbox) => self.review_due(now, sandbox, out),
                Timer::Passing(sandbox) => self.passing_overdue(now, sandbox, out),
                Timer::Snapshot(snapshot) => self.snapshot_due(now, snapshot, out),
                Timer::Ghost(sandbox) => self.ghost_due(now, sandbox),
                Timer::Functions => self.prewarm_due(now, out),
                Timer::Nodes => self.nodes_due(now, out),
            }
        }
    }

    /// Upkeep after every event, so that the next one meets a clean state.
    fn settle(&mut self, now: Now, out: &mut Vec<Action>) {
        // Scheduling may evict, and so make other functions dirty, but each eviction removes a sandbox from the
        // idle ones: the loop ends.
        while let Some(name) = self.dirty.pop_first() {
            self.schedule(now, &name, out);
        }
        if std::mem::take(&mut self.check_bases) {
            self.drop_bases(now, out);
        }
        if std::mem::take(&mut self.check_copies) {
            self.make_copies(now, out);
        }
    }

    /// Nodes have come or gone: whoever waits should try again.
    fn wake_waiting(&mut self) {
        self.dirty.extend(self.waiting.iter().cloned());
    }

    /// There may be new room somewhere: those that got none should try again, some after each event, in turn. For others what they wait for
    /// is under way.
    fn wake_starved(&mut self) {
        let after = self.tried.take().map_or(Bound::Unbounded, Bound::Excluded);
        let some: Vec<_> = self.starved.range((after, Bound::Unbounded)).take(TRIED_MAX).cloned().collect();
        // After the last of all comes the first again.
        self.tried = some.last().filter(|_| some.len() == TRIED_MAX).cloned();
        self.dirty.extend(some);
    }

    fn applied(&mut self, now: Now, spec: FunctionSpec, revision: u64, out: &mut Vec<Action>) {
        let name = spec.name.clone();
        match self.functions.get_mut(&name) {
            Some(function) => {
                function.spec = spec;
                function.revision = revision;
            }
            None => {
                self.functions.insert(name.clone(), Function::new(spec, revision));
                self.mark_orphaned(&name);
            }
        }
        self.retire_unwanted(now, &name, out);
        self.applied_init(now, &name);
        self.dirty.insert(name);
    }

    fn removed(&mut self, now: Now, name: &FunctionName, out: &mut Vec<Action>) {
        let Some(function) = self.functions.remove(name) else { return };
        self.mark_orphaned(name);
        self.waiting.remove(name);
        self.starved.remove(name);
        self.dirty.remove(name);
        for request in function.queue {
            self.requests.remove(&request);
            out.push(Action::Refuse { request, why: Refusal::UnknownFunction });
        }
        self.retire_unwanted(now, name, out);
        self.check_bases = true;
    }

    fn stop(&mut self, out: &mut Vec<Action>) {
        self.stopping = true;
        let queues = self.functions.values_mut().flat_map(|function| function.queue.drain(..));
        for request in queues {
            self.requests.remove(&request);
            out.push(Action::Refuse { request, why: Refusal::Stopping });
        }
        self.waiting.clear();
        self.starved.clear();
    }

    /// Requests that have not been answered.
    pub fn open_requests(&self) -> usize {
        self.requests.len()
    }

    /// Whether a request has not been answered.
    pub fn has_request(&self, request: RequestId) -> bool {
        self.requests.contains_key(&request)
    }

    fn answer(out: &mut Vec<Action>, ticket: Ticket, result: Result<Success, Failure>) {
        out.push(Action::Answer { ticket, result: Box::new(result) });
    }

    fn next_sandbox(&mut self) -> Option<SandboxId> {
        // A number that a node still knows from a controller whose store was lost is skipped.
        for _attempt in 0..1_024 {
            self.sandbox_counter = self.sandbox_counter.checked_add(1)?;
            let id = SandboxId::of(self.settings.incarnation, self.sandbox_counter)?;
            if !self.sandboxes.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    fn next_snapshot(&mut self) -> Option<SnapshotId> {
        for _attempt in 0..1_024 {
            self.snapshot_counter = self.snapshot_counter.checked_add(1)?;
            let upper = u64::from(self.settings.incarnation) << 32;
            let id = SnapshotId::new(upper | u64::from(self.snapshot_counter))?;
            if !self.snapshots.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }
}

/// A failure that the controller itself found.
fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure::new(kind, message)
}
