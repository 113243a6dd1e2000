//! Real processes through real CRIU: what was dumped goes on, what was restored goes on, and what goes wrong is a
//! typed error that leaves nothing half done.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "kernel_criu/support.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use medes_agent::criu::{
    CallError, CheckCriuError, DumpError, DumpRequest, Dumped, Inherited, Leave, Pool, RestoreError,
    RestoreRequest, Restored, Version, Worker, dump, dump_to_memory,
    files::Files,
    images::{ImageSet, Owner},
    preflight,
    preflight::NotDumpable,
    restore, tree,
};
use medes_agent::reaper::ExitStatus;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use support::{
    Bench, LIMIT, Outside, Sandbox, ask, clock, connect, end_restored, good, processes_in, until,
    wait_for_line,
};
use tokio_util::sync::CancellationToken;

fn dump_request<'a>(sandbox: &'a Sandbox, images: &'a Path, leave: Leave) -> DumpRequest<'a> {
    let verbose = std::env::var_os("CRIU_VERBOSE").is_some();
    DumpRequest { pid: sandbox.pid, images, mounts: &sandbox.mounts, leave, timeout: LIMIT, verbose }
}

async fn dump_to(bench: &Bench, sandbox: &Sandbox, images: &Path, leave: Leave) -> Result<Dumped, DumpError> {
    let worker = Worker::start_beside(&bench.criu, &bench.reaper, sandbox.pid).await.unwrap();
    dump(worker, &dump_request(sandbox, images, leave)).await
}

async fn restore_from(
    bench: &Bench,
    worker: Worker,
    sandbox: &Sandbox,
    images: &Path,
    inherited: &[(String, Inherited)],
) -> Result<Restored, RestoreError> {
    let request = RestoreRequest {
        images,
        root: &sandbox.root,
        mounts: &sandbox.mounts,
        cgroup_procs: &[],
        inherited,
        leave_stopped: true,
        timeout: LIMIT,
        verbose: std::env::var_os("CRIU_VERBOSE").is_some(),
    };
    restore(worker, &bench.reaper, &request).await
}

/// A worker in a fresh namespace, with what stays outside.
async fn worker(bench: &'static Bench) -> (Worker, Outside) {
    let pool = Pool::start(
        bench.criu.clone(),
        bench.reaper.clone(),
        1,
        &bench.tasks,
        CancellationToken::new(),
        || bench.seat(),
    );
    pool.take(LIMIT).await.unwrap()
}

#[test]
fn a_dumped_sandbox_goes_on_after_resume() {
    let Some((bench, _turn)) = Bench::get("a_dumped_sandbox_goes_on_after_resume") else { return };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 2);
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
        let images = bench.folder("images");
        let dumped =
            dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        assert!(dumped.pages > 100, "{dumped:?}");
        until("the tree is stopped", || tree::is_stopped(sandbox.pid).unwrap()).await;
        assert_eq!(tree::members(sandbox.pid).unwrap().len(), 3);
        tree::resume(sandbox.pid).unwrap();
        assert_eq!(ask(&sandbox.outside.netns).await, good(2));
        assert_eq!(ask(&sandbox.outside.netns).await, good(3));
    });
}

#[test]
fn a_restored_sandbox_answers_with_its_state() {
    let Some((bench, _turn)) = Bench::get("a_restored_sandbox_answers_with_its_state") else { return };
    bench.run(async move {
        let mut sandbox = Sandbox::start(bench, 2);
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
        let images = bench.folder("images");
        let output = [(sandbox.output_key(), Inherited::Stdout)];
        dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        sandbox.end().await;

        let set = ImageSet::read(images.as_path()).unwrap();
        assert_eq!(set.pids.len(), 3);
        assert_eq!(set.rseq.len(), 5, "three processes, two of them with a second thread");
        assert!(set.pages.iter().map(|file| file.pages).sum::<u64>() > 100);
        let mappings = set.mappings(images.as_path()).unwrap();
        assert_eq!(mappings.len(), 3);
        for file in &set.pages {
            let Owner::Process { pid } = file.owner else { continue };
            let nowhere = file.addresses().find(|address| mappings[&pid].find(*address).is_none());
            assert_eq!(nowhere, None, "every page of {pid} is in a mapping");
        }

        let (worker, outside) = worker(bench).await;
        let restored = restore_from(bench, worker, &sandbox, &images, &output).await;
        let restored = restored.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        sandbox.became(bench, restored.pid, outside);
        until("the tree is stopped", || tree::is_stopped(restored.pid).unwrap()).await;
        assert_eq!(tree::members(restored.pid).unwrap().len(), 3);
        tree::resume(restored.pid).unwrap();
        assert_eq!(ask(&sandbox.outside.netns).await, good(2));
        assert_eq!(ask(&sandbox.outside.netns).await, good(3));
        wait_for_line(&mut sandbox.outside.output, "request 3");
        sandbox.end().await;
    });
}

