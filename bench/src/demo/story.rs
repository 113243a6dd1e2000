//! What happens to one function in the demo, from top to bottom, and what is compared on the way.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use medes_proto::ids::SandboxId;
use serde_json::{Value, json};

use super::report::{Figures, Pages};
use crate::{
    control::{Control, View},
    gateway::{self, Answer, Phase},
};

const WARM_REQUESTS: u64 = 5;
/// The request whose answers are compared. Apart from the others, so that no cache can know it.
const COMPARED: u64 = 1_000_007;

/// Where a story takes place.
pub(super) struct Stage<'a> {
    pub(super) control: &'a mut Control,
    pub(super) gateway: &'a str,
    pub(super) function: &'a str,
    /// Where a sandbox is started from nothing, and where its clone lives.
    pub(super) nodes: &'a [String; 2],
    /// How long a node keeps what only helps to store the next sandbox.
    pub(super) settle: Duration,
}

/// One sandbox comes up from nothing, and one as a clone of the function's init snapshot. The clone is deduplicated, answers a request and is
/// then taken through dedup and restore once more with its memory hashed before and after.
pub(super) async fn tell(stage: &mut Stage<'_>) -> Result<Figures> {
    let (holder, bytes) = stage.control.wait_for_init(stage.function).await?;
    say("init snapshot", &format!("{} on {holder}, taken before the first request", mib(bytes)));
    let (_, cold, cold_answer) = stage.start(0, true).await?;
    let (sandbox, clone, clone_answer) = stage.start(1, false).await?;
    say("cold start", &format!("{cold:.0} ms"));
    say("clone", &format!("{clone:.0} ms, {:.2} of that", clone / cold.max(f64::MIN_POSITIVE)));

    let warm_ms = stage.warm_requests(sandbox).await?;
    let before = stage.ask(sandbox, COMPARED, "warm").await?;
    say("requests", &format!("{warm_ms:.1} ms each when warm"));

    let view_before = stage.control.fresh_view().await?;
    let private_bytes = private_bytes(&view_before, sandbox)?;
    let dedup = stage.control.dedup(sandbox, false).await?;
    tokio::time::sleep(stage.settle).await;
    let view_after = stage.control.fresh_view().await?;
    let node_bytes = [used_bytes(&view_before, &stage.nodes[1])?, used_bytes(&view_after, &stage.nodes[1])?];
    let stored_bytes = dedup.report.stored_bytes;
    say(
        "dedup",
        &format!(
            "{sandbox} from {} to {} in {:.0} ms; {} s later the node had freed {}",
            mib(private_bytes),
            mib(stored_bytes),
            dedup.wall_ms,
            stage.settle.as_secs(),
            mib(node_bytes[0].saturating_sub(node_bytes[1])),
        ),
    );

    let after = stage.ask(sandbox, COMPARED, "restore").await?;
    let restore_ms = phase_ms(&after.answer.phases, "restore")?;
    let mut answers_match = before.continues_in(&after);
    let verdict = if answers_match { "same answer" } else { "ANOTHER ANSWER" };
    say("request", &format!("restored in {restore_ms:.0} ms, {verdict}"));

    let hashed = stage.control.dedup(sandbox, true).await?;
    let hashed_again = stage.control.restore(sandbox, true).await?;
    ensure!(!hashed.memory_digest.is_empty(), "dedup of {sandbox} gave no memory digest");
    let memory_match = hashed.memory_digest == hashed_again.memory_digest;
    let last = stage.ask(sandbox, COMPARED, "warm").await?;
    answers_match &= after.continues_in(&last);
    say("hash of its memory", if memory_match { "same before and after" } else { "DIFFERS after restore" });

    Ok(Figures {
        private_bytes,
        stored_bytes,
        stored_fraction: stored_bytes as f64 / private_bytes.max(1) as f64,
        node_bytes_before: node_bytes[0],
        node_bytes_after: node_bytes[1],
        cold_ms: cold,
        cold_answer_ms: cold_answer,
        clone_ms: clone,
        clone_answer_ms: clone_answer,
        warm_ms,
        dedup_ms: dedup.wall_ms,
        restore_ms,
        restore_answer_ms: after.answer.wall_ms,
        answers_match,
        memory_match,
        pages: dedup.report.pages.map(Pages::from),
        dedup_phases: by_name(&dedup.phases),
        restore_phases: by_name(&after.answer.phases),
        restore_steps: by_name(&hashed_again.phases),
    })
}

