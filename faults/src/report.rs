//! What came of each cell: a line as it is done, a table at the end, and files for machines.

use std::{fs, io::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::{cell::Cell, subject::Done};

/// What became of what a cell was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lost {
    /// It goes on where it was.
    Nothing,
    /// It is gone, and another one took its place.
    WarmState,
    /// There was none before.
    NoSubject,
}

impl Lost {
    const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::WarmState => "warm state",
            Self::NoSubject => "-",
        }
    }
}

/// A cell that was carried out, or could not be.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) act: &'static str,
    pub(crate) step: Option<&'static str>,
    pub(crate) fault: String,
    /// Where bases are.
    pub(crate) cell: String,
    /// How the act ended, for whoever asked for it: the start kind of its answer, or a word why not.
    pub(crate) saw: String,
    pub(crate) act_seconds: f64,
    pub(crate) lost: Lost,
    /// From the end of the fault to both nodes attached and an answer.
    pub(crate) recovery_seconds: f64,
    /// Requests of others meanwhile, and how those ended that were not answered.
    pub(crate) others: usize,
    pub(crate) others_unanswered: Vec<String>,
    /// What must not be.
    pub(crate) wrong: Vec<String>,
    /// Why it could not be carried out here.
    pub(crate) skipped: Option<String>,
}

impl Outcome {
    pub(crate) fn new(
        cell: &Cell,
        done: &Done,
        (act, recovery): (Duration, Duration),
        (kept, had_subject): (bool, bool),
        (others, others_unanswered): (usize, Vec<String>),
        wrong: Vec<String>,
    ) -> Self {
        let lost = match (had_subject, kept) {
            (false, _) => Lost::NoSubject,
            (true, true) => Lost::Nothing,
            (true, false) => Lost::WarmState,
        };
        Self {
            act_seconds: act.as_secs_f64(),
            recovery_seconds: recovery.as_secs_f64(),
            saw: done.word(),
            lost,
            others,
            others_unanswered,
            ..Self::not(cell, wrong, None)
        }
    }

    /// One that was not carried out: something around it went wrong, or it cannot be here.
    pub(crate) fn not(cell: &Cell, wrong: Vec<String>, skipped: Option<String>) -> Self {
        let (act, fault) = (cell.act.word(), cell.fault.word());
        Self {
            act,
            step: cell.step,
            fault,
            cell: cell.name(),
            wrong,
            skipped,
            ..Self::of_the_end(Vec::new())
        }
    }

    /// Of a cluster that has left something behind when it was told to end.
    pub(crate) fn of_the_end(left: Vec<String>) -> Self {
        let wrong = left.into_iter().map(|one| format!("left behind: {one}")).collect();
        Self {
            act: "end",
            step: None,
            fault: "-".into(),
            cell: "the end of a cluster".into(),
            saw: "-".into(),
            act_seconds: 0.0,
            lost: Lost::NoSubject,
            recovery_seconds: 0.0,
            others: 0,
            others_unanswered: Vec::new(),
            wrong,
            skipped: None,
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty()
    }

    /// Said when it is done.
    pub(crate) fn line(&self) -> String {
        if let Some(why) = &self.skipped {
            return format!("SKIPPED {}: {why}", self.cell);
        }
        let word = if self.is_good() { "ok    " } else { "FAILED" };
        let mut line = format!(
            "{word} {}: saw {}, lost {}, well after {:.1} s",
            self.cell,
            self.saw,
            self.lost.word(),
            self.recovery_seconds
        );
        for wrong in &self.wrong {
            line += &format!("\n       {}", wrong.replace('\n', "\n         "));
        }
        line
    }
}

/// The table of all of them.
pub(crate) fn table(all: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["doing", "step", "fault", "the client saw", "lost", "well after", "others", ""]);
    for one in all.iter().filter(|one| one.skipped.is_none()) {
        let unanswered = one.others_unanswered.len();
        table.add_row([
            one.act.to_owned(),
            one.step.unwrap_or("-").to_owned(),
            one.fault.clone(),
            format!("{} ({:.1} s)", one.saw, one.act_seconds),
            one.lost.word().to_owned(),
            format!("{:.1} s", one.recovery_seconds),
            format!("{} answered, {unanswered} not", one.others - unanswered),
            if one.is_good() { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    table
}

/// The same for machines: `matrix.json` and `matrix.csv`.
pub(crate) fn write(all: &[Outcome], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let json = serde_json::to_string_pretty(all).context("write JSON")?;
    fs::write(folder.join("matrix.json"), json + "\n").context("write matrix.json")?;
    let mut csv = Vec::new();
    writeln!(csv, "act,step,fault,saw,act_seconds,lost,recovery_seconds,others,others_unanswered,result")?;
    for one in all {
        let result = match (&one.skipped, one.is_good()) {
            (Some(_), _) => "skipped",
            (None, true) => "ok",
            (None, false) => "failed",
        };
        let step = one.step.unwrap_or("");
        writeln!(
            csv,
            "{},{step},{},{},{:.3},{},{:.3},{},{},{result}",
            one.act,
            one.fault.replace(',', ";"),
            one.saw,
            one.act_seconds,
            one.lost.word(),
            one.recovery_seconds,
            one.others,
            one.others_unanswered.len()
        )?;
    }
    fs::write(folder.join("matrix.csv"), csv).context("write matrix.csv")
}
