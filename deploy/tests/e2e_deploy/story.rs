//! One cluster's life: each step needs the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use medes_deploy::probe::Init;
use serde_json::Value;

use crate::{
    lab::{self, Lab, address, until},
    traffic::{self, Traffic},
};

/// Told apart from other clusters on this machine.
fn node(name: &str) -> String {
    format!("lab{}-{name}", std::process::id())
}

struct Deployer<'a> {
    lab: &'a Lab,
    hosts: String,
}

impl Deployer<'_> {
    fn run(&self, args: &[&str]) -> (bool, String, String) {
        let mut command = self.lab.command(env!("CARGO_BIN_EXE_medes-deploy"));
        let output = command.args(args).args(["--hosts", &self.hosts]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        println!("-- medes-deploy {}\n{said}", args.join(" "));
        (output.status.success(), out, said)
    }

    fn deploy(&self, binaries: &Path, more: &[&str]) -> (bool, String) {
        let mut args = vec!["--binaries", binaries.to_str().unwrap()];
        let criu = lab::criu().map(|path| path.to_str().unwrap().to_owned());
        if let Some(criu) = &criu {
            args.extend(["--criu", criu]);
        }
        args.extend(more);
        // What the doctor misses on a machine of tests is not what these tests are about.
        args.push("--accept-missing");
        let (good, _, said) = self.run(&args);
        (good, said)
    }

    /// Every host's row, by its name. All are healthy, or the test ends.
    #[track_caller]
    fn healthy(&self) -> BTreeMap<String, Value> {
        let (good, out, said) = self.run(&["status", "--json"]);
        assert!(good, "{out}{said}");
        let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
        rows.into_iter().map(|row| (row["host"].as_str().unwrap().to_owned(), row)).collect()
    }

    #[track_caller]
    fn versions(&self) -> Vec<String> {
        self.healthy().values().map(|row| row["current"].as_str().unwrap().to_owned()).collect()
    }
}

fn hosts_file(lab: &Lab, name: &str, third: &str) -> String {
    let (ssh, one, two, three) = (lab.ssh_section(), address(0), address(1), address(2));
    let (a, b, c) = (node("a"), node("b"), node("c"));
    let text = format!(
        "prefix = '/opt/medes'\n{ssh}[controller]\nhost = '{one}'\nset = ['requests.deadline=90s']\n\
         [node_defaults]\nmemory_cap = '512MiB'\n[[node]]\nname = '{a}'\nhost = '{one}'\n\
         [[node]]\nname = '{b}'\nhost = '{two}'\n[[node]]\nname = '{c}'\nhost = '{three}'\n{third}\n"
    );
    lab.file(name, &text).to_str().unwrap().to_owned()
}

