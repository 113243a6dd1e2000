//! What a simulated node holds, as its agent knows it.

use std::{collections::BTreeMap, time::Duration};

use medes_controller::driver::{ConnectionId, RequestId};
use medes_controller::now::Now;
use medes_proto::{
    fleet::{InitState, Inventory, NodeMemory, SnapshotReport},
    function::FunctionSpec,
    ids::{CommandId, FunctionName, SandboxId, SnapshotId},
    sandbox::{SandboxReport, SandboxState, StartKind, WriteHeat},
};

use crate::model::{self, Dirty, FunctionModel, Model};

/// What an agent keeps of other nodes' snapshots, by default.
const REPLICA_BYTES_MAX: u64 = 256 << 20;
/// What it keeps of indexes of bases, of images that sandboxes came back from, by default; and how often it lets go of indexes that nobody has used
/// since.
const INDEX_BYTES_MAX: u64 = 128 << 20;
const EARLIER_BYTES_MAX: u64 = 256 << 20;
const SWEEP: Duration = Duration::from_secs(5);
const PAGE_BYTES: u64 = 4096;
/// So many pages of memory windows an agent has seen of a sandbox that served.
const WINDOWS: u32 = 8;

/// A sandbox.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) function: u32,
    pub(super) revision: u64,
    pub(super) state: SandboxState,
    /// It was made of its function's init snapshot.
    pub(super) cloned: bool,
    /// What its image refers to, or what that under way will refer to.
    pub(super) bases: Vec<SnapshotId>,
    /// What its image holds, if it has one.
    pub(super) stored_bytes: u64,
    pub(super) source_of: Option<SnapshotId>,
    /// Since when nobody has used it; `None` while somebody does.
    pub(super) idle_since: Option<Now>,
    pub(super) open: Vec<RequestId>,
    pub(super) served: u64,
    pub(super) parks: u32,
    pub(super) restores: u64,
    /// It comes back from where it was parked.
    pub(super) in_place: bool,
    /// How it became ready, until its first request after that.
    pub(super) ready_by: Option<StartKind>,
    /// The node that may take it over.
    pub(super) offered_to: Option<usize>,
    /// The work under way on it.
    pub(super) command: Option<CommandId>,
    /// It is purged when that is over, for this command.
    pub(super) doomed: Option<CommandId>,
    /// What the node holds for it.
    pub(super) bytes: u64,
    /// Of that, the image that it came back from, for its next one.
    pub(super) earlier_bytes: u64,
}

/// An index of a base.
#[derive(Debug)]
struct Index {
    of: SnapshotId,
    bytes: u64,
    /// When it was used last.
    used: Now,
}

/// A snapshot, made here or copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Snapshot {
    pub(super) function: u32,
    pub(super) init: Option<InitState>,
    pub(super) bytes: u64,
}

/// One node.
#[derive(Debug, Default)]
pub(super) struct Agent {
    /// Changes each time the agent ends: what was planned before does not happen.
    pub(super) life: u32,
    pub(super) connection: Option<ConnectionId>,
    /// So many times as long everything takes here.
    pub(super) slowness: f64,
    pub(super) sandboxes: BTreeMap<SandboxId, Held>,
    pub(super) snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Copies of other nodes' snapshots, the last one used at the end.
    replicas: Vec<(SnapshotId, u64)>,
    /// Of bases that were used lately, the last one used at the end.
    indexes: Vec<Index>,
    /// Bytes of images that warm sandboxes came back from.
    earlier_bytes: u64,
    pub(super) used_bytes: u64,
    /// The most it ever was.
    pub(super) used_bytes_max: u64,
}

impl Held {
    /// One that is being started.
    pub(super) const fn starting(function: u32, revision: u64, command: CommandId) -> Self {
        Self {
            function,
            revision,
            state: SandboxState::Starting,
            cloned: false,
            bases: Vec::new(),
            stored_bytes: 0,
            source_of: None,
            idle_since: None,
            open: Vec::new(),
            served: 0,
            parks: 0,
            restores: 0,
            in_place: false,
            ready_by: None,
            offered_to: None,
            command: Some(command),
            doomed: None,
            bytes: 0,
            earlier_bytes: 0,
        }
    }

