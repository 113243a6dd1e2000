//! Work on the roads: begun with what it works on, or refused where this node has no CRIU.

use medes_proto::{
    failure::{Failure, FailureKind},
    function::FunctionSpec,
    ids::{NodeId, SandboxId, SnapshotId},
    registry::SnapshotPlace,
    sandbox::Phase,
};

use tokio_util::sync::CancellationToken;

use super::{
    Body, Node,
    work::{self, Took, Worked},
};
use crate::{
    dedupe::{self, shrink::Shrunk},
    driver::{DedupFailed, DedupOrder, Event, Smaller, Trimmed},
    memory_file::MappedFile,
    metrics,
    park::ParkOrder,
    pressure,
    roads::Warm,
    sandbox::Housing,
};

impl Node {
    pub(super) fn launch(
        &mut self,
        sandbox: SandboxId,
        spec: Box<FunctionSpec>,
        clone_of: Option<SnapshotPlace>,
    ) {
        let (tools, node) = (self.tools.clone(), self.identity.node.clone());
        match (clone_of, &self.tools.roads) {
            (None, _) => self.work(work::launch(tools, node, sandbox, spec)),
            (Some(place), Some(roads)) => {
                self.work(work::clone((tools, roads.clone()), node, (sandbox, spec), place));
            }
            (Some(_), None) => {
                let result = Err((None, no_criu("clone", sandbox)));
                self.worked(Worked::Launched { sandbox, is_clone: true, result });
            }
        }
    }

    pub(super) fn dedup(&mut self, sandbox: SandboxId, order: DedupOrder) {
        match (self.take_warm(sandbox), &self.tools.roads) {
            (Some(warm), Some(roads)) => self.work(work::dedup(roads.clone(), sandbox, warm, order)),
            (warm, _) => {
                self.worked(Worked::Deduped { sandbox, result: Err((warm, no_criu("dedup", sandbox))) });
            }
        }
    }

    pub(super) fn park(&mut self, sandbox: SandboxId, order: ParkOrder) {
        match (self.take_warm(sandbox), &self.tools.roads, &self.tools.pager) {
            (Some(warm), Some(roads), Some(pager)) => {
                let cancelled = CancellationToken::new();
                let work =
                    work::park((roads.clone(), pager.clone()), sandbox, warm, order, cancelled.clone());
                self.work(work);
                self.parking.insert(sandbox, cancelled);
            }
            (warm, ..) => {
                let message = format!("park {sandbox}: this node cannot");
                let failure = Failure::new(FailureKind::Unsupported, message);
                self.worked(Worked::Deduped { sandbox, result: Err((warm, failure)) });
            }
        }
    }

    /// Unless the node has too much to do: then it is tried again later.
    pub(super) fn trim(&mut self, sandbox: SandboxId, pages_max: usize) {
        let why = match (&self.tools.roads, &self.tools.pager) {
            (Some(roads), Some(pager)) if !pressure::is_high() => {
                let roads = (roads.clone(), pager.clone());
                if let Some(warm) = self.take_warm(sandbox) {
                    let cancelled = CancellationToken::new();
                    self.work(work::trim(roads, sandbox, warm, (pages_max, cancelled.clone())));
                    self.parking.insert(sandbox, cancelled);
                    return;
                }
                Failure::new(FailureKind::Busy, format!("trim {sandbox}: it is not warm"))
            }
            (Some(_), Some(_)) => {
                Failure::new(FailureKind::Busy, format!("trim {sandbox}: the node is busy"))
            }
            _ => Failure::new(FailureKind::DumpRefused, format!("trim {sandbox}: this node cannot")),
        };
        let result = Err(DedupFailed { failure: why, lost: false });
        self.apply(Event::Trimmed { sandbox, result });
    }

    pub(super) fn trimmed(
        &mut self,
        sandbox: SandboxId,
        warm: Box<Warm>,
        result: Result<Trimmed, Failure>,
    ) -> Event {
        self.parking.remove(&sandbox);
        if let Ok(trimmed) = &result {
            metrics::trimmed(trimmed.taken_pages);
        }
        let lost = self.keep_survivor(sandbox, Some(warm));
        let result = match result {
            Ok(_) if lost => Err(DedupFailed { failure: ended(sandbox), lost }),
            other => other.map_err(|failure| DedupFailed { failure, lost }),
        };
        Event::Trimmed { sandbox, result }
    }

    pub(super) fn make_base(&mut self, sandbox: SandboxId, snapshot: SnapshotId, init: Option<u64>) {
        match (self.take_warm(sandbox), &self.tools.roads) {
            (Some(warm), Some(roads)) => {
                self.work(work::make_base(roads.clone(), sandbox, warm, (snapshot, init)));
            }
            (warm, _) => {
                let result = Err(no_criu("make a base of", sandbox));
                self.worked(Worked::BaseMade { sandbox, warm, result });
            }
        }
    }