/// An answer of one of our functions.
struct Reply {
    answer: Answer,
    result: Value,
    seed: u64,
    served: u64,
}

impl Reply {
    /// Whether `next` is what the same process answers to the same request, right after this one.
    fn continues_in(&self, next: &Self) -> bool {
        self.result == next.result && self.seed == next.seed && self.served + 1 == next.served
    }
}

impl Stage<'_> {
    /// Starts a sandbox and asks it once. Returns the time to readiness, and to the first answer.
    async fn start(&mut self, node: usize, cold: bool) -> Result<(SandboxId, f64, f64)> {
        let (sandbox, done) = self.control.start(self.function, &self.nodes[node], cold).await?;
        let first = self.ask(sandbox, 0, "warm").await?;
        Ok((sandbox, done.wall_ms, done.wall_ms + first.answer.wall_ms))
    }

    /// Asks several times; the median time.
    async fn warm_requests(&self, sandbox: SandboxId) -> Result<f64> {
        let mut times = Vec::new();
        for n in 1..=WARM_REQUESTS {
            times.push(self.ask(sandbox, n, "warm").await?.answer.wall_ms);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Asks one given sandbox, and makes sure that it was this one that answered, started as expected.
    async fn ask(&self, sandbox: SandboxId, n: u64, start: &str) -> Result<Reply> {
        let body = json!({ "n": n }).to_string();
        let answer = gateway::invoke(self.gateway, self.function, Some(sandbox), body).await?;
        if answer.sandbox != sandbox || answer.start != start {
            bail!(
                "asked {sandbox} for a {start} start, {} answered after a {} start",
                answer.sandbox,
                answer.start
            );
        }
        let value: Value = serde_json::from_slice(&answer.body).context("read the answer")?;
        let number = |key: &str| value[key].as_u64().with_context(|| format!("the answer has no {key}"));
        let (seed, served) = (number("seed")?, number("served")?);
        let result = value.get("result").context("the answer has no result")?.clone();
        Ok(Reply { answer, result, seed, served })
    }
}

fn private_bytes(view: &View, sandbox: SandboxId) -> Result<u64> {
    let mut reports = view.sandboxes.iter().filter_map(|row| row.report.as_ref());
    let report = reports.find(|report| report.sandbox == sandbox.get());
    Ok(report.with_context(|| format!("{sandbox} is in no list"))?.private_bytes)
}

fn used_bytes(view: &View, node: &str) -> Result<u64> {
    let row = view.nodes.iter().find(|row| row.node == node);
    let memory = row.and_then(|row| row.memory.as_ref());
    Ok(memory.with_context(|| format!("{node} does not tell its memory"))?.used_bytes)
}

fn phase_ms(phases: &[Phase], name: &str) -> Result<f64> {
    let phase = phases.iter().find(|phase| phase.name == name);
    Ok(phase.with_context(|| format!("the answer tells no time for {name}"))?.ms)
}

fn by_name(phases: &[Phase]) -> BTreeMap<String, f64> {
    phases.iter().map(|phase| (phase.name.clone(), phase.ms)).collect()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn say(what: &str, how: &str) {
    eprintln!("    {what:<20}{how}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(result: u64, seed: u64, served: u64) -> Reply {
        let answer = Answer {
            body: "".into(),
            start: "warm".into(),
            sandbox: SandboxId::of(1, 1).unwrap(),
            phases: Vec::new(),
            wall_ms: 1.0,
        };
        Reply { answer, result: json!(result), seed, served }
    }

    #[test]
    fn only_the_same_process_with_the_same_answer_continues() {
        let before = reply(5, 1, 7);
        assert!(before.continues_in(&reply(5, 1, 8)));
        assert!(!before.continues_in(&reply(6, 1, 8)), "another answer");
        assert!(!before.continues_in(&reply(5, 2, 8)), "another process");
        assert!(!before.continues_in(&reply(5, 1, 7)), "state from before the last request");
    }
}
