//! What is left to the next agent on this node, and what the one before has left.

use std::{io, time::Instant};

use medes_dedup::key::{DomainKey, KeyId};
use medes_proto::ids::{SandboxId, SnapshotId, TenantName};
use tokio::sync::mpsc;

use super::{
    Body, Input, Node,
    work::{self, Leaves},
};
use crate::{
    base,
    driver::{Action, Event},
    faults::Step,
    keeper::{Before, Key},
    metrics,
    pager::Paged,
    roads::{Warm, blocking},
    takeover::{self, Resting, Resumed, TakenIn, TakenInSandbox},
};

impl Node {
    /// Leaves a sandbox that rests to the next agent, as it is now. `key`: its tenant's, if it is known from elsewhere than from a controller.
    fn leave_sandbox(&self, sandbox: SandboxId, key: Option<DomainKey>) {
        let host = &self.tools.host;
        let (Some(body), Some(entry)) =
            (self.bodies.get(&sandbox).filter(|_| host.leaves()), self.driver.resting(sandbox))
        else {
            return;
        };
        let resting = Resting {
            sandbox,
            revision: entry.revision,
            record: self.driver.record(sandbox),
            stored_bytes: entry.stored_bytes,
            bases: entry.bases,
            age: Instant::now().duration_since(entry.since),
        };
        let left = match body {
            Body::Stored(stored) => {
                let id = self.made_under(&stored.spec.tenant);
                takeover::leave_sandbox(host, &resting, (stored, id)).map(|()| true)
            }
            Body::Parked(warm, _) => self.leave_parked(&resting, warm, key),
            Body::Warm(..) | Body::Ruin(_) => return,
        };
        match left {
            Ok(true) => {}
            Ok(false) => tracing::debug!(%sandbox, "cannot be left to the next agent as it is"),
            Err(error) => tracing::warn!(%sandbox, %error, "not left to the next agent"),
        }
    }

    /// Only what is here as a whole can be: the next agent must serve it before it can ask anybody.
    fn leave_parked(&self, resting: &Resting<'_>, warm: &Warm, key: Option<DomainKey>) -> io::Result<bool> {
        let local = &self.tools.bases.local;
        let needs = warm.paged.as_ref().map(Paged::needs).unwrap_or_default();
        let told = || self.tools.roads.as_ref()?.keys.get(&warm.spec.tenant);
        match key.or_else(told).filter(|_| needs.iter().all(|base| local.get(base.id).is_some())) {
            Some(key) => takeover::leave_parked(&self.tools.host, resting, (warm, &key)),
            None => Ok(false),
        }
    }

    /// Which key what is here of a tenant was made under.
    fn made_under(&self, tenant: &TenantName) -> Option<KeyId> {
        self.tools.roads.as_ref()?.keys.id(tenant)
    }

    /// Leaves a base snapshot to the next agent.
    fn leave_base(&self, snapshot: SnapshotId) {
        if let Some(held) = self.tools.bases.local.get(snapshot).filter(|_| self.tools.host.leaves())
            && let Err(error) = takeover::leave_base(&self.tools.host, (&held, self.made_under(&held.tenant)))
        {
            tracing::warn!(%snapshot, %error, "not left to the next agent");
        }
    }

    /// Leaves what work has made to the next agent.
    pub(super) fn leave(&self, made: Option<Leaves>) {
        match made {
            Some(Leaves::Sandbox(sandbox)) => self.leave_sandbox(sandbox, None),
            Some(Leaves::Base(snapshot)) => self.leave_base(snapshot),
            None => {}
        }
    }

    /// Before any of these is done: what comes back, goes or ends here must not come back a second time there.
    pub(super) fn take_back(&self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Restore { sandbox, .. }
                | Action::Remove { sandbox }
                | Action::Dedup { sandbox, .. } => {
                    self.tools.host.take_back(Key::Sandbox(sandbox.get()));
                    self.tools.host.take_back(Key::Parked(sandbox.get()));
                }
                Action::DropSnapshot { snapshot } => self.tools.host.take_back(Key::Base(snapshot.get())),
                _ => {}
            }
        }
    }

    /// Removes everything the loop holds but what is left to the next agent, and what work had brought back by then. Later work removes
    /// its own.
    pub(super) async fn close(&mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut removals = Vec::new();
        for (sandbox, body) in std::mem::take(&mut self.bodies) {
            let rests = matches!(body, Body::Stored(_) | Body::Parked(..));
            let remains = body.into_remains();
            // Of what rests the keeper has all, or ends it.
            if !rests || !self.tools.host.leaves() {
                removals.push(work::remove(sandbox, remains));
            }
        }
        futures::future::join_all(removals).await;
        while let Some(input) = inputs.recv().await {
            if let Input::Worked(worked) = input
                && let Some((sandbox, remains)) = worked.into_remains()
            {
                work::remove(sandbox, Some(remains)).await;
            }
        }
    }

    /// Takes in what the agent before has left. Call it before the node runs, so that its first word to the controller tells of it.
    pub async fn take_in(&mut self) {
        let (left, before) = self.tools.host.left();
        if left.is_empty() {
            return;
        }
        if let Err(injected) = self.tools.faults.pass(Step::TakeOver) {
            tracing::warn!(%injected, "nothing is taken over");
            return;
        }
        let began = Instant::now();
        let (mut sandboxes, mut bases) = (0, 0);
        for left in left {
            let key = left.key;
            match takeover::take_in(&self.tools, &self.identity.node, left).await {
                Ok(TakenIn::Base(snapshot)) => {
                    bases += 1;
                    metrics::taken_over("base");
                    let report = base::report(&snapshot);
                    self.tools.bases.local.insert(snapshot);
                    self.leave_base(report.id);
                    self.apply(Event::TakenInBase(report));
                }
                Ok(TakenIn::Sandbox(taken)) => {
                    sandboxes += 1;
                    let TakenInSandbox { sandbox, revision, spec, body, taken, age } = *taken;
                    let (body, tenant_key) = match body {
                        Resumed::Stored(stored) => (Body::Stored(stored), None),
                        Resumed::Parked(warm, key) => {
                            let watch = self.watch(sandbox, &warm);
                            (Body::Parked(warm, watch), Some(key))
                        }
                    };
                    let is_parked = tenant_key.is_some();
                    metrics::taken_over(if is_parked { "parked" } else { "dedup" });
                    self.bodies.insert(sandbox, body);
                    let spec = Box::new((*spec).clone());
                    self.apply(Event::TakenIn { sandbox, spec, revision, taken, age, is_parked });
                    self.leave_sandbox(sandbox, tenant_key);
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(?key, error, "what the agent before left is lost");
                    metrics::taken_over("lost");
                }
            }
        }
        let (host, names) = (self.tools.host.clone(), self.bodies.keys().map(SandboxId::to_string).collect());
        let ended: Result<(), _> = blocking(move || {
            let names: Vec<String> = names;
            host.end_others(&names)
        })
        .await;
        if let Err(error) = ended {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "something of the agent before stays behind");
        }
        before.into_iter().for_each(Before::let_go);
        let took = began.elapsed();
        tracing::info!(sandboxes, bases, ?took, "took over from the agent before");
    }
}
