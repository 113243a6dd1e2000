//! The driver by hand: one situation each. `simulation` has the rest.

use std::time::Duration;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, Hello, InitState, Inventory, NodeMemory, SnapshotReport, Success},
    function::FunctionSpec,
    ids::{CommandId, SandboxId, SnapshotId, TenantName},
    sandbox::{SandboxReport, SandboxState, StartKind},
    trace::What,
};

use super::*;
use crate::policy::{Fixed, FixedSettings};

mod bases;
mod clones;
mod copies;
mod gain;
mod keys;
mod moving;
mod nodes;
mod policies;
mod requests;
mod simulation;
mod standing;
mod starts;
mod told;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

fn function(name: &str) -> FunctionSpec {
    FunctionSpec::from_toml(&format!("name = '{name}'\ncommand = ['x']")).unwrap()
}

fn report(id: SandboxId, name: &str, state: SandboxState) -> SandboxReport {
    let (private_bytes, stored_bytes) =
        if state == SandboxState::Dedup { (0, 4 * MIB) } else { (64 * MIB, 0) };
    let report = SandboxReport::new(id, name.parse().unwrap(), 1, state);
    SandboxReport { private_bytes, stored_bytes, ..report }
}

/// A driver and the actions it has not yet been asked about.
struct Bench {
    driver: Driver,
    now: Now,
    actions: Vec<Action>,
    connections: u64,
    tickets: u64,
}

impl Bench {
    fn new(settings: Settings, functions: &[FunctionSpec]) -> Self {
        let policy = Box::new(Fixed(FixedSettings::default()));
        let functions = functions.iter().map(|spec| (spec.clone(), 1));
        let driver = Driver::new(Now::START, settings, policy, functions);
        Self { driver, now: Now::START, actions: Vec::new(), connections: 0, tickets: 0 }
    }

    fn with_node(settings: Settings) -> (Self, ConnectionId) {
        let mut bench = Self::new(settings, &[function("f")]);
        let connection = bench.attach("n1", 1, Inventory::default());
        bench.clear();
        (bench, connection)
    }

    fn tell(&mut self, event: Event) {
        self.driver.apply(self.now, event, &mut self.actions);
        self.driver.check();
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.tell(Event::Tick);
    }

    fn clear(&mut self) {
        self.actions.clear();
    }

    fn attach(&mut self, node: &str, incarnation: u64, inventory: Inventory) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        let hello = Hello {
            node: node.parse().unwrap(),
            incarnation,
            version: "1".into(),
            address: format!("{node}:1"),
            inventory,
            lacks: Vec::new(),
        };
        self.tell(Event::Attached { connection, hello: Box::new(hello) });
        connection
    }

    fn beat(&mut self, connection: ConnectionId, inventory: Inventory) {
        self.tell(Event::Reported { connection, inventory: Box::new(inventory) });
    }

    fn request(&mut self, id: u64) {
        self.request_with(id, "f", None, 30);
    }

    fn request_with(&mut self, id: u64, name: &str, prefer: Option<SandboxId>, seconds: u64) {
        let (request, function) = (RequestId(id), name.parse().unwrap());
        self.tell(Event::Requested { request, function, prefer, deadline: Duration::from_secs(seconds) });
    }

    fn done(&mut self, connection: ConnectionId, command: CommandId, result: Result<Success, Failure>) {
        self.tell(Event::Done { connection, command, result: Box::new(result) });
    }

    /// Answers a Start, Restore, Dedup or MakeBase as an agent that did it.
    fn succeed(&mut self, connection: ConnectionId, id: CommandId, command: &Command) {
        let sandbox = command.sandbox().unwrap();
        let state = match command {
            Command::Dedup { .. } | Command::Take { .. } => SandboxState::Dedup,
            Command::Park { .. } => SandboxState::Parked,
            _ => SandboxState::Warm,
        };
        let snapshot = match command {
            Command::MakeBase { snapshot, init, .. } => {
                let init = init.then_some(InitState { revision: 1, clonable: true });
                Some(SnapshotReport { init, ..snapshot_report(*snapshot) })
            }
            _ => None,
        };
        let sandbox = match command {
            Command::Purge { .. } | Command::Offer { .. } => None,
            _ => Some(report(sandbox, "f", state)),
        };
        self.done(connection, id, Ok(Success { sandbox, snapshot, ..Success::default() }));
    }

    /// The commands given since the last look.
    fn commands(&mut self) -> Vec<(CommandId, Command)> {
        let mut commands = Vec::new();
        self.actions.retain_mut(|action| match action {
            Action::Command { id, command, .. } => {
                commands.push((*id, command.clone()));
                false
            }
            _ => true,
        });
        commands
    }

    /// The one command given since the last look.
    fn command(&mut self) -> (CommandId, Command) {
        let mut commands = self.commands();
        assert_eq!(commands.len(), 1, "{commands:?}");
        commands.remove(0)
    }

    fn sent(&self) -> Vec<(RequestId, &Target)> {
        let sent = self.actions.iter().filter_map(|action| match action {
            Action::Send { request, target } => Some((*request, target)),
            _ => None,
        });
        sent.collect()
    }

    fn refused(&self) -> Vec<(RequestId, &Refusal)> {
        let refused = self.actions.iter().filter_map(|action| match action {
            Action::Refuse { request, why } => Some((*request, why)),
            _ => None,
        });
        refused.collect()
    }

    fn answered(&mut self, id: u64) {
        self.end(id, RequestEnd::Answered { took: Duration::from_millis(5) });
    }

    fn end(&mut self, id: u64, end: RequestEnd) {
        self.tell(Event::Ended { request: RequestId(id), end });
    }

    fn ask(&mut self, operation: Operation) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.tell(Event::Asked { ticket, operation });
        ticket
    }

    fn answer_to(&self, asked: Ticket) -> Option<&Result<Success, Failure>> {
        self.actions.iter().find_map(|action| match action {
            Action::Answer { ticket, result } if *ticket == asked => Some(&**result),
            _ => None,
        })
    }

    /// Starts one warm sandbox of `f` and returns it.
    fn warm(&mut self, connection: ConnectionId) -> SandboxId {
        let node = self.driver.connections[&connection].clone();
        self.ask(Operation::Start { function: "f".parse().unwrap(), node: Some(node), cold: false });
        let (id, command) = self.command();
        self.succeed(connection, id, &command);
        self.clear();
        command.sandbox().unwrap()
    }

    /// Makes one dedup sandbox of `f` that refers to `bases`.
    fn dedup(&mut self, connection: ConnectionId, bases: &[SnapshotId]) -> SandboxId {
        let sandbox = self.warm(connection);
        self.ask(Operation::Dedup { sandbox, digest_memory: false });
        let (id, _) = self.command();
        let mut after = report(sandbox, "f", SandboxState::Dedup);
        after.bases = bases.to_vec();
        self.done(connection, id, Ok(Success { sandbox: Some(after), ..Success::default() }));
        self.clear();
        sandbox
    }

    fn base(&mut self, connection: ConnectionId) -> (SandboxId, SnapshotId) {
        let sandbox = self.warm(connection);
        self.ask(Operation::MakeBase(sandbox));
        let (id, command) = self.command();
        self.succeed(connection, id, &command);
        let Command::MakeBase { snapshot, .. } = command else { panic!("{command:?}") };
        self.clear();
        (sandbox, snapshot)
    }
}

