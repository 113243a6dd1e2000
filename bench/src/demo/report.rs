//! The demo's outcome: report.json for programs, a table for people, and whether it was good.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_proto::wire::PageClasses;
use serde::Serialize;

/// Everything the demo found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    name: &'static str,
    /// Empty when this is not a git checkout.
    commit: String,
    cpu: String,
    kernel: String,
    nodes: u32,
    pub(super) functions: Vec<Row>,
}

/// One function.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum Row {
    Measured {
        function: String,
        #[serde(flatten)]
        figures: Box<Figures>,
    },
    Skipped {
        function: String,
        reason: String,
    },
    Failed {
        function: String,
        reason: String,
    },
}

/// What was measured. Times are in milliseconds; `wall` times are those of a client.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// Private memory of the sandbox before dedup, as the kernel counts it.
    pub(super) private_bytes: u64,
    /// All that is kept of it in dedup state.
    pub(super) stored_bytes: u64,
    pub(super) stored_fraction: f64,
    /// Memory of the sandbox's whole node, as the kernel counts it.
    pub(super) node_bytes_before: u64,
    pub(super) node_bytes_after: u64,
    /// From the order to start a sandbox until it was ready.
    pub(super) cold_ms: f64,
    /// The same until its first answer.
    pub(super) cold_answer_ms: f64,
    /// Median of the requests to a warm sandbox.
    pub(super) warm_ms: f64,
    pub(super) dedup_ms: f64,
    /// From dedup state until it was ready.
    pub(super) restore_ms: f64,
    /// From the request that found it in dedup state to the answer.
    pub(super) restore_answer_ms: f64,
    pub(super) answers_match: bool,
    pub(super) memory_match: bool,
    pub(super) pages: Option<Pages>,
    pub(super) dedup_phases: BTreeMap<String, f64>,
    /// The phases of the request that restored it.
    pub(super) restore_phases: BTreeMap<String, f64>,
    /// The inner steps of the restore that was checked; hashing included.
    pub(super) restore_steps: BTreeMap<String, f64>,
}

/// What became of the pages.
#[derive(Debug, Serialize)]
pub(super) struct Pages {
    zero: u64,
    same: u64,
    delta: u64,
    whole: u64,
}

impl From<PageClasses> for Pages {
    fn from(classes: PageClasses) -> Self {
        let PageClasses { zero, same, delta, whole } = classes;
        Self { zero, same, delta, whole }
    }
}

impl Row {
    pub(super) const fn outcome(&self) -> &'static str {
        match self {
            Self::Measured { .. } => "measured",
            Self::Skipped { .. } => "skipped",
            Self::Failed { .. } => "FAILED",
        }
    }

    fn is_good(&self) -> bool {
        match self {
            Self::Measured { figures, .. } => figures.answers_match && figures.memory_match,
            Self::Skipped { .. } => true,
            Self::Failed { .. } => false,
        }
    }
}

impl Report {
    /// An empty report about this machine.
    pub(super) fn new(nodes: u32) -> Self {
        let kernel = nix::sys::utsname::uname()
            .map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
        Self { name: "demo", commit: commit(), cpu: cpu(), kernel, nodes, functions: Vec::new() }
    }

    /// Whether all that was compared was equal, and nothing failed. False when nothing was measured at all.
    pub(super) fn is_good(&self) -> bool {
        !self.functions.is_empty() && self.functions.iter().all(Row::is_good)
    }

    /// Writes the report whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("write the report as JSON")?;
        text.push('\n');
        let mut name =
            path.file_name().with_context(|| format!("{} is not a file", path.display()))?.to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, path).with_context(|| format!("write {}", path.display()))
    }

    /// The table for people. Figures are right-aligned, sizes in MiB, times in ms.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "FUNCTION",
            "PRIVATE",
            "STORED",
            "",
            "NODE FREED",
            "COLD",
            "WARM",
            "DEDUP",
            "RESTORE",
            "ANSWERS",
            "MEMORY",
        ]);
        for column in table.column_iter_mut().skip(1).take(8) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.functions {
            match row {
                Row::Measured { function, figures } => table.add_row(cells(function, figures)),
                Row::Skipped { function, .. } | Row::Failed { function, .. } => {
                    table.add_row([function, row.outcome()])
                }
            };
        }
        table
    }
}

