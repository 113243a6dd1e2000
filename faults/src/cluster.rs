//! A controller and two agents, each on a host of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    between::Between,
    desk::Desk,
    hosts::{Hosts, Place},
    places::Places,
    program::{Program, wait_for},
};

/// A node that says nothing for so long is given up: three heartbeats.
pub(crate) const SILENT: Duration = Duration::from_millis(1500);
/// The longest of the limits below, and time to say so: whatever `medes` was asked to do has ended then.
pub(crate) const OPERATION: Duration = Duration::from_secs(25);
/// All is as it was, at the latest so long after the trouble is over. It is what `medes up` is given to begin with.
pub(crate) const RECOVERY: Duration = Duration::from_secs(30);
/// Room for what the controller keeps on its disk.
const DISK: &str = "size=24m";
/// Seconds that what rests waits for the next agent, which is started at once.
const TAKEOVER: &str = "20";
const NODE_PORT: u16 = 7000;
const PAGES_PORT: u16 = 7001;

/// Nothing happens by itself, and limits are so short that a hang is seen.
const CONFIG: &str = "
[requests]
deadline = '15s'
[sandboxes]
init_snapshots = true
[fleet]
heartbeat = '500ms'
settle = '500ms'
base_copies = COPIES
[limits]
start_slack = '10s'
restore = '10s'
dedup = '20s'
purge = '10s'
[policy]
idle = '1h'
keep_alive = '2h'
keep_dedup = '2h'
keep_parked = '2h'
[engine]
small_after = '0s'
";

/// What kind of cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Bases have copies.
    Usual,
    /// Bases are on one node only, and B keeps no page of another node.
    Bare,
    /// Agents leave what rests to the next one on their node.
    Kept,
    /// Agents take from warm sandboxes what these do not touch.
    Trims,
}

/// A cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    // Dropped in this order.
    agents: BTreeMap<Place, Program>,
    controller: Option<Program>,
    pub(crate) between: Between,
    pub(crate) hosts: Hosts,
    /// Whom to ask, and how.
    pub(crate) desk: Desk,
    kind: Kind,
    mark: String,
    places: Places,
    dir: TempDir,
}

impl Cluster {
    /// Starts all of it.
    pub(crate) fn start(places: &Places, kind: Kind, lane: u8) -> Result<Self> {
        let dir = TempDir::with_prefix("medes-faults-").context("make a folder")?;
        let hosts = Hosts::make(lane, &dir.path().join("hosts.log"))?;
        let between = Between::start(&hosts, &[NODE_PORT, PAGES_PORT])?;
        let mark = format!("faults-{}-{lane}", std::process::id());
        let desk = Desk {
            medes: places.program("medes")?,
            control: format!("{}:7070", hosts.address(Place::Controller)),
            gateway: SocketAddr::from((hosts.address(Place::Controller), 8080)),
            mark: mark.clone(),
        };
        let mut cluster = Self {
            agents: BTreeMap::new(),
            controller: None,
            between,
            hosts,
            desk,
            kind,
            mark,
            places: places.clone(),
            dir,
        };
        let disk = cluster.file("controller");
        fs::create_dir(&disk).context("make the controller's folder")?;
        mount(Some("medes-faults"), &disk, Some("tmpfs"), MsFlags::empty(), Some(DISK))
            .context("mount the controller's disk")?;
        let copies = if kind == Kind::Bare { "1" } else { "2" };
        fs::write(cluster.file("controller.toml"), CONFIG.replace("COPIES", copies)).context("configure")?;
        cluster.start_controller()?;
        for place in [Place::A, Place::B] {
            cluster.start_agent(place, None)?;
        }
        ensure!(cluster.whole_within(RECOVERY), "agents do not attach\n{}", cluster.tails());
        Ok(cluster)
    }

