//! What can leak, counted from outside, and how fast it grows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use anyhow::Result;

use crate::{
    census::{self, Census},
    cluster::Cluster,
    hosts::Place,
};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    ControllerMemory,
    ControllerDescriptors,
    AgentsMemory,
    AgentsDescriptors,
    AgentsThreads,
    /// Keepers, CRIU, helpers: all below the agents that is no function.
    Helpers,
    KeepersDescriptors,
    FunctionProcesses,
    ControlGroups,
    /// In which any process of this machine is.
    NetworkNamespaces,
    /// In the agents' tables.
    Mounts,
    /// In the agents' run folders.
    Files,
}

/// All of it.
pub(crate) const WHAT: [What; 12] = [
    What::ControllerMemory,
    What::ControllerDescriptors,
    What::AgentsMemory,
    What::AgentsDescriptors,
    What::AgentsThreads,
    What::Helpers,
    What::KeepersDescriptors,
    What::FunctionProcesses,
    What::ControlGroups,
    What::NetworkNamespaces,
    What::Mounts,
    What::Files,
];

const MIB: f64 = (1 << 20) as f64;
const GROUPS_DEPTH: usize = 6;
const FILES_DEPTH: usize = 8;

impl What {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::ControllerMemory => "memory of the controller",
            Self::ControllerDescriptors => "descriptors of the controller",
            Self::AgentsMemory => "memory of the agents",
            Self::AgentsDescriptors => "descriptors of the agents",
            Self::AgentsThreads => "threads of the agents",
            Self::Helpers => "helper processes",
            Self::KeepersDescriptors => "descriptors of the keepers",
            Self::FunctionProcesses => "processes of functions",
            Self::ControlGroups => "control groups",
            Self::NetworkNamespaces => "network namespaces",
            Self::Mounts => "mounts",
            Self::Files => "files",
        }
    }

    const fn is_bytes(self) -> bool {
        matches!(self, Self::ControllerMemory | Self::AgentsMemory)
    }

    /// How much it may grow from the middle to the end. Sandboxes come and go by chance, and with each go some of everything: that is
    /// what is left to chance. What grows for real does so for as long as it is looked at.
    pub(crate) fn bound(self, mean: f64) -> f64 {
        if self.is_bytes() { (mean * 0.1).max(8.0 * MIB) } else { (mean * 0.15).max(6.0) }
    }

    pub(crate) fn written(self, value: f64) -> String {
        if self.is_bytes() { format!("{:.1} MiB", value / MIB) } else { format!("{value:.1}") }
    }
}

/// All counts of about one moment.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    counts: BTreeMap<What, f64>,
}

impl Sample {
    pub(crate) fn of(&self, what: What) -> f64 {
        self.counts.get(&what).copied().unwrap_or_default()
    }
}

/// Whom the counts are of.
#[derive(Debug)]
pub(crate) struct Whom {
    controller: i32,
    agents: Vec<i32>,
    folders: Vec<std::path::PathBuf>,
    mark: String,
}

impl Whom {
    pub(crate) fn of(cluster: &mut Cluster) -> Result<Self> {
        let controller = cluster.program(Place::Controller)?.pid();
        let (mut agents, mut folders) = (Vec::new(), Vec::new());
        for place in [Place::A, Place::B] {
            let agent = cluster.program(place)?.pid();
            agents.push(agent);
            // Through its own table of mounts.
            folders.push(
                Path::new(&format!("/proc/{agent}/root{}", cluster.file(place.word()).display())).to_owned(),
            );
        }
        Ok(Self { controller, agents, folders, mark: cluster.desk.mark.clone() })
    }

