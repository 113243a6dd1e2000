//! Which tenants' keys each node is told: of those that have something there, and no other. What the keys are nobody knows here.
//!
//! A key comes with the Welcome, or on the same stream before the first command that needs it. It is taken back when a report shows that
//! its tenant has nothing on the node any more, and nothing is on its way there.

use std::collections::BTreeSet;

use medes_proto::{
    fleet::Command,
    ids::{FunctionName, NodeId, SandboxId, SnapshotId, TenantName},
};

use super::{
    Action, ConnectionId, Driver,
    state::{Kind, Pending},
};

impl Driver {
    /// Before a command: the key that it needs, if it is not there.
    pub(super) fn tell_key(
        &mut self,
        connection: ConnectionId,
        node: &NodeId,
        command: &Command,
        out: &mut Vec<Action>,
    ) {
        let tenant = match command {
            Command::Start { function, .. } | Command::Take { function, .. } => Some(&function.tenant),
            Command::MakeBase { sandbox, .. }
            | Command::Dedup { sandbox, .. }
            | Command::Park { sandbox, .. }
            | Command::Restore { sandbox, .. }
            | Command::Offer { sandbox, .. } => self.tenant_of(*sandbox),
            Command::Replicate { place } => self.tenant_of_snapshot(place.snapshot),
            Command::CancelPark { .. } | Command::Purge { .. } | Command::DropSnapshot { .. } => None,
        };
        let Some(tenant) = tenant.cloned() else { return };
        if let Some(node) = self.nodes.get_mut(node)
            && node.told.insert(tenant.clone())
        {
            out.push(Action::TellKeys { connection, tenants: vec![tenant] });
        }
    }

    /// Whose keys a node is told with its Welcome.
    pub(super) fn tell_all_keys(&mut self, name: &NodeId) -> Vec<TenantName> {
        let tenants = self.tenants_on(name);
        if let Some(node) = self.nodes.get_mut(name) {
            node.told.clone_from(&tenants);
        }
        tenants.into_iter().collect()
    }

    /// After a report: the node is to know the keys of those that have something there, and no more.
    pub(super) fn correct_keys(&mut self, connection: ConnectionId, name: &NodeId, out: &mut Vec<Action>) {
        let needed = self.tenants_on(name);
        let Some(node) = self.nodes.get_mut(name) else { return };
        let more: Vec<_> = needed.difference(&node.told).cloned().collect();
        // Also one that nobody has told it on this stream.
        let mut known = std::mem::take(&mut node.told);
        known.extend(node.keys.iter().map(|held| held.tenant.clone()));
        let less: Vec<_> = known.difference(&needed).cloned().collect();
        node.told = needed;
        if !more.is_empty() {
            out.push(Action::TellKeys { connection, tenants: more });
        }
        if !less.is_empty() {
            out.push(Action::ForgetKeys { connection, tenants: less });
        }
    }

    /// Nobody is to know it, and if the tenant comes again its key is another one, which nobody has been told.
    pub(super) fn tenant_deleted(&mut self, tenant: &TenantName, out: &mut Vec<Action>) {
        for node in self.nodes.values_mut() {
            if node.told.remove(tenant)
                && let Some(connection) = node.connection
            {
                out.push(Action::ForgetKeys { connection, tenants: vec![tenant.clone()] });
            }
        }
    }

    /// Tenants that have something on a node, or are about to.
    pub(super) fn tenants_on(&self, name: &NodeId) -> BTreeSet<TenantName> {
        let Some(node) = self.nodes.get(name) else { return BTreeSet::new() };
        let sandboxes = node.sandboxes.iter().filter_map(|id| self.tenant_of(*id));
        let held = self.held.get(name).into_iter().flatten();
        let held = held.filter_map(|id| self.tenant_of_snapshot(*id));
        let coming = self.under_way.of_node(name).filter_map(|(_, pending)| self.comes(pending));
        sandboxes.chain(held).chain(coming).cloned().collect()
    }

    /// Whose is what a command brings to a node.
    fn comes(&self, pending: &Pending) -> Option<&TenantName> {
        match pending.kind {
            Kind::Copy(snapshot) => self.tenant_of_snapshot(snapshot),
            Kind::Take => self.tenant_of(pending.sandbox?),
            _ => None,
        }
    }

    /// Whose a sandbox is, as far as that is known: its function may have had another text, and another tenant, when it was started. Nobody
    /// wants it then, and ending it takes no key.
    fn tenant_of(&self, id: SandboxId) -> Option<&TenantName> {
        let sandbox = self.sandboxes.get(&id)?;
        let function = self.functions.get(&sandbox.function)?;
        (function.revision == sandbox.revision).then_some(&function.spec.tenant)
    }

    fn tenant_of_snapshot(&self, id: SnapshotId) -> Option<&TenantName> {
        self.tenant_of_function(&self.snapshots.get(&id)?.function)
    }

    fn tenant_of_function(&self, name: &FunctionName) -> Option<&TenantName> {
        Some(&self.functions.get(name)?.spec.tenant)
    }
}
