//! The demo's outcome: report.json for programs, a table for people, and whether it was good.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_proto::wire::PageClasses;
use serde::Serialize;

use crate::{
    record::Record,
    show::{mib, ms},
};

/// Everything the demo found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
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
    /// Memory of the sandbox's whole node, as the kernel counts it: before, and when what only helped to store it is gone again.
    pub(super) node_bytes_before: u64,
    pub(super) node_bytes_after: u64,
    /// From the order to start a sandbox until it was ready.
    pub(super) cold_ms: f64,
    /// The same until its first answer.
    pub(super) cold_answer_ms: f64,
    /// The same two of a clone.
    pub(super) clone_ms: f64,
    pub(super) clone_answer_ms: f64,
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
        let PageClasses { zero, same, delta, whole, .. } = classes;
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
        Self { record: Record::here("demo"), nodes, functions: Vec::new() }
    }

    /// Whether all that was compared was equal, and nothing failed. False when nothing was measured at all.
    pub(super) fn is_good(&self) -> bool {
        !self.functions.is_empty() && self.functions.iter().all(Row::is_good)
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
            "CLONE",
            "WARM",
            "DEDUP",
            "RESTORE",
            "ANSWERS",
            "MEMORY",
        ]);
        for column in table.column_iter_mut().skip(1).take(9) {
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
    let same = |same: bool| if same { "same" } else { "DIFFER" }.to_owned();
    vec![
        function.to_owned(),
        mib(figures.private_bytes as f64),
        mib(figures.stored_bytes as f64),
        format!("{:.1} %", figures.stored_fraction * 100.0),
        // May be below zero, and then people should see it.
        mib(figures.node_bytes_before as f64 - figures.node_bytes_after as f64),
        ms(figures.cold_ms),
        ms(figures.clone_ms),
        ms(figures.warm_ms),
        ms(figures.dedup_ms),
        ms(figures.restore_ms),
        same(figures.answers_match),
        same(figures.memory_match),
    ]
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
            clone_ms: 33.0,
            clone_answer_ms: 36.0,
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
        let value = serde_json::to_value(report(vec![measured(figures())])).unwrap();
        assert_eq!(value["name"], "demo");
        assert!(value["command"].is_string() && value["kernel"].is_string());
        let row = &value["functions"][0];
        assert_eq!((&row["function"], &row["outcome"]), (&"html".into(), &"measured".into()));
        assert_eq!((&row["stored_bytes"], &row["memory_match"]), (&(1 << 20).into(), &true.into()));
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