#[test]
fn what_was_dumped_to_memory_comes_back() {
    let Some((bench, _turn)) = Bench::get("what_was_dumped_to_memory_comes_back") else { return };
    bench.run(async move {
        let mut sandbox = Sandbox::start(bench, 2);
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
        let (beside, images) = (bench.folder("beside"), bench.folder("images"));
        let output = [(sandbox.output_key(), Inherited::Stdout)];
        let request = dump_request(&sandbox, &beside, Leave::Stopped);
        let taken = dump_to_memory(&bench.criu, &bench.reaper, &request).await;
        let (dumped, memory) = taken.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        assert!(dumped.pages > 100, "{dumped:?}");
        assert_eq!(beside.names().unwrap(), [""; 0], "images on a file system");
        sandbox.end().await;

        let set = ImageSet::read(&memory).unwrap();
        assert_eq!((set.pids.len(), set.mappings(&memory).unwrap().len()), (3, 3));
        for file in &set.pages {
            fs::write(images.join(&file.name), memory.pages(&file.name).unwrap()).unwrap();
        }
        for (name, bytes) in memory.others() {
            fs::write(images.join(name), bytes).unwrap();
        }
        let (worker, outside) = worker(bench).await;
        let restored = restore_from(bench, worker, &sandbox, &images, &output).await;
        let restored = restored.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        sandbox.became(bench, restored.pid, outside);
        tree::resume(restored.pid).unwrap();
        assert_eq!(ask(&sandbox.outside.netns).await, good(2));
        sandbox.end().await;
    });
}

#[test]
fn a_dump_that_nobody_takes_is_an_error_and_the_sandbox_goes_on() {
    let Some((bench, _turn)) = Bench::get("a_dump_that_nobody_takes_is_an_error_and_the_sandbox_goes_on")
    else {
        return;
    };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 1);
        let images = bench.folder("images");
        fs::write(images.join("streamer-capture.sock"), "somebody is here already").unwrap();
        let request = dump_request(&sandbox, &images, Leave::Stopped);
        let taken = dump_to_memory(&bench.criu, &bench.reaper, &request).await;
        let Err(error @ DumpError::Capture { .. }) = &taken else { panic!("{taken:?}") };
        assert!(error.may_pass() && !error.leaves_doubt() && !error.is_no_space());
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
        // Another kind of refusal, while CRIU is at it.
        fs::remove_file(images.join("streamer-capture.sock")).unwrap();
        let open = connect(&sandbox.outside.netns);
        let refused = dump_to_memory(&bench.criu, &bench.reaper, &request).await;
        assert!(matches!(refused, Err(DumpError::Refused { .. })), "{refused:?}");
        drop(open);
        assert_eq!(ask(&sandbox.outside.netns).await, good(2));
    });
}

#[test]
fn a_restored_sandbox_can_be_dumped_and_restored_again() {
    let Some((bench, _turn)) = Bench::get("a_restored_sandbox_can_be_dumped_and_restored_again") else {
        return;
    };
    bench.run(async move {
        let mut sandbox = Sandbox::start(bench, 1);
        let mounts = sandbox.mount_options();
        let mut number = 0;
        for round in 0..3 {
            number += 1;
            assert_eq!(ask(&sandbox.outside.netns).await, good(number), "round {round}");
            let images = bench.folder("images");
            let output = [(sandbox.output_key(), Inherited::Stdout)];
            dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap();
            sandbox.end().await;
            let (worker, outside) = worker(bench).await;
            let restored = restore_from(bench, worker, &sandbox, &images, &output).await.unwrap();
            tree::resume(restored.pid).unwrap();
            sandbox.became(bench, restored.pid, outside);
            assert_eq!(sandbox.mount_options(), mounts, "read-only stays read-only");
        }
        sandbox.end().await;
    });
}

