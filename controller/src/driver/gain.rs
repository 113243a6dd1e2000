//! Whose memory first: idle sandboxes of a node, ranked by what their dedup brings for the work it takes.

use medes_dedup::page::PAGE_BYTES;

use super::{
    Driver,
    state::{Life, Sandbox},
};
use crate::policy::Gain;

/// A page that is dumped and compared costs this part of one that is encoded.
const COMPARED_PART: u64 = 8;
/// A page that the next request touches, and that has to come back for it, costs this part.
const BROUGHT_BACK_PART: u64 = 2;

impl Driver {
    /// What the dedup of a sandbox brings, and how many of its node bring more.
    pub(super) fn ranked(&self, sandbox: &Sandbox) -> Gain {
        self.ranked_up_to(sandbox, usize::MAX)
    }

    /// The same, but for how many bring more: it is enough to know whether as many do as there is room for.
    pub(super) fn ranked_enough(&self, sandbox: &Sandbox) -> Gain {
        self.ranked_up_to(sandbox, self.slots(sandbox))
    }

    fn slots(&self, sandbox: &Sandbox) -> usize {
        self.settings.node_dedups_max.saturating_sub(self.under_way.takings(&sandbox.node))
    }

    fn ranked_up_to(&self, sandbox: &Sandbox, ahead_max: usize) -> Gain {
        let own = self.gain(sandbox);
        let of_node = self.nodes.get(&sandbox.node).into_iter().flat_map(|node| &node.sandboxes);
        let idle = of_node.filter_map(|id| self.sandboxes.get(id)).filter(|other| {
            other.id != sandbox.id && other.life == Life::Warm && other.is_idle() && other.quiet
        });
        let (mut ahead, mut among) = (0, 1);
        for other in idle {
            if ahead >= ahead_max {
                break;
            }
            among += 1;
            ahead += usize::from(self.gain(other).is_above(&own));
        }
        Gain { ahead, among, slots: self.slots(sandbox), ..own }
    }

    /// From what its agent has measured of it, and what its function's images have taken.
    fn gain(&self, sandbox: &Sandbox) -> Gain {
        let report = &sandbox.report;
        let (heat, pages) = (report.heat, report.private_bytes / PAGE_BYTES as u64);
        let stored = self.functions.get(&sandbox.function).and_then(|function| function.dedup_bytes.bytes());
        // The next requests write hot pages again, wherever they come from.
        let kept = stored.unwrap_or(0).saturating_add(heat.hot_pages.saturating_mul(PAGE_BYTES as u64));
        // What came back from an image has most of it still; else everything is new.
        let known = report.starts_from_dedup > 0 && heat.windows > 0;
        let written = heat.hot_pages.saturating_add(heat.warm_pages).max(heat.written_pages);
        let encoded = if known { written.min(pages) } else { pages };
        let touched = heat.touched_pages.max(written).min(pages);
        let work_pages = [encoded, pages / COMPARED_PART, touched / BROUGHT_BACK_PART];
        Gain {
            won_bytes: report.private_bytes.saturating_sub(kept),
            work_pages: work_pages.into_iter().fold(0, u64::saturating_add),
            ..Gain::default()
        }
    }
}
