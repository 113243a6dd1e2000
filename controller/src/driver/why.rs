//! What a decision looked at and what it rejected, for the trace. Looks only; the deciding is elsewhere.

use medes_proto::{
    ids::{FunctionName, NodeId, SandboxId},
    registry::SnapshotPlace,
    standing::Standing,
    trace::{Alternative, Choice},
};

use super::{
    Driver,
    state::{Life, Sandbox, SnapshotLife},
};
use crate::{
    now::Now,
    policy::{FunctionView, IdleLife, Review, SandboxView, Verdict},
};

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The way of a start that was chosen.
pub(super) enum Way<'a> {
    Restore(SandboxId),
    Clone(&'a NodeId, &'a SnapshotPlace),
    Cold(&'a NodeId),
}

impl Driver {
    /// A start: warm before restore before clone before cold, and why not the ones before.
    pub(super) fn start_choice(&self, now: Now, name: &FunctionName, way: &Way<'_>, why: &str) -> Choice {
        let need = self.estimate(name);
        let function = self.functions.get(name);
        let (cold, restore) =
            function.map_or((None, None), |function| (function.cold_start.time(), function.restore.time()));
        let unpark = function.and_then(|function| function.unpark.time());
        let clone = function.and_then(|function| function.clone.time());
        let mut choice = Choice::of(match way {
            Way::Restore(id) => {
                let (verb, cost) = match self.sandboxes.get(id).map(|sandbox| sandbox.life) {
                    Some(Life::Parked) => ("unpark", unpark),
                    Some(Life::Deduping) => ("call back", None),
                    _ => ("restore", restore),
                };
                Alternative::new(format!("{verb} {id}"), why).costs(cost).bytes(need)
            }
            Way::Clone(node, of) => {
                let what = format!("clone of {} on {node}", of.snapshot);
                Alternative::new(what, why).costs(clone).bytes(need)
            }
            Way::Cold(node) => Alternative::new(format!("cold on {node}"), why).costs(cold).bytes(need),
        });
        if let Some(view) = self.function_view(name) {
            choice.reject(Alternative::new("warm", why_not_warm(&view)).costs(Some(Default::default())));
            choice.fact("queued", count(view.queued));
            choice.fact("warm", count(view.warm));
            choice.fact("running", count(view.running));
            choice.fact("starting", count(view.starting));
            choice.fact("dedup", count(view.dedup));
        }
        choice.fact("need_bytes", need);
        let chosen = match way {
            Way::Restore(id) => Some(*id),
            Way::Clone(..) | Way::Cold(_) => None,
        };
        let stored = self.of_function(name).filter(|s| s.life.is_put_away() || s.life == Life::Restoring);
        choice.reject_all(stored.filter(|sandbox| Some(sandbox.id) != chosen).map(|sandbox| {
            let why_not = self.why_not_restore(now, sandbox, need, chosen.is_some());
            Alternative::new(format!("restore {}", sandbox.id), why_not).costs(restore)
        }));
        match way {
            Way::Restore(_) => {
                choice.reject(Alternative::new("cold", "a restore comes before a cold start").costs(cold));
            }
            Way::Clone(node, _) | Way::Cold(node) => {
                let (verb, cost) = match way {
                    Way::Clone(..) => {
                        choice.reject(
                            Alternative::new("cold", "a clone comes before a cold start").costs(cold),
                        );
                        ("clone", clone)
                    }
                    _ => ("cold", cold),
                };
                // The emptiest: what speaks against them is what matters.
                let others = self.fullness.emptiest_first().filter(|name| *name != *node);
                choice.reject_all(others.map(|other| {
                    let why_not = self.why_not_node(now, other, need);
                    let option = Alternative::new(format!("{verb} on {other}"), why_not).costs(cost);
                    option.bytes(self.projected(other))
                }));
                choice.fact("node_used_bytes", self.projected(node));
            }
        }
        choice
    }

