//! What goes wrong on the way: the sandbox is warm as before, or it ends; it never sees another page.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use medes_agent::faults::Step;
use medes_agent::pager::{FaultError, ParkError, StorePagesError};
use medes_agent::watch::writes::Writes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::desk::at_desk;
use crate::node::{function, result, try_run, until};
use crate::program::{Numbers, program};
use crate::runner::{ONE, Test};

pub(crate) const TESTS: &[Test] = &[
    ("an_aborted_park_leaves_the_sandbox_warm", an_aborted_park_leaves_the_sandbox_warm),
    ("a_park_that_is_called_off_leaves_the_sandbox_warm", a_park_that_is_called_off_leaves_the_sandbox_warm),
    ("writes_are_tracked_again_after_a_failed_park", writes_are_tracked_again_after_a_failed_park),
    ("a_page_that_cannot_be_had_ends_the_sandbox", a_page_that_cannot_be_had_ends_the_sandbox),
    ("a_page_that_takes_too_long_ends_the_sandbox", a_page_that_takes_too_long_ends_the_sandbox),
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
        guest.unpark().await;
        desk.fail_once(Step::ParkZap);
        assert!(desk.try_park(&guest, &CancellationToken::new()).await.is_err());
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        desk.park(&mut guest).await;
        guest.unpark().await;
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        guest.housing.remove().await.unwrap();
    });
}

/// Called off at any moment: then it is warm, or, where it was too late, parked; and right in both cases.
fn a_park_that_is_called_off_leaves_the_sandbox_warm() {
    const SEED: u64 = 3;
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, KEPT).await;
        let (mut numbers, mut called_off, mut late) = (Numbers(SEED), Vec::new(), 0);
        for round in 0..40 {
            let cancelled = CancellationToken::new();
            // Sooner and sooner: the first ones come too late, the last ones before anything is stored.
            let after = Duration::from_micros(numbers.below(200_000 >> (round / 4)));
            let cancel = async {
                tokio::time::sleep(after).await;
                cancelled.cancel();
                Instant::now()
            };
            let (parked, at) = tokio::join!(desk.try_park(&guest, &cancelled), cancel);
            match parked {
                Ok((paged, _)) => {
                    guest.paged = Some(paged);
                    guest.unpark().await;
                    late += 1;
                }
                Err(ParkError::Cancelled) => called_off.push(at.elapsed()),
                Err(error) => panic!("seed {SEED}, round {round}: {error}: {error:?}"),
            }
            assert_eq!(result(&guest.housing, SUM).await, "4999950000", "seed {SEED}, round {round}");
        }
        called_off.sort_unstable();
        println!("{late} were parked; {} called off, warm after {called_off:?}", called_off.len());
        assert!(!called_off.is_empty(), "seed {SEED}");
        guest.housing.remove().await.unwrap();
    });
}

fn writes_are_tracked_again_after_a_failed_park() {
    at_desk(async |mut desk| {
        let guest = desk.start("s1", &function()).await;
        result(&guest.housing, KEPT).await;
        let program = Path::new(env!("CARGO_BIN_EXE_medes-agent"));
        let reaper = desk.host.reaper().clone();
        let begin = async || Writes::begin(&reaper, program, guest.tree.pid()).await;
        let writes = begin().await.unwrap();
        writes.take().unwrap();
        // Two on one page cannot be: it ends before a park, as the agent has it.
        drop(writes);
        for step in [Step::ParkEncode, Step::ParkZap] {
            desk.fail_once(step);
            assert!(desk.try_park(&guest, &CancellationToken::new()).await.is_err());
            let writes = begin().await.unwrap();
            writes.take().unwrap();
            assert_eq!(result(&guest.housing, SUM).await, "4999950000");
            let written = writes.take().unwrap().pages();
            assert!(written > 0, "{step:?}: a request writes");
            println!("{step:?}: {written} pages");
        }
        guest.housing.remove().await.unwrap();
    });
}

/// Whether it is missed, or given back before the sandbox runs.
fn a_page_that_cannot_be_had_ends_the_sandbox() {
    at_desk(async |mut desk| {
        for (name, rounds) in [("missed", 0), ("given-back", 2)] {
            let mut guest = desk.start(name, &function()).await;
            result(&guest.housing, KEPT).await;
            let faults = desk.may_fail(Step::GiveBack);
            for _ in 0..rounds {
                desk.park(&mut guest).await;
                guest.unpark().await;
                assert_eq!(result(&guest.housing, SUM).await, "4999950000");
            }
            desk.park(&mut guest).await;
            faults.arm(1);
            guest.unpark().await;
            assert!(try_run(&guest.housing, SUM).await.is_err(), "{name}");
            println!("{name}: {}", guest.tree.ended().await);
            let paged = guest.paged.unwrap();
            assert!(matches!(paged.why_lost(), Some(FaultError::Injected(_))), "{:?}", paged.why_lost());
            guest.housing.remove().await.unwrap();
        }
    });
}

/// Whether it is missed, or given back before the sandbox runs, which does not wait so long for it.
fn a_page_that_takes_too_long_ends_the_sandbox() {
    at_desk(async |mut desk| {
        for (name, rounds) in [("missed", 0), ("given-back", 2)] {
            let mut guest = desk.start(name, &function()).await;
            result(&guest.housing, KEPT).await;
            let faults = desk.may_fail(Step::GiveBackLate);
            for _ in 0..rounds {
                desk.park(&mut guest).await;
                guest.unpark().await;
                assert_eq!(result(&guest.housing, SUM).await, "4999950000");
            }
            desk.park(&mut guest).await;
            faults.arm(1);
            guest.unpark().await;
            // One that does not wait for its pages so long may answer before it is ended: perhaps it needs none of those that are late.
            let answered = try_run(&guest.housing, SUM).await;
            assert!(rounds > 0 || answered.is_err(), "{name}");
            println!("{name}: {}", guest.tree.ended().await);
            let paged = guest.paged.unwrap();
            assert!(matches!(paged.why_lost(), Some(FaultError::Late { .. })), "{:?}", paged.why_lost());
            guest.housing.remove().await.unwrap();
        }
        // Others are served as before.
        let mut other = desk.start("s2", &function()).await;
        result(&other.housing, KEPT).await;
        desk.park(&mut other).await;
        other.unpark().await;
        assert_eq!(result(&other.housing, SUM).await, "4999950000");
        other.housing.remove().await.unwrap();
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
        guest.unpark().await;
        let fork = "import os, sys\nsys.pipe = os.pipe()\nsys.child = os.fork()\n\
            if not sys.child:\n    os.read(sys.pipe[0], 1)\n    os._exit(sum(sys.kept) != 4999950000)";
        result(&guest.housing, fork).await;
        let refused = desk.try_park(&guest, &CancellationToken::new()).await;
        assert!(matches!(refused, Err(ParkError::Forked)), "{refused:?}");
        let code = "import os, sys\nos.write(sys.pipe[1], b'x')\nresult = os.waitpid(sys.child, 0)[1]";
        assert_eq!(result(&guest.housing, code).await, "0", "the child saw what its parent had");
        desk.park(&mut guest).await;
        guest.unpark().await;
        assert_eq!(result(&guest.housing, SUM).await, "4999950000");
        guest.housing.remove().await.unwrap();
    });
}