    /// Counts everything.
    pub(crate) fn count(&self, at: Duration) -> Sample {
        let census = Census::take();
        let controller = census::uses(self.controller);
        let mut agents = census::Uses::default();
        let (mut helpers, mut kept, mut mounts) = (0, 0, 0);
        for &agent in &self.agents {
            let uses = census::uses(agent);
            agents.memory += uses.memory;
            agents.descriptors += uses.descriptors;
            agents.threads += uses.threads;
            helpers += census.below(agent, &["medes-agent"]).len() + census.below(agent, &["criu"]).len();
            let keepers = census.below(agent, &["medes-agent", "keeper"]);
            kept += keepers.iter().map(|&pid| census::uses(pid).descriptors).sum::<u64>();
            let table = fs::read_to_string(format!("/proc/{agent}/mountinfo")).unwrap_or_default();
            mounts += table.lines().count();
        }
        let functions = census.functions(&self.mark).count();
        let groups =
            folders_below(Path::new("/sys/fs/cgroup"), GROUPS_DEPTH, &format!("medes-{}", self.mark), false);
        let files: usize = self.folders.iter().map(|folder| own_files(folder)).sum();
        let counts = [
            (What::ControllerMemory, controller.memory as f64),
            (What::ControllerDescriptors, controller.descriptors as f64),
            (What::AgentsMemory, agents.memory as f64),
            (What::AgentsDescriptors, agents.descriptors as f64),
            (What::AgentsThreads, agents.threads as f64),
            (What::Helpers, helpers as f64),
            (What::KeepersDescriptors, kept as f64),
            (What::FunctionProcesses, functions as f64),
            (What::ControlGroups, groups as f64),
            (What::NetworkNamespaces, namespaces() as f64),
            (What::Mounts, mounts as f64),
            (What::Files, files as f64),
        ];
        Sample { at, counts: counts.into() }
    }
}

fn namespaces() -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| fs::metadata(entry.path().join("ns/net")).ok());
    numbers.map(|namespace| namespace.ino()).collect::<BTreeSet<_>>().len()
}

/// Folders in those whose name begins so.
fn folders_below(within: &Path, depth: usize, prefix: &str, inside: bool) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(within).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let inside = inside || entry.file_name().to_string_lossy().starts_with(prefix);
        count += usize::from(inside);
        if depth > 0 {
            count += folders_below(&entry.path(), depth - 1, prefix, inside);
        }
    }
    count
}

/// Files below an agent's folder that are its own: on the file system of its run folder, not on those that sandboxes see through it.
fn own_files(folder: &Path) -> usize {
    let run = folder.join("run");
    fs::metadata(&run).map_or(0, |run_is| files_below(&run, run_is.dev(), FILES_DEPTH))
}

fn files_below(within: &Path, device: u64, depth: usize) -> usize {
    let entries = fs::read_dir(within).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match fs::symlink_metadata(entry.path()) {
        Ok(file) if file.dev() != device => 0,
        Ok(file) if file.is_dir() && depth > 0 => 1 + files_below(&entry.path(), device, depth - 1),
        _ => 1,
    };
    entries.map(of).sum()
}

/// A line through some points.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    pub(crate) mean: f64,
    /// What it rises by from the first point to the last.
    pub(crate) over_all: f64,
}

/// The line with the least squares through points of time and value.
pub(crate) fn growth(points: &[(f64, f64)]) -> Growth {
    let count = points.len().max(1) as f64;
    let mean_of = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (time, mean) = (mean_of(|point| point.0), mean_of(|point| point.1));
    let with: f64 = points.iter().map(|(at, value)| (at - time) * (value - mean)).sum();
    let of_time: f64 = points.iter().map(|(at, _)| (at - time).powi(2)).sum();
    let slope = if of_time > 0.0 { with / of_time } else { 0.0 };
    let lasted = points.last().map_or(0.0, |last| last.0) - points.first().map_or(0.0, |first| first.0);
    Growth { mean, over_all: slope * lasted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_told_from_what_goes_up_and_down() {
        let up: Vec<_> = (0..20).map(|n| (f64::from(n) * 5.0, 100.0 + f64::from(n))).collect();
        let grown = growth(&up);
        assert!((grown.over_all - 19.0).abs() < 1e-9 && (grown.mean - 109.5).abs() < 1e-9, "{grown:?}");
        let waves: Vec<_> = (0..40).map(|n| (f64::from(n), 100.0 + 5.0 * f64::from(n % 2))).collect();
        assert!(growth(&waves).over_all.abs() < 1.0);
        assert!(growth(&[]).over_all == 0.0 && growth(&[(1.0, 2.0)]).over_all == 0.0);
    }

    #[test]
    fn a_leak_of_a_descriptor_a_second_is_over_its_bound() {
        let leak: Vec<_> = (0..60).map(|n| (f64::from(n) * 5.0, 60.0 + f64::from(n) * 5.0)).collect();
        let grown = growth(&leak);
        assert!(grown.over_all > What::AgentsDescriptors.bound(grown.mean));
    }
}
