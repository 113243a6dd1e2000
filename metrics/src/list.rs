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

const fn counter(
    of: Of,
    name: &'static str,
    unit: &'static str,
    labels: &'static str,
    help: &'static str,
) -> Metric {
    Metric { of, name, kind: Kind::Counter, unit, labels, help }
}

const fn seconds(of: Of, name: &'static str, labels: &'static str, help: &'static str) -> Metric {
    Metric { of, name, kind: Kind::Histogram, unit: "seconds", labels, help }
}

const fn gauge(
    of: Of,
    name: &'static str,
    unit: &'static str,
    labels: &'static str,
    help: &'static str,
) -> Metric {
    Metric { of, name, kind: Kind::Gauge, unit, labels, help }
}

use Of::{Agent, Controller};

/// All metrics, by program and name.
pub const ALL: &[Metric] = &[
    counter(Controller, "medes_bases_dropped_total", "snapshots", "", "base snapshots dropped"),
    counter(Controller, "medes_bases_made_total", "snapshots", "", "base snapshots made"),
    counter(Controller, "medes_dedup_in_bytes_total", "bytes", "", "memory of sandboxes before their dedup"),
    counter(Controller, "medes_dedup_pages_total", "pages", "class", "pages by what dedup made of them"),
    seconds(Controller, "medes_dedup_seconds", "", "a dedup, all its phases"),
    counter(Controller, "medes_dedup_stored_bytes_total", "bytes", "", "what was stored for them"),
    counter(Controller, "medes_dedups_total", "dedups", "", "sandboxes whose memory was taken"),
    counter(
        Controller,
        "medes_errors_total",
        "errors",
        "doing",
        "what failed: start, restore, dedup, base, sandbox, command",
    ),
    counter(Controller, "medes_nodes_attached_total", "nodes", "", "agents that connected, also again"),
    counter(Controller, "medes_nodes_lost_total", "nodes", "", "nodes given up with their sandboxes"),
    counter(
        Controller,
        "medes_purges_total",
        "sandboxes",
        "reason",
        "sandboxes ended: policy, evicted, unwanted, broken, asked",
    ),
    counter(
        Controller,
        "medes_registry_entries_added_total",
        "entries",
        "",
        "chunk hashes that came into the registry",
    ),
    counter(
        Controller,
        "medes_registry_entries_refused_total",
        "entries",
        "",
        "chunk hashes whose list was full",
    ),
    counter(
        Controller,
        "medes_registry_pages_looked_up_total",
        "pages",
        "",
        "pages that agents asked candidates for",
    ),
    seconds(
        Controller,
        "medes_request_seconds",
        "start",
        "a request from its arrival to its answer, by how its sandbox came to be ready",
    ),
    counter(Controller, "medes_requests_total", "requests", "outcome", "requests by start kind, or refused"),
    seconds(Controller, "medes_start_seconds", "start", "a cold start or restore, from command to answer"),
    counter(Controller, "medes_starts_total", "starts", "start, function", "cold starts and restores begun"),
    counter(Controller, "medes_trace_events_total", "events", "kind", "events published to the trace"),
    gauge(
        Agent,
        "medes_node_memory_bytes",
        "bytes",
        "part",
        "memory as the kernel counts it: cap, used, base, image, agent",
    ),
    gauge(Agent, "medes_node_sandboxes", "sandboxes", "state", "sandboxes by state"),
    gauge(Agent, "medes_node_snapshots", "snapshots", "", "base snapshots held"),
    counter(
        Agent,
        "medes_operations_total",
        "operations",
        "operation, result",
        "launch, dedup, base, restore: done or failed",
    ),
    seconds(Agent, "medes_phase_seconds", "operation, phase", "one step of an operation that was done"),
];

/// The metrics of one program.
pub fn of(program: Of) -> impl Iterator<Item = &'static Metric> {
    ALL.iter().filter(move |metric| metric.of == program)
}

/// METRICS.md.
pub fn table() -> String {
    let mut text = String::from(
        "# Metrics\n\nPrometheus text on `GET /metrics` at the address given with `--metrics` (off by default). \
         This table is written by `medes_metrics::list::table()`\nand compared with the code by its tests.\n\n\
         | program | name | kind | unit | labels | what it says |\n|---|---|---|---|---|---|\n",
    );
    for metric in ALL {
        let program = match metric.of {
            Controller => "controller",
            Agent => "agent",
        };
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
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
        for (program, folder) in [(Controller, "../controller/src"), (Agent, "../agent/src")] {
            let mut names = BTreeSet::new();
            counted(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut names);
            let listed: BTreeSet<_> = of(program).map(|metric| metric.name.to_owned()).collect();
            assert_eq!(names, listed, "{program:?}");
        }
        assert!(ALL.windows(2).all(|pair| pair[0].of != pair[1].of || pair[0].name < pair[1].name), "sorted");
    }
}
