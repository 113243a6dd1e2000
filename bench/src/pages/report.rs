//! What `bench pages` leaves: pages.json for programs, a table for people.

use std::time::Duration;

use comfy_table::{Table, presets::NOTHING};
use medes_dedup::page::PAGE_BYTES;
use serde::Serialize;

use crate::record::{Record, Target};

/// Reads of one size and shape, one way.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    way: &'static str,
    /// Pages of one read.
    pages: usize,
    scattered: bool,
    reads: usize,
    pages_per_second: f64,
    gb_per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Row {
    pub(super) fn of(way: &'static str, pages: usize, scattered: bool, times: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize| sorted.get(sorted.len() * part / 100).copied().unwrap_or(f64::NAN);
        let pages_per_second = (pages * sorted.len()) as f64 / sorted.iter().sum::<f64>();
        Self {
            way,
            pages,
            scattered,
            reads: times.len(),
            pages_per_second,
            gb_per_second: pages_per_second * PAGE_BYTES as f64 / 1e9,
            p50_us: at(50) * 1e6,
            p99_us: at(99) * 1e6,
        }
    }
}

impl Row {
    /// A stream of bytes that are nobody's pages.
    pub(super) fn stream(way: &'static str, bytes_per_second: f64) -> Self {
        let (pages_per_second, none) = (bytes_per_second / PAGE_BYTES as f64, f64::NAN);
        let gb_per_second = bytes_per_second / 1e9;
        let (pages, scattered, reads) = (0, false, 1);
        Self { way, pages, scattered, reads, pages_per_second, gb_per_second, p50_us: none, p99_us: none }
    }
}

/// All figures, with the machine they are of.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    how: [&'static str; 3],
    rows: Vec<Row>,
    targets: Vec<Target>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            record: Record::here("pages"),
            how: [
                "one reader, one read at a time; each read asks for other pages; every page is compared, outside the timing",
                "rates: pages of all reads by the sum of their times; reader and holder share the machine",
                "grpc per page: one unary call for each page, at most 64 under way",
            ],
            rows: Vec::new(),
            targets: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Holds the figures against what the design asks for.
    pub(super) fn judge(&mut self) {
        let row = |pages| {
            let is_it = |row: &&Row| row.way == "tcp loopback" && row.pages == pages && !row.scattered;
            self.rows.iter().find(is_it)
        };
        let rate = row(4096).map_or(f64::NAN, |row| row.gb_per_second);
        let wait = row(1).map_or(f64::NAN, |row| row.p50_us);
        self.targets = vec![
            Target::at_least("neighbouring pages over TCP, loopback", 1.0, rate, "GB/s"),
            Target::at_most("one page over TCP, loopback, p50", 100.0, wait, "us"),
        ];
    }

    /// For people.
    pub(super) fn tables(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["way", "pages", "", "pages/s", "GB/s", "p50", "p99"]);
        for row in &self.rows {
            table.add_row([
                row.way.to_owned(),
                row.pages.to_string(),
                if row.scattered { "scattered" } else { "" }.to_owned(),
                format!("{:.0}", row.pages_per_second),
                format!("{:.2}", row.gb_per_second),
                micros(row.p50_us),
                micros(row.p99_us),
            ]);
        }
        let targets: Vec<String> = self.targets.iter().map(Target::line).collect();
        format!("{table}\n\n{}", targets.join("\n"))
    }
}

/// A stream of bytes has no reads whose time could be told.
fn micros(time: f64) -> String {
    if time.is_nan() { "-".into() } else { format!("{time:.1} us") }
}