fn cells(function: &str, figures: &Figures) -> Vec<String> {
    let mib = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
    let ms = |ms: f64| if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") };
    let same = |same: bool| if same { "same" } else { "DIFFER" }.to_owned();
    vec![
        function.to_owned(),
        mib(figures.private_bytes as f64),
        mib(figures.stored_bytes as f64),
        format!("{:.1} %", figures.stored_fraction * 100.0),
        // May be below zero, and then people should see it.
        mib(figures.node_bytes_before as f64 - figures.node_bytes_after as f64),
        ms(figures.cold_ms),
        ms(figures.warm_ms),
        ms(figures.dedup_ms),
        ms(figures.restore_ms),
        same(figures.answers_match),
        same(figures.memory_match),
    ]
}

/// What is checked out; `+` at the end when files were changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let changed = git(&["status", "--porcelain"]).is_some_and(|text| !text.is_empty());
    format!("{}{}", head.trim(), if changed { "+" } else { "" })
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let values = |key: &'static str| {
        text.lines().filter_map(move |line| Some(line.strip_prefix(key)?.split_once(':')?.1.trim()))
    };
    format!("{} x {}", values("processor").count(), values("model name").next().unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            private_bytes: 10 << 20,
            stored_bytes: 1 << 20,
            stored_fraction: 0.1,
            node_bytes_before: 100 << 20,
            node_bytes_after: 92 << 20,
            cold_ms: 123.4,
            cold_answer_ms: 130.0,
            warm_ms: 1.25,
            dedup_ms: 80.0,
            restore_ms: 40.0,
            restore_answer_ms: 42.0,
            answers_match: true,
            memory_match: true,
            pages: None,
            dedup_phases: BTreeMap::new(),
            restore_phases: BTreeMap::new(),
            restore_steps: BTreeMap::new(),
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report { functions: rows, ..Report::new(2) }
    }

    fn measured(figures: Figures) -> Row {
        Row::Measured { function: "html".into(), figures: Box::new(figures) }
    }

    #[test]
    fn any_difference_or_failure_makes_the_demo_bad() {
        let skipped = || Row::Skipped { function: "model-serve".into(), reason: "no torch".into() };
        assert!(report(vec![measured(figures()), skipped()]).is_good());
        assert!(!report(vec![measured(Figures { answers_match: false, ..figures() })]).is_good());
        assert!(!report(vec![measured(Figures { memory_match: false, ..figures() })]).is_good());
        assert!(!report(vec![skipped(), Row::Failed { function: "a".into(), reason: "b".into() }]).is_good());
        assert!(!report(Vec::new()).is_good(), "nothing was shown");
    }

    #[test]
    fn the_report_has_the_figures_beside_the_function() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        report(vec![measured(figures())]).write(&path).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let row = &value["functions"][0];
        assert_eq!((&row["function"], &row["outcome"]), (&"html".into(), &"measured".into()));
        assert_eq!((&row["stored_bytes"], &row["memory_match"]), (&(1 << 20).into(), &true.into()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn the_table_has_a_line_for_every_function() {
        let failed = Row::Failed { function: "auth".into(), reason: "crashed".into() };
        let text = report(vec![measured(figures()), failed]).table().to_string();
        let html = text.lines().find(|line| line.contains("html")).unwrap();
        for cell in ["10.0 MiB", "1.0 MiB", "10.0 %", "8.0 MiB", "123 ms", "1.2 ms", "same"] {
            assert!(html.contains(cell), "{cell} in {html}");
        }
        assert!(text.lines().any(|line| line.contains("auth") && line.contains("FAILED")), "{text}");
    }
}
