//! `medes top`: the cluster on one screen, live. Looks once a second, follows the trace in between.
//!
//! `model` is what is shown and what keys do, without a terminal or a clock; `screen` draws it; this file waits.

mod model;
mod screen;

use std::time::{Duration, Instant};

use crossterm::event::{Event as Typed, EventStream, KeyEventKind};
use futures::StreamExt as _;
use medes_proto::{trace::Filter, wire};
use ratatui::DefaultTerminal;
use tokio::time::MissedTickBehavior;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    output::Output,
};
use model::{Flow, Message, Model, Snapshot};

/// Between two looks at the controller's tables.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until `q` or Ctrl-C.
pub(crate) async fn run(client: &Client, output: &Output) -> Result<(), CliError> {
    if output.json() || !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err(CliError::NoTerminal);
    }
    // Before the screen is taken: an error is then read where errors are read.
    let first = look(client).await?;
    let mut terminal = ratatui::try_init().map_err(|source| CliError::Output { source })?;
    let shown = show(client, first, &mut terminal).await;
    ratatui::restore();
    shown
}

async fn look(client: &Client) -> Result<Snapshot, CliError> {
    let nodes = client.list_nodes().await?;
    let functions = client
        .call("list functions", QUICK, async |mut control| {
            control.list_functions(wire::ListFunctionsRequest {}).await
        })
        .await?;
    let sandboxes = client
        .call("list sandboxes", QUICK, async |mut control| {
            control.list_sandboxes(wire::ListSandboxesRequest {}).await
        })
        .await?;
    let snapshot = Snapshot::new(nodes, functions, sandboxes);
    snapshot.map_err(|source| CliError::Reply { doing: "look at the cluster".into(), source })
}

async fn show(client: &Client, first: Snapshot, terminal: &mut DefaultTerminal) -> Result<(), CliError> {
    let begun = Instant::now();
    let mut model = Model::new(client.address().to_string());
    model.update(begun.elapsed(), Message::Looked(first));
    let mut items = client.trace(Filter::default()).await?;
    let mut keys = EventStream::new();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| screen::draw(frame, &model)).map_err(|source| CliError::Output { source })?;
        let message = tokio::select! {
            typed = keys.next() => match typed {
                Some(Ok(Typed::Key(key))) if key.kind != KeyEventKind::Release => Message::Key(key),
                Some(Ok(_)) => continue,
                Some(Err(source)) => return Err(CliError::Output { source }),
                None => return Ok(()),
            },
            _ = tick.tick() => Message::Looked(Box::pin(look(client)).await?),
            item = client.next_item(&mut items) => match item? {
                Some(item) => Message::Item(item),
                None => return Err(client.ended("follow the trace")),
            },
        };
        if model.update(begun.elapsed(), message) == Flow::Quit {
            return Ok(());
        }
    }
}
