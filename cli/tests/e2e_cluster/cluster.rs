//! A cluster of real programs in a temporary folder, and the public ways to speak to it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{sys::signal::Signal, unistd::geteuid};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    http::{self, Reply},
    program::{Program, path_of, until},
};

/// Nothing happens by itself, and what an agent sees is known soon.
pub(crate) const QUIET: &str = "
[fleet]
heartbeat = '200ms'
settle = '0ms'
base_copies = 1
[sandboxes]
init_snapshots = false
[policy]
idle = '1h'
keep_alive = '2h'
keep_dedup = '2h'
";

/// A controller, agents, a folder for everything.
pub(crate) struct Cluster {
    // Fields are dropped in this order: agents before the controller, both before their folder.
    agents: BTreeMap<String, Program>,
    controller: Option<Program>,
    control: String,
    gateway: String,
    /// Tells this cluster's nodes and processes from all others on this machine.
    mark: String,
    /// Everybody shows a certificate, out of `certs` in its folder.
    secured: bool,
    dir: TempDir,
}

/// A fresh word, also for other tests of this file's process.
pub(crate) fn mark() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("e2e-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Where CRIU is; `None` for the one in PATH.
fn criu() -> Option<PathBuf> {
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/criu");
    std::env::var_os("MEDES_CRIU").map(PathBuf::from).or(Some(copy).filter(|path| path.exists()))
}

/// Why this machine cannot run `test`, if so, is printed.
pub(crate) fn can_run(test: &str) -> bool {
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join("criu").is_file())
    };
    let lack = if !geteuid().is_root() {
        "not root"
    } else if criu().is_none() && !in_path() {
        "no CRIU; see cargo xtask setup"
    } else if !Path::new("/usr/bin/python3").exists() {
        "no /usr/bin/python3"
    } else {
        return true;
    };
    println!("SKIPPED {test}: {lack}");
    false
}

impl Cluster {
    /// A controller with this configuration, and nodes with these names and further arguments.
    pub(crate) fn start(config: &str, nodes: &[(&str, &[&str])]) -> Self {
        let mut cluster = Self::new(config);
        cluster.start_all(nodes);
        cluster
    }

    /// The same, where everybody shows a certificate; `medes` that of the operator anna.
    pub(crate) fn start_secured(config: &str, nodes: &[(&str, &[&str])]) -> Self {
        let mut cluster = Self::new(config);
        cluster.cert(&["init", "--cluster", "e2e"]);
        let names: Vec<_> = nodes.iter().map(|(name, _)| cluster.node(name)).collect();
        let agents = names.iter().map(|name| ("agent", &**name));
        for (role, name) in [("controller", "controller"), ("operator", "anna")].into_iter().chain(agents) {
            cluster.cert(&["issue", role, name]);
        }
        cluster.secured = true;
        cluster.start_all(nodes);
        cluster
    }

    fn new(config: &str) -> Self {
        let dir = TempDir::with_prefix("medes-e2e-").unwrap();
        fs::write(dir.path().join("controller.toml"), config).unwrap();
        Self {
            agents: BTreeMap::new(),
            controller: None,
            control: "127.0.0.1:0".into(),
            gateway: "127.0.0.1:0".into(),
            mark: mark(),
            secured: false,
            dir,
        }
    }

    fn start_all(&mut self, nodes: &[(&str, &[&str])]) {
        self.start_controller();
        for (name, args) in nodes {
            self.start_agent(name, args);
        }
        self.all_attached();
    }

    /// `medes cert` in this cluster's folder of certificates.
    #[track_caller]
    pub(crate) fn cert(&self, args: &[&str]) -> Value {
        let dir = self.file("certs");
        let (code, value) = self.medes_as(None, &[&["cert", "--dir", &dir], args].concat());
        assert_eq!(code, 0, "{args:?}: {value}");
        value
    }

    /// The certificate of somebody here.
    fn identity(&self, name: &str) -> [String; 2] {
        ["--identity".into(), self.file(&format!("certs/{name}.pem"))]
    }

    /// Again at the addresses it had, if it had any.
    pub(crate) fn start_controller(&mut self) {
        let [config, state, log] =
            ["controller.toml", "controller", "controller.log"].map(|name| self.file(name));
        let identity = self.secured.then(|| self.identity("controller"));
        let mut args = vec![
            "--control",
            &self.control,
            "--gateway",
            &self.gateway,
            "--state-dir",
            &state,
            "--config",
            &config,
        ];
        args.extend(identity.iter().flatten().map(String::as_str));
        let mut controller =
            Program::start(&path_of("medes-controller"), &args, Path::new(&log), Stdio::piped());
        let line = controller.first_line();
        self.control = line["control"].as_str().unwrap().into();
        self.gateway = line["gateway"].as_str().unwrap().into();
        self.controller = Some(controller);
    }

