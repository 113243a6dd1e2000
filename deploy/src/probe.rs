//! What is there on a host: one script, one answer.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    elf::Glibc,
    remote::{Remote, RemoteError},
    services::{AGENT, CONTROLLER},
};

const PROBE_WITHIN: Duration = Duration::from_secs(30);

/// What keeps services running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd is process 1.
    Systemd,
    /// Nothing that we know: `medes-supervise` does it.
    Supervise,
}

impl Init {
    /// As people read it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Supervise => "medes-supervise",
        }
    }
}

/// How a service stands on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// The program's process, if it runs.
    pub pid: Option<u32>,
    /// The version that it is of.
    pub version: Option<String>,
    /// How often it was started since its supervisor took this version.
    pub starts: u32,
    /// How it ended the last time, as far as its supervisor says.
    pub last_end: Option<String>,
    /// Somebody keeps it running.
    pub supervised: bool,
}

/// A host as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// Number of the user we are there.
    pub uid: u32,
    /// What keeps services running there.
    pub init: Init,
    /// Its C library, if it is this one and says so.
    pub glibc: Option<Glibc>,
    /// Free where the version goes, in bytes.
    pub free_bytes: u64,
    /// Programs of the host that are needed and are not there.
    pub lacks: Vec<String>,
    /// The folder is there and a deployment made it, or it is not there at all.
    pub ours: bool,
    /// Versions that are there.
    pub versions: Vec<String>,
    /// The version that is to run.
    pub current: Option<String>,
    /// The one before.
    pub previous: Option<String>,
    /// The services, by name.
    pub running: BTreeMap<&'static str, Running>,
}

impl Probe {
    /// How a service stands.
    pub fn service(&self, name: &str) -> Running {
        self.running.get(name).cloned().unwrap_or_default()
    }
}

/// Looks at a host. Nothing is changed.
///
/// # Errors
/// When it cannot be reached.
pub fn probe(remote: &Remote, prefix: &str) -> Result<Probe, RemoteError> {
    let printed = remote.run("look at it", &script(prefix), PROBE_WITHIN)?;
    Ok(parse(&printed))
}

fn script(prefix: &str) -> String {
    format!(
        r#"P={prefix}
echo kernel=$(uname -r); echo machine=$(uname -m); echo uid=$(id -u)
if [ -d /run/systemd/system ]; then echo init=systemd; else echo init=supervise; fi
echo "glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)"
D=$P; while [ ! -d "$D" ]; do D=$(dirname "$D"); done
echo "free=$(df -Pk "$D" | awk 'NR==2 {{print $4}}')"
for T in tar timeout setsid flock readlink awk; do command -v $T >/dev/null 2>&1 || echo lacks=$T; done
if [ ! -e $P ] || [ -f $P/.medes ]; then echo ours=yes; fi
for V in $P/versions/*; do [ -d "$V" ] && echo version=${{V##*/}}; done
for L in current previous; do [ -L $P/$L ] && echo $L=$(basename "$(readlink $P/$L)"); done
for S in {CONTROLLER} {AGENT}; do
  PID= UP= STARTS=0 LAST=
  if [ -d /run/systemd/system ]; then
    PID=$(systemctl show -p MainPID --value medes-$S.service 2>/dev/null || true)
    STARTS=$(systemctl show -p NRestarts --value medes-$S.service 2>/dev/null || true)
    case $(systemctl is-active medes-$S.service 2>/dev/null || true) in active|activating) UP=yes;; esac
    [ "$PID" = 0 ] && PID=
  elif [ -f $P/run/$S.pid ]; then
    SUP=$(cat $P/run/$S.pid)
    if grep -q medes-supervise "/proc/$SUP/cmdline" 2>/dev/null; then
      UP=yes
      while IFS='=' read -r K W; do
        case $K in child) PID=$W;; starts) STARTS=$W;; last_end) LAST=$W;; esac
      done < $P/run/$S.state || true
    fi
  fi
  EXE=
  [ -n "$PID" ] && EXE=$(readlink /proc/$PID/exe 2>/dev/null || true)
  echo "service=$S|$UP|$PID|$EXE|$STARTS|$LAST"
done
exit 0"#
    )
}

fn parse(text: &str) -> Probe {
    let mut probe = Probe {
        kernel: String::new(),
        machine: String::new(),
        uid: u32::MAX,
        init: Init::Supervise,
        glibc: None,
        free_bytes: 0,
        lacks: Vec::new(),
        ours: false,
        versions: Vec::new(),
        current: None,
        previous: None,
        running: BTreeMap::new(),
    };
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let value = value.trim();
        match key {
            "kernel" => probe.kernel = value.into(),
            "machine" => probe.machine = value.into(),
            "uid" => probe.uid = value.parse().unwrap_or(u32::MAX),
            "init" if value == "systemd" => probe.init = Init::Systemd,
            "glibc" => probe.glibc = Glibc::parse(value),
            "free" => probe.free_bytes = value.parse().unwrap_or(0_u64).saturating_mul(1024),
            "lacks" => probe.lacks.push(value.into()),
            "ours" => probe.ours = true,
            "version" => probe.versions.push(value.into()),
            "current" => probe.current = Some(value.into()),
            "previous" => probe.previous = Some(value.into()),
            "service" => drop(service(value).map(|(name, running)| probe.running.insert(name, running))),
            _ => {}
        }
    }
    probe
}

fn service(text: &str) -> Option<(&'static str, Running)> {
    let mut parts = text.splitn(6, '|');
    let name = parts.next()?;
    let name = [CONTROLLER, AGENT].into_iter().find(|known| *known == name)?;
    let supervised = parts.next()? == "yes";
    let pid = parts.next()?.parse().ok();
    let version = parts.next()?.rsplit_once("/versions/").and_then(|(_, rest)| rest.split('/').next());
    let version = version.filter(|_| pid.is_some()).map(str::to_owned);
    let starts = parts.next()?.parse().unwrap_or(0);
    let last_end = parts.next().filter(|text| !text.is_empty()).map(str::to_owned);
    Some((name, Running { pid, version, starts, last_end, supervised }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let probe = parse(
            "kernel=6.1.0\nmachine=x86_64\nuid=0\ninit=systemd\nglibc=glibc 2.36\nfree=100\nlacks=flock\nours=yes\n\
             version=v1\nversion=v2\ncurrent=v2\nprevious=v1\n\
             service=controller|yes|77|/opt/medes/versions/v2/bin/medes-controller|1|\n\
             service=agent||||3|exit code 1\n",
        );
        assert_eq!((probe.init, probe.glibc, probe.free_bytes), (Init::Systemd, Some(Glibc(2, 36)), 102_400));
        assert_eq!((probe.versions.len(), probe.current.as_deref()), (2, Some("v2")));
        let controller = probe.service(CONTROLLER);
        assert_eq!((controller.pid, controller.version.as_deref()), (Some(77), Some("v2")));
        let agent = probe.service(AGENT);
        assert_eq!((agent.supervised, agent.starts, agent.pid), (false, 3, None));
        assert_eq!(agent.last_end.as_deref(), Some("exit code 1"));
    }

    #[test]
    fn the_script_runs_here_and_finds_no_deployment() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("set -eu\n{}", script(&folder.path().join("a/b").to_string_lossy()));
        let out = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let probe = parse(&String::from_utf8_lossy(&out.stdout));
        assert!(probe.ours && probe.versions.is_empty() && probe.current.is_none());
        assert!(probe.free_bytes > 0 && !probe.kernel.is_empty());
        assert_eq!(probe.running.len(), 2);
    }
}
