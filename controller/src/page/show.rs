//! What the page is told, as JSON: the same rows, events and explanations that `medes` prints.

use std::time::Duration;

use medes_proto::{
    sandbox::Phase,
    trace::{Event, Explanation},
};
use serde::Serialize;

use super::{heat::Picture, memory::Sample};
use crate::{
    driver::{FunctionRow, NodeRow, SandboxRow},
    latencies::Told,
    registry::Size,
};

/// Sandboxes that one answer lists; of more it says how many there are.
const SANDBOXES_MAX: usize = 1_000;
/// Characters of what nodes say about themselves.
const TEXT_MAX: usize = 1_000;

/// The cluster now, and what is new since the last time.
#[derive(Debug, Serialize)]
pub(super) struct ClusterView {
    pub(super) registry_entries: u64,
    pub(super) registry_bytes: u64,
    pub(super) nodes: Vec<NodeView>,
    pub(super) functions: Vec<FunctionView>,
    pub(super) sandboxes: Vec<SandboxView>,
    pub(super) sandboxes_in_all: usize,
    pub(super) starts: Vec<StartView>,
    pub(super) memory: Vec<Sample>,
    pub(super) events: Vec<Event>,
    /// To be shown the next time: events after this one are new. As text, for it has 64 bits.
    pub(super) last_event: String,
}

impl ClusterView {
    pub(super) fn new(
        (nodes, functions, sandboxes): (Vec<NodeRow>, Vec<FunctionRow>, Vec<SandboxRow>),
        size: Size,
        starts: &[Told],
    ) -> Self {
        let sandboxes_in_all = sandboxes.len();
        Self {
            registry_entries: size.entries,
            registry_bytes: size.bytes,
            nodes: nodes.into_iter().map(Into::into).collect(),
            functions: functions.into_iter().map(Into::into).collect(),
            sandboxes: sandboxes.iter().take(SANDBOXES_MAX).map(Into::into).collect(),
            sandboxes_in_all,
            starts: starts.iter().map(Into::into).collect(),
            memory: Vec::new(),
            events: Vec::new(),
            last_event: String::new(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct NodeView {
    node: String,
    version: String,
    standing: &'static str,
    connected: bool,
    silent_ms: u64,
    used_bytes: u64,
    cap_bytes: u64,
    base_bytes: u64,
    image_bytes: u64,
    agent_bytes: u64,
    sandboxes: usize,
    snapshots: usize,
    requests: usize,
    lacks: Vec<String>,
}

impl From<NodeRow> for NodeView {
    fn from(row: NodeRow) -> Self {
        Self {
            node: row.name.to_string(),
            version: cut(row.version),
            standing: row.standing.word(),
            connected: row.connected,
            silent_ms: millis(row.silent),
            used_bytes: row.memory.used_bytes,
            cap_bytes: row.memory.cap_bytes,
            base_bytes: row.memory.base_bytes,
            image_bytes: row.memory.image_bytes,
            agent_bytes: row.memory.agent_bytes,
            sandboxes: row.sandboxes,
            snapshots: row.snapshots.len(),
            requests: row.requests,
            lacks: row.lacks.into_iter().map(cut).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct FunctionView {
    function: String,
    tenant: String,
    revision: u64,
    warm: usize,
    dedup: usize,
    bases: usize,
    requests: u64,
    cold_starts: u64,
    restores: u64,
    clones: u64,
}

impl From<FunctionRow> for FunctionView {
    fn from(row: FunctionRow) -> Self {
        // Of the function's file nothing is shown: there may be secrets in it.
        Self {
            function: row.spec.name.to_string(),
            tenant: row.spec.tenant.to_string(),
            revision: row.revision,
            warm: row.warm,
            dedup: row.dedup,
            bases: row.bases,
            requests: row.requests,
            cold_starts: row.cold_starts,
            restores: row.restores,
            clones: row.clones,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct SandboxView {
    sandbox: String,
    function: String,
    node: String,
    state: &'static str,
    state_age_ms: u64,
    private_bytes: u64,
    stored_bytes: u64,
    requests: u64,
    bases: usize,
    undumpable: Option<String>,
}

impl From<&SandboxRow> for SandboxView {
    fn from(SandboxRow { report, node }: &SandboxRow) -> Self {
        Self {
            sandbox: report.id.to_string(),
            function: report.function.to_string(),
            node: node.to_string(),
            state: report.state.word(),
            state_age_ms: millis(report.state_age),
            private_bytes: report.private_bytes,
            stored_bytes: report.stored_bytes,
            requests: report.requests,
            bases: report.bases.len(),
            undumpable: report.undumpable.clone().map(cut),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct StartView {
    start: &'static str,
    answers: u64,
    recent: usize,
    p50_micros: u64,
    p90_micros: u64,
    p99_micros: u64,
}

impl From<&Told> for StartView {
    fn from(told: &Told) -> Self {
        Self {
            start: told.start.word(),
            answers: told.all,
            recent: told.recent,
            p50_micros: micros(told.p50),
            p90_micros: micros(told.p90),
            p99_micros: micros(told.p99),
        }
    }
}

/// One sandbox: as it is, why, and where its memory is.
#[derive(Debug, Serialize)]
pub(super) struct OneView {
    now: Option<SandboxView>,
    last_phases: Vec<PhaseView>,
    decision: Option<Event>,
    review: Option<Event>,
    history: Vec<Event>,
    forgotten: u64,
    heat: Option<Picture>,
    /// Why there is no heat map.
    no_heat: Option<String>,
}

#[derive(Debug, Serialize)]
struct PhaseView {
    name: String,
    micros: u64,
}

impl OneView {
    pub(super) fn new(
        now: Option<&SandboxRow>,
        explained: Explanation,
        heat: Result<Picture, String>,
    ) -> Self {
        let Explanation { now: _, change: _, decision, review, history, forgotten } = explained;
        let phase = |phase: &Phase| PhaseView { name: phase.name.clone(), micros: micros(phase.took) };
        let (heat, no_heat) = heat.map_or_else(|why| (None, Some(cut(why))), |heat| (Some(heat), None));
        Self {
            now: now.map(Into::into),
            last_phases: now.iter().flat_map(|row| &row.report.last_phases).map(phase).collect(),
            decision,
            review,
            history,
            forgotten,
            heat,
            no_heat,
        }
    }
}

fn cut(text: String) -> String {
    if text.chars().count() > TEXT_MAX { text.chars().take(TEXT_MAX).collect() } else { text }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
