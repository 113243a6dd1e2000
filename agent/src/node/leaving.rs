//! What is left to the next agent on this node, and what the one before has left.

use std::time::Instant;

use medes_proto::ids::{SandboxId, SnapshotId};

use tokio::sync::mpsc;

use super::{
    Body, Input, Node,
    work::{self, Leaves},
};
use crate::{
    base,
    driver::{Action, Event},
    keeper::Key,
    takeover::{self, Resting, TakenIn, TakenInSandbox},
};

impl Node {
    /// Leaves a sandbox in dedup to the next agent, as it is now.
    fn leave_sandbox(&self, sandbox: SandboxId) {
        let (Some(Body::Stored(stored)), Some(entry)) =
            (self.bodies.get(&sandbox).filter(|_| self.tools.host.leaves()), self.driver.resting(sandbox))
        else {
            return;
        };
        let resting = Resting {
            sandbox,
            revision: entry.revision,
            stored,
            record: self.driver.record(sandbox),
            stored_bytes: entry.stored_bytes,
            bases: entry.bases,
            age: Instant::now().duration_since(entry.since),
        };
        if let Err(error) = takeover::leave_sandbox(&self.tools.host, &resting) {
            tracing::warn!(%sandbox, %error, "not left to the next agent");
        }
    }

    /// Leaves a base snapshot to the next agent.
    fn leave_base(&self, snapshot: SnapshotId) {
        if let Some(held) = self.tools.bases.local.get(snapshot).filter(|_| self.tools.host.leaves())
            && let Err(error) = takeover::leave_base(&self.tools.host, &held)
        {
            tracing::warn!(%snapshot, %error, "not left to the next agent");
        }
    }

    /// Leaves what work has made to the next agent.
    pub(super) fn leave(&self, made: Option<Leaves>) {
        match made {
            Some(Leaves::Sandbox(sandbox)) => self.leave_sandbox(sandbox),
            Some(Leaves::Base(snapshot)) => self.leave_base(snapshot),
            None => {}
        }
    }

    /// Before any of these is done: what comes back, goes or ends here must not come back a second time there.
    pub(super) fn take_back(&self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Restore { sandbox, .. } | Action::Remove { sandbox } => {
                    self.tools.host.take_back(Key::Sandbox(sandbox.get()));
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
            // Its keeper packs the files that it has of its own.
            if self.tools.host.leaves() && matches!(body, Body::Stored(_)) {
                continue;
            }
            removals.push(work::remove(sandbox, body.into_remains()));
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
        let left = self.tools.host.left();
        if left.is_empty() {
            return;
        }
        let began = Instant::now();
        let (mut sandboxes, mut bases) = (0, 0);
        for left in left {
            let key = left.key;
            match takeover::take_in(&self.tools.host, &self.identity.node, left).await {
                Ok(TakenIn::Base(snapshot)) => {
                    bases += 1;
                    let report = base::report(&snapshot);
                    self.tools.bases.local.insert(snapshot);
                    self.leave_base(report.id);
                    self.apply(Event::TakenInBase(report));
                }
                Ok(TakenIn::Sandbox(taken)) => {
                    sandboxes += 1;
                    let TakenInSandbox { sandbox, revision, stored, taken, age } = *taken;
                    let spec = Box::new((*stored.spec).clone());
                    self.bodies.insert(sandbox, Body::Stored(Box::new(stored)));
                    self.apply(Event::TakenIn { sandbox, spec, revision, taken, age });
                    self.leave_sandbox(sandbox);
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(?key, error, "what the agent before left is lost");
                }
            }
        }
        let took = began.elapsed();
        tracing::info!(sandboxes, bases, ?took, "took over from the agent before");
    }
}
