//! What goes wrong is told, and nothing is left behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use medes_agent::reaper::{ExitStatus, Reaper};
use medes_agent::sandbox::{
    CreateError, Host, HostError, Housing, LaunchError, LaunchSpec, RequestError, SandboxId,
    enter_private_mounts,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::{
    cgroups_named, config, function, house, launch, on_node, python, result, start_node, try_run, until,
};
use crate::runner::{ONE, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_command_that_cannot_start_is_told", a_command_that_cannot_start),
    ("never_ready_comes_with_the_last_words", never_ready),
    ("an_early_end_comes_with_the_last_words", an_early_end),
    ("a_crash_during_a_request_is_told_at_once", a_crash_during_a_request),
    ("folders_that_cannot_be_shown_are_refused", folders_that_cannot_be_shown),
    ("a_name_is_used_once", a_name_is_used_once),
    ("removal_leaves_nothing", removal_leaves_nothing),
    ("a_killed_agent_leaves_nothing", a_killed_agent_leaves_nothing),
    ("the_end_of_the_keeper_is_noticed", the_end_of_the_keeper),
    ("leftovers_go_at_the_next_start", leftovers_go_at_the_next_start),
];

/// Processes that tests start and kill.
pub(crate) const HELPERS: &[Test] = &[("helper_agent", helper_agent)];

fn a_command_that_cannot_start() {
    on_node(async |host| {
        let spec = |command: &str| LaunchSpec::new("probe", vec![command.to_owned()], 8080);
        for command in ["no-such-command", "/no/such/command", "/etc/passwd/x"] {
            let housing = house(&host, "s1", &spec(command)).await;
            match housing.launch().await {
                Err(LaunchError::CommandNotFound { command: named }) => assert_eq!(named, command),
                other => panic!("{command}: {other:?}"),
            }
            housing.remove().await.unwrap();
        }
        let housing = house(&host, "s1", &spec("/etc/passwd")).await;
        let error = housing.launch().await.unwrap_err();
        assert!(matches!(error, LaunchError::CommandNotExecutable { .. }), "{error:?}");
        housing.remove().await.unwrap();
        let housing = house(&host, "s1", &LaunchSpec { dir: "/no/folder".into(), ..spec("/bin/true") }).await;
        let error = housing.launch().await.unwrap_err();
        assert!(
            matches!(&error, LaunchError::NoWorkingFolder { dir } if dir == Path::new("/no/folder")),
            "{error:?}"
        );
        // Nothing runs after any of them, and the housing can be used again.
        assert!(housing.cgroup().pids().unwrap().is_empty());
        housing.remove().await.unwrap();
    });
}

fn never_ready() {
    on_node(async |host| {
        let silent =
            python("import time\nprint('waiting for godot')\nprint('still', end='')\ntime.sleep(1000)");
        let after = Duration::from_millis(1500);
        let housing = house(&host, "s1", &LaunchSpec { ready_timeout: after, ..silent }).await;
        match housing.launch().await {
            Err(LaunchError::NeverReady { after: told, log, .. }) => {
                assert_eq!((told, log.to_string().as_str()), (after, "waiting for godot\nstill"));
            }
            other => panic!("{other:?}"),
        }
        assert!(housing.cgroup().pids().unwrap().is_empty());
        housing.remove().await.unwrap();
        // It answers, but not with a yes; on a busy machine the interpreter takes its time.
        let after = Duration::from_secs(6);
        let spec = LaunchSpec { ready_timeout: after, ready_path: "/no".into(), ..function() };
        let unready = "import http.server\nhttp.server.HTTPServer(('127.0.0.1', 8080), http.server.BaseHTTPRequestHandler).serve_forever()";
        let housing = house(&host, "s1", &LaunchSpec { command: python(unready).command, ..spec }).await;
        let error = housing.launch().await.unwrap_err();
        assert!(error.to_string().contains("answered 501"), "{error}");
        housing.remove().await.unwrap();
    });
}

fn an_early_end() {
    on_node(async |host| {
        let housing = house(&host, "s1", &python("raise SystemExit('my configuration is wrong')")).await;
        match housing.launch().await {
            Err(LaunchError::EndedBeforeReady { ended, log }) => {
                assert_eq!((ended.status, ended.out_of_memory), (ExitStatus::Code(1), false));
                assert_eq!(log.to_string(), "my configuration is wrong");
            }
            other => panic!("{other:?}"),
        }
        housing.remove().await.unwrap();
    });
}

fn a_crash_during_a_request() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let broken = try_run(&housing, "import os\nos._exit(7)").await;
        assert!(matches!(broken, Err(RequestError::Closed { .. })), "{broken:?}");
        assert_eq!(tree.ended().await.status, ExitStatus::Code(7));
        assert_eq!(tree.ended().await.status, ExitStatus::Code(7));
        // A signal that process 1 of a pid namespace would ignore from inside is fatal as a fault.
        let tree = housing.launch().await.unwrap();
        let broken = try_run(&housing, "import ctypes\nctypes.string_at(0)").await;
        assert!(matches!(broken, Err(RequestError::Closed { .. })), "{broken:?}");
        assert_eq!(tree.ended().await.status, ExitStatus::Signal(libc::SIGSEGV));
        housing.remove().await.unwrap();
    });
}

