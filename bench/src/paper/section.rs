//! What one experiment has to say in the report: figures, tables, and what was held against what.

use serde::{Deserialize, Serialize};

use crate::plot::{Plot, bars::Bars};

/// One experiment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Section {
    pub(crate) title: String,
    /// The paper's figures and tables that it is about.
    pub(crate) figures: String,
    /// What was done, in paragraphs.
    pub(crate) about: Vec<String>,
    pub(crate) drawings: Vec<Drawing>,
    pub(crate) sheets: Vec<Sheet>,
    pub(crate) verdicts: Vec<Verdict>,
    /// What did not work or was left out, and what the figures do not show.
    pub(crate) cautions: Vec<String>,
}

/// A picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Drawing {
    Lines(Plot),
    Bars(Bars),
}

impl Drawing {
    /// Without what is no number: JSON has none for it.
    pub(crate) fn clean(&mut self) {
        match self {
            Self::Lines(plot) => {
                for line in &mut plot.lines {
                    line.points.retain(|(x, y)| x.is_finite() && y.is_finite());
                }
            }
            Self::Bars(bars) => {
                let heights = bars.bars.iter_mut().flat_map(|bar| &mut bar.heights);
                heights.filter(|height| !height.is_finite()).for_each(|height| *height = 0.0);
            }
        }
    }
}

/// A table for people.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sheet {
    pub(crate) title: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Ours held against something else. Nothing is left out because it looks bad.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    /// Ours, and the other, as people read them.
    pub(crate) ours: String,
    pub(crate) other: String,
    pub(crate) won: bool,
}

impl Verdict {
    /// The one with less wins, and so does a tie; what was not measured has lost.
    pub(crate) fn less(
        what: impl Into<String>,
        (ours, other): (f64, f64),
        show: impl Fn(f64) -> String,
    ) -> Self {
        Self { what: what.into(), ours: show(ours), other: show(other), won: ours <= other }
    }

    /// The one with more wins.
    pub(crate) fn more(
        what: impl Into<String>,
        (ours, other): (f64, f64),
        show: impl Fn(f64) -> String,
    ) -> Self {
        Self { what: what.into(), ours: show(ours), other: show(other), won: ours >= other }
    }
}

impl Sheet {
    pub(crate) fn new(title: impl Into<String>, head: &[&str]) -> Self {
        let head = head.iter().map(|name| (*name).to_owned()).collect();
        Self { title: title.into(), head, rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = String>) {
        // What was not measured has no unit either.
        let shown = |cell: String| if cell.starts_with("NaN") { "-".to_owned() } else { cell };
        self.rows.push(row.into_iter().map(shown).collect());
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        use comfy_table::{CellAlignment, Table, presets::NOTHING};
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(&self.head);
        for row in &self.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}\n{table}", self.title)
    }
}

impl Section {
    pub(crate) fn new(title: &str, figures: &str) -> Self {
        Self { title: title.into(), figures: figures.into(), ..Self::default() }
    }

    pub(crate) fn say(&mut self, text: impl Into<String>) {
        self.about.push(text.into());
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.cautions.push(text.into());
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let sheets = self.sheets.iter().map(|sheet| format!("{}\n", sheet.text()));
        let lost = self.verdicts.iter().filter(|verdict| !verdict.won);
        let lost =
            lost.map(|Verdict { what, ours, other, .. }| format!("lost: {what}: {ours} against {other}\n"));
        let cautions = self.cautions.iter().map(|text| format!("note: {text}\n"));
        sheets.chain(lost).chain(cautions).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_has_lost() {
        let show = |value: f64| format!("{value}");
        assert!(Verdict::less("a", (1.0, 1.0), show).won && !Verdict::less("a", (2.0, 1.0), show).won);
        assert!(
            !Verdict::less("a", (f64::NAN, 1.0), show).won && !Verdict::more("a", (f64::NAN, 1.0), show).won
        );
        assert!(Verdict::more("a", (2.0, 1.0), show).won);
    }

    #[test]
    fn a_lost_comparison_is_told() {
        let mut section = Section::new("t", "Fig 1");
        section.verdicts.push(Verdict::less("time", (2.0, 1.0), |value| format!("{value} ms")));
        assert!(section.text().contains("lost: time: 2 ms against 1 ms"), "{}", section.text());
    }
}
