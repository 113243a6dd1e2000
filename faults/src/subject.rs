//! The sandbox that a cell is about: brought to where the act begins, and what the act is.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    cell::{Act, Cell},
    cluster::Cluster,
    desk::Desk,
    hosts::Place,
    http::{Answer, Asked},
    program::wait_for,
};

/// What takes long only when something is wrong.
const SOON: Duration = Duration::from_secs(15);
/// Limit of the memory of a function.
const MEMORY: &str = "256MiB";
/// After this nothing that was asked for is still under way.
const PARKED_SOON: Duration = Duration::from_secs(15);

/// What was parked is stored small by then.
const SHRUNK_SOON: Duration = Duration::from_secs(4);
/// A sandbox that was used again has given away some more by then.
const TRIMMED_SOON: Duration = Duration::from_secs(8);

/// The subject.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) function: String,
    /// Its sandbox and the last answer of it, if the act does not begin without.
    pub(crate) before: Option<Answer>,
}

impl Subject {
    pub(crate) fn sandbox(&self) -> Option<&str> {
        self.before.as_ref().map(|answer| answer.sandbox.as_str())
    }

    fn named(&self) -> Result<&str> {
        self.sandbox().context("it has no sandbox")
    }
}

/// How an act ended, as whoever asked for it saw it.
#[derive(Debug, Clone)]
pub(crate) enum Done {
    /// It was a request.
    Asked(Asked),
    /// It was asked for with `medes`, or is seen in a state: one word.
    Said(String),
}

impl Done {
    pub(crate) fn word(&self) -> String {
        match self {
            Self::Asked(asked) => asked.word(),
            Self::Said(word) => word.clone(),
        }
    }

    pub(crate) fn asked(&self) -> Option<&Asked> {
        match self {
            Self::Asked(asked) => Some(asked),
            Self::Said(_) => None,
        }
    }
}

/// Makes a function known and brings a sandbox of it to where the act begins. Answers that it gave go to `seen`.
pub(crate) fn prepare(
    cluster: &Cluster,
    cell: &Cell,
    function: String,
    seen: &mut Vec<Asked>,
) -> Result<Subject> {
    let desk = &cluster.desk;
    let mut subject = Subject { function, before: None };
    // Its base is on the node that is not at work, or on A.
    only(desk, if cell.act == Act::Clone { cell.other() } else { Place::A })?;
    cluster.apply(&subject.function, if cell.act == Act::Clone { "clone" } else { "cold" }, MEMORY)?;
    if !matches!(cell.act, Act::Launch | Act::Serve) {
        if cell.act != Act::Clone {
            // Its lender. A function that can be cloned is started once without being asked to.
            desk.start_on(Place::A, &subject.function)?;
        }
        has_snapshot(desk, &subject.function)?;
    }
    match cell.act {
        Act::Launch | Act::Clone => {
            give_up_all(desk, &subject.function)?;
            only(desk, cell.at)?;
            return Ok(subject);
        }
        _ => anywhere(desk)?,
    }
    let sandbox = desk.start_on(cell.home(), &subject.function)?;
    for _ in 0..2 {
        let asked = desk.post(&format!("{}/count", subject.function), Some(&sandbox));
        subject.before = asked.answer().cloned();
        seen.push(asked);
    }
    let answer = subject.before.as_ref().context("it does not answer")?;
    ensure!(answer.sandbox == sandbox, "{} answered for {sandbox}", answer.sandbox);
    match cell.act {
        Act::Restore | Act::Move => drop(desk.ask(&["dedup", &sandbox])?),
        Act::Unpark | Act::Shrink => {
            let state = park(desk, &sandbox)?;
            ensure!(state == "parked", "{sandbox} is {state}");
        }
        _ => {}
    }
    if cell.act == Act::Shrink {
        let asked = desk.post(&format!("{}/count", subject.function), Some(&sandbox));
        subject.before = Some(asked.answer().context("it does not answer")?.clone());
        seen.push(asked);
    }
    Ok(subject)
}

