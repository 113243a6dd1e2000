//! Who the memory of a cluster is held for: what each node says, and what comes of dividing it.

use crate::{
    WireError,
    ids::{FunctionName, NodeId, SandboxId, SnapshotId, TenantName, snapshot_from_wire},
    limits,
    sandbox::SandboxState,
    wire,
};
pub use wire::KernelCount;

impl KernelCount {
    /// All of it.
    pub const fn bytes(&self) -> u64 {
        self.anon_bytes.saturating_add(self.shared_bytes).saturating_add(self.kernel_bytes)
    }

    /// What the agent, its helpers and its keeper have, without memory files.
    pub const fn agent_bytes(&self) -> u64 {
        self.agent_anon_bytes.saturating_add(self.agent_kernel_bytes)
    }
}

/// What a node holds, thing by thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAccount {
    /// What its kernel counts.
    pub kernel: KernelCount,
    /// All its sandboxes.
    pub sandboxes: Vec<SandboxHolding>,
    /// All base snapshots of which something is here.
    pub snapshots: Vec<SnapshotHolding>,
}

/// What is held for one sandbox alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxHolding {
    /// Which.
    pub id: SandboxId,
    /// Whose.
    pub tenant: TenantName,
    /// Of which function.
    pub function: FunctionName,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Anonymous memory of its processes, as the kernel charges it.
    pub anon_bytes: u64,
    /// Kernel memory for it, as the kernel charges it.
    pub kernel_bytes: u64,
    /// Its private files, and memory that its processes share.
    pub file_bytes: u64,
    /// Memory files of its images.
    pub stored_bytes: u64,
    /// Of the agent's own memory: what finds its pages in the images.
    pub table_bytes: u64,
    /// Its anonymous memory again, by page tables.
    pub mapped_anon_bytes: u64,
    /// Its share of files that it has mapped, by page tables.
    pub mapped_file_bytes: u64,
    /// Base snapshots that what is stored of it refers to.
    pub bases: Vec<SnapshotId>,
}

impl SandboxHolding {
    /// One that holds nothing.
    pub const fn new(id: SandboxId, tenant: TenantName, function: FunctionName, state: SandboxState) -> Self {
        Self {
            id,
            tenant,
            function,
            state,
            anon_bytes: 0,
            kernel_bytes: 0,
            file_bytes: 0,
            stored_bytes: 0,
            table_bytes: 0,
            mapped_anon_bytes: 0,
            mapped_file_bytes: 0,
            bases: Vec::new(),
        }
    }
}

/// What is held of one base snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHolding {
    /// Which.
    pub id: SnapshotId,
    /// Whose, and of which function; `None`: nobody here knows.
    pub owner: Option<(TenantName, FunctionName)>,
    /// Memory files: its pages, and what makes clones of it.
    pub file_bytes: u64,
    /// Of the agent's own memory: sums, index, single pages.
    pub table_bytes: u64,
}

/// The memory of a cluster, divided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounting {
    /// By tenant, then by function.
    pub rows: Vec<Row>,
    /// By node.
    pub nodes: Vec<NodeSum>,
}

/// What is held for one function of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub tenant: TenantName,
    /// Of which function.
    pub function: FunctionName,
    /// How much.
    pub held: Held,
}

/// Memory held for somebody. Sums of these are exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Sandboxes with their memory.
    pub warm: u32,
    /// Sandboxes that are parked.
    pub parked: u32,
    /// Sandboxes in dedup.
    pub dedup: u32,
    /// Anonymous memory of processes.
    pub process_bytes: u64,
    /// Kernel memory of sandboxes.
    pub kernel_bytes: u64,
    /// Private files, and memory that processes of one sandbox share.
    pub file_bytes: u64,
    /// Images, and the tables that go with them.
    pub stored_bytes: u64,
    /// Base snapshots that one sandbox refers to, or nobody yet.
    pub base_bytes: u64,
    /// A part of base snapshots that several sandboxes refer to.
    pub shared_bytes: u64,
    /// In no sum: anonymous memory of processes by their page tables.
    pub mapped_anon_bytes: u64,
    /// In no sum: a share of files that processes have mapped.
    pub mapped_file_bytes: u64,
}

