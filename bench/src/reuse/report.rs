//! What `bench reuse` leaves: reuse.json for programs, a table for people.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_agent::driver::Deduped;
use serde::Serialize;

use crate::{
    experiment,
    record::Record,
    show::{mib, ms},
    stats::Spread,
};

/// What a dedup may do beyond encoding every page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// Nothing.
    Neither,
    /// Keep hot pages whole.
    Hot,
    /// Take over what has not changed.
    Unchanged,
    /// Both.
    Both,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Neither, Self::Hot, Self::Unchanged, Self::Both];

    pub(super) const fn keeps_hot(self) -> bool {
        matches!(self, Self::Hot | Self::Both)
    }

    pub(super) const fn takes_over(self) -> bool {
        matches!(self, Self::Unchanged | Self::Both)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Neither => "neither",
            Self::Hot => "hot whole",
            Self::Unchanged => "unchanged taken over",
            Self::Both => "both",
        }
    }
}

/// Once away and back.
#[derive(Debug)]
pub(super) struct Cycle {
    pub(super) dedup_ms: f64,
    pub(super) restore_ms: f64,
    pub(super) deduped: Deduped,
}

/// One way, all its cycles.
#[derive(Debug, Default)]
struct Seen(BTreeMap<&'static str, Vec<f64>>);

impl Seen {
    fn add(&mut self, cycle: &Cycle) {
        let Cycle { dedup_ms, restore_ms, deduped } = cycle;
        let encode = ["compare", "words", "fingerprint", "lookup", "read_bases", "encode"];
        let steps = deduped.phases.iter().filter(|phase| encode.contains(&phase.name.as_str()));
        let encode_ms = steps.map(|phase| phase.took.as_secs_f64() * 1e3).sum();
        for (name, value) in [
            ("dedup_ms", *dedup_ms),
            ("encode_ms", encode_ms),
            ("restore_ms", *restore_ms),
            ("stored_bytes", deduped.stored_bytes as f64),
            ("looked_up_pages", deduped.looked_up as f64),
            ("pages", deduped.pages.total() as f64),
            ("hot_skipped_pages", deduped.pages.hot_skipped as f64),
            ("reused_pages", deduped.pages.reused as f64),
        ] {
            self.0.entry(name).or_default().push(value);
        }
    }

    fn spreads(&self) -> BTreeMap<&'static str, Spread> {
        self.0.iter().map(|(&name, values)| (name, Spread::of(values.iter().copied()))).collect()
    }
}

/// One function.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    function: String,
    /// By way, then by figure.
    ways: BTreeMap<Way, BTreeMap<&'static str, Spread>>,
    #[serde(skip)]
    seen: BTreeMap<Way, Seen>,
}

impl Row {
    pub(super) const fn new(function: String) -> Self {
        Self { function, ways: BTreeMap::new(), seen: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, way: Way, cycle: &Cycle) {
        self.seen.entry(way).or_default().add(cycle);
    }
}

/// Everything that was found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { record: Record::here(<Self as experiment::Report>::NAME), rows: Vec::new() }
    }
}

impl experiment::Report for Report {
    const NAME: &str = "reuse";

    fn judge(&mut self) {
        for row in &mut self.rows {
            row.ways = row.seen.iter().map(|(&way, seen)| (way, seen.spreads())).collect();
        }
    }

    fn tables(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "FUNCTION",
            "WAY",
            "DEDUP",
            "OF THAT ENCODING",
            "RESTORE",
            "STORED",
            "PAGES",
            "LOOKED UP",
            "HOT",
            "REUSED",
        ]);
        for row in &self.rows {
            for (way, figures) in &row.ways {
                let p50 = |name| figures.get(name).map_or(f64::NAN, |spread: &Spread| spread.p50);
                table.add_row([
                    row.function.clone(),
                    way.word().to_owned(),
                    ms(p50("dedup_ms")),
                    ms(p50("encode_ms")),
                    ms(p50("restore_ms")),
                    mib(p50("stored_bytes")),
                    format!("{:.0}", p50("pages")),
                    format!("{:.0}", p50("looked_up_pages")),
                    format!("{:.0}", p50("hot_skipped_pages")),
                    format!("{:.0}", p50("reused_pages")),
                ]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("Medians\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use medes_proto::sandbox::{PageClasses, Phase};

    use super::*;
    use crate::experiment::Report as _;

    #[test]
    fn ways_stand_beside_each_other() {
        let mut row = Row::new("f".into());
        for (way, reused) in [(Way::Neither, 0), (Way::Both, 90)] {
            for millis in [1, 3, 2] {
                let phase = |name: &str| Phase::new(name, std::time::Duration::from_millis(millis));
                let deduped = Deduped {
                    stored_bytes: 1 << 20,
                    bases: Vec::new(),
                    pages: PageClasses { delta: 100, reused, ..PageClasses::default() },
                    looked_up: 7,
                    aligned_with: None,
                    phases: vec![phase("dump"), phase("words"), phase("encode")],
                    memory_digest: None,
                    in_place: false,
                    shrinks: true,
                };
                row.add(way, &Cycle { dedup_ms: 9.0, restore_ms: 4.0, deduped });
            }
        }
        let mut report = Report::new();
        report.rows.push(row);
        report.judge();
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["rows"][0]["ways"]["both"]["encode_ms"]["p50"], 4.0);
        assert_eq!(value["rows"][0]["ways"]["both"]["reused_pages"]["max"], 90.0);
        assert_eq!(report.tables().lines().count(), 4, "{}", report.tables());
    }
}
