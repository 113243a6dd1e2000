//! The hosts. Each is a process in a network and a mount namespace of its own; they hang on a bridge that is in a
//! namespace too, so nothing of this machine's network is touched, and all is gone when the processes are.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use medes_deploy::probe::Init;
use tempfile::TempDir;

use crate::systemd::{self, Groups};

/// Nothing here outlives a test that is killed for longer than this.
const SECONDS_MAX: &str = "900";
const NET: &str = "10.77.0";

/// A machine's process, ended with this value.
struct Machine(Child, Option<Groups>);

impl Machine {
    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// The number of the process that is number 1 in it, where it has a process namespace.
    fn first_process(&self) -> String {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        fs::read_to_string(path).unwrap().trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = (self.0.kill(), self.0.wait());
        if let Some(groups) = &self.1 {
            groups.remove();
        }
    }
}

/// The hosts, and the place that they are deployed from.
pub(crate) struct Lab {
    pub(crate) init: Init,
    hosts: Vec<Machine>,
    switch: Machine,
    dir: TempDir,
}

/// Where sshd is, and what it needs to start.
struct Sshd {
    program: PathBuf,
    libraries: Option<PathBuf>,
    parts: PathBuf,
}

impl Sshd {
    fn find() -> Option<Self> {
        let of = |root: &Path| Self {
            program: root.join("usr/sbin/sshd"),
            libraries: None,
            parts: root.join("usr/lib/openssh"),
        };
        if Path::new("/usr/sbin/sshd").is_file() {
            return Some(of(Path::new("/")));
        }
        let copy = env::var_os("MEDES_SSHD").map(PathBuf::from);
        let copy = copy.unwrap_or_else(|| repo().join("target/sshd"));
        let libraries = fs::read_dir(copy.join("usr/lib")).ok()?.flatten().map(|entry| entry.path());
        let libraries = libraries.into_iter().find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
        copy.join("usr/sbin/sshd").is_file().then(|| Self { libraries, ..of(&copy) })
    }

    /// Newer ones are several programs.
    fn settings(&self) -> String {
        let part = |key: &str, name: &str| {
            let path = self.parts.join(name);
            if path.is_file() { format!("{key} {}\n", path.display()) } else { String::new() }
        };
        part("SshdSessionPath", "sshd-session") + &part("SshdAuthPath", "sshd-auth")
    }
}

pub(crate) fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Where the programs to deploy were built.
pub(crate) fn binaries() -> PathBuf {
    env::var_os("MEDES_BIN_DIR").map_or_else(|| repo().join("target/debug"), PathBuf::from)
}

/// The private CRIU, where setup made one.
pub(crate) fn criu() -> Option<PathBuf> {
    let copy = env::var_os("MEDES_CRIU").map_or_else(|| repo().join("target/criu"), PathBuf::from);
    copy.join("usr/sbin/criu").is_file().then_some(copy)
}

fn on_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(name).is_file())
}

/// Says why the test cannot run here, if it cannot.
pub(crate) fn lacks(init: Init) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it makes namespaces, which needs root".into());
    }
    if Sshd::find().is_none() {
        return Some("no sshd; see `cargo xtask setup`".into());
    }
    let programs =
        ["ssh", "ssh-keygen", "ip", "nsenter", "unshare", "tar", "flock", "setsid", "timeout", "python3"];
    if let Some(missing) = programs.iter().find(|name| !on_path(name)) {
        return Some(format!("no {missing} on this machine"));
    }
    if init == Init::Systemd
        && let Some(why) = systemd::lacks()
    {
        return Some(why.into());
    }
    let missing = medes_deploy::release::PROGRAMS.iter().find(|name| !binaries().join(name).is_file());
    missing.map(|name| format!("no {name} in {}; `cargo xtask build` makes it", binaries().display()))
}