/// What CRIU writes of the clocks, as a machine would that has been up for so long.
fn say_up_for(seconds: u64, images: &Path) {
    let path = images.join("timens-0.img");
    let whole = fs::read(&path).unwrap();
    // The entry: { seconds, nanoseconds } of the monotonic clock, then of the one that counts sleep, too.
    let mut time = vec![0x08];
    prost::encoding::encode_varint(seconds, &mut time);
    time.extend([0x10, 0x07]);
    let length = u8::try_from(time.len()).unwrap();
    let entry = [&[0x0a, length][..], &time, &[0x12, length], &time].concat();
    let magic = &whole[..8];
    fs::write(path, [magic, &u32::try_from(entry.len()).unwrap().to_le_bytes(), &entry].concat()).unwrap();
}

#[test]
fn its_clock_goes_on_where_it_stood_on_another_machine() {
    let Some((bench, _turn)) = Bench::get("its_clock_goes_on_where_it_stood_on_another_machine") else {
        return;
    };
    bench.run(async move {
        // One that has just started, one that has been up for ten years.
        for up in [60, 10 * 365 * 86_400] {
            let mut sandbox = Sandbox::start(bench, 0);
            let images = bench.folder("images");
            let output = [(sandbox.output_key(), Inherited::Stdout)];
            dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap();
            sandbox.end().await;
            say_up_for(up, &images);
            let (worker, outside) = worker(bench).await;
            let begun = Instant::now();
            let restored = restore_from(bench, worker, &sandbox, &images, &output).await.unwrap();
            tree::resume(restored.pid).unwrap();
            sandbox.became(bench, restored.pid, outside);
            let since = clock(&sandbox.outside.netns).await - up as f64;
            assert!((0.0..begun.elapsed().as_secs_f64() + 0.1).contains(&since), "{since}");
            sandbox.end().await;
        }
    });
}

#[test]
fn a_dump_that_leaves_it_running_changes_nothing() {
    let Some((bench, _turn)) = Bench::get("a_dump_that_leaves_it_running_changes_nothing") else { return };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 0);
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
        dump_to(bench, &sandbox, &bench.folder("images"), Leave::Running).await.unwrap();
        assert!(!tree::is_stopped(sandbox.pid).unwrap());
        assert_eq!(ask(&sandbox.outside.netns).await, good(2));
    });
}

#[test]
fn an_open_connection_is_refused_with_the_reason() {
    let Some((bench, _turn)) = Bench::get("an_open_connection_is_refused_with_the_reason") else { return };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 2);
        preflight::check_dumpable(sandbox.pid).unwrap();
        let held = connect(&sandbox.outside.netns);
        let seen = preflight::check_dumpable(sandbox.pid);
        assert!(matches!(seen, Err(NotDumpable::OpenConnection { state: "ESTABLISHED", .. })), "{seen:?}");
        let refused = dump_to(bench, &sandbox, &bench.folder("images"), Leave::Stopped).await;
        let Err(error @ DumpError::Refused { .. }) = &refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("TCP"), "{error}");
        assert!(!error.leaves_doubt() && !error.may_pass());
        assert_eq!(ask(&sandbox.outside.netns).await, good(1), "it still runs");
        drop(held);
        until("the connection is gone", || preflight::check_dumpable(sandbox.pid).is_ok()).await;
        dump_to(bench, &sandbox, &bench.folder("images"), Leave::Running).await.unwrap();
    });
}