/// From now on new sandboxes are made there only.
fn only(desk: &Desk, place: Place) -> Result<()> {
    let other = if place == Place::A { Place::B } else { Place::A };
    desk.ask(&["node", "uncordon", &desk.node(place)])?;
    desk.ask(&["node", "cordon", &desk.node(other)])?;
    Ok(())
}

/// New sandboxes are made wherever there is room again.
pub(crate) fn anywhere(desk: &Desk) -> Result<()> {
    for place in [Place::A, Place::B] {
        desk.ask(&["node", "uncordon", &desk.node(place)])?;
    }
    Ok(())
}

/// Waits until there is an init snapshot of the function, which is its base as well.
fn has_snapshot(desk: &Desk, function: &str) -> Result<()> {
    let is_made = || {
        let rows = desk.rows();
        let all_warm =
            rows.iter().filter(|row| row["function"] == function).all(|row| row["state"] == "warm");
        (all_warm && holders(desk, function) > 0).then_some(())
    };
    wait_for(SOON, is_made).context("no init snapshot is made")
}

/// How many nodes hold a snapshot of a function.
fn holders(desk: &Desk, function: &str) -> usize {
    let of_it =
        |held: &Value| held.as_array().is_some_and(|held| held.iter().any(|one| one["function"] == function));
    desk.rows_of_nodes().iter().filter(|row| of_it(&row["snapshots"])).count()
}

/// Ends all sandboxes of a function.
pub(crate) fn give_up_all(desk: &Desk, function: &str) -> Result<()> {
    for row in desk.rows().iter().filter(|row| row["function"] == function) {
        if let Some(sandbox) = row["sandbox"].as_str() {
            // One that is gone meanwhile needs not be.
            desk.medes(&["purge", sandbox])?;
        }
    }
    Ok(())
}

/// Has a sandbox parked, by a policy for which it has been idle for long; the state that it comes to.
fn park(desk: &Desk, sandbox: &str) -> Result<String> {
    desk.ask(&["policy", "set", "park=true", "idle=300ms"])?;
    let parked = || {
        let state = desk.state(sandbox);
        ["parked", "gone"].contains(&state.as_str()).then_some(state)
    };
    let state = wait_for(PARKED_SOON, parked);
    // The controller may be another one by now, which knows nothing of it.
    desk.medes(&["policy", "set", "park=false", "idle=1h"])?;
    Ok(state.unwrap_or_else(|| desk.state(sandbox)))
}

/// Does the act, and waits for its end.
pub(crate) fn act(desk: &Desk, cell: &Cell, subject: &Subject) -> Result<Done> {
    let path = format!("{}/count", subject.function);
    let said = |words: &[&str]| -> Result<Done> {
        let (code, value) = desk.medes(words)?;
        let kind = value["error"]["kind"].as_str().unwrap_or("no word");
        Ok(Done::Said(if code == 0 { "done".into() } else { kind.to_owned() }))
    };
    match cell.act {
        Act::Launch | Act::Clone => Ok(Done::Asked(desk.post(&path, None))),
        Act::Serve => Ok(Done::Asked(desk.post(&path, subject.sandbox()))),
        Act::Restore | Act::Unpark => Ok(Done::Asked(desk.post(&path, Some(subject.named()?)))),
        Act::Dedup => said(&["dedup", subject.named()?]),
        Act::Evict => said(&["purge", subject.named()?]),
        Act::Move => said(&["move", subject.named()?, "--node", &desk.node(Place::B)]),
        Act::Park => Ok(Done::Said(park(desk, subject.named()?)?)),
        Act::Shrink => {
            let state = park(desk, subject.named()?)?;
            thread::sleep(SHRUNK_SOON);
            Ok(Done::Said(state))
        }
        Act::Trim => {
            thread::sleep(TRIMMED_SOON);
            Ok(Done::Said(desk.state(subject.named()?)))
        }
        Act::Replicate => {
            let done = said(&["dedup", subject.named()?])?;
            let both = || (holders(desk, &subject.function) == 2).then_some(());
            let copied = wait_for(PARKED_SOON, both).is_some();
            Ok(if copied { Done::Said("copied".into()) } else { done })
        }
    }
}
