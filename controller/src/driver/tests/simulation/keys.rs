//! Whose keys agents are told: those that what they are told to do needs, and no other.

use medes_dedup::key::KeyId;
use medes_proto::fleet::HeldKey;

use super::*;

pub(super) fn of_tenant(spec: FunctionSpec, tenant: &str) -> FunctionSpec {
    FunctionSpec { tenant: tenant.parse().unwrap(), ..spec }
}

pub(super) fn held_key(tenant: &TenantName) -> HeldKey {
    HeldKey { tenant: tenant.clone(), id: KeyId(7) }
}

/// Who has this function, in all lives of this world.
fn tenant_of(function: &str) -> TenantName {
    if function == "g" { "acme" } else { "default" }.parse().unwrap()
}

impl World {
    /// An agent is told nobody's key who has nothing there, and nothing on the way there.
    pub(super) fn told_keys(&mut self, at: usize, tenants: Vec<TenantName>) {
        for tenant in tenants {
            let (agent, driver) = (&self.agents[at], &self.bench.driver);
            let sandboxes = agent.sandboxes.values().map(|held| tenant_of(&held.function));
            let snapshots = agent.snapshots.values().map(|(function, _)| tenant_of(function));
            // What the agent has not yet done, or not yet told that it is gone: the driver cannot know better.
            let node: medes_proto::ids::NodeId = format!("n{at}").parse().unwrap();
            let books = driver.sandboxes.values().filter(|sandbox| sandbox.node == node);
            let books = books.map(|sandbox| tenant_of(sandbox.function.as_str()));
            let coming = driver.under_way.of_node(&node).filter_map(|(_, pending)| match pending.kind {
                state::Kind::Copy(snapshot) => Some(&driver.snapshots.get(&snapshot)?.function),
                _ => Some(&driver.sandboxes.get(&pending.sandbox?)?.function),
            });
            let coming = coming.map(|function| tenant_of(function.as_str()));
            let there: BTreeSet<_> = sandboxes.chain(snapshots).chain(books).chain(coming).collect();
            assert!(there.contains(&tenant), "n{at} is told the key of {tenant}, who has nothing there");
            self.agents[at].keys.insert(tenant);
            self.saw("key told");
        }
    }

    /// What a command needs is there when it comes.
    pub(super) fn has_key(&self, at: usize, command: &Command) {
        let function = match command {
            Command::Start { function, .. } | Command::Take { function, .. } => function.name.to_string(),
            Command::Replicate { place } => self.bench.driver.snapshots[&place.snapshot].function.to_string(),
            Command::MakeBase { sandbox, .. }
            | Command::Dedup { sandbox, .. }
            | Command::Park { sandbox, .. }
            | Command::Restore { sandbox, .. }
            | Command::Offer { sandbox, .. } => self.bench.driver.sandboxes[sandbox].function.to_string(),
            Command::CancelPark { .. } | Command::Purge { .. } | Command::DropSnapshot { .. } => return,
        };
        let is_known = self.bench.driver.functions.keys().any(|known| known.as_str() == function);
        if matches!(command, Command::Replicate { .. }) && !is_known {
            // A base that outlives its function, because images refer to it: pages are copied without a key.
            return;
        }
        let tenant = tenant_of(&function);
        assert!(self.agents[at].keys.contains(&tenant), "n{at} has no key of {tenant} for {command:?}");
    }

    /// Only of one without functions, as the service sees to it. Its key is told to nobody from then on.
    pub(super) fn delete_tenant(&mut self) {
        let tenant = tenant_of("g");
        if self.bench.driver.functions_of(&tenant).is_empty() {
            self.tell(Event::TenantDeleted { tenant: tenant.clone() });
            assert!(self.bench.driver.nodes.values().all(|node| !node.told.contains(&tenant)));
            self.saw("tenant deleted");
        }
    }
}
