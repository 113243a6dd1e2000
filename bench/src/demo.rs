//! The demo: each function goes cold → warm → dedup → warm on a small cluster of this machine, and is checked.

#[cfg(test)]
mod fake;
mod report;
mod story;

use std::{path::PathBuf, pin::pin, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cluster::{Addresses, Cluster, Up},
    control::Control,
    functions::{self, Candidate, Function, Places},
    record::write_json,
    scratch::Scratch,
};
use report::{Report, Row};
use story::Stage;

/// An agent keeps the index of a base for up to ten seconds after a sandbox needed it.
const SETTLE: Duration = Duration::from_secs(11);

/// What to show, and where to leave the figures.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these functions, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    functions: Vec<String>,
    /// Write the report to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Agents to start
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    #[command(flatten)]
    places: Places,
    /// Folder for report.json and the cluster's log
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
}

/// Runs the demo. The exit code is a failure if anything that was compared differed, or a function failed.
pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    let candidates = functions::find(&options.places.functions_dir, &options.functions)?;
    let medes = options.places.program("medes")?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let log = options.out.join("cluster.log");
    let scratch = Scratch::make()?;

    let mut report = Report::new(options.nodes);
    eprintln!(
        "starting a controller and {} agents (state and logs: {})",
        options.nodes,
        scratch.path().display()
    );
    let up = Up { nodes: options.nodes, state: scratch.path(), log: &log };
    let mut interrupted = pin!(interrupted());
    let cluster = tokio::select! {
        // The story decides itself when a sandbox leaves memory: no idle timer may come between.
        started = Cluster::start(&medes, up, &["--idle", "1h"]) => started?,
        error = &mut interrupted => return Err(error),
    };
    let measured = tokio::select! {
        measured = measure((&cluster.addresses, SETTLE), options.nodes, candidates, &mut report) => measured,
        error = &mut interrupted => Err(error),
    };
    let log_tail = if measured.is_err() { cluster.log_tail() } else { String::new() };
    let stopped = cluster.stop().await;

    // What was measured is kept, even if the end was a bad one.
    write_json(&options.out.join("report.json"), &report)?;
    if let Some(path) = &options.json {
        write_json(path, &report)?;
    }
    if !report.functions.is_empty() {
        println!("{}", report.table());
    }
    measured.with_context(|| format!("the demo stopped early{log_tail}"))?;
    stopped?;
    if !report.is_good() {
        eprintln!("not everything went well; state and logs are kept in {}", scratch.path().display());
        return Ok(ExitCode::FAILURE);
    }
    scratch.remove()?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    (addresses, settle): (&Addresses, Duration),
    nodes: u32,
    candidates: Vec<Candidate>,
    report: &mut Report,
) -> Result<()> {
    let mut control = Control::connect(&addresses.control).await?;
    let mut names: Vec<_> =
        control.wait_for_nodes(nodes as usize).await?.into_iter().map(|row| row.node).collect();
    names.sort();
    let (Some(first), Some(last)) = (names.first(), names.last()) else { bail!("the cluster has no node") };
    // A sandbox is started on one node and cloned on another; with a single node they are the same.
    let pair = [first.clone(), last.clone()];

    let count = candidates.len();
    for (at, candidate) in candidates.into_iter().enumerate() {
        let function = candidate.name().to_owned();
        eprintln!("[{}/{count}] {function}", at + 1);
        let row = match candidate {
            Candidate::Skipped { reason, .. } => Row::Skipped { function, reason },
            Candidate::Ready(ready) => {
                match measure_one(&mut control, (addresses, settle), &pair, ready).await {
                    Ok(figures) => Row::Measured { function, figures: Box::new(figures) },
                    Err(error) => Row::Failed { function, reason: format!("{error:#}") },
                }
            }
        };
        if let Row::Skipped { reason, .. } | Row::Failed { reason, .. } = &row {
            eprintln!("    {}: {reason}", row.outcome());
        }
        report.functions.push(row);
    }
    Ok(())
}

async fn measure_one(
    control: &mut Control,
    (addresses, settle): (&Addresses, Duration),
    nodes: &[String; 2],
    function: Function,
) -> Result<report::Figures> {
    control.apply(function.toml).await?;
    let (gateway, name) = (&*addresses.gateway, &*function.name);
    let mut stage = Stage { control, gateway, function: name, nodes, settle };
    let figures = story::tell(&mut stage).await;
    // The next function begins on empty nodes. If this fails too, the first reason is the better one.
    let removed = stage.control.remove(&function.name).await;
    let figures = figures?;
    removed?;
    Ok(figures)
}

/// Returns when a person or a supervisor wants us to end. From its first poll on, their signals no longer kill us.
async fn interrupted() -> anyhow::Error {
    let (mut interrupt, mut terminate) =
        match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
            (Err(error), _) | (_, Err(error)) => return anyhow::Error::new(error).context("watch signals"),
        };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    anyhow::anyhow!("interrupted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fake::{Fake, Trouble};
    use tokio::net::TcpListener;
    use tonic::transport::server::TcpIncoming;

    /// The whole demo of one function on a cluster with some trouble.
    async fn demo(trouble: Trouble) -> Report {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = Addresses {
            control: incoming.local_addr().unwrap().to_string(),
            gateway: listener.local_addr().unwrap().to_string(),
        };
        let fake = Fake::new(trouble);
        let mut report = Report::new(2);
        let candidates = vec![Candidate::Ready(Function { name: "html".into(), toml: String::new() })];
        tokio::select! {
            measured = measure((&addresses, Duration::ZERO), 2, candidates, &mut report) => measured.unwrap(),
            () = fake.control(incoming) => unreachable!(),
            () = fake.gateway(listener) => unreachable!(),
        }
        report
    }

    fn figures(report: &Report) -> &report::Figures {
        match &report.functions[..] {
            [Row::Measured { figures, .. }] => figures,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_cluster_that_works_gets_a_good_report() {
        let report = demo(Trouble::None).await;
        assert!(report.is_good());
        let figures = figures(&report);
        assert_eq!((figures.private_bytes, figures.stored_bytes), (30 << 20, 2 << 20));
        assert_eq!((figures.node_bytes_before, figures.node_bytes_after), (30 << 20, 2 << 20));
        assert_eq!(figures.restore_ms, 3.5);
    }

    #[tokio::test]
    async fn another_answer_or_lost_state_is_seen() {
        for trouble in [Trouble::Answers, Trouble::State] {
            let report = demo(trouble).await;
            assert!(!report.is_good() && !figures(&report).answers_match, "{trouble:?}");
            assert!(figures(&report).memory_match, "{trouble:?}");
        }
    }

    #[tokio::test]
    async fn other_memory_is_seen() {
        let report = demo(Trouble::Memory).await;
        assert!(!report.is_good() && !figures(&report).memory_match && figures(&report).answers_match);
    }

    #[tokio::test]
    async fn a_failure_is_a_row_with_its_reason() {
        for (trouble, reason) in [(Trouble::Refused, "open connection"), (Trouble::Routing, "asked sb-0-2")] {
            let report = demo(trouble).await;
            assert!(!report.is_good());
            let [Row::Failed { reason: said, .. }] = &report.functions[..] else { panic!("{report:?}") };
            assert!(said.contains(reason), "{said}");
        }
    }
}
