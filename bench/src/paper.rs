//! The experiments of the paper, repeated, and what people would use instead: each leaves raw CSV, a README and its part of one report.
//!
//! Each is a subcommand. `paper` starts one after the other as a process of its own, so that none inherits threads, memory or mounts of
//! another, and goes on when one fails: the report says so.

pub(crate) mod csv;
mod dumped;
mod instead;
mod leave;
mod memory;
mod overheads;
mod policies;
mod published;
mod redundancy;
mod report;
mod section;
mod sensitivity;
mod startup;
mod workload;

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    experiment::{self, Became},
    functions::{self, Candidate, Function, Places},
    station::{self, Station},
};
use leave::Found;
use section::Section;

/// What to measure on, how long, and where to leave it. The same for every experiment, so that one command line serves all.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Few functions, few rounds, short traces: minutes. The default
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All functions, many rounds, whole hours of the trace: hours
    #[arg(long)]
    full: bool,
    /// Only these functions, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    functions: Vec<String>,
    /// For arrivals, and for what is drawn by lot
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Recorded arrivals, in the format of `bench sim`; made up if absent
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The first minute of the trace
    #[arg(long, default_value_t = 0, value_name = "MINUTE")]
    from: usize,
    /// What sandboxes take and hold, as `bench calibrate` writes it; the one in the repository if absent
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Also what changes the whole machine for a while: KSM, and swap on zram. Both are put back at the end
    #[arg(long)]
    host_wide: bool,
    /// Folder for all that is found
    #[arg(long, default_value = "target/bench/paper", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// Everything, or some of it.
#[derive(Debug, Args)]
pub(crate) struct All {
    /// Only these experiments, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    #[command(flatten)]
    options: Options,
}

/// One experiment.
pub(crate) struct Experiment {
    name: &'static str,
    run: fn(&Options, &mut Found) -> Result<()>,
}

pub(crate) const REDUNDANCY: Experiment = Experiment { name: "redundancy", run: redundancy::run };
pub(crate) const STARTUP: Experiment = Experiment { name: "startup", run: startup::run };
pub(crate) const POLICIES: Experiment = Experiment { name: "policies", run: policies::run };
pub(crate) const MEMORY: Experiment = Experiment { name: "memory", run: memory::run };
pub(crate) const SENSITIVITY: Experiment = Experiment { name: "sensitivity", run: sensitivity::run };
pub(crate) const INSTEAD: Experiment = Experiment { name: "instead", run: instead::run };
pub(crate) const OVERHEADS: Experiment = Experiment { name: "overheads", run: overheads::run };

/// In the order of the report.
const EXPERIMENTS: [Experiment; 7] = [REDUNDANCY, STARTUP, POLICIES, MEMORY, SENSITIVITY, INSTEAD, OVERHEADS];

/// The functions of quick runs: small, with a numeric library, large.
const QUICK_FUNCTIONS: [&str; 3] = ["linalg", "html", "feature"];
const LAST_LINES: usize = 20;

impl Options {
    /// A number for quick runs, another one for full ones.
    fn by_size<T>(&self, quick: T, full: T) -> T {
        if self.full { full } else { quick }
    }

    /// The functions to measure.
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let quick: Vec<String> = QUICK_FUNCTIONS.iter().map(|name| (*name).to_owned()).collect();
        let wanted = match (self.functions.is_empty(), self.full) {
            (false, _) => &self.functions,
            (true, true) => &Vec::new(),
            (true, false) => &quick,
        };
        functions::find(&self.places.functions_dir, wanted)
    }

    /// Measures each function on a node in this process. What becomes of a function that fails or cannot run here is told in the
    /// section; the others are measured all the same. Call it before any thread exists.
    fn on_station<T>(
        &self,
        section: &mut Section,
        measure: impl AsyncFnMut(&mut Station, &Function) -> Result<T>,
        mut keep: impl FnMut(&mut Section, String, T),
    ) -> Result<()> {
        let candidates = self.candidates()?;
        let agent = self.places.program("medes-agent")?;
        let mut measured = 0;
        station::at(agent, async |station: &mut Station| {
            experiment::each(station, candidates, measure, |function, became| {
                match became {
                    Became::Measured(found) => {
                        measured += 1;
                        keep(section, function, found);
                    }
                    Became::Skipped(reason) => section.warn(format!("{function} was skipped: {reason}")),
                    Became::Failed(error) => section.warn(format!("{function} failed: {error:#}")),
                }
                Ok(())
            })
            .await
        })?;
        ensure!(measured > 0, "no function could be measured");
        Ok(())
    }
}

