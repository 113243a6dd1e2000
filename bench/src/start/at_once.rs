//! Many sandboxes of one function that are wanted in the same moment: warm, and parked.
//!
//! They share the processors, so what an unpark adds is seen against as many warm ones that are asked in one moment.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use medes_agent::{
    pager::Pager,
    park::{self, ParkOrder},
    roads::Warm,
};
use medes_dedup::page::SnapshotId;
use medes_proto::{function::FunctionSpec, ids::SandboxId};
use procfs::Current;
use tokio_util::sync::CancellationToken;

use super::{Measured, clone_one, timed};
use crate::station::{Station, ask::Reply};

/// Of these the first two teach them what is touched.
const ROUNDS: u32 = 4;
const TAUGHT: u32 = 2;
/// And the others are measured.
pub(super) const MEASURED: u32 = ROUNDS - TAUGHT;
/// Of the memory that is free, so much may be theirs while all are warm.
const MEMORY_PERCENT: u64 = 50;

/// One of them.
#[derive(Debug)]
struct One {
    sandbox: SandboxId,
    warm: Warm,
    last: Option<Reply>,
}

/// As many clones as wanted, or as memory has room for; none are measured where there is room for fewer than two.
pub(super) async fn measure(
    station: &mut Station,
    pager: &Pager,
    spec: &Arc<FunctionSpec>,
    (init, wanted): (SnapshotId, u32),
    measured: &mut Measured,
) -> Result<()> {
    let (running, _) = measured.memory.unwrap_or_default();
    let bytes = (running.anon_bytes + running.kernel_bytes + running.shmem_bytes).max(1);
    let room = free_bytes()? / 100 * MEMORY_PERCENT / bytes;
    let many = u64::from(wanted).min(room);
    if many < 2 {
        return Ok(());
    }
    let mut all = Vec::new();
    for _ in 0..many {
        let (sandbox, warm, _) = clone_one(station, spec, init).await?;
        let mut one = One { sandbox, warm, last: None };
        timed(&one.warm, Instant::now(), &mut one.last).await?;
        all.push(one);
    }
    for round in 0..ROUNDS {
        let warm = each(&mut all, false).await.context("ask warm ones")?;
        all = park_all(station, pager, all).await?;
        let unparked = each(&mut all, true).await.context("ask parked ones")?;
        if round >= TAUGHT {
            measured.warm_at_once.extend(warm);
            measured.unpark_at_once.extend(unparked);
        }
    }
    for one in all {
        station.remove(one.sandbox, &one.warm.housing).await?;
    }
    Ok(())
}

/// Asks all of them in one moment; how long each took from then on.
async fn each(all: &mut [One], are_parked: bool) -> Result<Vec<f64>> {
    let began = Instant::now();
    let ask = |one| async move {
        let One { warm, last, .. }: &mut One = one;
        if are_parked {
            warm.paged.as_ref().context("it is parked")?.unpark().await.context("unpark it")?;
        }
        timed(warm, began, last).await
    };
    try_join_all(all.iter_mut().map(ask)).await
}

async fn park_all(station: &Station, pager: &Pager, all: Vec<One>) -> Result<Vec<One>> {
    let (mut parked, never) = (Vec::with_capacity(all.len()), CancellationToken::new());
    for One { sandbox, warm, last } in all {
        let done = park::park(&station.roads, pager, sandbox, warm, (ParkOrder::default(), &never)).await;
        let (warm, _) = done.map_err(|not| not.error).with_context(|| format!("park {sandbox}"))?;
        station.shrink_parked(&warm).await?;
        parked.push(One { sandbox, warm, last });
    }
    Ok(parked)
}

fn free_bytes() -> Result<u64> {
    let found = procfs::Meminfo::current().context("read how much memory is free")?;
    found.mem_available.context("the kernel does not tell how much memory is free")
}
