//! What simulated clusters are asked and how they are run: arrivals mapped to functions as the paper did, pools of memory, and the policies that are compared.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medes_controller::{
    driver::Keeping,
    policy::{FixedSettings, PolicyKind, PolicySettings},
};
use medes_load::{made_up, trace::Trace};

use super::{Options, published};
use crate::{
    model::Model,
    sim::{
        outcome::Outcome,
        world::{Execution, Settings, Trouble, World},
    },
};

/// The paper's functions and its speed-up of arrivals.
const FUNCTIONS: usize = 10;
const MORE_OFTEN: u32 = 5;
/// The paper's nodes, and the memory of one.
const NODES_MAX: u32 = 19;
const NODE_BYTES: u64 = 2 << 30;
/// The paper's pools, of the largest.
pub(super) const POOLS: [(&str, f64); 3] = [("40G", 1.0), ("30G", 0.75), ("20G", 0.5)];
/// Of the trace at scale, where a run is to take minutes.
const QUICK_FUNCTIONS: usize = 200;
const MADE_UP_FUNCTIONS: u32 = 200;
const MINUTES: (usize, usize) = (30, 60);
/// One simulation may take so long.
const RUN_MAX: (u64, u64) = (90, 1800);

/// A way to run a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) name: &'static str,
    pub(super) kind: PolicyKind,
    pub(super) dedup: bool,
    /// New sandboxes are clones of their function's init snapshot.
    pub(super) clones: bool,
    pub(super) park: bool,
}

const fn candidate(name: &'static str, kind: PolicyKind, dedup: bool) -> Candidate {
    Candidate { name, kind, dedup, clones: false, park: false }
}

/// The paper's baselines, first.
pub(super) const KEEP_ALIVE: Candidate = candidate("keep-alive", PolicyKind::Fixed, false);
pub(super) const ADAPTIVE: Candidate = candidate("hybrid", PolicyKind::Hybrid, false);
pub(super) const P1: Candidate = candidate("medes-latency", PolicyKind::MedesLatency, true);
pub(super) const P2: Candidate = candidate("medes-memory", PolicyKind::MedesMemory, true);
/// Ours as it is meant to be used.
pub(super) const OURS: Candidate = Candidate {
    name: "marginal, clones, park",
    kind: PolicyKind::Marginal,
    dedup: true,
    clones: true,
    park: true,
};

/// Every policy without clones, as in the paper; then those with clones, baselines too: they get the same help.
pub(super) const CANDIDATES: [Candidate; 12] = [
    KEEP_ALIVE,
    ADAPTIVE,
    candidate("greedy-dual", PolicyKind::GreedyDual, false),
    candidate("never-unload", PolicyKind::NeverUnload, false),
    candidate("fixed, with dedup", PolicyKind::Fixed, true),
    P1,
    P2,
    candidate("marginal", PolicyKind::Marginal, true),
    Candidate { name: "keep-alive, clones", clones: true, ..KEEP_ALIVE },
    Candidate { name: "hybrid, clones", clones: true, ..ADAPTIVE },
    Candidate { name: "medes-memory, clones", clones: true, ..P2 },
    OURS,
];

/// What a cluster is asked, and how large it is.
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) trace: Trace,
    pub(super) model: Model,
    pub(super) nodes: u32,
    /// Memory of a node in the largest pool.
    pub(super) node_bytes: u64,
    seed: u64,
    limit: Duration,
    /// What it is, for people.
    pub(super) about: String,
}

/// The paper's name of a policy's role, for its values.
pub(super) fn paper_name(candidate: &Candidate) -> Option<&'static str> {
    match candidate.name {
        "keep-alive" => Some("fixed"),
        "hybrid" => Some("adaptive"),
        "medes-memory" => Some("Medes"),
        _ => None,
    }
}

/// The ten functions, their rates and their times.
fn like_the_paper(trace: &mut Trace, model: &Model) -> Result<()> {
    trace.most_asked(FUNCTIONS);
    trace.more_often(MORE_OFTEN);
    for (function, number) in trace.functions.iter_mut().zip(0..) {
        let ms = published::value("Table 2", "execution", &model.of(number).function);
        ensure!(ms.is_finite(), "the paper has no function {:?}", model.of(number).function);
        function.execution = Duration::from_secs_f64(ms / 1e3);
    }
    Ok(())
}

/// Which arrivals a function has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    /// Those of one function of the trace, of the ones that are asked for most.
    One,
    /// Those of one function of the trace, of all there are; each is a function of its own.
    Every,
}

impl Workload {
    /// Ten functions as the paper mapped them: each has the arrivals of one function of the trace.
    pub(super) fn as_the_paper(options: &Options) -> Result<Self> {
        Self::new(options, Mapping::One)
    }

    /// All functions of the trace as they are, each with images and bases of its own: a cluster's load.
    pub(super) fn at_scale(options: &Options) -> Result<Self> {
        Self::new(options, Mapping::Every)
    }

