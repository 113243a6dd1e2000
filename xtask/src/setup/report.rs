//! What setup says: the plan before, the outcome after.

use anyhow::{Context, Result};
use serde::Serialize;

use super::machine::Machine;
use super::{Outcome, Part, apt};

/// One part, for programs.
#[derive(Serialize)]
struct Line<'a> {
    part: &'static str,
    state: &'static str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
}

/// Prints what would be done.
pub(super) fn plan(machine: &Machine, parts: &[Part], json: bool) -> Result<()> {
    let mut apt = apt::Apt::new(machine);
    let mut lines = Vec::new();
    for part in parts {
        let (state, detail) = match &part.found {
            Ok(there) => ("ready", there),
            Err(missing) => ("missing", missing),
        };
        let mut commands = Vec::new();
        if part.found.is_err() {
            match apt.steps(&part.packages) {
                Ok(first) => commands.extend(first.iter().chain(&part.steps).map(ToString::to_string)),
                Err(cannot) => commands.push(format!("# {cannot}. {}", part.by_hand)),
            }
            if commands.is_empty() {
                commands.push(format!("# {}", part.by_hand));
            }
        }
        lines.push(Line { part: part.name.text(), state, detail, without: None, commands });
    }
    print(&lines, json)
}

/// Prints what is there now.
pub(super) fn outcome(outcomes: &[(Part, Outcome)], json: bool) -> Result<()> {
    let lines: Vec<Line<'_>> = outcomes
        .iter()
        .map(|(part, outcome)| {
            let there = part.found.as_ref().map_or_else(String::as_str, String::as_str);
            let (state, detail, without) = match outcome {
                Outcome::Ready => ("ready", there, None),
                Outcome::Installed => ("installed", there, None),
                Outcome::Missing(why) => ("missing", why.as_str(), Some(part.without)),
            };
            Line { part: part.name.text(), state, detail, without, commands: Vec::new() }
        })
        .collect();
    print(&lines, json)
}

fn print(lines: &[Line<'_>], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(lines).context("write the outcome as JSON")?);
        return Ok(());
    }
    for line in lines {
        println!("{:<7} {:<10} {}", line.part, line.state, line.detail);
        if let Some(without) = line.without {
            println!("{:19}without it, {without}", "");
        }
        for command in &line.commands {
            println!("    {command}");
        }
    }
    Ok(())
}