#[test]
fn broken_images_are_an_error_and_leave_nothing_behind() {
    let Some((bench, _turn)) = Bench::get("broken_images_are_an_error_and_leave_nothing_behind") else {
        return;
    };
    bench.run(async move {
        let mut sandbox = Sandbox::start(bench, 1);
        let images = bench.folder("images");
        let output = [(sandbox.output_key(), Inherited::Stdout)];
        dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap();
        sandbox.end().await;
        let set = ImageSet::read(images.as_path()).unwrap();
        let pages = set.pages.iter().max_by_key(|file| file.pages).unwrap().name.as_str();
        for name in ["inventory.img", "pstree.img", "core-1.img", "mm-1.img", "pagemap-1.img", pages] {
            let path = images.join(name);
            let whole = fs::read(&path).unwrap();
            assert!(whole.len() > 1, "{name}");
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let (worker, outside) = worker(bench).await;
            let broken = restore_from(bench, worker, &sandbox, &images, &output).await;
            if let Ok(restored) = &broken {
                end_restored(bench, restored.pid).await;
            }
            match &broken {
                Err(RestoreError::Failed { reason, .. }) => assert!(!reason.lines().is_empty(), "{name}"),
                Err(RestoreError::Images(_)) => {}
                _ => panic!("{name}: {broken:?}"),
            }
            until(name, || processes_in(&outside.netns).is_empty()).await;
            fs::write(&path, whole).unwrap();
        }
        let (worker, outside) = worker(bench).await;
        let restored = restore_from(bench, worker, &sandbox, &images, &output).await.unwrap();
        sandbox.became(bench, restored.pid, outside);
        tree::resume(sandbox.pid).unwrap();
        assert_eq!(ask(&sandbox.outside.netns).await, good(1), "the images were whole before and are again");
        sandbox.end().await;
    });
}

#[test]
fn a_worker_killed_in_the_middle_of_a_restore_leaves_nothing_behind() {
    let test = "a_worker_killed_in_the_middle_of_a_restore_leaves_nothing_behind";
    let Some((bench, _turn)) = Bench::get(test) else { return };
    bench.run(async move {
        let mut sandbox = Sandbox::start(bench, 1);
        let images = bench.folder("images");
        dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap();
        sandbox.end().await;
        let (worker, outside) = worker(bench).await;
        let pid = worker.pid();
        let killer = async {
            // More than the worker itself: the tree is being made.
            until("the tree is begun", || processes_in(&outside.netns).len() > 1).await;
            kill(pid, Signal::SIGKILL).unwrap();
        };
        let (broken, ()) = tokio::join!(restore_from(bench, worker, &sandbox, &images, &[]), killer);
        let Err(RestoreError::Worker { source: CallError::Died, .. }) = &broken else { panic!("{broken:?}") };
        until("nothing is left", || processes_in(&outside.netns).is_empty()).await;
    });
}

#[test]
fn a_worker_killed_in_the_middle_of_a_dump_is_an_error() {
    let Some((bench, _turn)) = Bench::get("a_worker_killed_in_the_middle_of_a_dump_is_an_error") else {
        return;
    };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 1);
        let images = bench.folder("images");
        let worker = Worker::start_beside(&bench.criu, &bench.reaper, sandbox.pid).await.unwrap();
        let pid = worker.pid();
        let killer = async {
            until("the dump has begun", || images.join("criu.log").exists()).await;
            kill(pid, Signal::SIGKILL).unwrap();
        };
        let request = dump_request(&sandbox, &images, Leave::Stopped);
        let (broken, ()) = tokio::join!(dump(worker, &request), killer);
        let Err(error @ DumpError::Worker { source: CallError::Died, .. }) = &broken else {
            panic!("{broken:?}")
        };
        assert!(error.leaves_doubt());
    });
}

#[test]
fn a_worker_that_hangs_is_killed_at_the_deadline() {
    let Some((bench, _turn)) = Bench::get("a_worker_that_hangs_is_killed_at_the_deadline") else { return };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 0);
        let images = bench.folder("images");
        let worker = Worker::start_beside(&bench.criu, &bench.reaper, sandbox.pid).await.unwrap();
        let mut exit = bench.reaper.claim(worker.pid());
        kill(worker.pid(), Signal::SIGSTOP).unwrap();
        let limit = Duration::from_millis(50);
        let late =
            dump(worker, &DumpRequest { timeout: limit, ..dump_request(&sandbox, &images, Leave::Running) })
                .await;
        let Err(DumpError::Worker { source: CallError::Timeout { limit: said }, .. }) = &late else {
            panic!("{late:?}")
        };
        assert_eq!(*said, limit);
        assert_eq!(exit.wait().await, ExitStatus::Signal(9));
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
    });
}

