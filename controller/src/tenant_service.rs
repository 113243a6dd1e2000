//! The Tenants service: what people ask about tenants and their keys. The store keeps the keys, [`Keyring`] goes by them, nodes know some.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream};
use medes_dedup::key::KeyId;
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NameError, NodeId, TenantName},
    wire::{self, tenants_server::Tenants},
};
use tonic::{Request, Response, Status};

use crate::{
    agents::Agents,
    control::{ControlService, on_disk},
    driver::{Event, NodeRow},
    keyring::Keyring,
    shell::Handle,
    store::Store,
};

/// Nodes that are told at the same time.
const NODES_MAX: usize = 32;
/// A node that has not confirmed by then is as good as away.
const CONFIRM_MAX: Duration = Duration::from_secs(5);

/// The service.
#[derive(Debug)]
pub(crate) struct TenantService {
    driver: Handle,
    store: Arc<Store>,
    keyring: Arc<Keyring>,
    agents: Arc<Agents>,
    /// The same as for functions: none is applied while its tenant's key is being deleted.
    changes: Arc<tokio::sync::Mutex<()>>,
}

impl TenantService {
    /// Next to the service that applies functions.
    pub(crate) fn beside(control: &ControlService) -> Self {
        let ControlService { driver, store, keyring, agents, changes, .. } = control;
        Self {
            driver: driver.clone(),
            store: Arc::clone(store),
            keyring: Arc::clone(keyring),
            agents: Arc::clone(agents),
            changes: Arc::clone(changes),
        }
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, Status> {
        Ok(self.driver.look(|driver, now| driver.node_rows(now)).await?)
    }

    /// Has a node forget a tenant, and waits for its word.
    async fn forget_on(
        &self,
        (node, address): (NodeId, String),
        tenant: &TenantName,
        id: KeyId,
    ) -> wire::ForgottenOn {
        let asked = self.agents.forget_tenant((&node, &address), (tenant, id));
        let (failure, held) = match tokio::time::timeout(CONFIRM_MAX, asked).await {
            Ok(Ok(held)) => (String::new(), held),
            Ok(Err(error)) => (
                Failure::from_error(FailureKind::Internal, &error).message,
                wire::ForgetTenantReply::default(),
            ),
            Err(_elapsed) => {
                (format!("no answer within {CONFIRM_MAX:?}"), wire::ForgetTenantReply::default())
            }
        };
        let wire::ForgetTenantReply { sandboxes, snapshots } = held;
        wire::ForgottenOn { node: node.into(), failure, sandboxes, snapshots }
    }
}

#[tonic::async_trait]
impl Tenants for TenantService {
    async fn list(
        &self,
        _request: Request<wire::ListTenantsRequest>,
    ) -> Result<Response<wire::ListTenantsReply>, Status> {
        let mut knowing: BTreeMap<TenantName, Vec<wire::TenantNode>> = BTreeMap::new();
        for NodeRow { name, keys, .. } in self.nodes().await? {
            for held in keys {
                let node = wire::TenantNode { node: name.to_string(), key_id: held.id.0 };
                knowing.entry(held.tenant).or_default().push(node);
            }
        }
        let functions = self.driver.look(|driver, _| driver.function_rows()).await?;
        let rows = self.keyring.list().into_iter().map(|(tenant, id, created)| {
            let own = functions.iter().filter(|row| row.spec.tenant == tenant);
            wire::TenantRow {
                functions: own.map(|row| row.spec.name.to_string()).collect(),
                key_id: id.0,
                created_s: created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
                nodes: knowing.remove(&tenant).unwrap_or_default(),
                tenant: tenant.into(),
            }
        });
        Ok(Response::new(wire::ListTenantsReply { tenants: rows.collect() }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteTenantRequest>,
    ) -> Result<Response<wire::DeleteTenantReply>, Status> {
        let tenant: TenantName = request
            .into_inner()
            .tenant
            .parse()
            .map_err(|error: NameError| Status::invalid_argument(error.to_string()))?;
        let turn = Arc::clone(&self.changes).lock_owned().await;
        let key = self.keyring.get(&tenant);
        let key = key.ok_or_else(|| Status::not_found(format!("there is no tenant {tenant}")))?;
        let id = key.id();
        let whose = tenant.clone();
        let functions = self.driver.look(move |driver, _| driver.functions_of(&whose)).await?;
        if !functions.is_empty() {
            let names: Vec<_> = functions.iter().map(|name| name.as_str()).collect();
            let message = format!("tenant {tenant} has functions, remove them first: {}", names.join(", "));
            return Err(Status::failed_precondition(message));
        }
        // Whoever asks again after a failure gets further: it is known here until it is gone from the disk.
        let (store, whose) = (Arc::clone(&self.store), tenant.clone());
        on_disk(move || store.delete_key(&whose, &key)).await?;
        self.keyring.remove(&tenant);
        tracing::info!(%tenant, key = %id, "the key of a tenant is deleted");
        self.driver.tell(Event::TenantDeleted { tenant: tenant.clone() }).await?;
        let nodes = self.nodes().await?.into_iter().map(|row| (row.name, row.address));
        let forgotten = stream::iter(nodes).map(|node| self.forget_on(node, &tenant, id));
        let mut nodes: Vec<_> = forgotten.buffer_unordered(NODES_MAX).collect().await;
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        drop(turn);
        Ok(Response::new(wire::DeleteTenantReply { key_id: id.0, nodes }))
    }
}
