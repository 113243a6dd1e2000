//! Makes a fault happen, and makes good what was done.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    between::Harm,
    cell::{Cell, Fault, Victim},
    census::{self, Census},
    cluster::Cluster,
    hosts::Place,
    program::wait_for,
    subject::anywhere,
};

/// CRIU is killed whenever it appears, for this long.
const HUNT: Duration = Duration::from_secs(2);
/// What its command line says, whether it serves (`swrk`) or dumps.
const CRIU: [&str; 2] = ["criu", "--no-default-config"];
/// How late each piece is.
const DELAY: Duration = Duration::from_millis(50);
const RATE: &str = "256kbit";
/// Memory that an agent may take from now on, when it is to have none.
const STARVED: &str = "2097152";
const REACHED_WITHIN: Duration = Duration::from_secs(20);
const FILLER: &str = "medes-faults-filler";
const MEMORY_GROUPS: &str = "/sys/fs/cgroup/memory";

/// Why a fault cannot happen on this machine.
pub(crate) fn lack(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::Starve if !Path::new(MEMORY_GROUPS).is_dir() => Some("no v1 memory control groups"),
        Fault::Clock if !Path::new("/proc/self/ns/time").exists() => Some("no time namespaces"),
        _ => None,
    }
}

/// A step that an agent is to come to.
#[derive(Debug)]
pub(crate) struct Step {
    armed: PathBuf,
    reached: PathBuf,
}

impl Step {
    /// From now on the agent fails at it, or waits there, once.
    pub(crate) fn arm(cluster: &Cluster, place: Place, step: &str, fails: bool) -> Result<Self> {
        let armed = cluster.fault_file(place);
        let reached = armed.with_added_extension("reached");
        let written = armed.with_added_extension("new");
        fs::write(&written, format!("{step} {}\n", if fails { "fail" } else { "wait" }))
            .and_then(|()| fs::rename(&written, &armed))
            .context("arm a step")?;
        Ok(Self { armed, reached })
    }

    /// Waits until somebody comes to it.
    pub(crate) fn reached(&self, over: impl Fn() -> bool) -> bool {
        wait_for(REACHED_WITHIN, || (self.reached.exists() || over()).then_some(())).is_some()
            && self.reached.exists()
    }

    /// Who waits at it goes on, and nobody waits any more.
    pub(crate) fn release(&self) {
        for path in [&self.armed, &self.reached] {
            // Not there: nobody came, or somebody did.
            fs::remove_file(path).ok();
        }
    }
}

/// Makes it happen. For what dies it has happened when this returns.
pub(crate) fn strike(cluster: &mut Cluster, cell: &Cell, sandbox: Option<&str>) -> Result<()> {
    match cell.fault {
        // The step does it, or the request itself.
        Fault::Fail | Fault::Hoard | Fault::Litter => Ok(()),
        Fault::Kill(victim) => kill_nine(cluster, cell, victim, sandbox),
        Fault::Cut(one, other, _) => cluster.hosts.cut(one, other),
        Fault::Stop(place, _) => cluster.program(place)?.signal(Signal::SIGSTOP),
        Fault::FullScratch => fill(&scratch(cluster, cell.at)?),
        Fault::FullDisk => fill(&cluster.file("controller")),
        Fault::Starve => starve(cluster, cell.at),
        Fault::Throttle => cluster.hosts.throttle(Place::A, Some(RATE)),
        Fault::Delay => {
            cluster.between.does(Harm::Delay(DELAY));
            cluster.hosts.divert()
        }
        Fault::Flip => {
            cluster.between.does(Harm::Flip);
            cluster.hosts.divert()
        }
        Fault::Clock => {
            cluster.desk.ask(&["node", "drain", &cluster.desk.node(Place::B)])?;
            cluster.program(Place::B)?.signal(Signal::SIGTERM)?;
            cluster.program(Place::B)?.wait(Duration::from_secs(30))?;
            cluster.start_agent(Place::B, Some(86_400))?;
            ensure!(cluster.whole_within(Duration::from_secs(20)), "B does not come back");
            anywhere(&cluster.desk)
        }
    }
}

