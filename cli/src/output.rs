//! Standard output: one JSON value, or text and tables that fit 100 columns.

use std::io::{self, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::{CliError, ErrorView};

/// Columns that a table may take.
const WIDTH: u16 = 100;

/// Where answers go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

#[derive(Serialize)]
struct ErrorValue {
    error: ErrorView,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) const fn json(&self) -> bool {
        self.json
    }

    /// The verb's whole answer: `value` for programs, `text` for people.
    pub(crate) fn answer<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        let text = if self.json { json_line(value)? } else { text() };
        self.bytes(text.as_bytes())
    }

    /// Bytes as they are. A reader that has gone away has seen enough: no error.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        self.stream(bytes).map(drop)
    }

    /// A part of an answer that has no end. `false`: the reader has gone away.
    pub(crate) fn stream(&self, bytes: &[u8]) -> Result<bool, CliError> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(source) if source.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(source) => Err(CliError::Output { source }),
        }
    }

    /// An error as the verb's one JSON value. Falls back to text when that cannot be written either.
    pub(crate) fn error(&self, error: &CliError) {
        let value = ErrorValue { error: error.view() };
        if json_line(&value).and_then(|line| self.bytes(line.as_bytes())).is_err() {
            eprint!("{}", error.for_people());
        }
    }
}

fn json_line<T: Serialize>(value: &T) -> Result<String, CliError> {
    let mut line =
        serde_json::to_string(value).map_err(|error| CliError::Output { source: io::Error::from(error) })?;
    line.push('\n');
    Ok(line)
}

/// A table under construction. Columns whose heading begins with `>` are aligned to the right.
#[derive(Debug)]
pub(crate) struct Sheet {
    table: Table,
    columns: usize,
}

impl Sheet {
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH)
            .set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
        for (index, heading) in headings.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if heading.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table, columns: headings.len() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns, "a row has a cell for every heading");
        self.table.add_row(cells.into_iter().map(|cell| plain(&cell)).collect::<Vec<_>>());
    }

    /// The table, or `none` when it has no rows.
    pub(crate) fn text(&self, none: &str) -> String {
        if self.table.is_empty() { format!("{none}\n") } else { format!("{}\n", self.table.trim_fmt()) }
    }
}

/// Text from elsewhere without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_100_columns_and_loses_no_word() {
        let mut sheet = Sheet::new(&["SANDBOX", ">PRIVATE", "NOTE"]);
        let note = "an established connection to a database cannot be dumped ".repeat(5);
        sheet.row(vec!["sb-1-2".into(), "41.2 MiB".into(), note.clone()]);
        let text = sheet.text("none");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(text.lines().count() > 2, "{text}");
        let words = |text: &str| text.split_whitespace().filter(|word| *word == "database").count();
        assert_eq!(words(&text), words(&note));
    }

    #[test]
    fn numbers_stand_on_the_right() {
        let mut sheet = Sheet::new(&["NAME", ">SIZE"]);
        sheet.row(vec!["a".into(), "1 B".into()]);
        sheet.row(vec!["b".into(), "100 KiB".into()]);
        assert_eq!(sheet.text(""), "NAME     SIZE\na         1 B\nb     100 KiB\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Sheet::new(&["A"]).text("no sandboxes"), "no sandboxes\n");
    }

    #[test]
    fn a_sandbox_cannot_drive_the_terminal() {
        assert_eq!(plain("a\x1b[31mred\nb"), "a [31mred b");
    }
}
