//! The names of all metrics, with their units and meaning: one list, which METRICS.md shows and a test compares
//! with the code that counts. Prometheus form, on the address given with `--metrics`.

/// Who has a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// `medes-controller`.
    Controller,
    /// `medes-agent`.
    Agent,
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises while the program runs.
    Counter,
    /// Has a value now.
    Gauge,
    /// Values in buckets, with their sum and count.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Whose.
    pub of: Of,
    /// Ends in its unit, or in `_total` where it counts things.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Of its value.
    pub unit: &'static str,
    /// What it is split by.
    pub labels: &'static str,
    /// What it says.
    pub help: &'static str,
}

/// A row of the list, short: kind, name, unit, labels, what it says.
type Row = (Kind, &'static str, &'static str, &'static str, &'static str);

/// The metrics of one program, from rows.
const fn rows<const N: usize>(of: Of, rows: [Row; N]) -> [Metric; N] {
    let mut all = [Metric { of, name: "", kind: Kind::Counter, unit: "", labels: "", help: "" }; N];
    let mut at = 0;
    while at < N {
        let (kind, name, unit, labels, help) = rows[at];
        all[at] = Metric { of, name, kind, unit, labels, help };
        at += 1;
    }
    all
}

use Kind::{Counter, Gauge, Histogram};

const CONTROLLER: [Metric; 21] = rows(
    Of::Controller,
    [
        (Counter, "medes_bases_dropped_total", "snapshots", "", "base snapshots dropped"),
        (Counter, "medes_bases_made_total", "snapshots", "", "base snapshots made"),
        (Counter, "medes_dedup_in_bytes_total", "bytes", "", "memory of sandboxes before their dedup"),
        (Counter, "medes_dedup_pages_total", "pages", "class", "pages by what dedup made of them"),
        (Histogram, "medes_dedup_seconds", "seconds", "", "a dedup, all its phases"),
        (Counter, "medes_dedup_stored_bytes_total", "bytes", "", "what was stored for them"),
        (Counter, "medes_dedups_total", "dedups", "", "sandboxes whose memory was taken"),
        (
            Counter,
            "medes_errors_total",
            "errors",
            "doing",
            "what failed: start, restore, dedup, base, sandbox, command",
        ),
        (Counter, "medes_moves_total", "sandboxes", "", "sandboxes in dedup that were to go to another node"),
        (Counter, "medes_nodes_attached_total", "nodes", "", "agents that connected, also again"),
        (Counter, "medes_nodes_lost_total", "nodes", "", "nodes given up with their sandboxes"),
        (
            Counter,
            "medes_parks_called_back_total",
            "parks",
            "",
            "parks that were called off because a request came",
        ),
        (
            Counter,
            "medes_purges_total",
            "sandboxes",
            "reason",
            "sandboxes ended: policy, evicted, unwanted, broken, asked, drained",
        ),
        (
            Counter,
            "medes_registry_entries_added_total",
            "entries",
            "",
            "chunk hashes that came into the registry",
        ),
        (Counter, "medes_registry_entries_refused_total", "entries", "", "chunk hashes whose list was full"),
        (
            Counter,
            "medes_registry_pages_looked_up_total",
            "pages",
            "",
            "pages that agents asked candidates for",
        ),
        (
            Histogram,
            "medes_request_seconds",
            "seconds",
            "start",
            "a request from its arrival to its answer, by how its sandbox came to be ready",
        ),
        (
            Counter,
            "medes_requests_total",
            "requests",
            "outcome",
            "requests by start kind, refused, or denied (no good token)",
        ),
        (
            Histogram,
            "medes_start_seconds",
            "seconds",
            "start",
            "a cold start, clone or restore, from command to answer",
        ),
        (
            Counter,
            "medes_starts_total",
            "starts",
            "start, function",
            "cold starts, clones and restores begun",
        ),
        (Counter, "medes_trace_events_total", "events", "kind", "events published to the trace"),
    ],
);