fn folders_that_cannot_be_shown() {
    on_node(async |host| {
        let id = SandboxId::new("s1").unwrap();
        for path in ["/proc/1", "/tmp", "/no/such/folder", "/sys/kernel"] {
            let spec = LaunchSpec { mounts: vec![PathBuf::from(path)], ..function() };
            let error = Housing::create(&host, &id, &spec).await.unwrap_err();
            assert!(matches!(error, CreateError::Mount(_)), "{path}: {error:?}");
        }
        // Nothing is left of those, so the name is free.
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        housing.remove().await.unwrap();
    });
}

fn a_name_is_used_once() {
    on_node(async |host| {
        let housing = house(&host, "s1", &function()).await;
        let second = Housing::create(&host, housing.id(), &function()).await;
        assert!(matches!(second, Err(CreateError::Exists { .. })), "{second:?}");
        let tasks = TaskTracker::new();
        let node = format!("test-{}", std::process::id());
        let second = Host::start(config(&node), host.reaper().clone(), tasks).await;
        assert!(matches!(second, Err(HostError::Taken { .. })), "{second:?}");
        // The first is none the worse for it.
        housing.launch().await.unwrap();
        let again = housing.launch().await;
        assert!(matches!(again, Err(LaunchError::AlreadyRunning { processes: 1 })), "{again:?}");
        assert_eq!(result(&housing, "result = 1").await, "1");
        housing.remove().await.unwrap();
    });
}

fn removal_leaves_nothing() {
    on_node(async |host| {
        let mounts_before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let children = "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000'])\nsubprocess.Popen(['/usr/bin/setsid', '/bin/sleep', '1000'])\nresult = 1";
        result(&housing, children).await;
        result(&housing, "open('/tmp/x', 'w').write('x')").await;
        until("both children are there", || tree.pids().unwrap().len() == 3);
        let pids = tree.pids().unwrap();
        let network = std::fs::read_link(format!("/proc/{}/ns/net", tree.pid())).unwrap();
        let root = housing.root().to_owned();
        std::fs::write(housing.work_dir().join("image"), "bytes").unwrap();
        housing.remove().await.unwrap();
        housing.remove().await.unwrap();
        drop(housing);
        for pid in pids {
            assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
        }
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts_before);
        assert!(!root.parent().unwrap().exists());
        let groups = cgroups_named(&format!("medes-test-{}", std::process::id()));
        assert!(!groups.is_empty());
        for group in groups {
            assert!(!group.join("sandbox-s1").exists(), "{}", group.display());
        }
        assert_eq!(users_of(&network), Vec::<PathBuf>::new());
    });
}

