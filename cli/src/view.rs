//! What `--json` prints of sandboxes, snapshots and phases. Field names here are a promise to scripts:
//! they may be added to, not changed.

use std::time::Duration;

use medes_proto::{
    fleet::SnapshotReport,
    sandbox::{Phase, SandboxReport},
};
use serde::Serialize;

use crate::human;

/// One step of an operation.
#[derive(Debug, Serialize)]
pub(crate) struct PhaseView {
    name: String,
    ms: f64,
}

pub(crate) fn phases(phases: &[Phase]) -> Vec<PhaseView> {
    phases.iter().map(|phase| PhaseView { name: phase.name.clone(), ms: human::millis(phase.took) }).collect()
}

/// A sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct SandboxView {
    sandbox: String,
    function: String,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    state: &'static str,
    state_age_ms: u64,
    age_ms: u64,
    private_bytes: u64,
    stored_bytes: u64,
    requests: u64,
    open_requests: u32,
    starts_from_dedup: u64,
    bases: Vec<String>,
    base_snapshot: Option<String>,
    undumpable: Option<String>,
    pages: PagesView,
    last_phases: Vec<PhaseView>,
    heat: Option<HeatView>,
    activity: Option<ActivityView>,
}

/// What was seen of a sandbox's writes, in pages; `null` while nothing was.
#[derive(Debug, Serialize)]
struct HeatView {
    windows: u32,
    hot: u64,
    warm: u64,
    written: u64,
    touched: u64,
}

/// What was seen of its tasks since it has them; `null` without any. Wakes are `null` where no kernel program sees them.
#[derive(Debug, Serialize)]
struct ActivityView {
    cpu_ms: u64,
    quiet_ms: u64,
    wakes: Option<u64>,
    timer_wakes: Option<u64>,
}

/// What its last dedup made of a sandbox's pages.
#[derive(Debug, Serialize)]
struct PagesView {
    zero: u64,
    same: u64,
    delta: u64,
    whole: u64,
    hot_skipped: u64,
    reused: u64,
}

impl SandboxView {
    /// `node` where the reply names it.
    pub(crate) fn new(report: &SandboxReport, node: Option<&str>) -> Self {
        let pages = report.pages;
        Self {
            sandbox: report.id.to_string(),
            function: report.function.to_string(),
            revision: report.function_revision,
            node: node.map(Into::into),
            state: report.state.word(),
            state_age_ms: whole_millis(report.state_age),
            age_ms: whole_millis(report.age),
            private_bytes: report.private_bytes,
            stored_bytes: report.stored_bytes,
            requests: report.requests,
            open_requests: report.open_requests,
            starts_from_dedup: report.starts_from_dedup,
            bases: report.bases.iter().map(ToString::to_string).collect(),
            base_snapshot: report.base_snapshot.map(|id| id.to_string()),
            undumpable: report.undumpable.clone(),
            pages: PagesView {
                zero: pages.zero,
                same: pages.same,
                delta: pages.delta,
                whole: pages.whole,
                hot_skipped: pages.hot_skipped,
                reused: pages.reused,
            },
            last_phases: phases(&report.last_phases),
            heat: (report.heat.windows > 0).then_some(HeatView {
                windows: report.heat.windows,
                hot: report.heat.hot_pages,
                warm: report.heat.warm_pages,
                written: report.heat.written_pages,
                touched: report.heat.touched_pages,
            }),
            activity: report.activity.map(|activity| ActivityView {
                cpu_ms: whole_millis(activity.cpu),
                quiet_ms: whole_millis(activity.quiet),
                wakes: activity.wakes.map(|wakes| wakes.all),
                timer_wakes: activity.wakes.map(|wakes| wakes.by_timer),
            }),
        }
    }
}

/// A base snapshot.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotView {
    snapshot: String,
    function: String,
    pages: u64,
    bytes: u64,
    /// Only of an init snapshot: of which text of the function, and whether new sandboxes are made of it.
    init_revision: Option<u64>,
    clonable: Option<bool>,
}

impl From<&SnapshotReport> for SnapshotView {
    fn from(report: &SnapshotReport) -> Self {
        Self {
            snapshot: report.id.to_string(),
            function: report.function.to_string(),
            pages: report.pages,
            bytes: report.bytes,
            init_revision: report.init.map(|init| init.revision),
            clonable: report.init.map(|init| init.clonable),
        }
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