    pub(super) fn take(&mut self, sandbox: SandboxId, spec: Box<FunctionSpec>, from: (NodeId, String)) {
        let (tools, node) = (self.tools.clone(), self.identity.node.clone());
        match &self.tools.roads {
            Some(roads) => self.work(work::take((tools, roads.clone()), node, (sandbox, spec), from)),
            None => {
                let result = Err((None, no_criu("take over", sandbox)));
                self.worked(Worked::Taken { sandbox, result });
            }
        }
    }

    pub(super) fn taken(&mut self, sandbox: SandboxId, result: Took) -> Event {
        let result = match result {
            Ok((stored, taken)) => {
                self.bodies.insert(sandbox, Body::Stored(stored));
                Ok(taken)
            }
            Err((ruin, failure)) => {
                self.keep_ruin(sandbox, ruin);
                Err(failure)
            }
        };
        Event::Taken { sandbox, result }
    }

    /// Keeps a sandbox that a failed dedup gave back. True when there is none, or its processes are gone.
    pub(super) fn keep_survivor(&mut self, sandbox: SandboxId, warm: Option<Box<Warm>>) -> bool {
        let Some(warm) = warm else { return true };
        let lost = !warm.tree.is_running();
        self.keep_warm(sandbox, warm);
        lost
    }

    pub(super) fn keep_ruin(&mut self, sandbox: SandboxId, ruin: Option<Box<Housing>>) {
        if let Some(ruin) = ruin {
            self.bodies.insert(sandbox, Body::Ruin(ruin));
        }
    }

    pub(super) fn shrink(&mut self, sandbox: SandboxId) {
        match (self.bodies.get(&sandbox), &self.tools.roads) {
            (Some(Body::Stored(stored)), Some(roads)) => {
                let whose = (sandbox, stored.spec.tenant.clone());
                let stored = (stored.image.clone(), stored.origin.clone());
                self.work(work::shrink(roads.clone(), whose, stored));
            }
            (Some(Body::Parked(warm, _)), Some(roads)) if let Some(paged) = warm.paged.clone() => {
                let whose = (sandbox, warm.spec.tenant.clone());
                self.work(work::shrink_parked(roads.clone(), whose, paged));
            }
            _ => self.apply(Event::Shrunk { sandbox, smaller: None }),
        }
    }

    /// One that has come back meanwhile is stored as it is until it is parked again.
    pub(super) fn shrunk_parked(
        &mut self,
        sandbox: SandboxId,
        result: Result<Option<(Smaller, Vec<Phase>)>, Failure>,
    ) -> Event {
        let smaller = result.unwrap_or_else(|failure| {
            tracing::info!(%sandbox, %failure, "parked, it stays as large as it is");
            None
        });
        let smaller = smaller
            .map(|(smaller, _)| smaller)
            .filter(|_| matches!(self.bodies.get(&sandbox), Some(Body::Parked(..))));
        Event::Shrunk { sandbox, smaller }
    }

    /// Puts a smaller image in the place of the one it was made of, if that is still there.
    pub(super) fn shrunk(
        &mut self,
        sandbox: SandboxId,
        of: &MappedFile,
        result: Result<Option<Box<Shrunk>>, Failure>,
    ) -> Event {
        let smaller = match (result, self.bodies.get_mut(&sandbox)) {
            (Ok(Some(shrunk)), Some(Body::Stored(stored))) if stored.image.is(of) => {
                let Shrunk { image, stored_bytes, bases, classes, .. } = *shrunk;
                stored.image = image;
                stored.origin.places.retain(|snapshot, _| bases.contains(snapshot));
                let stored_bytes = stored_bytes + stored.housing.private_bytes();
                Some(Smaller { stored_bytes, bases, pages: dedupe::counted(classes, 0, 0) })
            }
            (Err(failure), _) => {
                tracing::info!(%sandbox, %failure, "its image stays as large as it is");
                None
            }
            _ => None,
        };
        Event::Shrunk { sandbox, smaller }
    }

    pub(super) fn restore(&mut self, sandbox: SandboxId, digest_memory: bool) {
        match (self.bodies.remove(&sandbox), &self.tools.roads) {
            (Some(Body::Stored(stored)), Some(roads)) => {
                self.work(work::restore(roads.clone(), sandbox, stored, digest_memory));
            }
            (Some(Body::Parked(warm, watch)), _) => {
                watch.cancel();
                self.work(work::unpark(sandbox, warm));
            }
            (body, _) => {
                if let Some(body) = body {
                    self.bodies.insert(sandbox, body);
                }
                self.apply(Event::Restored { sandbox, result: Err(no_criu("restore", sandbox)) });
            }
        }
    }
}

fn ended(sandbox: SandboxId) -> Failure {
    Failure::new(FailureKind::Crashed, format!("{sandbox} ended while it was trimmed"))
}

fn no_criu(verb: &str, sandbox: SandboxId) -> Failure {
    let message = format!("{verb} {sandbox}: this node has no working CRIU");
    Failure::new(FailureKind::Unsupported, message)
}
