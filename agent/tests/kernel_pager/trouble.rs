//! What goes wrong on the way: the sandbox is warm as before, or it ends; it never sees another page.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use medes_agent::faults::Step;
use medes_agent::pager::{FaultError, ParkError, StorePagesError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::desk::at_desk;
use crate::node::{function, result, try_run, until};
use crate::program::program;
use crate::runner::{ONE, Test};

pub(crate) const TESTS: &[Test] = &[
    ("an_aborted_park_leaves_the_sandbox_warm", an_aborted_park_leaves_the_sandbox_warm),
    ("a_page_that_cannot_be_had_ends_the_sandbox", a_page_that_cannot_be_had_ends_the_sandbox),
    ("without_an_agent_who_misses_a_page_waits_and_dies", without_an_agent_who_misses_a_page_waits_and_dies),
    (
        "a_child_of_before_keeps_a_sandbox_from_being_parked",
        a_child_of_before_keeps_a_sandbox_from_being_parked,
    ),
];

pub(crate) const HELPERS: &[Test] = &[("agent_with_a_parked_sandbox", agent_with_a_parked_sandbox)];

const KEPT: &str = "import sys\nsys.kept = list(range(100000))";
const SUM: &str = "import sys\nresult = sum(sys.kept)";

fn an_aborted_park_leaves_the_sandbox_warm() {
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, KEPT).await;
        let maps = || fs::read_to_string(format!("/proc/{}/maps", guest.tree.pid())).unwrap();
        let before = maps();
        for step in [Step::ParkEncode, Step::ParkZap] {
            desk.fail_once(step);
            let refused = desk.try_park(&guest, &CancellationToken::new()).await;
            let Err(ParkError::Store(StorePagesError::Injected(_))) = refused else { panic!("{refused:?}") };
            assert_eq!(maps(), before, "{step:?}");
            assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        }
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let refused = desk.try_park(&guest, &cancelled).await;
        assert!(matches!(refused, Err(ParkError::Cancelled)), "{refused:?}");
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        // And once it has been parked, an aborted park leaves what is missing to be served.
        desk.park(&mut guest).await;
        guest.unpark();
        desk.fail_once(Step::ParkZap);
        assert!(desk.try_park(&guest, &CancellationToken::new()).await.is_err());
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        desk.park(&mut guest).await;
        guest.unpark();
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        guest.housing.remove().await.unwrap();
    });
}

fn a_page_that_cannot_be_had_ends_the_sandbox() {
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, KEPT).await;
        let faults = desk.may_fail(Step::GiveBack);
        desk.park(&mut guest).await;
        faults.arm(1);
        guest.unpark();
        assert!(try_run(&guest.housing, SUM).await.is_err());
        println!("{}", guest.tree.ended().await);
        let paged = guest.paged.unwrap();
        assert!(matches!(paged.why_lost(), Some(FaultError::Injected(_))), "{:?}", paged.why_lost());
        guest.housing.remove().await.unwrap();
    });
}

fn agent_with_a_parked_sandbox() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &program("memory_checker")).await;
        desk.park(&mut guest).await;
        let freeze = guest.housing.cgroup().main_dir().join("cgroup.freeze");
        println!("{} {} {}", guest.tree.pid(), desk.host.keeper_pid(), freeze.display());
        std::future::pending::<()>().await;
    });
}

fn without_an_agent_who_misses_a_page_waits_and_dies() {
    let name = HELPERS[0].0;
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut agent = command.env(ONE, name).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let numbers = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let mut number = || Some(Pid::from_raw(words.next()?.parse().ok()?));
        Some((number()?, number()?, words.next()?.to_owned()))
    };
    let mut lines = lines.map_while(Result::ok);
    let (sandbox, keeper, freeze) = lines.find_map(|line| numbers(&line)).expect("a parked sandbox");
    // The keeper does not get to its work for a while.
    kill(keeper, Signal::SIGSTOP).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    if !fs::exists(&freeze).unwrap() {
        println!("SKIPPED half of {name}: no cgroup.freeze here");
    } else {
        fs::write(&freeze, "0").unwrap();
        let waits = |task: fs::DirEntry| {
            fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at.contains("userfault"))
        };
        let any = || fs::read_dir(format!("/proc/{sandbox}/task")).unwrap().flatten().any(waits);
        until("who misses a page waits", any);
    }
    kill(keeper, Signal::SIGCONT).unwrap();
    let state = || fs::read_to_string(format!("/proc/{sandbox}/stat")).unwrap_or_default();
    until("it is ended", || {
        state().rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    });
}

fn a_child_of_before_keeps_a_sandbox_from_being_parked() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, KEPT).await;
        desk.park(&mut guest).await;
        guest.unpark();
        let fork = "import os, sys\nsys.pipe = os.pipe()\nsys.child = os.fork()\n\
            if not sys.child:\n    os.read(sys.pipe[0], 1)\n    os._exit(sum(sys.kept) != 4999950000)";
        result(&guest.housing, fork).await;
        let refused = desk.try_park(&guest, &CancellationToken::new()).await;
        assert!(matches!(refused, Err(ParkError::Forked)), "{refused:?}");
        let code = "import os, sys\nos.write(sys.pipe[1], b'x')\nresult = os.waitpid(sys.child, 0)[1]";
        assert_eq!(result(&guest.housing, code).await, "0", "the child saw what its parent had");
        desk.park(&mut guest).await;
        guest.unpark();
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        guest.housing.remove().await.unwrap();
    });
}
