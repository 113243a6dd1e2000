//! `medes load`: requests that come as a trace says, whether earlier ones have been answered or not.

mod report;

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    path::PathBuf,
    time::Duration,
};

use medes_load::{
    map::{self, Mapping},
    open_loop::{self, Failed, Progress, Target},
    schedule::{Due, Schedule},
    trace::Trace,
};
use medes_proto::{
    failure::Failure,
    ids::FunctionName,
    sandbox::StartKind,
    units::Span,
    wire::{self, invoke_function_reply::Result as Outcome},
};

use crate::{
    client::{Client, QUICK},
    error::{CliError, Ended},
    output::Output,
};
use report::Summary;

/// Beyond a request's own deadline: the controller answers then, this is for the way.
const GRACE: Duration = Duration::from_secs(10);
/// Where nobody watches, a line in so many seconds is enough.
const LINE_EVERY_S: u64 = 10;
const NUMBER: &str = "%n";

/// Send requests when a trace says that they are due.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Requests per function and minute, as CSV (also compressed, .zst): first the function's name, then Average or avg_ms, last a
    /// column m<number> for each minute
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Which functions stand for those of the trace: a=html,b=auth by name (or its beginning); html,auth for all others in turns.
    /// Those that nothing stands for are left out
    #[arg(long, value_delimiter = ',', required = true, value_name = "NAMES")]
    map: Vec<Mapping>,
    /// So many times as fast as it was recorded
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = speedup)]
    speedup: f64,
    /// The first minute of the trace that is played, counted from 0
    #[arg(long, default_value_t = 0, value_name = "MINUTE")]
    from: usize,
    /// How many of its minutes [default: all]
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<usize>,
    /// For the moments within a minute, which a trace does not have
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The body of each request; %n in it is the request's number
    #[arg(long, short, default_value = r#"{"n": %n}"#, value_name = "TEXT")]
    data: String,
    /// How long a request may take, queue and start included
    #[arg(long, default_value = "1m", value_name = "TIME")]
    deadline: Span,
    /// Requests under way at a time. One that is due when there are so many waits, and its time runs from when it was due
    #[arg(long, default_value_t = 256, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    under_way: u32,
}

fn speedup(text: &str) -> Result<f64, &'static str> {
    let factor = text.parse().ok().filter(|factor: &f64| (0.001..=100_000.0).contains(factor));
    factor.ok_or("not a factor from 0.001 to 100000")
}

/// Requests go through the controller, as those of `medes invoke` do.
struct Controller<'c> {
    client: &'c Client,
    data: &'c str,
    deadline: Duration,
}

impl Target for Controller<'_> {
    async fn ask(&self, function: &FunctionName, number: u64) -> Result<StartKind, Failed> {
        let request = wire::InvokeFunctionRequest {
            function: function.to_string(),
            method: "POST".into(),
            path: "/".into(),
            headers: vec![],
            body: self.data.replace(NUMBER, &number.to_string()).into(),
            deadline_ms: u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX),
        };
        let (doing, within) = (format!("invoke {function}"), self.deadline.saturating_add(GRACE));
        let reply =
            self.client.call(&doing, within, async |mut control| control.invoke_function(request).await);
        let failed = |error: &CliError| {
            let view = error.view();
            Failed { kind: view.kind, message: view.message }
        };
        match reply.await.map_err(|error| failed(&error))?.result {
            Some(Outcome::Answer(answer)) => {
                let status = answer.http.map_or(0, |http| http.status);
                if (100..400).contains(&status) {
                    return Ok(StartKind::try_from(answer.start).unwrap_or_default());
                }
                let message = format!("{function} answered with status {status}");
                Err(Failed { kind: format!("status_{status}"), message })
            }
            Some(Outcome::Failure(raw)) => Err(match Failure::try_from(raw) {
                Ok(failure) => failed(&CliError::Failed { doing, failure }),
                Err(source) => failed(&CliError::Reply { doing, source }),
            }),
            None => Err(Failed { kind: "reply".into(), message: format!("{doing}: the reply is empty") }),
        }
    }
}

