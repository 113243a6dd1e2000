//! Hosts of one cluster: a network namespace each, all on one bridge, and what can be done to the wires between them.
//!
//! All of it is in this program's own namespace ([`leave`]), so nothing of the machine's network is touched and nothing stays.
//!
//! A cut is silent, as a pulled plug is: each end believes that the other one has an address of the wire that nobody has. It needs no
//! packet filter, and every neighbour is told by hand anyhow.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::program::{Program, wait_for};

/// Nobody's.
const NOWHERE: &str = "02:00:00:00:ff:ff";

/// Leaves the machine's network and table of mounts. Before any thread exists.
pub(crate) fn leave() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("leave the machine's network")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keep mounts here")?;
    run("ip", &["link", "set", "lo", "up"])
}

/// Who is on the wires: this program, and the hosts of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// This program: whoever calls.
    Client,
    Controller,
    A,
    B,
    /// Stands in for A, as far as B can see, when it is told to.
    Between,
}

impl Place {
    pub(crate) const HOSTS: [Self; 4] = [Self::Controller, Self::A, Self::B, Self::Between];

    const fn number(self) -> u8 {
        match self {
            Self::Client => 1,
            Self::Controller => 2,
            Self::A => 3,
            Self::B => 4,
            Self::Between => 5,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Controller => "controller",
            Self::A => "a",
            Self::B => "b",
            Self::Between => "between",
        }
    }
}

/// The hosts of one cluster.
#[derive(Debug)]
pub(crate) struct Hosts {
    lane: u8,
    /// A process in each, which keeps it.
    keepers: Vec<(Place, Program)>,
}

impl Hosts {
    /// Makes them. `lane` tells this cluster's from others of this program.
    pub(crate) fn make(lane: u8, log: &std::path::Path) -> Result<Self> {
        let mut hosts = Self { lane, keepers: Vec::new() };
        let bridge = hosts.bridge();
        run("ip", &["link", "add", &bridge, "address", &hosts.wire(Place::Client), "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}/24", hosts.address(Place::Client)), "dev", &bridge])?;
        run("ip", &["link", "set", &bridge, "up"])?;
        for place in Place::HOSTS {
            hosts.keepers.push((place, hosts.plug_in(place, log)?));
        }
        hosts.mend()?;
        Ok(hosts)
    }

    fn plug_in(&self, place: Place, log: &std::path::Path) -> Result<Program> {
        let line = ["unshare", "--net", "sleep", "1d"].map(str::to_owned);
        let keeper = Program::start(&line, log, Stdio::null())?;
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let pid = keeper.pid().to_string();
        let own = of("self");
        let gone = wait_for(Duration::from_secs(10), || of(&pid).filter(|one| Some(one) != own.as_ref()));
        ensure!(gone.is_some(), "no network namespace for {}", place.word());
        let plug = self.plug(place);
        let wire = self.wire(place);
        run(
            "ip",
            &["link", "add", &plug, "type", "veth", "peer", "name", "eth0", "address", &wire, "netns", &pid],
        )?;
        run("ip", &["link", "set", &plug, "master", &self.bridge(), "up"])?;
        // Who stands in for A has its address as well, and answers to nobody who did not mean it.
        let also = (place == Place::Between).then(|| self.address(Place::A));
        for address in [self.address(place)].into_iter().chain(also) {
            inside(&pid, "ip", &["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        }
        inside(&pid, "ip", &["link", "set", "eth0", "up"])?;
        inside(&pid, "ip", &["link", "set", "lo", "up"])?;
        Ok(keeper)
    }

    fn plug(&self, place: Place) -> String {
        format!("{}p{}", self.bridge(), place.number())
    }

    fn bridge(&self) -> String {
        format!("medes{}", self.lane)
    }

    pub(crate) fn address(&self, place: Place) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.lane, place.number())
    }

    fn wire(&self, place: Place) -> String {
        format!("02:00:00:00:{:02x}:{:02x}", self.lane, place.number())
    }

    fn keeper(&self, place: Place) -> Option<String> {
        let keeper = self.keepers.iter().find(|(one, _)| *one == place);
        keeper.map(|(_, program)| program.pid().to_string())
    }

    /// What has a program run on a host.
    pub(crate) fn on(&self, place: Place) -> Vec<String> {
        let enter = |pid| vec!["nsenter".to_owned(), format!("--net=/proc/{pid}/ns/net")];
        self.keeper(place).map(enter).unwrap_or_default()
    }

    /// The calling thread goes to a host.
    pub(crate) fn go_to(&self, place: Place) -> Result<()> {
        let pid = self.keeper(place).context("no such host")?;
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).context("open its namespace")?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("enter its namespace")
    }

    /// From now on `from` finds `to` at this address of the wire.
    fn finds(&self, from: Place, to: Place, wire: &str) -> Result<()> {
        let address = self.address(to).to_string();
        let (device, pid) = match self.keeper(from) {
            Some(pid) => ("eth0".to_owned(), Some(pid)),
            None => (self.bridge(), None),
        };
        let words = ["neigh", "replace", &address, "lladdr", wire, "nud", "permanent", "dev", &device];
        match pid {
            Some(pid) => inside(&pid, "ip", &words),
            None => run("ip", &words),
        }
    }

    /// Nothing gets through between the two any more.
    pub(crate) fn cut(&self, one: Place, other: Place) -> Result<()> {
        self.finds(one, other, NOWHERE)?;
        self.finds(other, one, NOWHERE)
    }

    /// Everything gets through again, directly.
    pub(crate) fn mend(&self) -> Result<()> {
        let all = [Place::Client].into_iter().chain(Place::HOSTS);
        for from in all.clone() {
            for to in all.clone().filter(|to| *to != from) {
                // It has that address itself.
                if (from, to) != (Place::Between, Place::A) {
                    self.finds(from, to, &self.wire(to))?;
                }
            }
        }
        Ok(())
    }

    /// From now on what B sends to A goes to whoever stands between.
    pub(crate) fn divert(&self) -> Result<()> {
        self.finds(Place::B, Place::A, &self.wire(Place::Between))
    }

    /// What a host sends is this slow from now on, or as fast as ever.
    pub(crate) fn throttle(&self, place: Place, rate: Option<&str>) -> Result<()> {
        let pid = self.keeper(place).context("no such host")?;
        match rate {
            Some(rate) => {
                let words = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate];
                inside(&pid, "tc", &[&words[..], &["burst", "16k", "latency", "2s"]].concat())
            }
            None => inside(&pid, "tc", &["qdisc", "del", "dev", "eth0", "root"]),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // All of it goes with this program, at the latest; the next cluster wants the same names before.
        for (place, _) in &self.keepers {
            run("ip", &["link", "del", &self.plug(*place)]).ok();
        }
        self.keepers.clear();
        run("ip", &["link", "del", &self.bridge()]).ok();
    }
}

fn inside(pid: &str, program: &str, words: &[&str]) -> Result<()> {
    let net = format!("--net=/proc/{pid}/ns/net");
    run("nsenter", &[&[&*net, program], words].concat())
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim());
    Ok(())
}
