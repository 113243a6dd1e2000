//! Real processes through real CRIU: what was dumped goes on, what was restored goes on, and what goes wrong is a
//! typed error that leaves nothing half done.

#[path = "kernel_criu/support.rs"]
mod support;

use std::path::PathBuf;

use medes_agent::criu::{
    DumpError, DumpRequest, Dumped, Inherited, Leave, Pool, RestoreError, RestoreRequest, Restored, Worker,
    dump, images::ImageSet, preflight, restore, tree,
};
use support::{Bench, LIMIT, Outside, Sandbox, ask, end_restored, good, until, wait_for_line};
use tokio_util::sync::CancellationToken;

async fn dump_to(
    bench: &Bench,
    sandbox: &Sandbox,
    images: &PathBuf,
    leave: Leave,
) -> Result<Dumped, DumpError> {
    let worker = Worker::start_beside(&bench.criu, &bench.reaper, sandbox.pid).await.unwrap();
    let request = DumpRequest {
        pid: sandbox.pid,
        images,
        mounts: &sandbox.mounts,
        leave,
        timeout: LIMIT,
        verbose: std::env::var_os("CRIU_VERBOSE").is_some(),
    };
    dump(worker, &request).await
}

async fn restore_from(
    bench: &Bench,
    worker: Worker,
    sandbox: &Sandbox,
    images: &PathBuf,
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

        let set = ImageSet::read(&images).unwrap();
        assert_eq!(set.pids.len(), 3);
        assert_eq!(set.rseq.len(), 5, "three processes, two of them with a second thread");
        assert!(set.pages.iter().map(|file| file.pages).sum::<u64>() > 100);

        let (worker, mut outside) = worker(bench).await;
        let restored = restore_from(bench, worker, &sandbox, &images, &output).await;
        let restored = restored.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        until("the tree is stopped", || tree::is_stopped(restored.pid).unwrap()).await;
        assert_eq!(tree::members(restored.pid).unwrap().len(), 3);
        tree::resume(restored.pid).unwrap();
        assert_eq!(ask(&outside.netns).await, good(2));
        assert_eq!(ask(&outside.netns).await, good(3));
        wait_for_line(&mut outside.output, "request 3");
        end_restored(bench, restored.pid).await;
    });
}