    /// Where this cluster keeps something.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn start_controller(&mut self) -> Result<()> {
        let address = self.hosts.address(Place::Controller);
        let mut line = self.hosts.on(Place::Controller);
        line.extend([self.places.program("medes-controller")?.display().to_string(), "--plaintext".into()]);
        line.extend(["--control".into(), format!("{address}:7070")]);
        line.extend(["--gateway".into(), format!("{address}:8080")]);
        line.extend(["--state-dir".into(), self.file("controller").display().to_string()]);
        line.extend(["--config".into(), self.file("controller.toml").display().to_string()]);
        let mut program = Program::start(&line, &self.file("controller.log"), Stdio::piped())?;
        program.first_line()?;
        self.controller = Some(program);
        Ok(())
    }

    /// `clock`: seconds by which its monotonic clocks are ahead of this machine's.
    pub(crate) fn start_agent(&mut self, place: Place, clock: Option<u32>) -> Result<()> {
        let name = place.word();
        let address = self.hosts.address(place);
        let mut line = self.hosts.on(place);
        if let Some(ahead) = clock.map(|ahead| ahead.to_string()) {
            line.extend(
                ["unshare", "--time", "--monotonic", &ahead, "--boottime", &ahead].map(str::to_owned),
            );
        }
        let text = |path: &Path| path.display().to_string();
        line.push(text(&self.places.program("medes-agent")?));
        line.extend(["--node".into(), self.desk.node(place), "--plaintext".into()]);
        line.extend(["--controller".into(), format!("{}:7070", self.hosts.address(Place::Controller))]);
        line.extend(["--state-dir".into(), text(&self.file(name)), "--rdma".into(), "off".into()]);
        line.extend(["--listen".into(), format!("{address}:{NODE_PORT}")]);
        line.extend(["--pages-port".into(), PAGES_PORT.to_string(), "--scratch".into(), "128MiB".into()]);
        line.extend(["--fault-file".into(), text(&self.fault_file(place))]);
        if let Some(criu) = &self.places.criu {
            line.extend(["--criu".into(), text(criu)]);
        }
        if self.kind == Kind::Kept {
            line.extend(["--takeover", TAKEOVER].map(str::to_owned));
        }
        if self.kind == Kind::Trims {
            line.push("--trim".into());
        }
        if self.kind == Kind::Bare && place == Place::B {
            line.extend(["--replica-memory", "0B", "--page-memory", "0B"].map(str::to_owned));
        }
        let program = Program::start(&line, &self.file(&format!("{name}.log")), Stdio::null())?;
        self.agents.insert(place, program);
        Ok(())
    }

    /// What an agent is told to let happen.
    pub(crate) fn fault_file(&self, place: Place) -> PathBuf {
        self.file(&format!("{}.fault", place.word()))
    }

    pub(crate) fn program(&mut self, place: Place) -> Result<&mut Program> {
        let program = match place {
            Place::Controller => self.controller.as_mut(),
            place => self.agents.get_mut(&place),
        };
        program.with_context(|| format!("{} was not started", place.word()))
    }

    /// Starts what has ended, as whatever supervises it would.
    pub(crate) fn start_what_ended(&mut self) -> Result<()> {
        if !self.program(Place::Controller)?.lives() {
            self.start_controller()?;
        }
        for place in [Place::A, Place::B] {
            if !self.program(place)?.lives() {
                self.start_agent(place, None)?;
            }
        }
        Ok(())
    }

    /// The function under a name. `start`: auto, clone or cold.
    pub(crate) fn apply(&self, name: &str, start: &str, memory: &str) -> Result<Value> {
        let path = self.file(&format!("{name}.toml"));
        let folder = self.file("function");
        fs::create_dir_all(&folder).context("make the function's folder")?;
        fs::write(folder.join("function.py"), include_str!("function.py")).context("write the function")?;
        let text = format!(
            "name = '{name}'\ncommand = ['/usr/bin/python3', 'function.py']\ndir = '{}'\nstart = '{start}'\nmemory = '{memory}'\n[env]\nMARK = '{}'\n",
            folder.display(),
            self.mark
        );
        fs::write(&path, text).context("write the function file")?;
        self.desk.ask(&["function", "apply", &path.display().to_string()])
    }

    fn whole(&self) -> bool {
        let nodes = self.desk.rows_of_nodes();
        let there = |place| {
            nodes.iter().any(|row| row["node"] == self.desk.node(place).as_str() && row["connected"] == true)
        };
        there(Place::A) && there(Place::B)
    }

    /// Whether both agents are attached, some time from now at the latest.
    pub(crate) fn whole_within(&self, within: Duration) -> bool {
        wait_for(within, || self.whole().then_some(())).is_some()
    }

    /// What everybody wrote last.
    pub(crate) fn tails(&self) -> String {
        let programs = self.agents.values().chain(&self.controller);
        programs.map(|program| program.tail(12)).collect::<Vec<_>>().join("\n--\n")
    }

    /// Keeps its logs, for whoever reads of a failure.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        for name in ["controller.log", "a.log", "b.log"] {
            fs::copy(self.file(name), folder.join(name)).with_context(|| format!("keep {name}"))?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Who waits at a step goes on.
        for place in [Place::A, Place::B] {
            fs::remove_file(self.fault_file(place).with_added_extension("reached")).ok();
        }
        if self.kind == Kind::Kept {
            // Else it would wait for agents that do not come.
            for row in self.desk.rows() {
                self.desk.medes(&["purge", row["sandbox"].as_str().unwrap_or_default()]).ok();
            }
        }
        self.agents.clear();
        self.controller = None;
        umount2(&self.file("controller"), MntFlags::MNT_DETACH).ok();
    }
}