    /// Its memory in its present state, without its image.
    pub(super) const fn memory(&self, model: &FunctionModel) -> model::Held {
        match self.state {
            SandboxState::Dedup => model::Held { private_bytes: 0, all_bytes: 0 },
            SandboxState::Parked => model.parked,
            _ if self.cloned => model.cloned,
            _ => model.warm,
        }
    }

    fn report(&self, id: SandboxId, names: &[FunctionName], model: &FunctionModel) -> SandboxReport {
        let Dirty { hot_pages, written_pages, touched_pages } = model.dirty;
        let heat = WriteHeat { windows: WINDOWS, hot_pages, warm_pages: 0, written_pages, touched_pages };
        SandboxReport {
            private_bytes: self.memory(model).private_bytes,
            stored_bytes: self.stored_bytes,
            bases: self.bases.clone(),
            base_snapshot: self.source_of,
            requests: self.served,
            starts_from_dedup: self.restores,
            open_requests: u32::try_from(self.open.len()).unwrap_or(u32::MAX),
            heat: if self.served > 0 { heat } else { WriteHeat::default() },
            ..SandboxReport::new(id, names[self.function as usize].clone(), self.revision, self.state)
        }
    }
}

impl Snapshot {
    pub(super) fn report(&self, id: SnapshotId, names: &[FunctionName]) -> SnapshotReport {
        let Self { function, init, bytes } = *self;
        let function = names[function as usize].clone();
        SnapshotReport { id, function, pages: bytes / PAGE_BYTES, bytes, init }
    }
}

impl Agent {
    /// One that holds nothing but itself.
    pub(super) fn empty(slowness: f64, bytes: u64) -> Self {
        Self { slowness, used_bytes: bytes, used_bytes_max: bytes, ..Self::default() }
    }

    pub(super) fn grow(&mut self, bytes: u64) {
        self.used_bytes += bytes;
        self.used_bytes_max = self.used_bytes_max.max(self.used_bytes);
    }

    pub(super) fn shrink(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used_bytes, "more is freed than was held");
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// From now on the node holds so much for a sandbox, and no image that it came back from.
    pub(super) fn hold(&mut self, id: SandboxId, bytes: u64) {
        let Some(held) = self.sandboxes.get_mut(&id) else { return };
        let before = std::mem::replace(&mut held.bytes, bytes);
        self.earlier_bytes -= std::mem::take(&mut held.earlier_bytes);
        self.grow(bytes);
        self.shrink(before);
    }

    /// A sandbox has come back from its image, which is kept if there is room.
    pub(super) fn keep_earlier(&mut self, id: SandboxId) {
        let Some(held) = self.sandboxes.get_mut(&id) else { return };
        let image = std::mem::take(&mut held.stored_bytes);
        if self.earlier_bytes + image <= EARLIER_BYTES_MAX {
            held.earlier_bytes = image;
            self.earlier_bytes += image;
            return;
        }
        let bytes = held.bytes.saturating_sub(image);
        self.hold(id, bytes);
    }

    /// A sandbox is gone.
    pub(super) fn remove(&mut self, id: SandboxId) -> Option<Held> {
        let mut held = self.sandboxes.remove(&id)?;
        self.shrink(held.bytes);
        self.earlier_bytes -= std::mem::take(&mut held.earlier_bytes);
        Some(held)
    }

    /// A sandbox was aligned with a base.
    pub(super) fn use_index(&mut self, now: Now, of: SnapshotId, bytes: u64) {
        self.sweep(now);
        match self.indexes.iter().position(|index| index.of == of) {
            Some(at) => drop(self.indexes.remove(at)),
            None => self.grow(bytes),
        }
        self.indexes.push(Index { of, bytes, used: now });
        while self.indexes.iter().map(|index| index.bytes).sum::<u64>() > INDEX_BYTES_MAX {
            let oldest = self.indexes.remove(0);
            self.shrink(oldest.bytes);
        }
    }

    /// Lets go of indexes that nobody has used for a while. An agent looks every so often, so one lives for once to twice that long.
    pub(super) fn sweep(&mut self, now: Now) {
        let unused = |index: &mut Index| now.since(index.used) > SWEEP + SWEEP / 2;
        let bytes = self.indexes.extract_if(.., unused).map(|index| index.bytes).sum();
        self.shrink(bytes);
    }

    /// Whether a snapshot can be read here; if so, it is now the last one used.
    pub(super) fn has(&mut self, id: SnapshotId) -> bool {
        if self.snapshots.contains_key(&id) {
            return true;
        }
        let Some(at) = self.replicas.iter().position(|(replica, _)| *replica == id) else { return false };
        let replica = self.replicas.remove(at);
        self.replicas.push(replica);
        true
    }

