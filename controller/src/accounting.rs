//! Divides the memory of all nodes among those it is held for. Pure: what nodes say goes in, rows and sums come out.
//!
//! What one sandbox alone has is its own. A base snapshot, all copies of it on all nodes together, is divided equally among the sandboxes
//! that refer to it, wherever they are; while nobody does, its function has it. Bytes that cannot be divided go one by one to the sandboxes
//! with the smallest numbers: every byte is in one row, so sums are exact.

use std::collections::BTreeMap;

use medes_proto::{
    account::{Accounting, Held, NodeAccount, NodeSum, Row, SandboxHolding},
    ids::{FunctionName, NodeId, SandboxId, SnapshotId, TenantName},
    sandbox::SandboxState,
};

type Owner = (TenantName, FunctionName);

/// A base snapshot: whose, all its copies, and who refers to it.
#[derive(Debug, Default)]
struct Base<'a> {
    owner: Option<&'a Owner>,
    bytes: u64,
    users: BTreeMap<SandboxId, &'a SandboxHolding>,
}

/// Divides what these nodes hold.
pub(crate) fn divide(nodes: &[(NodeId, NodeAccount)]) -> Accounting {
    let bases = bases(nodes);
    let mut rows: BTreeMap<Owner, Held> = BTreeMap::new();
    for sandbox in nodes.iter().flat_map(|(_, account)| &account.sandboxes) {
        *rows.entry(owner(sandbox)).or_default() += own(sandbox);
    }
    for base in bases.values() {
        match base.users.len() {
            0 => {
                if let Some(owner) = base.owner {
                    *rows.entry(owner.clone()).or_default() +=
                        Held { base_bytes: base.bytes, ..Held::default() };
                }
            }
            1 => {
                for user in base.users.values() {
                    *rows.entry(owner(user)).or_default() +=
                        Held { base_bytes: base.bytes, ..Held::default() };
                }
            }
            users => {
                for (user, shared_bytes) in base.users.values().zip(shares(base.bytes, users)) {
                    *rows.entry(owner(user)).or_default() += Held { shared_bytes, ..Held::default() };
                }
            }
        }
    }
    let rows = rows.into_iter().map(|((tenant, function), held)| Row { tenant, function, held });
    let sums = nodes.iter().map(|(node, account)| sum(node, account, &bases));
    Accounting { rows: rows.collect(), nodes: sums.collect() }
}

fn owner(sandbox: &SandboxHolding) -> Owner {
    (sandbox.tenant.clone(), sandbox.function.clone())
}

fn bases(nodes: &[(NodeId, NodeAccount)]) -> BTreeMap<SnapshotId, Base<'_>> {
    let mut bases: BTreeMap<SnapshotId, Base<'_>> = BTreeMap::new();
    for piece in nodes.iter().flat_map(|(_, account)| &account.snapshots) {
        let base = bases.entry(piece.id).or_default();
        base.owner = base.owner.or(piece.owner.as_ref());
        base.bytes = base.bytes.saturating_add(piece.file_bytes).saturating_add(piece.table_bytes);
    }
    for sandbox in nodes.iter().flat_map(|(_, account)| &account.sandboxes) {
        for base in &sandbox.bases {
            // Of which no node has anything: it costs nothing.
            if let Some(base) = bases.get_mut(base) {
                base.users.insert(sandbox.id, sandbox);
            }
        }
    }
    bases
}

/// What is a sandbox's alone.
fn own(sandbox: &SandboxHolding) -> Held {
    let mut held = Held {
        process_bytes: sandbox.anon_bytes,
        kernel_bytes: sandbox.kernel_bytes,
        file_bytes: sandbox.file_bytes,
        stored_bytes: sandbox.stored_bytes.saturating_add(sandbox.table_bytes),
        mapped_anon_bytes: sandbox.mapped_anon_bytes,
        mapped_file_bytes: sandbox.mapped_file_bytes,
        ..Held::default()
    };
    match sandbox.state {
        SandboxState::Parked => held.parked = 1,
        SandboxState::Dedup | SandboxState::Restoring => held.dedup = 1,
        SandboxState::Unspecified
        | SandboxState::Starting
        | SandboxState::Warm
        | SandboxState::Running
        | SandboxState::Deduping => held.warm = 1,
    }
    held
}

/// So many bytes for so many users: equal parts, the first ones a byte more where that is needed.
fn shares(bytes: u64, users: usize) -> impl Iterator<Item = u64> {
    let users = users as u64;
    let (each, more) = (bytes.checked_div(users).unwrap_or(0), bytes.checked_rem(users).unwrap_or(0));
    (0..users).map(move |user| each + u64::from(user < more))
}

