//! Between these types and what the wire carries. Everything that comes in is checked here.

use std::time::Duration;

use super::{
    AgentMessage, Command, ControllerMessage, EngineSettings, Hello, InitState, Inventory, Level, NodeMemory,
    SnapshotReport, Success, Welcome,
    keys::{held_from_wire, keys_from_wire, keys_to_wire, tenants_from_wire},
};
use crate::{
    WireError,
    function::FunctionSpec,
    ids::{CommandId, NodeId, SandboxId, snapshot_from_wire},
    limits,
    sandbox::{phases_from_wire, phases_to_wire},
    wire,
};
use medes_dedup::fingerprint::Sampling;

impl From<NodeMemory> for wire::NodeMemory {
    fn from(memory: NodeMemory) -> Self {
        let NodeMemory { cap_bytes, used_bytes, base_bytes, image_bytes, agent_bytes } = memory;
        Self { cap_bytes, used_bytes, base_bytes, image_bytes, agent_bytes }
    }
}

impl From<wire::NodeMemory> for NodeMemory {
    fn from(raw: wire::NodeMemory) -> Self {
        let wire::NodeMemory { cap_bytes, used_bytes, base_bytes, image_bytes, agent_bytes } = raw;
        Self { cap_bytes, used_bytes, base_bytes, image_bytes, agent_bytes }
    }
}

impl From<SnapshotReport> for wire::SnapshotReport {
    fn from(report: SnapshotReport) -> Self {
        let SnapshotReport { id, function, pages, bytes, init } = report;
        let init = init.map(|InitState { revision, clonable }| wire::InitState { revision, clonable });
        Self { snapshot: id.get(), function: function.into(), pages, bytes, init }
    }
}

impl TryFrom<wire::SnapshotReport> for SnapshotReport {
    type Error = WireError;

    fn try_from(raw: wire::SnapshotReport) -> Result<Self, WireError> {
        let wire::SnapshotReport { snapshot, function, pages, bytes, init } = raw;
        Ok(Self {
            id: snapshot_from_wire(snapshot, "snapshot.snapshot")?,
            function: function
                .parse()
                .map_err(|_name| WireError::invalid("snapshot.function", "not a function name"))?,
            pages,
            bytes,
            init: init.map(|wire::InitState { revision, clonable }| InitState { revision, clonable }),
        })
    }
}

fn inventory_from_wire(
    memory: Option<wire::NodeMemory>,
    sandboxes: Vec<wire::SandboxReport>,
    snapshots: Vec<wire::SnapshotReport>,
    keys: Vec<wire::HeldKey>,
) -> Result<Inventory, WireError> {
    if sandboxes.len() > limits::SANDBOXES_MAX {
        return Err(WireError::invalid("sandboxes", "too many"));
    }
    if snapshots.len() > limits::SNAPSHOTS_MAX {
        return Err(WireError::invalid("snapshots", "too many"));
    }
    Ok(Inventory {
        memory: memory.ok_or(WireError::missing("memory"))?.into(),
        sandboxes: sandboxes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        snapshots: snapshots.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        keys: held_from_wire(keys)?,
    })
}

