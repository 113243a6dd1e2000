//! The Control service: what `medes` and other tools ask.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt, stream};
use medes_proto::{
    account::{Accounting, NodeSum},
    failure::{Failure, FailureKind},
    fleet::Success,
    function::FunctionSpec,
    heat::HeatMap,
    ids::{FunctionName, NodeId, SandboxId},
    node::request_from_wire,
    sandbox::phases_to_wire,
    standing::Standing,
    trace::{Explanation, Filter, Item},
    wire::{self, control_server::Control},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    accounting,
    agents::{Agents, InvokeError},
    driver::{Event, NodeRow, Operation, Refusal},
    invoke::{Answered, Call, Invoker},
    keyring::Keyring,
    registry::Registry,
    shell::Handle,
    store::{Store, StoreError},
    trace::Hub,
    tuner::{TuneError, Tuner},
};

/// Lines of the policy's section, and some to spare.
const POLICY_CHANGES_MAX: usize = 100;

/// The service.
pub(crate) struct ControlService {
    pub(crate) driver: Handle,
    pub(crate) store: Arc<Store>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) invoker: Arc<Invoker>,
    /// Changes of what the store keeps reach it and the driver in the same order.
    pub(crate) changes: Arc<tokio::sync::Mutex<()>>,
    pub(crate) tuner: Tuner,
    pub(crate) hub: Arc<Hub>,
    /// Ends streams.
    pub(crate) close: CancellationToken,
}

/// Work that blocks on the disk. It goes on if the caller goes away: the store and the driver must agree.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Status> {
    let done =
        tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| {
        let failure = Failure::from_error(FailureKind::Internal, &error);
        tracing::error!("store: {failure}");
        Status::internal(failure.message)
    })
}

fn sandbox_id(raw: u64) -> Result<SandboxId, Status> {
    Ok(SandboxId::from_wire(raw, "sandbox")?)
}

/// Empty: none.
fn node_name(raw: &str) -> Result<Option<NodeId>, Status> {
    let name = Some(raw).filter(|raw| !raw.is_empty()).map(str::parse).transpose();
    name.map_err(|error: medes_proto::ids::NameError| Status::invalid_argument(error.to_string()))
}