/// One experiment, in this process. Call it before any thread exists.
pub(crate) fn one(options: &Options, experiment: &Experiment) -> Result<ExitCode> {
    let name = experiment.name;
    experiment::warn_of_debug_build(name);
    let (began, mut found) = (Instant::now(), Found::default());
    let done = (experiment.run)(options, &mut found);
    if let Err(error) = &done {
        found.section.warn(format!("It ended before it was complete: {error:#}"));
    }
    println!("{}", found.section.text());
    // What was measured is kept, even if the end was a bad one.
    leave::leave(&options.out, name, found, (options.seed, began.elapsed()))?;
    println!("written to {}", options.out.join(name).display());
    done.map(|()| ExitCode::SUCCESS)
}

/// All experiments, one after the other.
pub(crate) fn main(All { only, options }: &All) -> Result<ExitCode> {
    let known = |name: &String| EXPERIMENTS.iter().any(|one| one.name == name);
    if let Some(unknown) = only.iter().find(|name| !known(name)) {
        let names: Vec<&str> = EXPERIMENTS.iter().map(|one| one.name).collect();
        bail!("no experiment is called {unknown:?}; there are {}", names.join(", "));
    }
    let mut good = true;
    for Experiment { name, .. } in &EXPERIMENTS {
        if !only.is_empty() && !only.iter().any(|one| one == name) {
            continue;
        }
        eprintln!("== {name}");
        let folder = options.out.join(name);
        forget(&folder)?;
        if let Err(error) = child(name) {
            eprintln!("{name}: {error:#}");
            good = false;
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            // One that told its section itself has said there what went wrong.
            if !folder.join(leave::SECTION).exists() {
                let path = folder.join(leave::FAILED);
                fs::write(&path, format!("{error:#}\n"))
                    .with_context(|| format!("write {}", path.display()))?;
            }
        }
    }
    report::write(&options.out)?;
    println!("the report is {}", options.out.join("report.html").display());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an earlier run left would stand in the report as if it were of this one.
fn forget(folder: &Path) -> Result<()> {
    for path in [leave::SECTION, leave::FAILED].map(|name| folder.join(name)) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// This program with the same options, for one experiment. What it says goes to the terminal; its last lines are kept for the error.
fn child(name: &str) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .arg(name)
        .args(passed_on(std::env::args_os().skip(2)))
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let mut last = VecDeque::new();
    let said = child.stderr.take().context("it has no standard error")?;
    for line in BufReader::new(said).lines() {
        let line = line.context("read what it says")?;
        eprintln!("{line}");
        last.push_back(line);
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    let status = child.wait().with_context(|| format!("wait for {name}"))?;
    let last: Vec<String> = last.into();
    ensure!(status.success(), "it ended with {status}\n{}", last.join("\n"));
    Ok(())
}

/// Arguments of `paper` without those that are for it alone.
fn passed_on(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut passed = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--only" {
            arguments.next();
        } else if !text.starts_with("--only=") {
            passed.push(argument);
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_have_all_options_but_which_to_run() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let passed = |text: &str| passed_on(words(text).into_iter());
        assert_eq!(passed("--full --only instead,startup --seed 3"), words("--full --seed 3"));
        assert_eq!(passed("--only=instead --out x"), words("--out x"));
    }

    #[test]
    fn no_two_experiments_share_a_folder() {
        let names: std::collections::BTreeSet<_> = EXPERIMENTS.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), EXPERIMENTS.len());
    }
}