/// What became of what a node's kernel counts.
fn sum(node: &NodeId, account: &NodeAccount, bases: &BTreeMap<SnapshotId, Base<'_>>) -> NodeSum {
    let NodeAccount { kernel, sandboxes, snapshots } = account;
    let has_somebody =
        |id: &SnapshotId| bases.get(id).is_some_and(|base| base.owner.is_some() || !base.users.is_empty());
    let known = || snapshots.iter().filter(|piece| has_somebody(&piece.id));
    let held: u64 = sandboxes.iter().map(|sandbox| own(sandbox).bytes()).sum::<u64>()
        + known().map(|piece| piece.file_bytes + piece.table_bytes).sum::<u64>();
    let tables: u64 = sandboxes.iter().map(|sandbox| sandbox.table_bytes).sum::<u64>()
        + known().map(|piece| piece.table_bytes).sum::<u64>();
    // Tables lie in the agent's own memory, and somebody has them already.
    let agent = kernel.agent_bytes().saturating_sub(tables);
    let counted = kernel.bytes();
    NodeSum {
        node: node.clone(),
        counted_bytes: counted,
        held_bytes: held,
        agent_bytes: agent,
        nobody_bytes: signed(counted).saturating_sub(signed(held)).saturating_sub(signed(agent)),
        failure: None,
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use medes_proto::account::{KernelCount, SnapshotHolding};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> NodeId {
        text.parse().unwrap()
    }

    fn sandbox(number: u32, whose: &str, state: SandboxState, bases: &[u64]) -> SandboxHolding {
        let (tenant, function) = whose.split_once('/').unwrap();
        let bases = bases.iter().map(|id| SnapshotId::new(*id).unwrap()).collect();
        let id = SandboxId::of(1, number).unwrap();
        SandboxHolding {
            bases,
            ..SandboxHolding::new(id, tenant.parse().unwrap(), function.parse().unwrap(), state)
        }
    }

    fn snapshot(number: u64, whose: &str, file_bytes: u64, table_bytes: u64) -> SnapshotHolding {
        let owner = whose.split_once('/');
        let owner = owner.map(|(tenant, function)| (tenant.parse().unwrap(), function.parse().unwrap()));
        SnapshotHolding { id: SnapshotId::new(number).unwrap(), owner, file_bytes, table_bytes }
    }

    fn row<'a>(accounting: &'a Accounting, whose: &str) -> &'a Held {
        let is = |row: &&Row| format!("{}/{}", row.tenant, row.function) == whose;
        &accounting.rows.iter().find(is).unwrap().held
    }

    /// Two nodes, three functions of two tenants, every number small enough to be added in the head.
    #[test]
    fn shares_are_those_that_were_computed_by_hand() {
        use SandboxState::{Dedup, Parked, Running, Warm};
        let warm = SandboxHolding {
            anon_bytes: 100,
            kernel_bytes: 10,
            file_bytes: 1,
            ..sandbox(1, "acme/html", Warm, &[])
        };
        let parked = SandboxHolding {
            anon_bytes: 7,
            stored_bytes: 20,
            table_bytes: 3,
            ..sandbox(2, "acme/html", Parked, &[7])
        };
        let dedup = SandboxHolding { stored_bytes: 30, ..sandbox(3, "acme/json", Dedup, &[7, 8]) };
        let other = SandboxHolding { anon_bytes: 50, ..sandbox(4, "other/html", Running, &[]) };
        let far = SandboxHolding { stored_bytes: 40, ..sandbox(5, "acme/json", Dedup, &[7]) };
        let kernel = |anon_bytes, shared_bytes, agent_anon_bytes| KernelCount {
            anon_bytes,
            shared_bytes,
            kernel_bytes: 10,
            agent_anon_bytes,
            agent_kernel_bytes: 0,
        };
        let first = NodeAccount {
            kernel: kernel(200, 1_200, 43),
            sandboxes: vec![warm, parked, dedup, other],
            // 7: 1000 bytes here and 1001 there. 8: of one sandbox. 9: of nobody yet. 5: nobody knows whose.
            snapshots: vec![
                snapshot(7, "acme/html", 990, 10),
                snapshot(8, "acme/json", 60, 0),
                snapshot(9, "other/html", 70, 0),
                snapshot(5, "", 0, 5),
            ],
        };
        let second = NodeAccount {
            kernel: kernel(10, 1_041, 10),
            sandboxes: vec![far],
            snapshots: vec![snapshot(7, "acme/html", 1_001, 0)],
        };
        let divided = divide(&[(name("n1"), first), (name("n2"), second)]);
        assert_eq!(divided.rows.len(), 3);
        let html = row(&divided, "acme/html");
        assert_eq!((html.warm, html.parked, html.dedup), (1, 1, 0));
        assert_eq!((html.process_bytes, html.kernel_bytes, html.file_bytes), (107, 10, 1));
        assert_eq!((html.stored_bytes, html.base_bytes), (23, 0));
        // 2001 bytes for three: 667 each.
        assert_eq!(html.shared_bytes, 667);
        let json = row(&divided, "acme/json");
        assert_eq!((json.dedup, json.stored_bytes, json.base_bytes, json.shared_bytes), (2, 70, 60, 2 * 667));
        let other = row(&divided, "other/html");
        assert_eq!((other.warm, other.process_bytes, other.base_bytes, other.shared_bytes), (1, 50, 70, 0));
        assert_eq!((html.bytes(), json.bytes(), other.bytes()), (808, 1_464, 120));
        let [n1, n2] = &divided.nodes[..] else { panic!("two nodes") };
        // 1410 are counted: 221 and 1130 are somebody's, and of 43 of the agent 13 are tables that have an owner. 5 bytes of pages
        // that nobody is known for stay with the agent.
        assert_eq!(
            (n1.counted_bytes, n1.held_bytes, n1.agent_bytes, n1.nobody_bytes),
            (1_410, 1_351, 30, 29)
        );
        assert_eq!(
            (n2.counted_bytes, n2.held_bytes, n2.agent_bytes, n2.nobody_bytes),
            (1_061, 1_041, 10, 10)
        );
    }

    #[test]
    fn bytes_that_cannot_be_divided_go_to_the_first_ones() {
        assert_eq!(shares(10, 4).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(shares(3, 4).collect::<Vec<_>>(), [1, 1, 1, 0]);
        assert_eq!(shares(u64::MAX, 2).collect::<Vec<_>>(), [u64::MAX / 2 + 1, u64::MAX / 2]);
        assert_eq!(shares(9, 0).count(), 0);
    }

    #[test]
    fn what_was_counted_twice_shows_as_less_than_nothing() {
        let twice = SandboxHolding { anon_bytes: 60, ..sandbox(1, "a/f", SandboxState::Warm, &[]) };
        let kernel = KernelCount { anon_bytes: 50, ..KernelCount::default() };
        let account = NodeAccount { kernel, sandboxes: vec![twice], snapshots: Vec::new() };
        assert_eq!(divide(&[(name("n1"), account)]).nodes[0].nobody_bytes, -10);
    }

    fn some_account() -> impl Strategy<Value = NodeAccount> {
        let sandbox = (1..9_u32, 0..3_usize, prop::collection::vec(1..5_u64, 0..4), any::<[u32; 5]>());
        let sandboxes = prop::collection::btree_map(1..200_u32, sandbox, 0..9);
        let piece = (1..6_u64, 0..4_usize, any::<u32>(), any::<u32>());
        let snapshots = prop::collection::vec(piece, 0..6);
        (sandboxes, snapshots, any::<[u32; 5]>()).prop_map(|(sandboxes, snapshots, [a, b, c, d, e])| {
            let whose = ["a/f", "a/g", "b/f", ""];
            let sandboxes = sandboxes.into_iter().map(|(number, (state, owner, bases, bytes))| {
                let state =
                    SandboxState::try_from(i32::try_from(state).unwrap()).unwrap_or(SandboxState::Warm);
                let [anon, kernel, file, stored, table] = bytes.map(u64::from);
                SandboxHolding {
                    anon_bytes: anon,
                    kernel_bytes: kernel,
                    file_bytes: file,
                    stored_bytes: stored,
                    table_bytes: table,
                    ..super::tests::sandbox(number, whose[owner], state, &bases)
                }
            });
            let snapshots = snapshots.into_iter().map(|(number, owner, file, table)| {
                snapshot(number, whose[owner], file.into(), table.into())
            });
            let [anon_bytes, shared_bytes, kernel_bytes, agent_anon_bytes, agent_kernel_bytes] =
                [a, b, c, d, e].map(u64::from);
            let kernel =
                KernelCount { anon_bytes, shared_bytes, kernel_bytes, agent_anon_bytes, agent_kernel_bytes };
            NodeAccount { kernel, sandboxes: sandboxes.collect(), snapshots: snapshots.collect() }
        })
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_and_none_is_made(accounts in prop::collection::vec(some_account(), 0..4)) {
            let nodes: Vec<_> =
                accounts.into_iter().enumerate().map(|(at, account)| (name(&format!("n{at}")), account)).collect();
            let divided = divide(&nodes);
            let rows: u64 = divided.rows.iter().map(|row| row.held.bytes()).sum();
            prop_assert_eq!(rows, divided.nodes.iter().map(|node| node.held_bytes).sum::<u64>());
            for node in &divided.nodes {
                let parts = signed(node.held_bytes) + signed(node.agent_bytes) + node.nobody_bytes;
                prop_assert_eq!(parts, signed(node.counted_bytes));
            }
            let sandboxes: usize = nodes.iter().map(|(_, account)| account.sandboxes.len()).sum();
            prop_assert_eq!(divided.rows.iter().map(|row| row.held.sandboxes() as usize).sum::<usize>(), sandboxes);
        }
    }
}
