//! One round: a new sandbox of somebody who guesses holds what it guesses, is put away, and is wanted back.

use anyhow::{Context, Result, ensure};
use medes_proto::ids::SandboxId;
use serde::Deserialize;

use crate::{
    cluster::Addresses,
    control::Control,
    gateway::{self, Answer},
};

/// What somebody who guesses is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shown {
    /// What is stored of the sandbox.
    pub(super) stored_bytes: f64,
    pub(super) dedup_ms: f64,
    /// Until the first answer after it, which looks at every page.
    pub(super) restore_ms: f64,
}

/// The part of an answer that follows from the bytes.
#[derive(Deserialize)]
struct Held {
    result: String,
}

fn held(answer: &Answer) -> Result<String> {
    let Held { result } = serde_json::from_slice(&answer.body).context("read the answer")?;
    Ok(result)
}

/// The bytes that follow from this number; 0: those that are there.
pub(super) async fn hold(at: &Addresses, function: &str, sandbox: SandboxId, number: u64) -> Result<Answer> {
    let answer =
        gateway::invoke(&at.gateway, function, Some(sandbox), format!("{{\"n\": {number}}}")).await?;
    ensure!(answer.sandbox == sandbox, "{} answered for {sandbox}", answer.sandbox);
    Ok(answer)
}

pub(super) async fn round(
    control: &mut Control,
    at: &Addresses,
    (function, node): (&str, &str),
    number: u64,
) -> Result<Shown> {
    let (sandbox, _) = control.start(function, node, true).await?;
    let before = hold(at, function, sandbox, number).await.context("have it hold what is guessed")?;
    let done = control.dedup(sandbox, false).await?;
    let answer = hold(at, function, sandbox, 0).await.context("want it back")?;
    ensure!(answer.start == "restore", "it came back by {}", answer.start);
    ensure!(held(&before)? == held(&answer)?, "it came back with other bytes");
    // Else the next guess would find this one.
    control.purge(sandbox).await?;
    Ok(Shown {
        stored_bytes: done.report.stored_bytes as f64,
        dedup_ms: done.wall_ms,
        restore_ms: answer.wall_ms,
    })
}