/// What it printed. It went well, or the test ends.
#[track_caller]
pub(crate) fn checked(output: &Output, doing: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{doing}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Lab {
    /// That many hosts, with addresses from `address(0)` on, each with a running sshd.
    pub(crate) fn start(count: usize, init: Init) -> Self {
        Self::start_with(count, init, systemd::OWN)
    }

    /// The same; where systemd is process 1 on them, these folders of theirs are their own.
    pub(crate) fn start_with(count: usize, init: Init, own: &[&str]) -> Self {
        let dir = TempDir::with_prefix("medes-lab-").unwrap();
        let key = dir.path().join("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output();
        checked(&made.unwrap(), "make a key");
        fs::write(
            dir.path().join("passwd"),
            accounts("/etc/passwd", "sshd:x:74:65534::/run/sshd:/usr/sbin/nologin"),
        )
        .unwrap();
        fs::write(dir.path().join("shadow"), "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n")
            .unwrap();
        let switch = Command::new("unshare").args(["--net", "sleep", SECONDS_MAX]).spawn().unwrap();
        let mut lab = Self { init, hosts: Vec::new(), switch: Machine(switch, None), dir };
        lab.enter_own_namespace();
        let bridge = "ip link add br0 type bridge && ip link set br0 up && ip link set lo up && \
                      ip addr add";
        let output =
            lab.command("sh").arg("-c").arg(format!("{bridge} {NET}.254/24 dev br0")).output().unwrap();
        checked(&output, "make a bridge");
        for number in 0..count {
            lab.add(number, own);
        }
        lab
    }

    /// `unshare` has started before it has moved: until then its namespace is ours.
    fn enter_own_namespace(&self) {
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        until("the switch has its own namespace", || {
            fs::read_link(format!("/proc/{}/ns/net", self.switch.pid())).is_ok_and(|its| its != ours)
        });
    }

    fn add(&mut self, number: usize, own: &[&str]) {
        let sshd = Sshd::find().unwrap();
        let folder = self.dir.path().join(format!("host-{number}"));
        fs::create_dir_all(folder.join("opt")).unwrap();
        let settings = format!(
            "ListenAddress {}\nPort 22\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nPidFile none\nStrictModes no\n\
             UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nMaxSessions 64\nMaxStartups 64\n{}",
            address(number),
            sshd.settings(),
            key = self.dir.path().join("key").display(),
        );
        fs::write(folder.join("sshd_config"), settings).unwrap();
        let libraries = sshd.libraries.unwrap_or_default();
        let daemon = format!(
            "env LD_LIBRARY_PATH={} {} -D -e -f {}/sshd_config",
            libraries.display(),
            sshd.program.display(),
            folder.display()
        );
        let (mut command, first, last, groups) = match self.init {
            Init::Supervise => {
                let mut unshare = Command::new("unshare");
                unshare.args(["--net", "--mount", "--propagation", "private"]);
                let last = format!(
                    "echo ready && read go && exec timeout {SECONDS_MAX} setpriv --pdeathsig KILL {daemon}"
                );
                (unshare, String::new(), last, None)
            }
            Init::Systemd => {
                // As unique as the folder's name.
                let lab = self.dir.path().file_name().unwrap().to_str().unwrap();
                let groups = Groups::make(&format!("{lab}-{number}"));
                systemd::write_etc(&folder.join("etc"), &format!("/usr/bin/{daemon}"));
                fs::create_dir(folder.join("over")).unwrap();
                (
                    systemd::machine(&groups),
                    systemd::furnish(&groups, own),
                    systemd::BOOT.to_owned(),
                    Some(groups),
                )
            }
        };
        // What sshd wants of a machine, for this one alone: a user to fall back to, accounts that may log in, /run.
        let common = "mount --bind $DIR/passwd /etc/passwd && mount --bind $DIR/shadow /etc/shadow && \
            mount --bind $E/opt /opt && mount -t tmpfs -o mode=755 none /run && mkdir -m 755 /run/sshd && ip link set lo up && ";
        let log = fs::File::create(folder.join("sshd.log")).unwrap();
        let mut host = command
            .args(["sh", "-ec", &format!("{first}{common}{last}")])
            .env("DIR", self.dir.path())
            .env("E", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let (mut stdin, stdout) = (host.stdin.take().unwrap(), host.stdout.take().unwrap());
        let host = Machine(host, groups);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let said = || fs::read_to_string(folder.join("sshd.log")).unwrap();
        assert_eq!(line, "ready\n", "{}", said());
        let wire = format!(
            "ip link add e{number} type veth peer name eth0 netns {pid} && ip link set e{number} master br0 up && \
             nsenter -t {pid} -n ip addr add {at}/24 dev eth0 && nsenter -t {pid} -n ip link set eth0 up",
            pid = host.pid(),
            at = address(number),
        );
        checked(&self.command("sh").arg("-c").arg(wire).output().unwrap(), "wire a host");
        stdin.write_all(b"go\n").unwrap();
        until("sshd listens", || {
            let listening = fs::read_to_string(format!("/proc/{}/net/tcp", host.pid())).unwrap_or_default();
            // State 0A is LISTEN; 0016 is port 22.
            listening.lines().any(|line| line.contains(":0016 00000000:0000 0A"))
        });
        self.hosts.push(host);
    }

    /// A program in the namespace that the hosts are reached from.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.switch.pid(), "-n", "--", program]);
        command
    }

    /// A program on a host.
    pub(crate) fn on_host(&self, number: usize, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.hosts[number].first_process(), "-m", "-p", "-C", "-n", "-i", "-u", "--"]);
        command.args(args);
        command
    }

    /// The file of a function that counts its requests.
    pub(crate) fn function(&self, name: &str) -> PathBuf {
        let text = format!(
            "name = '{name}'\ncommand = ['/usr/bin/python3', 'function.py']\ndir = '{}'\nmemory = '64MiB'\n",
            repo().join("cli/tests/e2e_cluster").display()
        );
        self.file("function.toml", &text)
    }

    /// A file of this test.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The folder of this test's files.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// The programs, all of them with another last byte: another release.
    pub(crate) fn other_release(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        for program in medes_deploy::release::PROGRAMS {
            let mut bytes = fs::read(binaries().join(program)).unwrap();
            bytes.extend_from_slice(name.as_bytes());
            fs::write(folder.join(program), bytes).unwrap();
            fs::set_permissions(folder.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    /// The `[ssh]` section for these hosts.
    pub(crate) fn ssh_section(&self) -> String {
        let (key, known) = (self.dir.path().join("key"), self.dir.path().join("known_hosts"));
        format!(
            "[ssh]\nuser = 'root'\noptions = ['-F', 'none', '-i', '{}', '-o', 'UserKnownHostsFile={}', '-o', \
             'StrictHostKeyChecking=accept-new', '-o', 'LogLevel=ERROR']\n",
            key.display(),
            known.display()
        )
    }

    /// What is in a host's /opt.
    pub(crate) fn left_in_opt(&self, number: usize) -> Vec<PathBuf> {
        let opt = self.dir.path().join(format!("host-{number}/opt"));
        fs::read_dir(opt).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Command lines of Medes' processes in a host's network namespace.
    pub(crate) fn processes(&self, number: usize) -> Vec<(i32, String)> {
        let its = fs::read_link(format!("/proc/{}/ns/net", self.hosts[number].pid())).unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
            (fs::read_link(entry.path().join("ns/net")).ok()? == its).then_some(())?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains("/opt/medes").then_some((pid, line))
        });
        all.collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for number in 0..self.hosts.len() {
            if std::thread::panicking() {
                for log in ["run/controller.log", "run/agent.log"] {
                    let path = self.dir.path().join(format!("host-{number}/opt/medes/{log}"));
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<_> = text.lines().collect();
                    println!("-- host {number}: {log}");
                    lines[lines.len().saturating_sub(15)..].iter().for_each(|line| println!("{line}"));
                }
            }
            // Supervisors end what they run; this is for a test that has failed.
            for (pid, line) in self.processes(number) {
                if line.contains("medes-supervise run") {
                    // It may have ended meanwhile; nothing else can have its number so soon.
                    let _gone = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGTERM,
                    );
                }
            }
            let deadline = Instant::now() + Duration::from_secs(20);
            while !self.processes(number).is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// This machine's accounts, and one more where it is missing. What root's shell does here at its start is of this machine, so root is
/// at home elsewhere.
fn accounts(path: &str, one_more: &str) -> String {
    let mut text = fs::read_to_string(path).unwrap().replace(":/root:", ":/run:");
    let name = one_more.split(':').next().unwrap();
    if !text.lines().any(|line| line.starts_with(&format!("{name}:"))) {
        text.push_str(one_more);
        text.push('\n');
    }
    text
}

/// The address of a host.
pub(crate) fn address(number: usize) -> String {
    format!("{NET}.{}", number + 1)
}

/// Looks until it is so.
#[track_caller]
pub(crate) fn until(what: &str, so: impl FnMut() -> bool) {
    assert!(comes_about(so), "never: {what}");
}

/// Whether it is so within a minute.
pub(crate) fn comes_about(mut so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
