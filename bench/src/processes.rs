//! What the processes of a cluster take: processor time and memory, by name.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// The kernel counts processor time in hundredths of a second, on every machine.
const TICK_SECONDS: f64 = 0.01;

/// One process of Medes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Of its program.
    pub(crate) name: String,
    /// Of a processor, with those of its children that have ended.
    pub(crate) cpu_seconds: f64,
    /// What it alone has in memory, and its part of what it shares.
    pub(crate) memory_bytes: u64,
}

/// All processes of Medes below this one: sandboxes are not among them.
pub(crate) fn of(top: u32) -> Result<Vec<Process>> {
    let mut stats = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        // One that has ended meanwhile is none.
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(stat) = Stat::parse(&text) {
            stats.insert(pid, stat);
        }
    }
    let below = |pid: u32| {
        let parents = std::iter::successors(Some(pid), |pid| stats.get(pid).map(|stat| stat.parent));
        parents.take(64).any(|pid| pid == top)
    };
    let ours = stats.iter().filter(|(pid, stat)| stat.name.starts_with("medes") && below(**pid));
    let process = |(pid, stat): (&u32, &Stat)| Process {
        pid: *pid,
        name: stat.name.clone(),
        cpu_seconds: stat.cpu_seconds,
        memory_bytes: memory(*pid),
    };
    Ok(ours.map(process).collect())
}

#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    parent: u32,
    cpu_seconds: f64,
}

impl Stat {
    /// proc(5); the name stands in parentheses and may have some.
    fn parse(text: &str) -> Option<Self> {
        let (front, rest) = text.rsplit_once(") ")?;
        let name = front.split_once(" (")?.1.to_owned();
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks: f64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
        Some(Self { name, parent: fields.get(1)?.parse().ok()?, cpu_seconds: ticks * TICK_SECONDS })
    }
}

fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_parentheses() {
        let stat = Stat::parse("7 (medes (x) y) S 3 7 7 0 -1 0 0 0 0 0 100 50 25 25 20 0 1 0").unwrap();
        assert_eq!(stat, Stat { name: "medes (x) y".into(), parent: 3, cpu_seconds: 2.0 });
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn this_process_is_below_itself_and_has_memory() {
        let own = std::process::id();
        assert!(memory(own) > 0);
        let found = of(own).unwrap();
        // The test's program has the package's name in front, as all programs of Medes.
        assert!(found.iter().any(|process| process.pid == own), "{found:?}");
    }
}