fn function_name(raw: &str) -> Result<FunctionName, Status> {
    raw.parse().map_err(|error: medes_proto::ids::NameError| Status::invalid_argument(error.to_string()))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl ControlService {
    async fn operate(&self, operation: Operation) -> Result<Response<wire::OperationReply>, Status> {
        let result = match self.driver.operate(operation).await? {
            Ok(Success { sandbox, snapshot, phases, memory_digest }) => {
                wire::operation_reply::Result::Success(wire::OperationSuccess {
                    sandbox: sandbox.map(Into::into),
                    snapshot: snapshot.map(Into::into),
                    phases: phases_to_wire(phases),
                    memory_digest: memory_digest.map(|hash| hash.to_vec().into()).unwrap_or_default(),
                })
            }
            Err(failure) => wire::operation_reply::Result::Failure(failure.into()),
        };
        Ok(Response::new(wire::OperationReply { result: Some(result) }))
    }
}

/// Nodes that are asked for their accounts at the same time.
const ACCOUNTS_MAX: usize = 32;

impl ControlService {
    /// What all nodes hold, divided. One that does not answer is named, with why.
    async fn account(&self) -> Result<Accounting, Status> {
        let nodes = self.driver.look(|driver, now| driver.node_rows(now)).await?;
        let ask = |row: NodeRow| async move {
            let account = self.agents.account((&row.name, &row.address)).await;
            (row.name, account)
        };
        let mut asked: Vec<_> = stream::iter(nodes).map(ask).buffer_unordered(ACCOUNTS_MAX).collect().await;
        asked.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut told = Vec::new();
        let mut silent = Vec::new();
        for (node, account) in asked {
            match account {
                Ok(account) => told.push((node, account)),
                Err(error) => {
                    let why = Failure::from_error(FailureKind::Internal, &error).message;
                    silent.push(NodeSum::unknown(node, why));
                }
            }
        }
        let mut accounting = accounting::divide(&told);
        accounting.nodes.extend(silent);
        Ok(accounting)
    }
}

type Items = Pin<Box<dyn Stream<Item = Result<wire::TraceItem, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlService {
    type TraceStream = Items;

    async fn apply_function(
        &self,
        request: Request<wire::ApplyFunctionRequest>,
    ) -> Result<Response<wire::ApplyFunctionReply>, Status> {
        let spec = FunctionSpec::from_toml(&request.into_inner().toml).map_err(|error| {
            Status::invalid_argument(Failure::from_error(FailureKind::Invalid, &error).message)
        })?;
        let turn = Arc::clone(&self.changes).lock_owned().await;
        let (store, driver, name) = (Arc::clone(&self.store), self.driver.clone(), spec.name.clone());
        let (kept, tenant) = (spec.clone(), spec.tenant.clone());
        let (applied, key) = on_disk(move || {
            // Before anything could use it, and before there is a function without one.
            let key = store.key_of(&kept.tenant, SystemTime::now())?;
            Ok((store.apply(&kept)?, key))
        })
        .await?;
        self.keyring.add(tenant, key);
        if applied.changed {
            driver.tell(Event::Applied { function: Box::new(spec), revision: applied.revision }).await?;
        }
        drop(turn);
        let (revision, changed) = (applied.revision, applied.changed);
        Ok(Response::new(wire::ApplyFunctionReply { name: name.into(), revision, changed }))
    }

    async fn list_functions(
        &self,
        _request: Request<wire::ListFunctionsRequest>,
    ) -> Result<Response<wire::ListFunctionsReply>, Status> {
        let rows = self.driver.look(|driver, _| driver.function_rows()).await?;
        let functions = rows.into_iter().map(|row| wire::FunctionRow {
            toml: row.spec.to_toml(),
            name: row.spec.name.into(),
            revision: row.revision,
            tenant: row.spec.tenant.into(),
            warm: count(row.warm),
            dedup: count(row.dedup),
            bases: count(row.bases),
            requests: row.requests,
            cold_starts: row.cold_starts,
            restores: row.restores,
            clones: row.clones,
        });
        Ok(Response::new(wire::ListFunctionsReply { functions: functions.collect() }))
    }

    async fn remove_function(
        &self,
        request: Request<wire::RemoveFunctionRequest>,
    ) -> Result<Response<wire::RemoveFunctionReply>, Status> {
        let name = function_name(&request.into_inner().name)?;
        let turn = Arc::clone(&self.changes).lock_owned().await;
        let (store, gone) = (Arc::clone(&self.store), name.clone());
        if !on_disk(move || store.remove(&gone)).await? {
            return Err(Status::not_found(format!("there is no function {name}")));
        }
        let counted = name.clone();
        let sandboxes = self.driver.look(move |driver, _| driver.sandboxes_of(&counted)).await?;
        self.driver.tell(Event::Removed { function: name }).await?;
        drop(turn);
        Ok(Response::new(wire::RemoveFunctionReply { sandboxes_purged: count(sandboxes) }))
    }

    async fn invoke_function(
        &self,
        request: Request<wire::InvokeFunctionRequest>,
    ) -> Result<Response<wire::InvokeFunctionReply>, Status> {
        let wire::InvokeFunctionRequest { function, method, path, headers, body, deadline_ms } =
            request.into_inner();
        if body.len() > self.invoker.settings().body_max {
            return Err(Status::invalid_argument("the body is too large"));
        }
        let call = Call {
            function: function_name(&function)?,
            prefer: None,
            deadline: Some(Duration::from_millis(deadline_ms)).filter(|deadline| !deadline.is_zero()),
            request: request_from_wire(method, path, headers, body)?,
        };
        let result = match self.invoker.call(call).await {
            Ok(Answered { answer, start, sandbox, node, phases }) => {
                wire::invoke_function_reply::Result::Answer(wire::InvokeFunctionAnswer {
                    http: Some(answer.into()),
                    start: start.into(),
                    sandbox: sandbox.get(),
                    node: node.into(),
                    phases: phases_to_wire(phases),
                })
            }
            Err(Refusal::UnknownFunction) => {
                return Err(Status::not_found(format!("there is no function {function}")));
            }
            Err(why) => wire::invoke_function_reply::Result::Failure(why.into_failure().into()),
        };
        Ok(Response::new(wire::InvokeFunctionReply { result: Some(result) }))
    }

    async fn list_sandboxes(
        &self,
        _request: Request<wire::ListSandboxesRequest>,
    ) -> Result<Response<wire::ListSandboxesReply>, Status> {
        let rows = self.driver.look(|driver, now| driver.sandbox_rows(now)).await?;
        let sandboxes = rows
            .into_iter()
            .map(|row| wire::SandboxRow { report: Some(row.report.into()), node: row.node.into() });
        Ok(Response::new(wire::ListSandboxesReply { sandboxes: sandboxes.collect() }))
    }

    async fn list_nodes(
        &self,
        _request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesReply>, Status> {
        let rows = self.driver.look(|driver, now| driver.node_rows(now)).await?;
        let nodes = rows.into_iter().map(|row| wire::NodeRow {
            node: row.name.into(),
            address: row.address,
            version: row.version,
            memory: Some(row.memory.into()),
            silent_ms: u64::try_from(row.silent.as_millis()).unwrap_or(u64::MAX),
            sandboxes: count(row.sandboxes),
            snapshots: row.snapshots.into_iter().map(Into::into).collect(),
            lacks: row.lacks,
            standing: row.standing.into(),
            connected: row.connected,
            incarnation: row.incarnation,
            requests: count(row.requests),
            resting: count(row.resting),
        });
        let size = self.registry.size();
        Ok(Response::new(wire::ListNodesReply {
            nodes: nodes.collect(),
            registry_entries: size.entries,
            registry_bytes: size.bytes,
        }))
    }

    async fn start_sandbox(
        &self,
        request: Request<wire::StartSandboxRequest>,
    ) -> Result<Response<wire::OperationReply>, Status> {
        let wire::StartSandboxRequest { function, node, cold } = request.into_inner();
        let function = function_name(&function)?;
        self.operate(Operation::Start { function, node: node_name(&node)?, cold }).await
    }

    async fn make_base(
        &self,
        request: Request<wire::SandboxRequest>,
    ) -> Result<Response<wire::OperationReply>, Status> {
        self.operate(Operation::MakeBase(sandbox_id(request.into_inner().sandbox)?)).await
    }

    async fn dedup_sandbox(
        &self,
        request: Request<wire::SandboxRequest>,
    ) -> Result<Response<wire::OperationReply>, Status> {
        let wire::SandboxRequest { sandbox, digest_memory } = request.into_inner();
        self.operate(Operation::Dedup { sandbox: sandbox_id(sandbox)?, digest_memory }).await
    }

    async fn restore_sandbox(
        &self,
        request: Request<wire::SandboxRequest>,
    ) -> Result<Response<wire::OperationReply>, Status> {
        let wire::SandboxRequest { sandbox, digest_memory } = request.into_inner();
        self.operate(Operation::Restore { sandbox: sandbox_id(sandbox)?, digest_memory }).await
    }

    async fn move_sandbox(
        &self,
        request: Request<wire::MoveSandboxRequest>,
    ) -> Result<Response<wire::OperationReply>, Status> {
        let wire::MoveSandboxRequest { sandbox, node } = request.into_inner();
        self.operate(Operation::Move { sandbox: sandbox_id(sandbox)?, to: node_name(&node)? }).await
    }

    async fn purge_sandbox(
        &self,
        request: Request<wire::SandboxRequest>,
    ) -> Result<Response<wire::OperationReply>, Status> {
        self.operate(Operation::Purge(sandbox_id(request.into_inner().sandbox)?)).await
    }

    async fn sandbox_logs(
        &self,
        request: Request<wire::SandboxRequest>,
    ) -> Result<Response<wire::LogsReply>, Status> {
        let id = sandbox_id(request.into_inner().sandbox)?;
        let home = self.driver.look(move |driver, _| driver.home_of(id)).await?;
        let (node, address) = home.ok_or_else(|| Status::not_found(format!("there is no {id}")))?;
        match self.agents.logs((&node, &address), id).await {
            Ok(logs) => Ok(Response::new(logs)),
            Err(InvokeError::Lost { source, .. }) => Err(*source),
            Err(error) => {
                Err(Status::unavailable(Failure::from_error(FailureKind::Internal, &error).message))
            }
        }
    }

    async fn trace(&self, request: Request<wire::TraceFilter>) -> Result<Response<Items>, Status> {
        let filter = Filter::try_from(request.into_inner())?;
        let subscription =
            self.hub.subscribe(filter).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let items = stream::unfold(subscription, async |mut subscription| {
            let item = subscription.next().await;
            Some((item, subscription))
        });
        let items = stream::once(std::future::ready(Item::Begin)).chain(items).map(|item| Ok(item.into()));
        Ok(Response::new(Box::pin(items.take_until(self.close.clone().cancelled_owned()))))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        let id = sandbox_id(request.into_inner().sandbox)?;
        let row = self.driver.look(move |driver, now| driver.sandbox_row(now, id)).await?;
        let now = row.map(|row| (row.report, row.node));
        let told = self.hub.explain(id);
        if now.is_none() && told.is_none() {
            return Err(Status::not_found(format!("nothing is known about {id}")));
        }
        let explanation = Explanation { now, ..told.unwrap_or_default() };
        Ok(Response::new(explanation.into()))
    }

    async fn accounting(
        &self,
        _request: Request<wire::AccountingRequest>,
    ) -> Result<Response<wire::AccountingReply>, Status> {
        Ok(Response::new(self.account().await?.into()))
    }

    async fn set_standing(
        &self,
        request: Request<wire::SetStandingRequest>,
    ) -> Result<Response<wire::SetStandingReply>, Status> {
        let wire::SetStandingRequest { node, standing } = request.into_inner();
        let standing = Standing::from_wire(standing, "standing")?;
        let node: NodeId = node
            .parse()
            .map_err(|error: medes_proto::ids::NameError| Status::invalid_argument(error.to_string()))?;
        let turn = Arc::clone(&self.changes).lock_owned().await;
        let asked = node.clone();
        let changed = self.driver.look(move |driver, _| driver.may_stand(&asked, standing)).await?;
        let changed = changed.map_err(|why| match why.kind {
            FailureKind::NotFound => Status::not_found(why.message),
            _ => Status::resource_exhausted(why.message),
        })?;
        if changed {
            let (store, kept) = (Arc::clone(&self.store), node.clone());
            on_disk(move || store.set_standing(&kept, standing)).await?;
            self.driver.tell(Event::Stands { node, standing }).await?;
        }
        drop(turn);
        Ok(Response::new(wire::SetStandingReply { changed }))
    }

    async fn get_policy(
        &self,
        _request: Request<wire::GetPolicyRequest>,
    ) -> Result<Response<wire::PolicyReply>, Status> {
        let toml = self.tuner.policy().await;
        Ok(Response::new(wire::PolicyReply { toml, changed: false }))
    }

    async fn set_policy(
        &self,
        request: Request<wire::SetPolicyRequest>,
    ) -> Result<Response<wire::PolicyReply>, Status> {
        let wire::SetPolicyRequest { changes, dry_run } = request.into_inner();
        if changes.len() > POLICY_CHANGES_MAX {
            return Err(Status::invalid_argument("too many changes"));
        }
        let set = self.tuner.set(&changes, dry_run).await;
        let (toml, changed) = set.map_err(|error| match error {
            TuneError::Stopped(stopped) => stopped.into(),
            TuneError::Config(error) => {
                Status::invalid_argument(Failure::from_error(FailureKind::Invalid, &error).message)
            }
        })?;
        Ok(Response::new(wire::PolicyReply { toml, changed }))
    }

    async fn heat(&self, request: Request<wire::HeatRequest>) -> Result<Response<wire::HeatReply>, Status> {
        let id = sandbox_id(request.into_inner().sandbox)?;
        let home = self.driver.look(move |driver, _| driver.home_of(id)).await?;
        let (node, address) = home.ok_or_else(|| Status::not_found(format!("there is no {id}")))?;
        match self.agents.heat((&node, &address), id).await {
            Ok(map) => Ok(Response::new(HeatMap::try_from(map)?.into())),
            Err(InvokeError::Lost { source, .. }) => Err(*source),
            Err(error) => {
                Err(Status::unavailable(Failure::from_error(FailureKind::Internal, &error).message))
            }
        }
    }
}
