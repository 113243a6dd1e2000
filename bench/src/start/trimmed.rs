//! A sandbox that stays warm while what it does not touch is taken: what is left of it, and how fast it still is.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use medes_agent::{pager::Pager, trim};
use medes_proto::function::FunctionSpec;
use tokio_util::sync::CancellationToken;

use super::{Measured, timed};
use crate::station::Station;

/// As an agent's larger steps.
const STEP_PAGES: usize = 2048;
/// More than the largest function needs: 2 GiB.
const STEPS_MAX: usize = 256;

/// Trims one, with a request between any two steps, until nothing is cold; then asks it `rounds` times.
pub(super) async fn measure(
    station: &mut Station,
    pager: &Pager,
    spec: &Arc<FunctionSpec>,
    rounds: u32,
    measured: &mut Measured,
) -> Result<()> {
    let (sandbox, _) = station.number()?;
    let mut last = None;
    let mut warm = station.start(sandbox, spec).await?;
    timed(&warm, Instant::now(), &mut last).await?;
    let never = CancellationToken::new();
    for step in 0..STEPS_MAX {
        timed(&warm, Instant::now(), &mut last).await?;
        let trimmed = trim::trim(&station.roads, pager, sandbox, warm, (STEP_PAGES, &never)).await;
        let (trimmed, done) = trimmed.map_err(|not| not.error).with_context(|| format!("step {step}"))?;
        warm = trimmed;
        measured.trimmed_bytes = done.stored_bytes;
        // The first request after a step waits for what of it was not cold.
        measured.after_step.push(timed(&warm, Instant::now(), &mut last).await?);
        if !done.has_more {
            break;
        }
    }
    measured.trimmed_memory = warm.housing.usage();
    for _round in 0..rounds {
        measured.trimmed.push(timed(&warm, Instant::now(), &mut last).await?);
    }
    station.remove(sandbox, &warm.housing).await
}