/// `medes` from outside, to the cluster's controller.
#[track_caller]
fn medes(lab: &Lab, args: &[&str]) -> String {
    let mut command = lab.command(lab::binaries().join("medes").to_str().unwrap());
    let operator = lab.folder().join("medes-certs/operator.pem");
    command.arg("--identity").arg(operator).args(["--controller", &format!("{}:7070", address(0))]);
    let output = command.args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn agent_pid(lab: &Lab, host: usize) -> i32 {
    let agents = lab.processes(host).into_iter().filter(|(_, line)| line.contains("bin/medes-agent --node"));
    agents.map(|(pid, _)| pid).next().unwrap()
}

/// The kernel's word for what a process may ever do.
fn bounding_set(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn bit(name: &str) -> u64 {
    1 << name.parse::<caps::Capability>().unwrap().index()
}

#[test]
fn a_cluster_is_deployed_upgraded_under_load_brought_back_and_removed() {
    life(Init::Supervise, "a_cluster_is_deployed_upgraded_under_load_brought_back_and_removed");
}

#[test]
fn so_is_one_where_systemd_keeps_it() {
    life(Init::Systemd, "so_is_one_where_systemd_keeps_it");
}

fn life(init: Init, test: &str) {
    if let Some(why) = lab::lacks(init) {
        println!("SKIPPED {test}: {why}");
        return;
    }
    let lab = Lab::start(3, init);
    let deployer = Deployer { lab: &lab, hosts: hosts_file(&lab, "hosts.toml", "") };
    first_deployment(&lab, &deployer);
    let first = deployer.versions();
    apply(&lab, "f");
    // Everybody shows who it is, so callers do, too.
    let token: Value = serde_json::from_str(&medes(&lab, &["token", "create", "callers", "--json"])).unwrap();
    let token = token["token"].as_str().unwrap();
    let traffic = Traffic::start(&lab, &gateway(), "/invoke/f/count", token);
    traffic.some_more();

    let mut resting = two_that_are_to_rest(&lab, token);
    upgrade(&lab, &deployer, &traffic);
    still_there(&lab, &mut resting, token);
    let second = deployer.versions();
    assert!(first.iter().zip(&second).all(|(first, second)| first != second), "{second:?}");

    one_does_not_come_up(&lab, &traffic);
    assert_eq!(deployer.versions(), second);
    traffic.some_more();

    let (good, _, said) = deployer.run(&["rollback"]);
    assert!(good, "{said}");
    still_there(&lab, &mut resting, token);
    assert_eq!(deployer.versions(), first);
    traffic.some_more();
    assert!(traffic.all_good() > 50);

    an_unreachable_host_changes_nothing(&lab);
    assert_eq!(deployer.versions(), first);
    if init == Init::Systemd {
        systemd_keeps_it(&lab, &mut resting, token);
    }
    removal(&lab, &deployer);
}

fn first_deployment(lab: &Lab, deployer: &Deployer<'_>) {
    let (good, said) = deployer.deploy(&lab::binaries(), &["--dry-run"]);
    assert!(good && said.contains("for the first time"), "{said}");
    assert_eq!(lab.left_in_opt(0), [""; 0].map(std::path::PathBuf::from), "a dry run leaves nothing");

    let (good, said) = deployer.deploy(&lab::binaries(), &["--max-unavailable", "3"]);
    assert!(good, "{said}");
    let status = deployer.healthy();
    assert_eq!(status[&address(1)]["node"]["name"], *node("b"));
    assert_eq!(status[&address(0)]["running"].as_object().unwrap().len(), 2);

    let pids: Vec<_> = (0..3).map(|host| agent_pid(lab, host)).collect();
    let (good, said) = deployer.deploy(&lab::binaries(), &[]);
    assert!(good && said.matches("already").count() == 3, "{said}");
    assert_eq!((0..3).map(|host| agent_pid(lab, host)).collect::<Vec<_>>(), pids, "nothing was restarted");

    let allowed: u64 = medes_deploy::services::AGENT_CAPABILITIES.iter().map(|name| bit(name)).sum();
    assert_eq!(bounding_set(pids[0]) & !allowed, 0);
    let controller =
        lab.processes(0).into_iter().find(|(_, line)| line.contains("bin/medes-controller --state"));
    assert_eq!(bounding_set(controller.unwrap().0), 0);
    a_host_has_its_own_keys_only(lab);
}

fn a_host_has_its_own_keys_only(lab: &Lab) {
    let there = |host: usize| -> BTreeSet<String> {
        let certs = lab.folder().join(format!("host-{host}/opt/medes/certs"));
        let files = fs::read_dir(certs).unwrap().map(Result::unwrap);
        let told = files.map(|file| {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
            file.file_name().into_string().unwrap()
        });
        told.collect()
    };
    let own = |holders: &[&str]| -> BTreeSet<String> {
        let files = holders.iter().flat_map(|name| [format!("{name}.pem"), format!("{name}-key.pem")]);
        files.chain(["ca.pem".to_owned()]).collect()
    };
    assert_eq!(there(1), own(&[&node("b")]));
    assert_eq!(there(0), own(&["controller", "operator", &node("a")]));
}

fn upgrade(lab: &Lab, deployer: &Deployer<'_>, traffic: &Traffic) {
    let pids: Vec<_> = (0..3).map(|host| agent_pid(lab, host)).collect();
    let (good, said) = deployer.deploy(&lab.other_release("second"), &[]);
    assert!(good, "{said}");
    let after: Vec<_> = (0..3).map(|host| agent_pid(lab, host)).collect();
    assert!(pids.iter().zip(&after).all(|(before, after)| before != after));
    let standings = medes(lab, &["nodes", "--json"]);
    assert_eq!(standings.matches("\"standing\":\"open\"").count(), 3, "{standings}");
    traffic.some_more();
}

/// A sandbox that counts.
struct Resting {
    function: &'static str,
    node: String,
    sandbox: String,
    /// Requests that it has had.
    count: u64,
}

/// Two of them: one is in dedup, the other still warm.
fn two_that_are_to_rest(lab: &Lab, token: &str) -> Vec<Resting> {
    let mut all: Vec<_> = [("g", "b"), ("h", "c")]
        .map(|(function, name)| {
            apply(lab, function);
            let node = node(name);
            let started = medes(lab, &["start", function, "--node", &node, "--json"]);
            let started: Value = serde_json::from_str(&started).unwrap();
            let sandbox = started["sandbox"]["sandbox"].as_str().unwrap().to_owned();
            Resting { function, node, sandbox, count: 0 }
        })
        .into();
    all.iter_mut().for_each(|one| one.call(lab, token));
    medes(lab, &["dedup", &all[0].sandbox]);
    all
}

impl Resting {
    /// One more request, to this one and no other.
    #[track_caller]
    fn call(&mut self, lab: &Lab, token: &str) {
        let path = format!("/invoke/{}/count", self.function);
        let answer = traffic::call(lab, (&gateway(), &path), token, &self.sandbox);
        self.count += 1;
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["count"], self.count, "{answer}");
    }
}

/// Each rests where it was, and goes on from there.
#[track_caller]
fn still_there(lab: &Lab, resting: &mut [Resting], token: &str) {
    let rows: Value = serde_json::from_str(&medes(lab, &["ps", "--json"])).unwrap();
    for Resting { node, sandbox, .. } in &*resting {
        let row = rows.as_array().unwrap().iter().find(|row| row["sandbox"] == **sandbox);
        let row = row.unwrap_or_else(|| panic!("{sandbox} is gone: {rows}"));
        assert_eq!(row["node"], **node, "{row}");
        assert!(["dedup", "parked"].contains(&row["state"].as_str().unwrap()), "{row}");
    }
    resting.iter_mut().for_each(|one| one.call(lab, token));
}

/// What is the kernel's and systemd's to say: an agent that is killed is started again and has what rests, its words are its service's, and the
/// node is counted whole.
fn systemd_keeps_it(lab: &Lab, resting: &mut [Resting], token: &str) {
    let idle = |lab: &Lab, one: &Resting| medes(lab, &["dedup", &one.sandbox]);
    resting.iter().for_each(|one| drop(idle(lab, one)));
    let before = agent_pid(lab, 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the agent is there again", || {
        let nodes = medes(lab, &["nodes", "--json"]);
        let nodes: Value = serde_json::from_str(&nodes).unwrap();
        let connected = nodes["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["node"] == *node("b") && row["connected"] == true);
        connected
            && lab
                .processes(1)
                .iter()
                .any(|(pid, line)| *pid != before && line.contains("medes-agent --node"))
    });
    still_there(lab, resting, token);

    let on_host = |args: &[&str]| String::from_utf8(lab.on_host(1, args).output().unwrap().stdout).unwrap();
    let said = on_host(&["journalctl", "-q", "--no-pager", "-u", "medes-agent.service"]);
    let starts = said.matches("Started medes-agent.service").count();
    assert!(starts > 3 && said.matches("agent is up").count() == starts, "{said}");
    let scopes = on_host(&["systemctl", "list-units", "--no-legend", "medes-*.scope"]);
    assert_eq!(scopes.lines().count(), 1, "one scope, in which all is: {scopes}");

    let accounting: Value = serde_json::from_str(&medes(lab, &["accounting", "--json"])).unwrap();
    for row in accounting["nodes"].as_array().unwrap() {
        let (counted, nobody) =
            (row["counted_bytes"].as_i64().unwrap(), row["nobody_bytes"].as_i64().unwrap());
        // On nodes as small as these, caches of the kernel that ended agents have filled are more than a fiftieth.
        assert!(nobody.abs() < (counted / 50).max(4 << 20), "all of it is somebody's: {row}");
    }
}

fn gateway() -> String {
    format!("{}:7080", address(0))
}

fn apply(lab: &Lab, name: &str) {
    medes(lab, &["function", "apply", lab.function(name).to_str().unwrap()]);
}

/// The third host's agent cannot open a socket on an address that is not the host's: it ends at once, again and again.
fn one_does_not_come_up(lab: &Lab, traffic: &Traffic) {
    let broken = "args = ['--metrics', '192.0.2.1:9']";
    let deployer = Deployer { lab, hosts: hosts_file(lab, "broken.toml", broken) };
    let (good, said) = deployer.deploy(&lab.other_release("third"), &["--wait", "30"]);
    assert!(!good, "{said}");
    assert!(said.contains(&format!("{}: the agent is not healthy", address(2))), "{said}");
    assert!(said.contains("serve metrics"), "its own words are told: {said}");
    for host in 0..3 {
        assert!(said.contains(&format!("[{}] runs ", address(host))), "{said}");
    }
    traffic.some_more();
}

fn an_unreachable_host_changes_nothing(lab: &Lab) {
    let more = format!("[[node]]\nname = '{}'\nhost = '{}'", node("d"), address(7));
    let deployer = Deployer { lab, hosts: hosts_file(lab, "more.toml", &more) };
    let (good, said) = deployer.deploy(&lab::binaries(), &[]);
    assert!(!good && said.contains("nothing was changed"), "{said}");
    assert!(said.contains(&format!("{}: cannot be reached", address(7))), "{said}");
}

fn removal(lab: &Lab, deployer: &Deployer<'_>) {
    let (good, _, said) = deployer.run(&["remove"]);
    assert!(good && said.contains("--yes"), "{said}");
    deployer.healthy();
    let (good, _, said) = deployer.run(&["remove", "--yes"]);
    assert!(good, "{said}");
    for host in 0..3 {
        assert_eq!(lab.left_in_opt(host), Vec::<std::path::PathBuf>::new());
        // An agent's keeper cleans up for a moment after it.
        until("no process is left", || lab.processes(host).is_empty());
    }
    if lab.init == Init::Systemd {
        for host in 0..3 {
            let list = ["systemctl", "list-units", "--all", "--no-legend", "medes*"];
            let units = lab::checked(&lab.on_host(host, &list).output().unwrap(), "list units");
            assert_eq!(units, "", "host {host}");
        }
    }
    let groups = |name: &str| groups_named(&format!("medes-{}", node(name)), Path::new("/sys/fs/cgroup"), 6);
    until("no control group is left", || ["a", "b", "c"].iter().all(|name| groups(name) == 0));
    let (good, _, said) = deployer.run(&["remove", "--yes"]);
    assert!(good && said.contains("nothing is deployed there"), "removing twice is no mistake: {said}");
}

fn groups_named(name: &str, within: &Path, depth: usize) -> usize {
    let Ok(entries) = fs::read_dir(within) else { return 0 };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .map(|entry| match (entry.file_name() == name, depth) {
            (true, _) => 1,
            (false, 0) => 0,
            (false, _) => groups_named(name, &entry.path(), depth - 1),
        })
        .sum()
}