fn snapshot_report(id: SnapshotId) -> SnapshotReport {
    SnapshotReport { id, function: "f".parse().unwrap(), pages: 100, bytes: 100 * 4096, init: None }
}

fn crash(kind: FailureKind) -> Failure {
    Failure::new(kind, "as the test says")
}

/// A command was not answered in time.
fn overdue(told: &Told) -> bool {
    matches!(&told.what, What::Error(trouble) if trouble.doing == "command")
}

impl Driver {
    /// What must hold between any two events.
    pub(super) fn check(&self) {
        assert!(self.dirty.is_empty());
        assert!(!self.check_bases);
        for (id, sandbox) in &self.sandboxes {
            assert!(self.by_function[&sandbox.function].contains(id), "{id} is in its function's list");
            assert!(self.nodes[&sandbox.node].sandboxes.contains(id), "{id} is in its node's list");
            assert!(sandbox.open.len() <= sandbox.requests_max, "{id} has room for its requests");
            for request in &sandbox.open {
                let stage = self.requests[request].stage;
                assert_eq!(stage, state::Stage::Sent { sandbox: *id }, "{request:?} is where {id} thinks");
            }
            let about = self.under_way.about(*id).count();
            assert_eq!(about, usize::from(sandbox.busy), "{id}: at most one command");
        }
        let listed: usize = self.by_function.values().map(BTreeSet::len).sum();
        assert_eq!(listed, self.sandboxes.len());
        for (id, snapshot) in &self.snapshots {
            assert!(self.bases_of[&snapshot.function].contains(id), "{id} is in its function's list");
        }
        assert_eq!(self.bases_of.values().map(BTreeSet::len).sum::<usize>(), self.snapshots.len());
        let orphaned = self.bases_of.keys().filter(|name| !self.functions.contains_key(*name));
        assert!(orphaned.eq(&self.orphaned));
        let listed: usize = self.nodes.values().map(|node| node.sandboxes.len()).sum();
        assert_eq!(listed, self.sandboxes.len());
        let mut queued = 0;
        for (name, function) in &self.functions {
            assert_eq!(self.waiting.contains(name), !function.queue.is_empty(), "{name} waits");
            queued += function.queue.len();
            for id in &function.queue {
                assert!(matches!(self.requests[id].stage, state::Stage::Queued { .. }), "{id:?}");
            }
        }
        let open: usize = self.sandboxes.values().map(|sandbox| sandbox.open.len()).sum();
        let left = self.requests.values().filter(|request| request.ended.is_some()).count();
        assert_eq!(
            queued + open + left,
            self.requests.len(),
            "each is in one queue, or was sent to one sandbox"
        );
        for node in self.nodes.values() {
            let known = node.connection.is_none_or(|connection| self.connections.contains_key(&connection));
            assert!(known);
        }
        let connected = self.nodes.values().filter(|node| node.connection.is_some()).count();
        assert_eq!(connected, self.connections.len());
        self.check_indexes();
    }

    /// What is kept by node is what a look at everything says.
    fn check_indexes(&self) {
        for (name, node) in &self.nodes {
            let commands = self.under_way.of_node(name);
            let reserved = commands.map(|(_, one)| one.reserved_bytes).fold(0, u64::saturating_add);
            let bytes = node.memory.used_bytes.saturating_add(reserved);
            assert_eq!(self.fullness.of(name), bytes.saturating_add_signed(node.drift_bytes), "{name}");
        }
        assert_eq!(self.fullness.emptiest_first().count(), self.nodes.len());
        let listed = self.held.iter().flat_map(|(node, ids)| ids.iter().map(move |id| (*id, node)));
        let listed: BTreeSet<_> = listed.collect();
        let held = self.snapshots.iter().flat_map(|(id, one)| one.holders().map(move |node| (*id, node)));
        assert_eq!(listed, held.collect(), "who holds what");
    }
}