    fn why_not_restore(&self, now: Now, sandbox: &Sandbox, need: u64, another: bool) -> &'static str {
        if sandbox.life == Life::Restoring {
            "it is being restored for another request"
        } else if self.is_unwanted(sandbox) {
            "it runs an older text of the function"
        } else if !sandbox.is_idle() {
            "an operation on it is under way"
        } else if !self.is_reachable(&sandbox.node) {
            "its node is away"
        } else if self.standing(&sandbox.node) != Standing::Open {
            "its node is cordoned, or going out of service"
        } else if !self.may_start_on(now, &sandbox.node) {
            "its node is avoided, or starts as many as it may"
        } else if !self.has_room(&sandbox.node, need) {
            "its node has no room"
        } else if !self.bases_are_there(sandbox) {
            "a base it refers to is away"
        } else if another {
            "it was used less recently"
        } else {
            "a cold start was asked for"
        }
    }

    fn why_not_node(&self, now: Now, name: &NodeId, need: u64) -> &'static str {
        if !self.is_reachable(name) {
            "it is away"
        } else if self.standing(name) != Standing::Open {
            "it is cordoned, or going out of service"
        } else if !self.may_start_on(now, name) {
            "it is avoided, or starts as many as it may"
        } else if !self.has_room(name, need) {
            "it has no room"
        } else {
            "it uses more memory"
        }
    }

    /// What the policy said about an idle sandbox, and what it could know.
    pub(super) fn review_choice(
        &self,
        review: &Review,
        function: &FunctionView<'_>,
        sandbox: &SandboxView,
    ) -> Choice {
        let mut choice = Choice::of(Alternative::new(review.verdict.word(), review.because));
        match review.verdict {
            Verdict::Dedup => choice.chosen.cost = None,
            Verdict::Restore => choice.chosen.cost = function.restore,
            Verdict::Keep | Verdict::MakeBase | Verdict::Purge => {}
        }
        for (verdict, why_not) in &review.rejected {
            choice.reject(Alternative::new(verdict.word(), *why_not));
        }
        choice.fact("idle_ms", millis(sandbox.idle));
        choice.fact("in_state_ms", millis(sandbox.in_life));
        choice.fact("quiet", u64::from(sandbox.quiet));
        choice.fact("private_bytes", sandbox.private_bytes);
        choice.fact("stored_bytes", sandbox.stored_bytes);
        choice.fact("is_base_source", u64::from(sandbox.is_base_source));
        if let Some(warm) = self.sandboxes.get(&sandbox.id).filter(|_| sandbox.life == IdleLife::Warm) {
            let gain = self.ranked(warm);
            choice.fact("won_bytes", gain.won_bytes);
            choice.fact("work_pages", gain.work_pages);
            choice.fact("bring_more", count(gain.ahead));
            choice.fact("ranked_among", count(gain.among));
            choice.fact("windows", sandbox.heat.windows.into());
            choice.fact("hot_pages", sandbox.heat.hot_pages);
            choice.fact("written_pages", sandbox.heat.written_pages);
            choice.fact("touched_pages", sandbox.heat.touched_pages);
        }
        if let Some(blocked) = sandbox.dump_blocked {
            choice.fact("dump_blocked_ms", millis(blocked));
        }
        choice.fact("function_warm", count(function.warm));
        choice.fact("function_running", count(function.running));
        choice.fact("function_dedup", count(function.dedup));
        choice.fact("function_bases", count(function.bases));
        choice.fact("function_bases_coming", count(function.bases_coming));
        choice.fact("queued", count(function.queued));
        for (name, value) in self.policy.limits() {
            choice.fact(name, value);
        }
        choice
    }

    /// One of the sandboxes that make room on a node, and those that stay.
    pub(super) fn eviction_choice(
        &self,
        node: &NodeId,
        need: u64,
        victim: SandboxId,
        victims: &[SandboxId],
    ) -> Choice {
        let held = |id| self.sandboxes.get(&id).map_or(0, |sandbox| sandbox.held_bytes());
        let chosen =
            Alternative::new(format!("end {victim}"), "worth least to the policy").bytes(held(victim));
        let mut choice = Choice::of(chosen);
        choice.fact("node_used_bytes", self.projected(node));
        choice.fact("node_cap_bytes", self.cap(node).unwrap_or(0));
        choice.fact("need_bytes", need);
        choice.fact("victims", count(victims.len()));
        let others = self.nodes.get(node).into_iter().flat_map(|node| &node.sandboxes).copied();
        choice.reject_all(others.filter(|id| !victims.contains(id)).filter_map(|id| {
            let sandbox = self.sandboxes.get(&id)?;
            let why_not = if !sandbox.open.is_empty() {
                "it serves a request"
            } else if !sandbox.is_idle() {
                "an operation on it is under way"
            } else if sandbox.held_bytes() == 0 {
                "it holds nothing"
            } else if sandbox.report.base_snapshot.is_some() {
                "sources of bases go last"
            } else {
                "it is worth more to the policy"
            };
            Some(Alternative::new(format!("end {id}"), why_not).bytes(held(id)))
        }));
        choice
    }

    /// Where the bases of a dedup image are.
    pub(super) fn nodes_of_bases(&self, bases: &[medes_proto::ids::SnapshotId]) -> Vec<NodeId> {
        let known = bases.iter().filter_map(|id| self.snapshots.get(id));
        let mut nodes: Vec<NodeId> = known
            .filter(|snapshot| snapshot.life != SnapshotLife::Making)
            .map(|snapshot| snapshot.node.clone())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

const fn why_not_warm(view: &FunctionView<'_>) -> &'static str {
    match (view.warm, view.running) {
        (0, _) => "there is none",
        (warm, running) if running >= warm => "all of them serve requests",
        _ => "those there are have no room, or one more was asked for",
    }
}
