//! `medes start|base|dedup|restore|move|purge`: one operation on one sandbox, waited for to its end.

use medes_proto::{
    WireError,
    failure::Failure,
    fleet::{SnapshotReport, Success},
    ids::{FunctionName, NodeId, SandboxId},
    sandbox::SandboxReport,
    wire::{self, operation_reply::Result as Outcome},
};
use serde::Serialize;

use crate::{
    client::{Client, OPERATION},
    error::CliError,
    human,
    output::Output,
    trace::line::page_classes,
    view::{self, PhaseView, SandboxView, SnapshotView},
};

#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// The function
    function: FunctionName,
    /// Where [default: the scheduler chooses]
    #[arg(long)]
    node: Option<NodeId>,
    /// From nothing, also where it would be a clone
    #[arg(long)]
    cold: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BaseArgs {
    /// The sandbox, as `medes ps` names it
    sandbox: SandboxId,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MoveArgs {
    /// The sandbox, as `medes ps` names it
    sandbox: SandboxId,
    /// Where [default: the node with room that uses the least memory]
    #[arg(long)]
    node: Option<NodeId>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PurgeArgs {
    /// The sandbox, as `medes ps` names it
    sandbox: SandboxId,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DigestArgs {
    /// The sandbox, as `medes ps` names it
    sandbox: SandboxId,
    /// Print a hash over all its private memory: before a dedup, after a restore
    #[arg(long)]
    digest: bool,
}

#[derive(Serialize)]
struct OperationView {
    sandbox: Option<SandboxView>,
    snapshot: Option<SnapshotView>,
    phases: Vec<PhaseView>,
    memory_digest: Option<String>,
}

#[derive(Serialize)]
struct PurgedView {
    sandbox: String,
    purged: bool,
}

pub(crate) async fn start(args: StartArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("start {}", args.function);
    let request = wire::StartSandboxRequest {
        function: args.function.into(),
        node: args.node.map(Into::into).unwrap_or_default(),
        cold: args.cold,
    };
    let reply =
        client.call(&doing, OPERATION, async |mut control| control.start_sandbox(request).await).await?;
    report(output, doing, reply, is_now)
}

pub(crate) async fn base(args: BaseArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("make a base of {}", args.sandbox);
    let request = about(args.sandbox, false);
    let reply = client.call(&doing, OPERATION, async |mut control| control.make_base(request).await).await?;
    report(output, doing, reply, |done| match &done.snapshot {
        Some(SnapshotReport { id, pages, bytes, .. }) => {
            let pages = human::count(*pages, "page", "pages");
            format!("{id} made of {}: {pages}, {}", args.sandbox, human::bytes(*bytes))
        }
        None => format!("base made of {}", args.sandbox),
    })
}

pub(crate) async fn dedup(args: DigestArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("dedup {}", args.sandbox);
    let request = about(args.sandbox, args.digest);
    let reply =
        client.call(&doing, OPERATION, async |mut control| control.dedup_sandbox(request).await).await?;
    report(output, doing, reply, |done| match &done.sandbox {
        Some(sandbox) => deduplicated(sandbox),
        None => format!("{} deduplicated", args.sandbox),
    })
}

pub(crate) async fn restore(args: DigestArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("restore {}", args.sandbox);
    let request = about(args.sandbox, args.digest);
    let reply =
        client.call(&doing, OPERATION, async |mut control| control.restore_sandbox(request).await).await?;
    report(output, doing, reply, is_now)
}

pub(crate) async fn moved(args: MoveArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("move {}", args.sandbox);
    let node = args.node.map(Into::into).unwrap_or_default();
    let request = wire::MoveSandboxRequest { sandbox: args.sandbox.get(), node };
    let reply =
        client.call(&doing, OPERATION, async |mut control| control.move_sandbox(request).await).await?;
    report(output, doing, reply, |done| match &done.sandbox {
        Some(SandboxReport { id, stored_bytes, .. }) => {
            format!("{id} is on another node: {} stored", human::bytes(*stored_bytes))
        }
        None => format!("{} moved", args.sandbox),
    })
}

pub(crate) async fn purge(args: PurgeArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("purge {}", args.sandbox);
    let request = about(args.sandbox, false);
    let reply =
        client.call(&doing, OPERATION, async |mut control| control.purge_sandbox(request).await).await?;
    checked(doing, reply)?;
    let view = PurgedView { sandbox: args.sandbox.to_string(), purged: true };
    output.answer(&view, || format!("{} purged\n", args.sandbox))
}

fn about(sandbox: SandboxId, digest_memory: bool) -> wire::SandboxRequest {
    wire::SandboxRequest { sandbox: sandbox.get(), digest_memory }
}

fn checked(doing: String, reply: wire::OperationReply) -> Result<Success, CliError> {
    let parse = || -> Result<Result<Success, Failure>, WireError> {
        Ok(match reply.result.ok_or(WireError::missing("reply.result"))? {
            Outcome::Success(wire::OperationSuccess { sandbox, snapshot, phases, memory_digest }) => {
                // The same fields as an agent's Success, checked by the same rules.
                Ok(wire::Success { sandbox, snapshot, phases, memory_digest }.try_into()?)
            }
            Outcome::Failure(failure) => Err(failure.try_into()?),
        })
    };
    match parse() {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failure)) => Err(CliError::Failed { doing, failure }),
        Err(source) => Err(CliError::Reply { doing, source }),
    }
}

fn report(
    output: &Output,
    doing: String,
    reply: wire::OperationReply,
    headline: impl FnOnce(&Success) -> String,
) -> Result<(), CliError> {
    let done = checked(doing, reply)?;
    let digest =
        done.memory_digest.map(|hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let view = OperationView {
        sandbox: done.sandbox.as_ref().map(|sandbox| SandboxView::new(sandbox, None)),
        snapshot: done.snapshot.as_ref().map(SnapshotView::from),
        phases: view::phases(&done.phases),
        memory_digest: digest.clone(),
    };
    output.answer(&view, || {
        let mut text = headline(&done) + "\n";
        if !done.phases.is_empty() {
            text += &format!("{}\n", human::phases(&done.phases));
        }
        if let Some(digest) = digest {
            text += &format!("memory digest {digest}\n");
        }
        text
    })
}

fn is_now(done: &Success) -> String {
    match &done.sandbox {
        Some(sandbox) => {
            let private = human::bytes(sandbox.private_bytes);
            format!("{} of {} is {}, {private} private", sandbox.id, sandbox.function, sandbox.state.word())
        }
        None => "done".into(),
    }
}

/// All pages its dedup looked at, in bytes.
pub(crate) fn page_bytes(sandbox: &SandboxReport) -> u64 {
    sandbox.pages.bytes()
}

fn deduplicated(sandbox: &SandboxReport) -> String {
    let before = page_bytes(sandbox);
    let stored = human::bytes(sandbox.stored_bytes);
    let part =
        human::percent(sandbox.stored_bytes, before).map(|part| format!(" ({part})")).unwrap_or_default();
    format!(
        "{} of {} is {}: {} of pages, {stored} stored{part}\n{}",
        sandbox.id,
        sandbox.function,
        sandbox.state.word(),
        human::bytes(before),
        page_classes(&sandbox.pages),
    )
}