/// Threads that are in a network namespace or hold it open.
fn users_of(network: &Path) -> Vec<PathBuf> {
    let mut users = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for part in ["task", "fd"] {
            for entry in std::fs::read_dir(process.path().join(part)).into_iter().flatten().flatten() {
                let link = if part == "task" { entry.path().join("ns/net") } else { entry.path() };
                if std::fs::read_link(&link).is_ok_and(|target| target == network) {
                    users.push(link);
                }
            }
        }
    }
    users
}

/// An agent with one sandbox; says who is who and waits for its end.
fn helper_agent() {
    enter_private_mounts().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let host = start_node(&format!("test-helper-{}", nix::unistd::getppid())).await;
        let (housing, tree) = launch(&host, "s1", &function()).await;
        result(&housing, "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000'])").await;
        println!("{} {}", tree.pid(), host.keeper_pid());
        std::future::pending::<()>().await;
    });
}

struct Helper {
    agent: std::process::Child,
    sandbox: Pid,
    keeper: Pid,
    node: String,
}

fn start_helper() -> Helper {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut agent = command.env(ONE, "helper_agent").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut pids = line.split_whitespace().map(|word| Pid::from_raw(word.parse().unwrap()));
    let (sandbox, keeper) = (pids.next().expect("sandbox"), pids.next().expect("keeper"));
    Helper { agent, sandbox, keeper, node: format!("test-helper-{}", std::process::id()) }
}

impl Helper {
    fn kill_agent(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }
}

/// Gone or a zombie nobody has collected yet (the machine's process 1 may be slow).
fn is_dead(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_gone) => true,
    }
}

fn a_killed_agent_leaves_nothing() {
    let mut helper = start_helper();
    assert!(!is_dead(helper.sandbox) && !is_dead(helper.keeper));
    assert!(!cgroups_named(&helper.node).is_empty());
    helper.kill_agent();
    until("the keeper has done its work", || is_dead(helper.keeper));
    assert!(is_dead(helper.sandbox));
    assert_eq!(cgroups_named(&helper.node), Vec::<PathBuf>::new());
}

fn the_end_of_the_keeper() {
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let early = tokio::time::timeout(Duration::from_millis(10), host.keeper_died()).await;
        assert!(early.is_err(), "{early:?}");
        kill(host.keeper_pid(), Signal::SIGKILL).unwrap();
        assert_eq!(host.keeper_died().await, ExitStatus::Signal(9));
        // The sandboxes do not suffer.
        assert_eq!(result(&housing, "result = 1").await, "1");
        housing.remove().await.unwrap();
    });
    // Without a keeper the next start would clean up; in this test nobody comes.
    until("the agent's group can be removed", || {
        cgroups_named(&format!("medes-test-{}", std::process::id())).is_empty() || remove_own_groups()
    });
}

/// Moves this process out of its node's groups and removes them.
fn remove_own_groups() -> bool {
    let node = format!("medes-test-{}", std::process::id());
    let mut groups = cgroups_named(&node);
    for group in &groups {
        std::fs::write(group.parent().unwrap().join("cgroup.procs"), "0").unwrap();
    }
    for group in &groups {
        for child in ["agent", "keeper"] {
            std::fs::remove_dir(group.join(child)).ok();
        }
    }
    groups.retain(|group| std::fs::remove_dir(group).is_err());
    groups.is_empty()
}

fn leftovers_go_at_the_next_start() {
    let mut helper = start_helper();
    // Both at once: nobody cleans up.
    kill(helper.keeper, Signal::SIGKILL).unwrap();
    until("the keeper is dead", || is_dead(helper.keeper));
    helper.kill_agent();
    assert!(!is_dead(helper.sandbox));
    assert!(!cgroups_named(&helper.node).is_empty());
    enter_private_mounts().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks = TaskTracker::new();
        let reaper = Reaper::start(&tasks, CancellationToken::new()).unwrap();
        let host = Host::start(config(&helper.node), reaper, tasks).await.unwrap();
        until("the old sandbox is dead", || is_dead(helper.sandbox));
        assert!(
            cgroups_named(&format!("medes-{}", helper.node)).iter().all(|it| !it.join("sandbox-s1").exists())
        );
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        housing.remove().await.unwrap();
    });
}