const AGENT: [Metric; 16] = rows(
    Of::Agent,
    [
        (
            Gauge,
            "medes_node_memory_bytes",
            "bytes",
            "part",
            "memory as the kernel counts it: cap, used, base, image, agent",
        ),
        (Gauge, "medes_node_sandboxes", "sandboxes", "state", "sandboxes by state"),
        (Gauge, "medes_node_snapshots", "snapshots", "", "base snapshots held"),
        (
            Counter,
            "medes_operations_total",
            "operations",
            "operation, result",
            "launch, clone, dedup, shrink, trim, base, replicate, restore: done or failed",
        ),
        (
            Histogram,
            "medes_phase_seconds",
            "seconds",
            "operation, phase",
            "one step of an operation that was done",
        ),
        (
            Counter,
            "medes_rdma_fallbacks_total",
            "reads",
            "reason",
            "reads by RDMA that were asked over TCP too (late) or instead (broken)",
        ),
        (
            Counter,
            "medes_remote_pages_total",
            "pages",
            "by",
            "base pages (4096 bytes each) read from other nodes, by what brought them: tcp, rdma",
        ),
        (
            Counter,
            "medes_taken_over_total",
            "things",
            "what",
            "left by the agent before and taken over (`--takeover`): base, dedup, parked; or lost",
        ),
        (Counter, "medes_trimmed_pages_total", "pages", "", "taken of warm sandboxes that go on (`--trim`)"),
        (
            Counter,
            "medes_watch_armed_total",
            "processes",
            "result",
            "processes whose writes were to be tracked",
        ),
        (
            Counter,
            "medes_watch_events_total",
            "events",
            "kind",
            "what the kernel programs saw of sandboxes: wakes, switches, forks, exits, faults",
        ),
        (Counter, "medes_watch_lost_total", "events", "what", "what did not fit into their tables and rings"),
        (
            Gauge,
            "medes_watch_sight",
            "yes or no",
            "of, by",
            "1 for how work and writes are seen: eBPF or procfs; write protection or soft-dirty bits",
        ),
        (
            Counter,
            "medes_watch_touched_pages_total",
            "pages",
            "",
            "pages touched in windows, written or seen to be read",
        ),
        (Counter, "medes_watch_windows_total", "windows", "", "windows of requests whose writes were seen"),
        (Counter, "medes_watch_written_pages_total", "pages", "", "pages written in them"),
    ],
);

/// All metrics, by program and name.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    CONTROLLER.iter().chain(&AGENT)
}

/// The metrics of one program.
pub fn of(program: Of) -> impl Iterator<Item = &'static Metric> {
    all().filter(move |metric| metric.of == program)
}

/// METRICS.md.
pub fn table() -> String {
    let mut text = String::from(
        "# Metrics\n\nPrometheus text on `GET /metrics` at the address given with `--metrics` (off by default). \
         At the same address `GET /healthz` is answered 200 while\nthe program lives, and `GET /readyz` while it can do its work, \
         else 503 with a line for each thing that it lacks: a controller serves callers and has given agents\nthe time to connect \
         (`fleet.settle`); an agent is connected to its controller and its CRIU workers come up. \
         This table is written by `medes_metrics::list::table()`\nand compared with the code by its tests.\n\n\
         | program | name | kind | unit | labels | what it says |\n|---|---|---|---|---|---|\n",
    );
    for metric in all() {
        let program = match metric.of {
            Of::Controller => "controller",
            Of::Agent => "agent",
        };
        let kind = match metric.kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        };
        let Metric { name, unit, labels, help, .. } = metric;
        text += &format!("| {program} | `{name}` | {kind} | {unit} | {labels} | {help} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn the_document_is_the_list() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../METRICS.md");
        let text = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, table(), "write medes_metrics::list::table() into METRICS.md");
    }

    /// Names in `counter!("...`, `gauge!("...` and `histogram!("...` of all files of a folder.
    fn counted(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                counted(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                for call in ["counter!(", "gauge!(", "histogram!("] {
                    let calls = text.match_indices(call).filter_map(|(at, _)| {
                        let rest = text[at + call.len()..].trim_start().strip_prefix('"')?;
                        Some(rest.split('"').next()?.to_owned())
                    });
                    names.extend(calls);
                }
            }
        }
    }

    #[test]
    fn the_code_counts_what_the_list_has_and_nothing_else() {
        for (program, folder) in [(Of::Controller, "../controller/src"), (Of::Agent, "../agent/src")] {
            let mut names = BTreeSet::new();
            counted(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut names);
            let listed: BTreeSet<_> = of(program).map(|metric| metric.name.to_owned()).collect();
            assert_eq!(names, listed, "{program:?}");
        }
        for list in [&CONTROLLER[..], &AGENT[..]] {
            assert!(list.is_sorted_by_key(|metric| metric.name));
        }
    }
}