    /// It was fetched from another node. What was used longest ago goes.
    pub(super) fn keep_replica(&mut self, id: SnapshotId, bytes: u64) {
        self.grow(bytes);
        self.replicas.push((id, bytes));
        while self.replicas.iter().map(|(_, bytes)| bytes).sum::<u64>() > REPLICA_BYTES_MAX {
            let (_, bytes) = self.replicas.remove(0);
            self.shrink(bytes);
        }
    }

    pub(super) fn report(
        &self,
        id: SandboxId,
        names: &[FunctionName],
        model: &Model,
    ) -> Option<SandboxReport> {
        let held = self.sandboxes.get(&id)?;
        Some(held.report(id, names, model.of(held.function)))
    }

    /// What it tells with a heartbeat.
    pub(super) fn inventory(&self, cap_bytes: u64, names: &[FunctionName], model: &Model) -> Inventory {
        let sandboxes = self.sandboxes.iter();
        Inventory {
            memory: NodeMemory { used_bytes: self.used_bytes, cap_bytes, ..NodeMemory::default() },
            sandboxes: sandboxes.map(|(id, held)| held.report(*id, names, model.of(held.function))).collect(),
            snapshots: self.snapshots.iter().map(|(id, snapshot)| snapshot.report(*id, names)).collect(),
            keys: Vec::new(),
        }
    }

    /// It ends, with all it held.
    pub(super) fn end(&mut self, empty_bytes: u64) -> BTreeMap<SandboxId, Held> {
        self.life += 1;
        self.connection = None;
        self.replicas.clear();
        self.snapshots.clear();
        self.indexes.clear();
        self.earlier_bytes = 0;
        self.used_bytes = empty_bytes;
        std::mem::take(&mut self.sandboxes)
    }
}

/// A function as its agent is told of it: nothing of it is ever run.
pub(super) fn spec(name: &FunctionName, model: &FunctionModel) -> FunctionSpec {
    let text = format!("name = '{name}'\ncommand = ['x']");
    let spec = FunctionSpec::from_toml(&text).unwrap_or_else(|_| unreachable!("a plain function file"));
    FunctionSpec { memory_bytes: model.warm.all_bytes, ..spec }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(number: u64) -> SnapshotId {
        SnapshotId::new(number).unwrap()
    }

    #[test]
    fn an_index_is_held_while_it_is_used_and_a_few_seconds_longer() {
        let mut agent = Agent::empty(1.0, 1_000);
        let at = |seconds| Now::START.after(Duration::from_secs(seconds));
        agent.use_index(at(0), snapshot(1), 30);
        agent.use_index(at(3), snapshot(1), 30);
        agent.use_index(at(3), snapshot(2), 50);
        assert_eq!(agent.used_bytes, 1_080);
        agent.use_index(at(9), snapshot(2), 50);
        agent.sweep(at(11));
        assert_eq!(agent.used_bytes, 1_050, "the first has not been used for eight seconds");
        agent.use_index(at(12), snapshot(3), INDEX_BYTES_MAX);
        assert_eq!(agent.used_bytes, 1_000 + INDEX_BYTES_MAX, "the last one used stays");
    }

    #[test]
    fn an_image_that_a_sandbox_came_back_from_is_held_until_its_next_one_or_its_end() {
        let mut agent = Agent::empty(1.0, 0);
        let id = |number| SandboxId::of(1, number).unwrap();
        let restored = |agent: &mut Agent, number, image: u64| {
            let held = Held::starting(0, 1, CommandId(1));
            agent.sandboxes.insert(id(number), Held { stored_bytes: image, ..held });
            agent.hold(id(number), 100 + image);
            agent.keep_earlier(id(number));
        };
        restored(&mut agent, 1, 30);
        restored(&mut agent, 2, EARLIER_BYTES_MAX);
        assert_eq!(agent.used_bytes, 230, "for the second there is no room");
        agent.hold(id(1), 20);
        assert_eq!(agent.used_bytes, 120);
        restored(&mut agent, 3, EARLIER_BYTES_MAX);
        agent.remove(id(3));
        assert_eq!((agent.used_bytes, agent.earlier_bytes), (120, 0));
    }
}
