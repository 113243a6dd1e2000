//! `medes ps`: every sandbox, where it is in its life and what memory it takes.

use medes_proto::{
    ids::{FunctionName, NodeId},
    sandbox::{SandboxReport, SandboxState},
    wire,
};

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::{Output, Sheet},
    view::SandboxView,
};

#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// Only sandboxes of this function
    #[arg(long)]
    pub(crate) function: Option<FunctionName>,
    /// Only sandboxes on this node
    #[arg(long)]
    pub(crate) node: Option<NodeId>,
}

/// A sandbox, and where it is.
pub(crate) struct Row {
    pub(crate) report: SandboxReport,
    node: String,
}

pub(crate) async fn run(args: PsArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let mut rows = rows(client).await?;
    rows.retain(|Row { report, node }| {
        args.function.as_ref().is_none_or(|name| *name == report.function)
            && args.node.as_ref().is_none_or(|name| name.as_str() == node)
    });
    output.answer(&views(&rows), || table(&rows))
}

/// All sandboxes, by function.
pub(crate) async fn rows(client: &Client) -> Result<Vec<Row>, CliError> {
    const DOING: &str = "list sandboxes";
    let reply = client
        .call(DOING, QUICK, async |mut control| control.list_sandboxes(wire::ListSandboxesRequest {}).await)
        .await?;
    let mut rows = Vec::new();
    for wire::SandboxRow { report, node } in reply.sandboxes {
        let report = SandboxReport::try_from(report.unwrap_or_default())
            .map_err(|source| CliError::Reply { doing: DOING.into(), source })?;
        rows.push(Row { report, node });
    }
    rows.sort_by(|a, b| (&a.report.function, a.report.id).cmp(&(&b.report.function, b.report.id)));
    Ok(rows)
}

/// What `--json` prints of them.
pub(crate) fn views(rows: &[Row]) -> Vec<SandboxView> {
    rows.iter().map(|row| SandboxView::new(&row.report, Some(&row.node))).collect()
}

fn table(rows: &[Row]) -> String {
    let mut sheet = Sheet::new(&[
        "SANDBOX", "FUNCTION", "NODE", "STATE", ">FOR", ">AGE", ">PRIVATE", ">STORED", ">REQS", "NOTE",
    ]);
    for Row { report, node } in rows {
        sheet.row(vec![
            report.id.to_string(),
            report.function.to_string(),
            node.clone(),
            report.state.word().into(),
            human::age(report.state_age),
            human::age(report.age),
            human::bytes_or_dash(report.private_bytes),
            human::bytes_or_dash(report.stored_bytes),
            report.requests.to_string(),
            note(report),
        ]);
    }
    sheet.text("no sandboxes")
}

/// What the columns do not say: it cannot be dumped, it is the source of a base, how much dedup saved.
fn note(report: &SandboxReport) -> String {
    let mut notes = Vec::new();
    if let Some(why) = &report.undumpable {
        notes.push(format!("not dumpable: {why}"));
    }
    if let Some(snapshot) = report.base_snapshot {
        notes.push(snapshot.to_string());
    }
    if matches!(report.state, SandboxState::Dedup | SandboxState::Parked) {
        let part = human::percent(report.stored_bytes, crate::operate::page_bytes(report));
        notes.extend(part.map(|part| format!("{part} of its pages")));
    }
    notes.join("; ")
}