impl Held {
    /// What nobody else has.
    pub const fn unique_bytes(&self) -> u64 {
        let of_sandboxes =
            self.process_bytes.saturating_add(self.kernel_bytes).saturating_add(self.file_bytes);
        of_sandboxes.saturating_add(self.stored_bytes).saturating_add(self.base_bytes)
    }

    /// All of it.
    pub const fn bytes(&self) -> u64 {
        self.unique_bytes().saturating_add(self.shared_bytes)
    }

    /// Sandboxes of all states.
    pub const fn sandboxes(&self) -> u32 {
        self.warm.saturating_add(self.parked).saturating_add(self.dedup)
    }
}

impl std::ops::AddAssign for Held {
    fn add_assign(&mut self, more: Self) {
        self.warm = self.warm.saturating_add(more.warm);
        self.parked = self.parked.saturating_add(more.parked);
        self.dedup = self.dedup.saturating_add(more.dedup);
        for (sum, more) in [
            (&mut self.process_bytes, more.process_bytes),
            (&mut self.kernel_bytes, more.kernel_bytes),
            (&mut self.file_bytes, more.file_bytes),
            (&mut self.stored_bytes, more.stored_bytes),
            (&mut self.base_bytes, more.base_bytes),
            (&mut self.shared_bytes, more.shared_bytes),
            (&mut self.mapped_anon_bytes, more.mapped_anon_bytes),
            (&mut self.mapped_file_bytes, more.mapped_file_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// What a node's kernel counts, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSum {
    /// Which.
    pub node: NodeId,
    /// What its kernel counts.
    pub counted_bytes: u64,
    /// Of that: what is in rows.
    pub held_bytes: u64,
    /// Of that: what the agent has for itself.
    pub agent_bytes: u64,
    /// The rest. Less than nothing where the same was counted twice.
    pub nobody_bytes: i64,
    /// Why nothing of it is known, if nothing is.
    pub failure: Option<String>,
}

impl NodeSum {
    /// A node that has not answered.
    pub const fn unknown(node: NodeId, failure: String) -> Self {
        Self {
            node,
            counted_bytes: 0,
            held_bytes: 0,
            agent_bytes: 0,
            nobody_bytes: 0,
            failure: Some(failure),
        }
    }
}

impl From<NodeAccount> for wire::NodeAccount {
    fn from(account: NodeAccount) -> Self {
        let NodeAccount { kernel, sandboxes, snapshots } = account;
        Self {
            kernel: Some(kernel),
            sandboxes: sandboxes.into_iter().map(Into::into).collect(),
            snapshots: snapshots.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::NodeAccount> for NodeAccount {
    type Error = WireError;

    fn try_from(raw: wire::NodeAccount) -> Result<Self, WireError> {
        let wire::NodeAccount { kernel, sandboxes, snapshots } = raw;
        if sandboxes.len() > limits::SANDBOXES_MAX {
            return Err(WireError::invalid("account.sandboxes", "too many"));
        }
        if snapshots.len() > limits::ACCOUNT_SNAPSHOTS_MAX {
            return Err(WireError::invalid("account.snapshots", "too many"));
        }
        Ok(Self {
            kernel: kernel.ok_or(WireError::missing("account.kernel"))?,
            sandboxes: sandboxes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            snapshots: snapshots.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<SandboxHolding> for wire::SandboxHolding {
    fn from(holding: SandboxHolding) -> Self {
        Self {
            sandbox: holding.id.get(),
            tenant: holding.tenant.into(),
            function: holding.function.into(),
            state: holding.state.into(),
            anon_bytes: holding.anon_bytes,
            kernel_bytes: holding.kernel_bytes,
            file_bytes: holding.file_bytes,
            stored_bytes: holding.stored_bytes,
            table_bytes: holding.table_bytes,
            mapped_anon_bytes: holding.mapped_anon_bytes,
            mapped_file_bytes: holding.mapped_file_bytes,
            bases: holding.bases.into_iter().map(SnapshotId::get).collect(),
        }
    }
}

fn tenant(raw: &str) -> Result<TenantName, WireError> {
    raw.parse().map_err(|_name| WireError::invalid("account.tenant", "not a tenant's name"))
}

fn function(raw: &str) -> Result<FunctionName, WireError> {
    raw.parse().map_err(|_name| WireError::invalid("account.function", "not a function's name"))
}

impl TryFrom<wire::SandboxHolding> for SandboxHolding {
    type Error = WireError;

    fn try_from(raw: wire::SandboxHolding) -> Result<Self, WireError> {
        let state = SandboxState::try_from(raw.state).unwrap_or(SandboxState::Unspecified);
        if state == SandboxState::Unspecified {
            return Err(WireError::invalid("account.state", "unknown"));
        }
        if raw.bases.len() > limits::IMAGE_BASES_MAX {
            return Err(WireError::invalid("account.bases", "too many"));
        }
        let bases = raw.bases.into_iter().map(|id| snapshot_from_wire(id, "account.bases"));
        Ok(Self {
            id: SandboxId::from_wire(raw.sandbox, "account.sandbox")?,
            tenant: tenant(&raw.tenant)?,
            function: function(&raw.function)?,
            state,
            anon_bytes: raw.anon_bytes,
            kernel_bytes: raw.kernel_bytes,
            file_bytes: raw.file_bytes,
            stored_bytes: raw.stored_bytes,
            table_bytes: raw.table_bytes,
            mapped_anon_bytes: raw.mapped_anon_bytes,
            mapped_file_bytes: raw.mapped_file_bytes,
            bases: bases.collect::<Result<_, _>>()?,
        })
    }
}

impl From<SnapshotHolding> for wire::SnapshotHolding {
    fn from(holding: SnapshotHolding) -> Self {
        let SnapshotHolding { id, owner, file_bytes, table_bytes } = holding;
        let (tenant, function) =
            owner.map(|(tenant, function)| (tenant.into(), function.into())).unwrap_or_default();
        Self { snapshot: id.get(), tenant, function, file_bytes, table_bytes }
    }
}

impl TryFrom<wire::SnapshotHolding> for SnapshotHolding {
    type Error = WireError;

    fn try_from(raw: wire::SnapshotHolding) -> Result<Self, WireError> {
        let wire::SnapshotHolding { snapshot, tenant: whose, function: of, file_bytes, table_bytes } = raw;
        let owner = match whose.is_empty() {
            true => None,
            false => Some((tenant(&whose)?, function(&of)?)),
        };
        Ok(Self { id: snapshot_from_wire(snapshot, "account.snapshot")?, owner, file_bytes, table_bytes })
    }
}

impl From<Accounting> for wire::AccountingReply {
    fn from(accounting: Accounting) -> Self {
        let Accounting { rows, nodes } = accounting;
        Self {
            rows: rows.into_iter().map(Into::into).collect(),
            nodes: nodes.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::AccountingReply> for Accounting {
    type Error = WireError;

    fn try_from(raw: wire::AccountingReply) -> Result<Self, WireError> {
        let wire::AccountingReply { rows, nodes } = raw;
        Ok(Self {
            rows: rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            nodes: nodes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Row> for wire::AccountRow {
    fn from(row: Row) -> Self {
        let Row { tenant, function, held } = row;
        let Held {
            warm,
            parked,
            dedup,
            process_bytes,
            kernel_bytes,
            file_bytes,
            stored_bytes,
            base_bytes,
            shared_bytes,
            mapped_anon_bytes,
            mapped_file_bytes,
        } = held;
        Self {
            tenant: tenant.into(),
            function: function.into(),
            warm,
            parked,
            dedup,
            process_bytes,
            kernel_bytes,
            file_bytes,
            stored_bytes,
            base_bytes,
            shared_bytes,
            mapped_anon_bytes,
            mapped_file_bytes,
        }
    }
}

impl TryFrom<wire::AccountRow> for Row {
    type Error = WireError;

    fn try_from(raw: wire::AccountRow) -> Result<Self, WireError> {
        let held = Held {
            warm: raw.warm,
            parked: raw.parked,
            dedup: raw.dedup,
            process_bytes: raw.process_bytes,
            kernel_bytes: raw.kernel_bytes,
            file_bytes: raw.file_bytes,
            stored_bytes: raw.stored_bytes,
            base_bytes: raw.base_bytes,
            shared_bytes: raw.shared_bytes,
            mapped_anon_bytes: raw.mapped_anon_bytes,
            mapped_file_bytes: raw.mapped_file_bytes,
        };
        Ok(Self { tenant: tenant(&raw.tenant)?, function: function(&raw.function)?, held })
    }
}

impl From<NodeSum> for wire::NodeSum {
    fn from(sum: NodeSum) -> Self {
        let NodeSum { node, counted_bytes, held_bytes, agent_bytes, nobody_bytes, failure } = sum;
        let (node, failure) = (node.into(), failure.unwrap_or_default());
        Self { node, counted_bytes, held_bytes, agent_bytes, nobody_bytes, failure }
    }
}

impl TryFrom<wire::NodeSum> for NodeSum {
    type Error = WireError;

    fn try_from(raw: wire::NodeSum) -> Result<Self, WireError> {
        let wire::NodeSum { node, counted_bytes, held_bytes, agent_bytes, nobody_bytes, failure } = raw;
        let node =
            node.parse().map_err(|_name| WireError::invalid("accounting.node", "not a node's name"))?;
        let failure = Some(failure).filter(|why| !why.is_empty());
        Ok(Self { node, counted_bytes, held_bytes, agent_bytes, nobody_bytes, failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> NodeAccount {
        let (id, base) = (SandboxId::of(1, 2).unwrap(), SnapshotId::new(9).unwrap());
        let (tenant, function): (TenantName, FunctionName) =
            ("acme".parse().unwrap(), "html".parse().unwrap());
        let sandbox = SandboxHolding {
            anon_bytes: 1,
            kernel_bytes: 2,
            file_bytes: 3,
            stored_bytes: 4,
            table_bytes: 5,
            mapped_anon_bytes: 6,
            mapped_file_bytes: 7,
            bases: vec![base],
            ..SandboxHolding::new(id, tenant.clone(), function.clone(), SandboxState::Parked)
        };
        let whole =
            SnapshotHolding { id: base, owner: Some((tenant, function)), file_bytes: 8, table_bytes: 9 };
        let pages = SnapshotHolding { owner: None, ..whole.clone() };
        let kernel = KernelCount { anon_bytes: 10, agent_kernel_bytes: 3, ..KernelCount::default() };
        NodeAccount { kernel, sandboxes: vec![sandbox], snapshots: vec![whole, pages] }
    }

    #[test]
    fn an_account_arrives_as_it_was_sent() {
        assert_eq!(NodeAccount::try_from(wire::NodeAccount::from(account())), Ok(account()));
        let held =
            Held { warm: 1, parked: 2, dedup: 3, process_bytes: 4, shared_bytes: 5, ..Held::default() };
        let row = Row { tenant: "acme".parse().unwrap(), function: "html".parse().unwrap(), held };
        let node = NodeSum { nobody_bytes: -5, ..NodeSum::unknown("n1".parse().unwrap(), "gone".into()) };
        let accounting = Accounting { rows: vec![row], nodes: vec![node] };
        assert_eq!(Accounting::try_from(wire::AccountingReply::from(accounting.clone())), Ok(accounting));
    }

    #[test]
    fn nonsense_is_refused() {
        type Spoil = fn(&mut wire::NodeAccount);
        let spoils: [(&str, Spoil); 7] = [
            ("account.kernel", |raw| raw.kernel = None),
            ("account.sandbox", |raw| raw.sandboxes[0].sandbox = 0),
            ("account.tenant", |raw| raw.sandboxes[0].tenant = String::new()),
            ("account.function", |raw| raw.snapshots[0].function = "<b>".into()),
            ("account.state", |raw| raw.sandboxes[0].state = 99),
            ("account.bases", |raw| raw.sandboxes[0].bases = vec![1; limits::IMAGE_BASES_MAX + 1]),
            ("account.snapshot", |raw| raw.snapshots[0].snapshot = 0),
        ];
        for (field, spoil) in spoils {
            let mut raw = wire::NodeAccount::from(account());
            spoil(&mut raw);
            assert_eq!(NodeAccount::try_from(raw).unwrap_err().field, field);
        }
    }
}
