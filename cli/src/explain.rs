//! `medes explain`: why a sandbox is in its state, what else could have become of it, and its history.

use medes_proto::{
    ids::SandboxId,
    sandbox::{Activity, SandboxReport, Wakes, WriteHeat},
    trace::{Choice, Event, Explanation, What},
    wire,
};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::{Output, plain},
    trace::line,
    view::SandboxView,
};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// The sandbox, as `medes ps` names it
    sandbox: SandboxId,
}

/// What `--json` prints.
#[derive(Serialize)]
pub(crate) struct ExplainView<'a> {
    sandbox: String,
    now: Option<SandboxView>,
    change: Option<&'a Event>,
    decision: Option<&'a Event>,
    review: Option<&'a Event>,
    history: &'a [Event],
    forgotten: u64,
}

pub(crate) async fn run(args: &ExplainArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let explained = ask(client, args.sandbox).await?;
    output.answer(&view(args.sandbox, &explained), || text(args.sandbox, &explained))
}

/// Asks the controller.
pub(crate) async fn ask(client: &Client, sandbox: SandboxId) -> Result<Explanation, CliError> {
    let doing = format!("explain {sandbox}");
    let request = wire::ExplainRequest { sandbox: sandbox.get() };
    let reply = client.call(&doing, QUICK, async |mut control| control.explain(request).await).await?;
    Explanation::try_from(reply).map_err(|source| CliError::Reply { doing, source })
}

pub(crate) fn view(sandbox: SandboxId, explained: &Explanation) -> ExplainView<'_> {
    ExplainView {
        sandbox: sandbox.to_string(),
        now: explained.now.as_ref().map(|(report, node)| SandboxView::new(report, Some(node.as_str()))),
        change: explained.change.as_ref(),
        decision: explained.decision.as_ref(),
        review: explained.review.as_ref(),
        history: &explained.history,
        forgotten: explained.forgotten,
    }
}

fn text(id: SandboxId, explained: &Explanation) -> String {
    let mut text = match &explained.now {
        Some((report, node)) => {
            let (state, age) = (report.state.word(), human::age(report.state_age));
            format!("{id} of {} on {node} is {state}, for {age}\n", report.function) + &seen(report)
        }
        None => format!("{id} is gone\n"),
    };
    if let Some(change) = &explained.change {
        text += &format!("last change: {} at {}\n", told(change), line::time(change.unix_micros));
    }
    match &explained.decision {
        Some(decision) => {
            let (id, at) = (decision.id, line::time(decision.unix_micros));
            text += &format!("decision:    {id} ({}) at {at}\n", decision.what.kind().word());
            text += &details(decision);
        }
        None => text += "decision:    none is remembered\n",
    }
    let decided = explained.decision.as_ref().map(|decision| decision.id);
    if let Some(review) = explained.review.as_ref().filter(|review| Some(review.id) != decided) {
        text += &format!("the policy last said, at {}:\n{}", line::time(review.unix_micros), details(review));
    }
    text += &match explained.forgotten {
        0 => "history:\n".into(),
        forgotten => format!("history (the first {forgotten} are forgotten):\n"),
    };
    text + &explained.history.iter().map(line::line).collect::<String>()
}

/// What the kernel says of it: who is woken again and again is seen here.
fn seen(report: &SandboxReport) -> String {
    let mut lines = String::new();
    if let Some(Activity { cpu, quiet, wakes }) = report.activity {
        let work =
            if quiet.is_zero() { "works".into() } else { format!("no work for {}", human::took(quiet)) };
        let wakes = wakes.map_or_else(String::new, |Wakes { all, by_timer }| {
            format!(", woken {}, {by_timer} of these by timers", human::count(all, "time", "times"))
        });
        lines += &format!("its tasks:   {work}; {} on CPUs{wakes}\n", human::took(cpu));
    }
    let WriteHeat { windows, hot_pages, warm_pages, written_pages, touched_pages } = report.heat;
    if windows > 0 {
        let windows = human::count(windows.into(), "window", "windows");
        lines += &format!(
            "its pages:   {hot_pages} hot, {warm_pages} warm in {windows} of requests; {written_pages} written and \
             {touched_pages} touched in the last\n"
        );
    }
    lines
}

fn told(event: &Event) -> String {
    plain(&line::what(&event.what))
}

fn details(event: &Event) -> String {
    match &event.what {
        What::Review(choice) | What::Start(choice) | What::Eviction(choice) | What::Move(choice) => {
            choice_lines(choice)
        }
        _ => format!("  {}\n", told(event)),
    }
}

fn choice_lines(choice: &Choice) -> String {
    let mut text = format!("  chosen:    {}\n", plain(&line::alternative(&choice.chosen)));
    for option in &choice.rejected {
        text += &format!("  rejected:  {}\n", plain(&line::alternative(option)));
    }
    if !choice.facts.is_empty() {
        let facts: Vec<_> = choice.facts.iter().map(line::fact).collect();
        text += &format!("  looked at: {}\n", plain(&facts.join(", ")));
    }
    text
}