    fn new(options: &Options, mapping: Mapping) -> Result<Self> {
        let model = Model::open(options.model.as_deref())?;
        let minutes = options.by_size(MINUTES.0, MINUTES.1);
        let mut trace = match &options.trace {
            Some(path) => Trace::read(path)?,
            None => made_up::trace(MADE_UP_FUNCTIONS, options.from + minutes, options.seed),
        };
        trace.cut(options.from, Some(minutes));
        ensure!(trace.minutes() > 0, "the trace has no minute {}", options.from);
        match mapping {
            Mapping::One => like_the_paper(&mut trace, &model)?,
            Mapping::Every => trace.thin_out(options.by_size(QUICK_FUNCTIONS, usize::MAX)),
        }
        let limit = Duration::from_secs(options.by_size(RUN_MAX.0, RUN_MAX.1));
        let mut workload = Self {
            name: if mapping == Mapping::One { "as the paper" } else { "at scale" },
            trace,
            model,
            nodes: 0,
            node_bytes: 0,
            seed: options.seed,
            limit,
            about: String::new(),
        };
        workload.size()?;
        workload.about = workload.tell(options, mapping);
        Ok(workload)
    }

    /// A cluster whose largest pool is what keep-alive alone would take at most: as the paper's 40 GB were to its functions.
    fn size(&mut self) -> Result<()> {
        (self.nodes, self.node_bytes) = (1, 1 << 42);
        let alone = self.run(&KEEP_ALIVE, 1.0, |_| ()).context("find out what keep-alive alone takes")?;
        let most = alone.bytes.iter().copied().max().unwrap_or(0).max(1);
        let wanted = u32::try_from(most.div_ceil(NODE_BYTES)).unwrap_or(NODES_MAX);
        self.nodes = wanted.clamp(2, NODES_MAX);
        self.node_bytes = most.div_ceil(u64::from(self.nodes));
        Ok(())
    }

    fn tell(&self, options: &Options, mapping: Mapping) -> String {
        let source = options.trace.as_ref().map_or("a made-up trace".into(), |path| {
            path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        });
        let mapped = match mapping {
            Mapping::One => {
                "those that are asked for most, each five times as often and with the time of a request that the paper gives"
            }
            Mapping::Every => "evenly spread over all, each with its own arrivals, times and images",
        };
        let measured: Vec<&str> = self.model.functions.iter().map(|one| one.function.as_str()).collect();
        format!(
            "Workload \u{201c}{}\u{201d}: {source}, {} minutes from minute {} on; {} functions, {mapped}: {} requests. Each is \
             one of the measured functions in turn ({}); what starts, dedups and images take was measured on real sandboxes ({}, \
             commit {}). Nothing is warm at the beginning, and every request counts. {} nodes of {:.0} MiB: together what keep-alive alone would take at most; the smaller pools are \
             three quarters and half of it, as the paper's 30 and 20 GB were of 40.",
            self.name,
            self.trace.minutes(),
            options.from,
            self.trace.functions.len(),
            self.trace.requests(),
            measured.join(", "),
            self.model.machine.cpu,
            self.model.machine.commit,
            self.nodes,
            self.node_bytes as f64 / f64::from(1 << 20),
        )
    }

    /// What the function of a number in the trace is.
    pub(super) fn function(&self, number: u32) -> &str {
        &self.model.of(number).function
    }

    /// One simulation, in this part of the largest pool, with settings changed.
    pub(super) fn run(
        &self,
        candidate: &Candidate,
        pool: f64,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Outcome> {
        let Candidate { kind, dedup, clones, park, name } = *candidate;
        let mut settings = Settings {
            nodes: self.nodes,
            node_bytes: (self.node_bytes as f64 * pool) as u64,
            empty_bytes: 0,
            seed: self.seed,
            speedup: 1.0,
            lead: Duration::ZERO,
            execution: Execution::OfTrace,
            heartbeat: Duration::from_secs(30),
            warm_up: 0,
            init_snapshots: clones,
            base_copies: 1,
            policy: PolicySettings {
                kind,
                periods: FixedSettings { dedup, ..FixedSettings::default() },
                ..PolicySettings::default()
            },
            keeping: Keeping { park, ..Keeping::default() },
            trouble: Trouble::default(),
        };
        change(&mut settings);
        eprintln!("    {}: {name}, {} nodes of {} MiB", self.name, settings.nodes, settings.node_bytes >> 20);
        World::new(&self.trace, &self.model, settings)
            .run_within(self.limit)
            .with_context(|| format!("simulate {name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn candidates_have_names_of_their_own_and_all_policies_are_among_them() {
        let names: BTreeSet<&str> = CANDIDATES.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), CANDIDATES.len());
        for kind in PolicyKind::ALL {
            assert!(CANDIDATES.iter().any(|one| one.kind == kind), "{kind}");
        }
        assert_eq!(
            CANDIDATES.iter().filter_map(paper_name).collect::<Vec<_>>(),
            ["fixed", "adaptive", "Medes"]
        );
    }
}