    pub(crate) fn start_agent(&mut self, name: &str, args: &[&str]) {
        let (node, state) = (self.node(name), self.file(name));
        let log = format!("{state}.log");
        let mut all = vec!["--node", &node, "--controller", &self.control, "--state-dir", &state];
        let criu = criu().map(|path| path.to_str().unwrap().to_owned());
        if let Some(criu) = &criu {
            all.extend(["--criu", criu]);
        }
        let identity = self.secured.then(|| self.identity(&node));
        all.extend(identity.iter().flatten().map(String::as_str));
        all.extend(args);
        let agent = Program::start(&path_of("medes-agent"), &all, Path::new(&log), Stdio::null());
        self.agents.insert(name.into(), agent);
    }

    pub(crate) fn all_attached(&self) {
        until("all agents are attached", || {
            let nodes = self.ask(&["nodes"]);
            let attached: Vec<_> = nodes["nodes"].as_array()?.iter().map(|row| row["node"].clone()).collect();
            self.agents.keys().all(|name| attached.contains(&self.node(name).into())).then_some(())
        });
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// host:port of the controller.
    pub(crate) fn control(&self) -> &str {
        &self.control
    }

    /// The name of a node on this machine.
    pub(crate) fn node(&self, name: &str) -> String {
        format!("{}-{name}", self.mark)
    }

    pub(crate) fn kill_agent(&mut self, name: &str) {
        self.agents.get_mut(name).unwrap().kill();
        self.agents.remove(name);
    }

    /// As a service manager stops it.
    pub(crate) fn stop_agent(&mut self, name: &str) {
        self.end_agent(name, Signal::SIGTERM);
    }

    /// It ends by itself, and not well.
    pub(crate) fn agent_fails(&mut self, name: &str) {
        let mut agent = self.agents.remove(name).unwrap();
        assert!(!agent.wait().success(), "{}", agent.log());
    }

    /// Ends it by a signal that it listens to.
    pub(crate) fn end_agent(&mut self, name: &str, signal: Signal) {
        let mut agent = self.agents.remove(name).unwrap();
        agent.signal(signal);
        assert!(agent.wait().success(), "{}", agent.log());
    }

    /// Only the signal; somebody must still wait for its end.
    pub(crate) fn signal_agent(&self, name: &str, signal: Signal) {
        self.agents[name].signal(signal);
    }

    pub(crate) fn signal_controller(&self, signal: Signal) {
        self.controller.as_ref().unwrap().signal(signal);
    }

    pub(crate) fn kill_controller(&mut self) {
        self.controller.as_mut().unwrap().kill();
    }

    pub(crate) fn controller_log(&self) -> String {
        self.controller.as_ref().unwrap().log()
    }

    /// A function file made of the usual lines and these; `name` may come with arguments for function.py.
    pub(crate) fn function_file(&self, name: &str, arguments: &[&str], lines: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_cluster");
        let mut command = vec!["/usr/bin/python3", "function.py"];
        command.extend(arguments);
        let path = self.file(&format!("{name}.toml"));
        let mark = &self.mark;
        let text = format!(
            "name = '{name}'\ncommand = {command:?}\ndir = '{folder}'\n{lines}\n[env]\nMARK = '{mark}'\n"
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Makes function.py known under a name.
    pub(crate) fn apply(&self, name: &str) {
        self.ask(&["function", "apply", &self.function_file(name, &[], "memory = '256MiB'")]);
    }

    /// `medes --json` with these arguments: exit code and what it printed.
    pub(crate) fn medes(&self, args: &[&str]) -> (i32, Value) {
        self.medes_as(self.secured.then_some("anna"), args)
    }

    /// The same, with somebody else's certificate, or none.
    pub(crate) fn medes_as(&self, who: Option<&str>, args: &[&str]) -> (i32, Value) {
        let output = Command::new(env!("CARGO_BIN_EXE_medes"))
            .env_remove("MEDES_IDENTITY")
            .args(args)
            .args(who.map(|name| self.identity(name)).iter().flatten())
            .args(["--json", "--controller", &self.control])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        let value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text:?}, {said}"));
        (output.status.code().unwrap(), value)
    }

    /// The same, when it must go well.
    #[track_caller]
    pub(crate) fn ask(&self, args: &[&str]) -> Value {
        let (code, value) = self.medes(args);
        assert_eq!(code, 0, "{args:?}: {value}");
        value
    }

    /// The same, when it must fail: the error.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str]) -> Value {
        let (code, value) = self.medes(args);
        assert_eq!(code, 1, "{args:?}: {value}");
        value["error"].clone()
    }

    /// A request through the gateway.
    pub(crate) fn post(&self, path: &str) -> Reply {
        self.post_with(path, &[], b"").unwrap()
    }

    /// A request to one sandbox, which is restored if it must.
    pub(crate) fn post_to(&self, sandbox: &str, path: &str) -> Reply {
        self.post_with(path, &[("x-medes-prefer-sandbox", sandbox)], b"").unwrap()
    }

    pub(crate) fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Reply> {
        http::request(&self.gateway, "POST", &format!("/invoke/{path}"), headers, body)
    }

    /// Starts a sandbox on a node; its name.
    #[track_caller]
    pub(crate) fn start_on(&self, name: &str, function: &str) -> String {
        let done = self.ask(&["start", function, "--node", &self.node(name)]);
        done["sandbox"]["sandbox"].as_str().unwrap().into()
    }

    /// A sandbox as `medes ps` has it.
    pub(crate) fn row(&self, sandbox: &str) -> Option<Value> {
        self.ask(&["ps"]).as_array().unwrap().iter().find(|row| row["sandbox"] == sandbox).cloned()
    }

    /// Its state; "gone" if it is not in the list.
    pub(crate) fn state(&self, sandbox: &str) -> String {
        self.row(sandbox).map_or("gone".into(), |row| row["state"].as_str().unwrap().into())
    }

    #[track_caller]
    pub(crate) fn until_state(&self, sandbox: &str, state: &str) {
        until(&format!("{sandbox} is {state}"), || (self.state(sandbox) == state).then_some(()));
    }

    /// Waits until a sandbox has become the base of its function; the base.
    #[track_caller]
    pub(crate) fn until_base_of(&self, sandbox: &str) -> String {
        until("the first idle sandbox becomes the base", || {
            self.row(sandbox)?["base_snapshot"].as_str().map(str::to_owned)
        })
    }

    /// Processes of this cluster's functions, on this machine.
    pub(crate) fn processes(&self) -> Vec<i32> {
        processes(&self.mark)
    }

    /// What a node that is gone has left on this machine.
    pub(crate) fn left_by(&self, name: &str) -> Vec<String> {
        left_by(&self.node(name))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // What happened, for the one who reads the failure.
        for (name, program) in self
            .agents
            .iter()
            .map(|(name, agent)| (&**name, agent))
            .chain(self.controller.iter().map(|controller| ("controller", controller)))
        {
            let log = program.log();
            let lines: Vec<_> = log.lines().collect();
            println!("-- {name}");
            lines.iter().skip(lines.len().saturating_sub(25)).for_each(|line| println!("{line}"));
        }
    }
}

/// Processes that have this word as `MARK` in their environment.
pub(crate) fn processes(mark: &str) -> Vec<i32> {
    let mark = format!("MARK={mark}");
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse::<i32>().ok()?;
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        environ.split(|&byte| byte == 0).any(|word| word == mark.as_bytes()).then_some(pid)
    });
    all.collect()
}

/// Control groups, name locks and processes' mounts of a node.
pub(crate) fn left_by(node: &str) -> Vec<String> {
    let mut left = Vec::new();
    let group = format!("medes-{node}");
    folders_named(&group, Path::new("/sys/fs/cgroup"), 6, &mut left);
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let lock = format!("@medes-node-{node}");
    left.extend(sockets.lines().filter(|line| line.ends_with(&lock)).map(Into::into));
    left
}

fn folders_named(name: &str, within: &Path, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(within) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(path.display().to_string());
        } else if depth > 0 {
            folders_named(name, &path, depth - 1, found);
        }
    }
}

/// Mounts in this or in another process's mount namespace that speak of a folder.
pub(crate) fn mounts_below(folder: &Path) -> Vec<String> {
    let text = folder.to_str().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let namespace = fs::metadata(entry.path().join("ns/mnt")).map(|namespace| namespace.ino());
        if namespace.is_ok_and(|number| seen.insert(number))
            && let Ok(mounts) = fs::read_to_string(entry.path().join("mountinfo"))
        {
            found.extend(mounts.lines().filter(|line| line.contains(text)).map(Into::into));
        }
    }
    found
}