#[test]
fn a_full_folder_is_an_error_and_the_sandbox_goes_on() {
    let Some((bench, _turn)) = Bench::get("a_full_folder_is_an_error_and_the_sandbox_goes_on") else {
        return;
    };
    bench.run(async move {
        let sandbox = Sandbox::start(bench, 1);
        let images = bench.folder("small");
        mount(Some("small"), &images, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        let full = dump_to(bench, &sandbox, &images, Leave::Stopped).await;
        let Err(error @ DumpError::NoSpace { .. }) = &full else { panic!("{full:?}") };
        assert!(error.may_pass() && !error.leaves_doubt());
        assert_eq!(ask(&sandbox.outside.netns).await, good(1));
        assert_eq!(ask(&sandbox.outside.netns).await, good(2));
    });
}

#[test]
fn a_worker_that_died_in_the_pool_is_replaced() {
    let Some((bench, _turn)) = Bench::get("a_worker_that_died_in_the_pool_is_replaced") else { return };
    bench.run(async move {
        let (dead, stop) = (Arc::new(OnceLock::new()), CancellationToken::new());
        let (made, mut seats) = tokio::sync::mpsc::channel(8);
        let seat = move || {
            let seat = bench.seat()?;
            made.blocking_send(seat.keep.netns.try_clone()?).map_err(std::io::Error::other)?;
            Ok(seat)
        };
        let pool = Pool::start(bench.criu.clone(), bench.reaper.clone(), 1, &bench.tasks, stop.clone(), seat);
        let first = seats.recv().await.unwrap();
        until("the first worker is there", || {
            processes_in(&first).first().is_some_and(|pid| dead.set(*pid).is_ok() || dead.get() == Some(pid))
        })
        .await;
        let dead = *dead.get().unwrap();
        let mut exit = bench.reaper.claim(dead);
        kill(dead, Signal::SIGKILL).unwrap();
        exit.wait().await;
        let (second, _outside) = pool.take(LIMIT).await.unwrap();
        assert_ne!(second.pid(), dead);
        assert!(second.is_alive());
        stop.cancel();
        let closed = async { while pool.take(LIMIT).await.is_ok() {} };
        tokio::time::timeout(LIMIT, closed).await.expect("a stopped pool ends");
    });
}

#[test]
fn criu_tells_its_version_and_checks_the_kernel() {
    let Some((bench, _turn)) = Bench::get("criu_tells_its_version_and_checks_the_kernel") else { return };
    bench.run(async move {
        assert!(bench.criu.version(&bench.reaper).await.unwrap() >= Version { major: 4, minor: 0, patch: 0 });
        bench.criu.check(&bench.reaper, &bench.folder("check")).await.unwrap();
        let nowhere = bench.criu.check(&bench.reaper, &bench.scratch.join("nowhere")).await;
        assert!(matches!(nowhere, Err(CheckCriuError::Scratch { .. })), "{nowhere:?}");
    });
}

/// Figures for people, not a verdict: `cargo test --test kernel_criu -- --ignored --nocapture`.
#[test]
#[ignore = "prints how long dump and restore take"]
fn figures() {
    let Some((bench, _turn)) = Bench::get("figures") else { return };
    bench.run(async move {
        let mut sandbox = Sandbox::start(bench, 0);
        let pool = Pool::start(
            bench.criu.clone(),
            bench.reaper.clone(),
            1,
            &bench.tasks,
            CancellationToken::new(),
            || bench.seat(),
        );
        let (mut dumps, mut restores) = (Vec::new(), Vec::new());
        for _ in 0..11 {
            let images = bench.folder("images");
            let output = [(sandbox.output_key(), Inherited::Stdout)];
            let start = Instant::now();
            let dumped = dump_to(bench, &sandbox, &images, Leave::Stopped).await.unwrap();
            dumps.push(start.elapsed());
            sandbox.end().await;
            let (worker, outside) = pool.take(LIMIT).await.unwrap();
            // Let it come up first, as in a pool that is not in a hurry.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let start = Instant::now();
            let restored = restore_from(bench, worker, &sandbox, &images, &output).await.unwrap();
            restores.push(start.elapsed());
            tree::resume(restored.pid).unwrap();
            sandbox.became(bench, restored.pid, outside);
            println!("{dumped:?} {restored:?}");
            ask(&sandbox.outside.netns).await;
        }
        for (what, mut times) in [("dump", dumps), ("restore", restores)] {
            times.sort();
            println!(
                "{what}: median {:?}, min {:?}, max {:?}",
                times[times.len() / 2],
                times[0],
                times[times.len() - 1]
            );
        }
        sandbox.end().await;
    });
}