pub(crate) async fn run(args: LoadArgs, client: &Client, output: &Output) -> Result<Ended, CliError> {
    let mut trace = Trace::read(&args.trace)?;
    trace.cut(args.from, args.minutes);
    let targets = map::resolve(&args.map, &trace)?;
    let dues = Schedule::new(&trace, args.seed, args.speedup).all();
    let mapped = |due: &&Due| targets.get(due.function as usize).is_some_and(Option::is_some);
    let count = dues.iter().filter(mapped).count();
    if count == 0 {
        return Err(CliError::NothingToSend);
    }
    known(client, &targets).await?;
    let length = Span(Duration::from_secs(60).mul_f64(trace.minutes() as f64 / args.speedup));
    let functions = targets.iter().flatten().count();
    eprintln!(
        "{count} requests of {functions} functions of the trace in {length}; {} are left out. Ctrl-C ends it.",
        dues.len() - count
    );
    let controller = Controller { client, data: &args.data, deadline: args.deadline.0 };
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    let (mut screen, mut elapsed) = (Screen::new(), Duration::ZERO);
    let tell = |progress: &Progress<'_>| {
        elapsed = progress.elapsed;
        screen.show(progress);
    };
    let tally = open_loop::run(&dues, &targets, &controller, args.under_way as usize, stop, tell).await;
    screen.end();
    let summary = Summary::of(&tally, count as u64, elapsed);
    output.answer(&summary, || summary.text())?;
    Ok(if tally.failure_count() == 0 { Ended::Well } else { Ended::Badly })
}

/// A name that was mistyped would be a run of nothing but failures.
async fn known(client: &Client, targets: &[Option<FunctionName>]) -> Result<(), CliError> {
    let doing = "list functions";
    let ask = wire::ListFunctionsRequest {};
    let reply = client.call(doing, QUICK, async |mut control| control.list_functions(ask).await).await?;
    let there = |name: &&FunctionName| reply.functions.iter().any(|row| row.name == name.as_str());
    match targets.iter().flatten().find(|name| !there(name)) {
        None => Ok(()),
        Some(unknown) => {
            let kind = medes_proto::failure::FailureKind::NotFound;
            let failure = Failure::new(kind, format!("there is no function {unknown}"));
            Err(CliError::Failed { doing: "load".into(), failure })
        }
    }
}

/// Progress, for whoever looks.
struct Screen {
    terminal: bool,
    lines: u64,
    answers: u64,
}

impl Screen {
    fn new() -> Self {
        Self { terminal: stderr().is_terminal(), lines: 0, answers: 0 }
    }

    fn show(&mut self, progress: &Progress<'_>) {
        let Progress { elapsed, under_way, left, tally } = progress;
        let rate = tally.answers() - self.answers;
        self.answers = tally.answers();
        self.lines += 1;
        if !self.terminal && self.lines % LINE_EVERY_S != 1 {
            return;
        }
        let kinds =
            [StartKind::Warm, StartKind::Unpark, StartKind::Restore, StartKind::Clone, StartKind::Cold];
        let starts: Vec<_> = kinds
            .into_iter()
            .filter(|kind| tally.of(*kind) > 0)
            .map(|kind| format!("{} {}", kind.word(), tally.of(kind)))
            .collect();
        let line = format!(
            "{:>5} s  {rate}/s  {under_way} under way, {left} left, {} late, {} failed  {}",
            elapsed.as_secs(),
            tally.late,
            tally.failure_count(),
            starts.join(", ")
        );
        let (begin, end) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let mut out = stderr().lock();
        // Nobody reads it: then nobody misses it.
        write!(out, "{begin}{line}{end}").and_then(|()| out.flush()).ok();
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}
