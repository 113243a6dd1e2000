//! `cargo xtask setup`: looks what this machine lacks, and installs it.
//!
//! Each part (one file each) looks and returns a plan: packages and steps as data. So `--dry-run`
//! prints exactly what would be done. Nothing here changes a setting of the host.

mod apt;
mod criu;
mod ebpf;
mod lab;
mod machine;
mod python;
mod rdma;
mod report;
mod sshd;
mod step;
mod torch;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::machine::Machine;
use self::step::Step;
use crate::repo::Repo;

/// What to set up, and how.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Only this part (may be given several times)
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Name>,
    /// Leave PyTorch out (120 MB to download); the function model-serve is then skipped
    #[arg(long)]
    without_torch: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// The parts, in the order in which they are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Snapshots of processes
    Criu,
    /// Tool chain for the kernel programs
    Ebpf,
    /// Python and the libraries of the example functions
    Python,
    /// `PyTorch`, for one of the example functions
    Torch,
    /// Build tools of the RDMA binding
    Rdma,
    /// A virtual machine with RDMA in software
    Lab,
    /// For the hosts that the test of `deploy` makes
    Sshd,
}

/// One part as it was found on this machine.
struct Part {
    name: Name,
    /// `Ok`: what is there. `Err`: what is missing.
    found: Result<String, String>,
    /// System packages that are missing, by Debian's names.
    packages: Vec<&'static str>,
    /// What to do once the packages are there.
    steps: Vec<Step>,
    /// What Medes does without it.
    without: &'static str,
    /// What to install where we cannot: other systems, no rights.
    by_hand: &'static str,
}

/// How a part ended.
enum Outcome {
    Ready,
    Installed,
    /// Why not.
    Missing(String),
}

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    let machine = Machine::look();
    let parts = inspect(repo, &machine, options);
    if options.dry_run {
        report::plan(&machine, &parts, options.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcomes = carry_out(repo, &machine, options, parts)?;
    report::outcome(&outcomes, options.json)?;
    let complete = outcomes.iter().all(|(_, outcome)| !matches!(outcome, Outcome::Missing(_)));
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets up what is missing before something else runs. A part that cannot be had is said, and only
/// what no demo or test can do without is an error: that is left to those who need it.
pub(crate) fn ensure(repo: &Repo) -> Result<()> {
    let machine = Machine::look();
    let options = Options::default();
    let parts = inspect(repo, &machine, &options);
    if parts.iter().all(|part| part.found.is_ok()) {
        println!("== setup: everything is there");
        return Ok(());
    }
    println!("== setup");
    let outcomes = carry_out(repo, &machine, &options, parts)?;
    report::outcome(&outcomes, false)
}

/// Like [`ensure`], and an error when CRIU or the functions' Python is missing.
pub(crate) fn ensure_sandboxes(repo: &Repo) -> Result<()> {
    ensure(repo)?;
    let machine = Machine::look();
    for part in [criu::look(repo, &machine), python::look(repo)] {
        if let Err(missing) = &part.found {
            bail!("{missing}. {}", part.by_hand);
        }
    }
    Ok(())
}

fn inspect(repo: &Repo, machine: &Machine, options: &Options) -> Vec<Part> {
    let wanted = |name: &Name| {
        let named = options.only.is_empty() || options.only.contains(name);
        named && !(*name == Name::Torch && options.without_torch)
    };
    Name::value_variants().iter().filter(|name| wanted(name)).map(|name| look(repo, machine, *name)).collect()
}

fn look(repo: &Repo, machine: &Machine, name: Name) -> Part {
    match name {
        Name::Criu => criu::look(repo, machine),
        Name::Ebpf => ebpf::look(repo),
        Name::Python => python::look(repo),
        Name::Torch => torch::look(),
        Name::Rdma => rdma::look(),
        Name::Lab => lab::look(),
        Name::Sshd => sshd::look(repo, machine.apt && machine.root),
    }
}

fn carry_out(
    repo: &Repo,
    machine: &Machine,
    options: &Options,
    parts: Vec<Part>,
) -> Result<Vec<(Part, Outcome)>> {
    let mut apt = apt::Apt::new(machine);
    let mut outcomes = Vec::new();
    for part in parts {
        if part.found.is_ok() {
            outcomes.push((part, Outcome::Ready));
            continue;
        }
        // Progress goes to standard error where standard output is for the JSON.
        let say = |line: &str| if options.json { eprintln!("{line}") } else { println!("{line}") };
        let failure = install(repo, &mut apt, &part, &say)?;
        let again = look(repo, machine, part.name);
        let outcome = match (&again.found, failure) {
            (Ok(_), _) => Outcome::Installed,
            (Err(_), Some(failure)) => Outcome::Missing(failure),
            (Err(missing), None) => Outcome::Missing(missing.clone()),
        };
        outcomes.push((again, outcome));
    }
    Ok(outcomes)
}

/// Returns why it could not be installed. Other parts go on.
fn install(repo: &Repo, apt: &mut apt::Apt<'_>, part: &Part, say: &dyn Fn(&str)) -> Result<Option<String>> {
    let mut steps = match apt.steps(&part.packages) {
        Ok(steps) => steps,
        Err(cannot) => return Ok(Some(format!("{cannot}. {}", part.by_hand))),
    };
    steps.extend(part.steps.iter().cloned());
    if steps.is_empty() {
        return Ok(Some(part.by_hand.to_owned()));
    }
    let count = steps.len();
    for (at, step) in steps.iter().enumerate() {
        say(&format!("[{} {}/{count}] {}", part.name.text(), at + 1, step.title));
        if let Err(failure) = step.carry_out(repo, part.name.text()) {
            return Ok(Some(format!(
                "step \"{}\" failed: {failure:#}. Try again with: cargo xtask setup --only {}",
                step.title,
                part.name.text()
            )));
        }
    }
    Ok(None)
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Self::Criu => "criu",
            Self::Ebpf => "ebpf",
            Self::Python => "python",
            Self::Torch => "torch",
            Self::Rdma => "rdma",
            Self::Lab => "lab",
            Self::Sshd => "sshd",
        }
    }
}
