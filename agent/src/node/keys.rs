//! Whose keys this node knows, and what becomes of what is here when one is taken back.

use medes_dedup::key::KeyId;
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, TenantKey},
    ids::TenantName,
};

use super::{Body, Node};
use crate::{driver::Event, keys::Fits};

/// What there was of a tenant whose key was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Sandboxes.
    pub sandboxes: usize,
    /// Base snapshots.
    pub snapshots: usize,
}

impl Node {
    /// More keys.
    pub(super) fn learn_keys(&mut self, keys: Vec<TenantKey>) {
        let Some(roads) = self.tools.roads.clone() else { return };
        for told in keys {
            let tenant = told.tenant.clone();
            if roads.keys.learn(told) == Fits::No {
                let dropped = self.drop_all_of(&tenant);
                tracing::warn!(%tenant, ?dropped, "its key is another one now: nothing from before is of use");
                // The controller believes what was here when this stream began: another one begins with what is left.
                self.outgoing = None;
            }
        }
    }

    /// These keys, and no other.
    pub(super) fn learn_only(&mut self, keys: Vec<TenantKey>) {
        let Some(roads) = self.tools.roads.clone() else { return };
        let others = roads.keys.held().into_iter().map(|held| held.tenant);
        let others = others.filter(|tenant| keys.iter().all(|told| told.tenant != *tenant)).collect();
        self.forget_keys(others);
        self.learn_keys(keys);
    }

    /// Forgets these keys. What is still here of their tenants nobody can store or bring back until they are told again.
    pub(super) fn forget_keys(&mut self, tenants: Vec<TenantName>) {
        let Some(roads) = &self.tools.roads else { return };
        // With them go those of which only was known what key they had.
        let gone = roads.keys.tenants().into_iter().filter(|tenant| !self.has(tenant));
        let gone: Vec<_> = gone.filter(|tenant| roads.keys.get(tenant).is_none()).collect();
        for tenant in tenants.into_iter().chain(gone) {
            let is_here = self.has(&tenant);
            roads.keys.forget(&tenant, is_here);
            if !is_here {
                self.tools.bases.let_go_of(&tenant);
            }
        }
    }

    /// A tenant's key is deleted: forgets it, and drops all there is of the tenant. Unless it has another key by now.
    pub(super) fn forget_tenant(&mut self, tenant: &TenantName, id: KeyId) -> Dropped {
        let known = self.tools.roads.as_ref().and_then(|roads| roads.keys.id(tenant));
        if known.is_some_and(|known| known != id) {
            return Dropped::default();
        }
        let dropped = self.drop_all_of(tenant);
        if let Some(roads) = &self.tools.roads {
            roads.keys.forget(tenant, false);
        }
        tracing::info!(%tenant, key = %id, ?dropped, "its key is deleted: forgotten, with all there was of it");
        dropped
    }

    fn drop_all_of(&mut self, tenant: &TenantName) -> Dropped {
        let sandboxes = self.driver.holders().filter(|holder| holder.spec.tenant == *tenant);
        let sandboxes: Vec<_> = sandboxes.map(|holder| holder.id).collect();
        let bases = self.tools.bases.local.all().into_iter();
        let snapshots: Vec<_> = bases.filter(|base| base.tenant == *tenant).map(|base| base.id).collect();
        let dropped = Dropped { sandboxes: sandboxes.len(), snapshots: snapshots.len() };
        self.apply(Event::Unwanted(sandboxes));
        self.apply(Event::UnwantedBases(snapshots));
        self.tools.bases.let_go_of(tenant);
        dropped
    }

    /// Whether anything of a tenant is here that is not only a copy of what another node has.
    fn has(&self, tenant: &TenantName) -> bool {
        self.driver.holders().any(|holder| holder.spec.tenant == *tenant)
            || self.tools.bases.local.all().iter().any(|base| base.tenant == *tenant)
    }

    /// Why a command cannot be carried out here and must not be tried: a restore that fails would end what rests.
    pub(super) fn lacks_key(&self, command: &Command) -> Option<Failure> {
        let (Command::Restore { sandbox, .. }, Some(roads)) = (command, &self.tools.roads) else {
            return None;
        };
        let Some(Body::Stored(stored)) = self.bodies.get(sandbox) else { return None };
        let error = roads.engine(&stored.spec.tenant).err()?;
        let mut failure = Failure::from_error(FailureKind::Unsupported, &error);
        failure.message = format!("restore {sandbox}: {}", failure.message);
        Some(failure)
    }
}