/// Makes good what was done, so far as that is not the cluster's own business. What has ended is started again, as a supervisor would.
pub(crate) fn mend(cluster: &mut Cluster, cell: &Cell) -> Result<()> {
    match cell.fault {
        Fault::Cut(..) => cluster.hosts.mend()?,
        Fault::Stop(place, _) => cluster.program(place)?.signal(Signal::SIGCONT)?,
        Fault::FullScratch => unfill(&scratch(cluster, cell.at)?)?,
        Fault::FullDisk => unfill(&cluster.file("controller"))?,
        Fault::Throttle => cluster.hosts.throttle(Place::A, None)?,
        Fault::Delay | Fault::Flip => {
            cluster.between.does(Harm::None);
            cluster.hosts.mend()?;
        }
        Fault::Starve => {
            cluster.program(cell.at)?.wait(Duration::from_secs(10)).context("it had memory enough")?;
            // Its group goes when nobody is in it any more.
            fs::remove_dir(starved_group(cluster)).ok();
        }
        // Without its keeper an agent ends in order, without a thread at once.
        Fault::Kill(Victim::Keeper | Victim::Pager) => {
            cluster.program(cell.at)?.wait(Duration::from_secs(30))?;
        }
        _ => {}
    }
    cluster.start_what_ended()
}

fn kill_nine(cluster: &mut Cluster, cell: &Cell, victim: Victim, sandbox: Option<&str>) -> Result<()> {
    let agent = cluster.program(cell.at)?.pid();
    match victim {
        Victim::Agent => cluster.program(cell.at)?.kill(),
        Victim::Other => cluster.program(cell.other())?.kill(),
        Victim::Controller => cluster.program(Place::Controller)?.kill(),
        Victim::Keeper => one_of(&Census::take().below(agent, &["medes-agent", "keeper"])),
        Victim::Helper => one_of(&Census::take().below(agent, &["medes-agent", "inject"])),
        Victim::Pager => one_of(&census::threads(agent, "pager")),
        Victim::Function => {
            one_of(&Census::take().of_sandbox(&cluster.desk.mark, sandbox.context("no sandbox")?))
        }
        Victim::Criu => {
            let killed = one_of(&census::children(agent, &CRIU));
            // Who is not there yet is hunted for in a moment.
            if cell.step.is_some() { Ok(()) } else { killed }
        }
    }
}

/// After who waited has gone on: kills CRIU again and again. Whether there was any.
pub(crate) fn hunt_criu(cluster: &mut Cluster, place: Place) -> Result<bool> {
    let (agent, begun) = (cluster.program(place)?.pid(), Instant::now());
    let mut any = false;
    while begun.elapsed() < HUNT {
        any |= one_of(&census::children(agent, &CRIU)).is_ok();
        thread::sleep(Duration::from_millis(2));
    }
    Ok(any)
}

fn one_of(pids: &[i32]) -> Result<()> {
    ensure!(!pids.is_empty(), "nobody is there to be killed");
    for &pid in pids {
        // Gone already is as good.
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    Ok(())
}

/// The agent's own tmpfs, which is only in its own table of mounts.
fn scratch(cluster: &mut Cluster, place: Place) -> Result<PathBuf> {
    let run = cluster.file(place.word()).join("run");
    let inside = Path::new("/proc").join(cluster.program(place)?.pid().to_string()).join("root");
    Ok(inside.join(run.strip_prefix("/").context("an absolute path")?))
}

fn fill(folder: &Path) -> Result<()> {
    let path = folder.join(FILLER);
    let mut file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    // Large pieces, then small ones, until nothing more goes in.
    for piece in [1 << 20, 4096, 1] {
        let piece = vec![0x55; piece];
        while file.write_all(&piece).is_ok() {}
    }
    Ok(())
}

fn unfill(folder: &Path) -> Result<()> {
    fs::remove_file(folder.join(FILLER)).context("make room again")
}

fn starved_group(cluster: &Cluster) -> PathBuf {
    Path::new(MEMORY_GROUPS).join(format!("{}-starved", cluster.desk.mark))
}

fn starve(cluster: &mut Cluster, place: Place) -> Result<()> {
    let group = starved_group(cluster);
    fs::create_dir_all(&group).context("make a control group")?;
    fs::write(group.join("memory.limit_in_bytes"), STARVED).context("limit memory")?;
    let agent = cluster.program(place)?.pid().to_string();
    fs::write(group.join("cgroup.procs"), agent).context("put the agent in")
}
