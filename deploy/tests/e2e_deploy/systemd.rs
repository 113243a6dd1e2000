//! Hosts where systemd itself is process 1, in process and control group namespaces of their own.
//!
//! Of this machine's units they have journald's and no other; `/etc` and `/run` are their own, and more where it is asked for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::lab::comes_about;

/// The folders that every host changes without this machine seeing it.
pub(crate) const OWN: &[&str] = &["etc"];
/// And those that packages are installed to.
pub(crate) const OWN_WITH_PACKAGES: &[&str] = &["etc", "usr", "var"];

const PROGRAM: &str = "/lib/systemd/systemd";

/// Why no such host can be made here, if it cannot.
pub(crate) fn lacks() -> Option<&'static str> {
    if !Path::new(PROGRAM).is_file() {
        return Some("no systemd on this machine");
    }
    (!Groups::mounts().iter().any(|mount| mount.kind == "cgroup2")).then_some("no cgroup2 is mounted")
}

/// A hierarchy of control groups, as this machine has it mounted.
struct Mount {
    at: PathBuf,
    kind: String,
    options: String,
}

/// One control group in each hierarchy that systemd or an agent has a use for: what a host sees as the top.
pub(crate) struct Groups {
    mounts: Vec<Mount>,
    name: String,
}

impl Groups {
    fn mounts() -> Vec<Mount> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let parsed = text.lines().filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?.split(',').next_back()?);
            let wanted = match kind {
                "cgroup2" => true,
                "cgroup" => ["memory", "pids", "name=systemd"].contains(&options),
                _ => false,
            };
            let options =
                if options.starts_with("name=") { format!("none,{options}") } else { options.into() };
            wanted.then(|| Mount { at: before.split(' ').nth(4).unwrap().into(), kind: kind.into(), options })
        });
        parsed.collect()
    }

    pub(crate) fn make(name: &str) -> Self {
        let groups = Self { mounts: Self::mounts(), name: name.into() };
        groups.folders().for_each(|folder| fs::create_dir(folder).unwrap());
        groups
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.mounts.iter().map(|mount| mount.at.join(&self.name))
    }

    /// Everything in it has been killed, and ends.
    pub(crate) fn remove(&self) {
        let all = || self.folders().filter(|folder| folder.is_dir()).all(|folder| remove(&folder).is_ok());
        // A test that has failed already says why by itself.
        assert!(comes_about(all) || std::thread::panicking(), "control groups of a host stay behind");
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// What starts such a host, without what is run as its process 1. It and all in it end with this process.
pub(crate) fn machine(groups: &Groups) -> Command {
    let mut command = Command::new("setpriv");
    let join = "for G in $GROUPS; do echo 0 > $G/cgroup.procs; done; exec unshare --net --mount --uts --ipc --cgroup \
        --pid --fork --kill-child=KILL --mount-proc --propagation private \"$@\"";
    let folders: Vec<_> = groups.folders().map(|folder| folder.to_string_lossy().into_owned()).collect();
    command.args(["--pdeathsig", "KILL", "sh", "-ec", join, "sh"]).env("GROUPS", folders.join(" "));
    command
}

/// What comes before all else there: `own` folders and control groups of its own. `$E` is a folder of this host.
pub(crate) fn furnish(groups: &Groups, own: &[&str]) -> String {
    let mut script = "mount -t tmpfs none $E/over && ".to_owned();
    for name in own {
        script += &format!(
            "mkdir -p $E/over/{name}/up $E/over/{name}/work && \
             mount -t overlay -o lowerdir=/{name},upperdir=$E/over/{name}/up,workdir=$E/over/{name}/work none /{name} && "
        );
    }
    script += "rm -rf /etc/systemd/system /etc/fstab && cp -a $E/etc/. /etc/ && ";
    let top = Path::new("/sys/fs/cgroup");
    script += "umount -R -l /sys/fs/cgroup && ";
    if groups.mounts.iter().all(|mount| mount.at != top) {
        script += "mount -t tmpfs -o mode=755 none /sys/fs/cgroup && ";
    }
    for Mount { at, kind, options } in &groups.mounts {
        let at = at.display();
        script += &format!("mkdir -p {at} && mount -t {kind} -o {options} none {at} && ");
    }
    script
}

/// The command by which systemd takes over.
pub(crate) const BOOT: &str = "echo ready && read go && exec env -i container=test PATH=$PATH /lib/systemd/systemd --unit=multi-user.target";

/// What is in its `/etc` and not in this machine's: journald and `sshd` run, and nothing else that this machine would start.
pub(crate) fn write_etc(etc: &Path, sshd: &str) {
    let link = |name: &Path, to: &str| std::os::unix::fs::symlink(to, name).unwrap();
    let system = etc.join("systemd/system");
    for folder in ["system/multi-user.target.wants", "system-generators", "journald.conf.d"] {
        fs::create_dir_all(etc.join("systemd").join(folder)).unwrap();
    }
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    for generator in entries("/lib/systemd/system-generators") {
        link(&etc.join("systemd/system-generators").join(generator.file_name()), "/dev/null");
    }
    let journald = ["systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"];
    for wants in entries("/lib/systemd/system").map(|entry| entry.path()) {
        if wants.extension().is_some_and(|extension| extension == "wants") {
            for unit in entries(wants.to_str().unwrap()).map(|entry| entry.file_name()) {
                let masked = system.join(&unit);
                if !journald.iter().any(|name| unit == **name) && !masked.is_symlink() {
                    link(&masked, "/dev/null");
                }
            }
        }
    }
    fs::write(etc.join("systemd/journald.conf.d/test.conf"), "[Journal]\nStorage=volatile\nReadKMsg=no\n")
        .unwrap();
    let unit = format!("[Service]\nExecStart={sshd}\nKillMode=process\n");
    fs::write(system.join("sshd.service"), unit).unwrap();
    link(&system.join("multi-user.target.wants/sshd.service"), "../sshd.service");
}