impl From<Success> for wire::Success {
    fn from(success: Success) -> Self {
        let Success { sandbox, snapshot, phases, memory_digest } = success;
        Self {
            sandbox: sandbox.map(Into::into),
            snapshot: snapshot.map(Into::into),
            phases: phases_to_wire(phases),
            memory_digest: memory_digest.map(|hash| hash.to_vec().into()).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Success> for Success {
    type Error = WireError;

    fn try_from(raw: wire::Success) -> Result<Self, WireError> {
        let wire::Success { sandbox, snapshot, phases, memory_digest } = raw;
        let memory_digest = match memory_digest.len() {
            0 => None,
            _ => Some(
                memory_digest[..]
                    .try_into()
                    .map_err(|_length| WireError::invalid("success.memory_digest", "not 32 bytes"))?,
            ),
        };
        Ok(Self {
            sandbox: sandbox.map(TryInto::try_into).transpose()?,
            snapshot: snapshot.map(TryInto::try_into).transpose()?,
            phases: phases_from_wire(phases)?,
            memory_digest,
        })
    }
}

impl From<AgentMessage> for wire::AgentMessage {
    fn from(message: AgentMessage) -> Self {
        use wire::agent_message::Message;
        let reports = |inventory: Inventory| {
            (
                Some(inventory.memory.into()),
                inventory.sandboxes.into_iter().map(Into::into).collect(),
                inventory.snapshots.into_iter().map(Into::into).collect(),
                inventory.keys.into_iter().map(Into::into).collect(),
            )
        };
        let message = match message {
            AgentMessage::Hello(Hello { node, incarnation, version, address, inventory, lacks }) => {
                let (memory, sandboxes, snapshots, keys) = reports(inventory);
                let node = node.into();
                Message::Hello(wire::Hello {
                    node,
                    incarnation,
                    version,
                    address,
                    memory,
                    sandboxes,
                    snapshots,
                    lacks,
                    keys,
                    keys_by_tenant: true,
                })
            }
            AgentMessage::Heartbeat(inventory) => {
                let (memory, sandboxes, snapshots, keys) = reports(inventory);
                Message::Heartbeat(wire::Heartbeat { memory, sandboxes, snapshots, keys })
            }
            AgentMessage::Done { command, result } => {
                let result = match *result {
                    Ok(success) => wire::done::Result::Success(success.into()),
                    Err(failure) => wire::done::Result::Failure(failure.into()),
                };
                Message::Done(wire::Done { command: command.0, result: Some(result) })
            }
            AgentMessage::Idle { sandbox, idle } => Message::Idle(wire::Idle {
                sandbox: sandbox.get(),
                idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            }),
            AgentMessage::Gone { sandbox, why } => {
                Message::Gone(wire::Gone { sandbox: sandbox.get(), why: Some(why.into()) })
            }
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::AgentMessage> for AgentMessage {
    type Error = WireError;

    fn try_from(raw: wire::AgentMessage) -> Result<Self, WireError> {
        use wire::agent_message::Message;
        Ok(match raw.message.ok_or(WireError::missing("message"))? {
            Message::Hello(raw) => Self::Hello(raw.try_into()?),
            Message::Heartbeat(wire::Heartbeat { memory, sandboxes, snapshots, keys }) => {
                Self::Heartbeat(inventory_from_wire(memory, sandboxes, snapshots, keys)?)
            }
            Message::Done(wire::Done { command, result }) => Self::Done {
                command: CommandId(command),
                result: Box::new(match result.ok_or(WireError::missing("done.result"))? {
                    wire::done::Result::Success(success) => Ok(success.try_into()?),
                    wire::done::Result::Failure(failure) => Err(failure.try_into()?),
                }),
            },
            Message::Idle(wire::Idle { sandbox, idle_ms }) => Self::Idle {
                sandbox: SandboxId::from_wire(sandbox, "idle.sandbox")?,
                idle: Duration::from_millis(idle_ms),
            },
            Message::Gone(wire::Gone { sandbox, why }) => Self::Gone {
                sandbox: SandboxId::from_wire(sandbox, "gone.sandbox")?,
                why: why.ok_or(WireError::missing("gone.why"))?.try_into()?,
            },
        })
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = WireError;

    fn try_from(raw: wire::Hello) -> Result<Self, WireError> {
        let wire::Hello {
            node,
            incarnation,
            version,
            address,
            memory,
            sandboxes,
            snapshots,
            lacks,
            keys,
            ..
        } = raw;
        if version.len() > 64 || address.len() > 256 {
            return Err(WireError::invalid("hello.version or hello.address", "too long"));
        }
        if lacks.len() > 64 {
            return Err(WireError::invalid("hello.lacks", "too many"));
        }
        Ok(Self {
            node: node.parse().map_err(|_name| WireError::invalid("hello.node", "not a node name"))?,
            incarnation,
            version,
            address,
            inventory: inventory_from_wire(memory, sandboxes, snapshots, keys)?,
            lacks,
        })
    }
}

impl From<EngineSettings> for wire::Engine {
    fn from(settings: EngineSettings) -> Self {
        let EngineSettings { sampling, delta_bytes_max, bases_max, nodes_max, level, small_after } = settings;
        let (kind, chunks) = match sampling {
            Sampling::Value { chunks } => (wire::engine::Sampling::Value, chunks),
            Sampling::Bottom { chunks } => (wire::engine::Sampling::Bottom, chunks),
        };
        Self {
            sampling: kind.into(),
            chunks: u32::try_from(chunks.get()).unwrap_or(u32::MAX),
            delta_bytes_max,
            bases_max,
            nodes_max,
            level: match level {
                Level::None => wire::engine::Level::None,
                Level::Fast => wire::engine::Level::Fast,
                Level::Small => wire::engine::Level::Small,
            }
            .into(),
            small_after_ms: u64::try_from(small_after.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<wire::Engine> for EngineSettings {
    type Error = WireError;

    fn try_from(raw: wire::Engine) -> Result<Self, WireError> {
        let wire::Engine { sampling, chunks, delta_bytes_max, bases_max, nodes_max, level, small_after_ms } =
            raw;
        let chunks = u8::try_from(chunks)
            .ok()
            .and_then(medes_dedup::fingerprint::ChunkCount::new)
            .ok_or(WireError::invalid("engine.chunks", "not 1 to 32"))?;
        let sampling = match wire::engine::Sampling::try_from(sampling) {
            Ok(wire::engine::Sampling::Value) => Sampling::Value { chunks },
            Ok(wire::engine::Sampling::Bottom) => Sampling::Bottom { chunks },
            _ => return Err(WireError::invalid("engine.sampling", "unknown")),
        };
        let level = match wire::engine::Level::try_from(level) {
            Ok(wire::engine::Level::None) => Level::None,
            Ok(wire::engine::Level::Fast) => Level::Fast,
            Ok(wire::engine::Level::Small) => Level::Small,
            _ => return Err(WireError::invalid("engine.level", "unknown")),
        };
        let within = |value: u32, max: usize, field| match usize::try_from(value) {
            Ok(value) if (1..=max).contains(&value) => Ok(()),
            _ => Err(WireError::invalid(field, "out of range")),
        };
        within(delta_bytes_max, medes_dedup::page::PAGE_BYTES, "engine.delta_bytes_max")?;
        within(bases_max, limits::IMAGE_BASES_MAX, "engine.bases_max")?;
        within(nodes_max, limits::IMAGE_BASES_MAX, "engine.nodes_max")?;
        let small_after = Duration::from_millis(small_after_ms);
        Ok(Self { sampling, delta_bytes_max, bases_max, nodes_max, level, small_after })
    }
}

impl From<ControllerMessage> for wire::ControllerMessage {
    fn from(message: ControllerMessage) -> Self {
        use wire::controller_message::Message;
        let message = match message {
            ControllerMessage::Welcome(welcome) => Message::Welcome(wire::Welcome {
                incarnation: welcome.incarnation,
                heartbeat_ms: u64::try_from(welcome.heartbeat.as_millis()).unwrap_or(u64::MAX),
                idle_ms: u64::try_from(welcome.idle.as_millis()).unwrap_or(u64::MAX),
                engine: Some(welcome.engine.into()),
                purge: welcome.purge.into_iter().map(SandboxId::get).collect(),
                keys: keys_to_wire(welcome.keys),
                domain_key: welcome.domain_key.map(|key| key.expose().to_vec().into()).unwrap_or_default(),
            }),
            ControllerMessage::Command { id, command } => {
                Message::Command(wire::Command { id: id.0, action: Some(command.into()) })
            }
            ControllerMessage::IdlePeriod(idle) => Message::IdlePeriod(wire::IdlePeriod {
                idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            }),
            ControllerMessage::TenantKeys(keys) => {
                Message::TenantKeys(wire::TenantKeys { keys: keys_to_wire(keys) })
            }
            ControllerMessage::ForgetKeys(tenants) => Message::ForgetKeys(wire::ForgetKeys {
                tenants: tenants.into_iter().map(Into::into).collect(),
            }),
        };
        Self { message: Some(message) }
    }
}

impl From<Command> for wire::command::Action {
    fn from(command: Command) -> Self {
        match command {
            Command::Start { sandbox, function, revision, clone_of } => Self::Start(wire::Start {
                sandbox: sandbox.get(),
                function: Some(wire::Function { toml: function.to_toml(), revision }),
                clone_of: clone_of.map(Into::into),
            }),
            Command::MakeBase { sandbox, snapshot, init } => {
                Self::MakeBase(wire::MakeBase { sandbox: sandbox.get(), snapshot: snapshot.get(), init })
            }
            Command::Dedup { sandbox, digest_memory, base } => {
                Self::Dedup(wire::Dedup { sandbox: sandbox.get(), digest_memory, base: base.map(Into::into) })
            }
            Command::Park { sandbox, base, resident_percent } => Self::Park(wire::Park {
                sandbox: sandbox.get(),
                base: base.map(Into::into),
                resident_percent,
            }),
            Command::CancelPark { sandbox } => Self::CancelPark(wire::CancelPark { sandbox: sandbox.get() }),
            Command::Restore { sandbox, digest_memory } => {
                Self::Restore(wire::Restore { sandbox: sandbox.get(), digest_memory })
            }
            Command::Purge { sandbox } => Self::Purge(wire::Purge { sandbox: sandbox.get() }),
            Command::Offer { sandbox, to } => {
                Self::Offer(wire::Offer { sandbox: sandbox.get(), to: to.to_string() })
            }
            Command::Take { sandbox, function, revision, from, address } => Self::Take(wire::Take {
                sandbox: sandbox.get(),
                function: Some(wire::Function { toml: function.to_toml(), revision }),
                from: from.to_string(),
                address,
            }),
            Command::Replicate { place } => Self::Replicate(wire::Replicate { place: Some(place.into()) }),
            Command::DropSnapshot { snapshot } => {
                Self::DropSnapshot(wire::DropSnapshot { snapshot: snapshot.get() })
            }
        }
    }
}

impl TryFrom<wire::ControllerMessage> for ControllerMessage {
    type Error = WireError;

    fn try_from(raw: wire::ControllerMessage) -> Result<Self, WireError> {
        use wire::controller_message::Message;
        Ok(match raw.message.ok_or(WireError::missing("message"))? {
            Message::Welcome(raw) => Self::Welcome(raw.try_into()?),
            Message::Command(wire::Command { id, action }) => Self::Command {
                id: CommandId(id),
                command: action.ok_or(WireError::missing("command.action"))?.try_into()?,
            },
            Message::IdlePeriod(wire::IdlePeriod { idle_ms }) => {
                Self::IdlePeriod(Duration::from_millis(idle_ms))
            }
            Message::TenantKeys(wire::TenantKeys { keys }) => Self::TenantKeys(keys_from_wire(keys)?),
            Message::ForgetKeys(wire::ForgetKeys { tenants }) => {
                Self::ForgetKeys(tenants_from_wire(&tenants)?)
            }
        })
    }
}

impl TryFrom<wire::Welcome> for Welcome {
    type Error = WireError;

    fn try_from(raw: wire::Welcome) -> Result<Self, WireError> {
        let wire::Welcome { incarnation, heartbeat_ms, idle_ms, engine, purge, keys, domain_key: _ } = raw;
        if !(10..=600_000).contains(&heartbeat_ms) {
            return Err(WireError::invalid("welcome.heartbeat_ms", "not 10 to 600000"));
        }
        if purge.len() > limits::SANDBOXES_MAX {
            return Err(WireError::invalid("welcome.purge", "too many"));
        }
        let purge = purge.into_iter().map(|id| SandboxId::from_wire(id, "welcome.purge"));
        Ok(Self {
            incarnation,
            heartbeat: Duration::from_millis(heartbeat_ms),
            idle: Duration::from_millis(idle_ms),
            keys: keys_from_wire(keys)?,
            domain_key: None,
            engine: engine.ok_or(WireError::missing("welcome.engine"))?.try_into()?,
            purge: purge.collect::<Result<_, _>>()?,
        })
    }
}

fn function_from_wire(raw: Option<wire::Function>) -> Result<(Box<FunctionSpec>, u64), WireError> {
    let wire::Function { toml, revision } = raw.ok_or(WireError::missing("command.function"))?;
    let function = FunctionSpec::from_toml(&toml)
        .map_err(|_why| WireError::invalid("command.function.toml", "not a function file"))?;
    Ok((Box::new(function), revision))
}

fn node_from_wire(raw: &str, field: &'static str) -> Result<NodeId, WireError> {
    raw.parse().map_err(|_why| WireError::invalid(field, "not a node's name"))
}

impl TryFrom<wire::command::Action> for Command {
    type Error = WireError;

    fn try_from(raw: wire::command::Action) -> Result<Self, WireError> {
        use wire::command::Action;
        let id = |raw| SandboxId::from_wire(raw, "command.sandbox");
        Ok(match raw {
            Action::Start(wire::Start { sandbox, function, clone_of }) => {
                let (function, revision) = function_from_wire(function)?;
                let clone_of = clone_of.map(TryInto::try_into).transpose()?;
                Self::Start { sandbox: id(sandbox)?, function, revision, clone_of }
            }
            Action::MakeBase(wire::MakeBase { sandbox, snapshot, init }) => Self::MakeBase {
                sandbox: id(sandbox)?,
                snapshot: snapshot_from_wire(snapshot, "make_base.snapshot")?,
                init,
            },
            Action::Dedup(wire::Dedup { sandbox, digest_memory, base }) => Self::Dedup {
                sandbox: id(sandbox)?,
                digest_memory,
                base: base.map(TryInto::try_into).transpose()?,
            },
            Action::Park(wire::Park { sandbox, base, resident_percent }) => {
                if resident_percent > 100 {
                    return Err(WireError::invalid("park.resident_percent", "more than 100"));
                }
                let base = base.map(TryInto::try_into).transpose()?;
                Self::Park { sandbox: id(sandbox)?, base, resident_percent }
            }
            Action::CancelPark(wire::CancelPark { sandbox }) => Self::CancelPark { sandbox: id(sandbox)? },
            Action::Restore(wire::Restore { sandbox, digest_memory }) => {
                Self::Restore { sandbox: id(sandbox)?, digest_memory }
            }
            Action::Purge(wire::Purge { sandbox }) => Self::Purge { sandbox: id(sandbox)? },
            Action::Offer(wire::Offer { sandbox, to }) => {
                Self::Offer { sandbox: id(sandbox)?, to: node_from_wire(&to, "offer.to")? }
            }
            Action::Take(wire::Take { sandbox, function, from, address }) => {
                let (function, revision) = function_from_wire(function)?;
                let from = node_from_wire(&from, "take.from")?;
                if address.len() > limits::ADDRESS_BYTES_MAX {
                    return Err(WireError::invalid("take.address", "too long"));
                }
                Self::Take { sandbox: id(sandbox)?, function, revision, from, address }
            }
            Action::Replicate(wire::Replicate { place }) => {
                Self::Replicate { place: place.ok_or(WireError::missing("replicate.place"))?.try_into()? }
            }
            Action::DropSnapshot(wire::DropSnapshot { snapshot }) => {
                Self::DropSnapshot { snapshot: snapshot_from_wire(snapshot, "drop_snapshot.snapshot")? }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SnapshotPlace;
    use medes_dedup::page::SnapshotId;

    #[test]
    fn settings_come_back_and_an_unknown_level_is_refused() {
        for level in [Level::None, Level::Fast, Level::Small] {
            let settings = EngineSettings { level, ..EngineSettings::default() };
            assert_eq!(EngineSettings::try_from(wire::Engine::from(settings)), Ok(settings));
        }
        for level in [0, 4] {
            let raw = wire::Engine { level, ..EngineSettings::default().into() };
            assert_eq!(EngineSettings::try_from(raw).unwrap_err().field, "engine.level");
        }
    }

    #[test]
    fn a_dedup_names_a_base_or_none_and_a_wrong_one_is_refused() {
        let place = SnapshotPlace {
            snapshot: SnapshotId::new(7).unwrap(),
            node: "n1".parse().unwrap(),
            address: "n1:1".into(),
        };
        let sandbox = SandboxId::new(1).unwrap();
        for named in [None, Some(place.clone())] {
            let sent = Command::Dedup { sandbox, digest_memory: true, base: named.clone() };
            let Ok(Command::Dedup { digest_memory: true, base, .. }) =
                wire::command::Action::from(sent).try_into()
            else {
                panic!("not what was sent");
            };
            assert_eq!(base, named);
        }
        let zero = wire::SnapshotPlace { snapshot: 0, ..place.into() };
        let raw = wire::Dedup { sandbox: 1, digest_memory: false, base: Some(zero) };
        assert!(Command::try_from(wire::command::Action::Dedup(raw)).is_err());
    }
}
