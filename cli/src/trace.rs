//! `medes trace`: what the cluster decides, as it happens; into a file and from one.

pub(crate) mod line;
mod recording;

use std::path::PathBuf;

use medes_proto::{
    ids::{FunctionName, NodeId, SandboxId},
    trace::{Event, Filter, Item, TraceKind},
    wire,
};
use tonic::Streaming;

use crate::{
    client::Client,
    error::{CliError, Ended},
    output::Output,
};
pub(crate) use recording::RecordingError;
use recording::{Entry, Reader, Recorder};

/// Follow decisions and state changes live.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// Only events about this function
    #[arg(long)]
    function: Option<FunctionName>,
    /// Only events on this node
    #[arg(long)]
    node: Option<NodeId>,
    /// Only events about this sandbox
    #[arg(long)]
    sandbox: Option<SandboxId>,
    /// Only events of this kind; may be given more than once
    #[arg(long = "kind", value_name = "KIND", value_parser = kinds())]
    kinds: Vec<TraceKind>,
    /// Also write what is shown to this file, which must not exist
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    record: Option<PathBuf>,
    /// Show a recording instead of asking the controller
    #[arg(long, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,
}

fn kinds() -> impl clap::builder::TypedValueParser<Value = TraceKind> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    let words = PossibleValuesParser::new(TraceKind::ALL.map(TraceKind::word));
    words.map(|word| {
        TraceKind::ALL.into_iter().find(|kind| kind.word() == word).unwrap_or(TraceKind::Unspecified)
    })
}

impl TraceArgs {
    fn filter(&self) -> Filter {
        Filter {
            function: self.function.clone(),
            node: self.node.clone(),
            sandbox: self.sandbox,
            kinds: self.kinds.clone(),
        }
    }
}

/// Where events go: to standard output, and to a file if one was named.
struct Sink<'a> {
    output: &'a Output,
    recorder: Option<Recorder>,
}

impl Sink<'_> {
    /// `false`: nobody reads standard output any more.
    fn begin(&self) -> Result<bool, CliError> {
        match self.output.json() {
            true => self.output.stream(recording::header().as_bytes()),
            false => self.output.stream(line::heading().as_bytes()),
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<bool, CliError> {
        if let Some(recorder) = &mut self.recorder {
            recorder.write(entry)?;
        }
        let text = match (self.output.json(), entry) {
            (true, entry) => recording::to_line(entry),
            (false, Entry::Event(event)) => line::line(event),
            (false, Entry::Dropped(count)) => line::dropped(*count),
        };
        self.output.stream(text.as_bytes())
    }
}

/// Shows a recording.
pub(crate) fn replay(args: &TraceArgs, output: &Output) -> Result<(), CliError> {
    let Some(path) = &args.replay else { return Ok(()) };
    let filter = args.filter();
    let mut sink = Sink { output, recorder: None };
    let reader = Reader::open(path)?;
    let mut read_on = sink.begin()?;
    for entry in reader {
        let entry = entry?;
        let wanted = match &entry {
            Entry::Event(event) => wants(&filter, event),
            Entry::Dropped(_) => true,
        };
        if read_on && wanted {
            read_on = sink.entry(&entry)?;
        }
    }
    Ok(())
}

fn wants(filter: &Filter, event: &Event) -> bool {
    filter.wants(&event.about, event.what.kind())
}

/// Follows the controller until Ctrl-C, until nobody reads any more, or until the controller ends.
pub(crate) async fn run(args: TraceArgs, client: &Client, output: &Output) -> Result<Ended, CliError> {
    let mut items = client.trace(args.filter()).await?;
    let recorder = args.record.map(|path| Recorder::create(&path)).transpose()?;
    let mut sink = Sink { output, recorder };
    let follow = follow(&mut items, client, &mut sink);
    tokio::select! {
        ended = Box::pin(follow) => ended.map(|()| Ended::Well),
        _ = tokio::signal::ctrl_c() => Ok(Ended::Well),
    }
}

async fn follow(
    items: &mut Streaming<wire::TraceItem>,
    client: &Client,
    sink: &mut Sink<'_>,
) -> Result<(), CliError> {
    while let Some(item) = client.next_item(items).await? {
        let read_on = match item {
            Item::Begin => {
                if let Some(recorder) = &mut sink.recorder {
                    recorder.begin()?;
                }
                sink.begin()?
            }
            Item::Event(event) => sink.entry(&Entry::Event(event))?,
            Item::Dropped(count) => sink.entry(&Entry::Dropped(count))?,
        };
        if !read_on {
            return Ok(());
        }
    }
    Err(client.ended("follow the trace"))
}
