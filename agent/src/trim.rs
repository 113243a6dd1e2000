//! Memory of a warm sandbox that it does not touch: taken some pages at a time, between its requests, while it stays as it is.
//!
//! Each step is a park of a few pages that ends with the sandbox running, so it is as safe: proven before anything is given up, and
//! called off within milliseconds when a request comes. Which pages are cold nobody tells: a step takes some that were not written since
//! the last one, and what of them is missed afterwards is never taken again.

use medes_proto::ids::SandboxId;
use tokio_util::sync::CancellationToken;

use crate::{
    driver::Trimmed,
    pager::{self, Pager},
    park::{NotParked, recipes},
    roads::{Roads, Warm},
};

/// Takes at most so many pages. After an error it is as it was, unless its processes ended meanwhile, which their watcher tells.
pub async fn trim(
    roads: &Roads,
    pager: &Pager,
    sandbox: SandboxId,
    mut warm: Warm,
    (pages_max, cancelled): (usize, &CancellationToken),
) -> Result<(Warm, Trimmed), Box<NotParked>> {
    let recipes = match recipes(roads, sandbox, &warm, (None, cancelled)).await {
        Ok(recipes) => recipes,
        Err(error) => return Err(Box::new(NotParked { warm, error })),
    };
    let cgroup = warm.housing.cgroup().clone();
    warm.past.end_tracking().await;
    match pager::trim(pager, &cgroup, warm.paged.clone(), (recipes, pages_max), cancelled).await {
        Ok((paged, report)) => {
            let trimmed = Trimmed {
                taken_pages: report.taken_pages,
                has_more: report.has_more,
                missed_pages: paged.counts().missed,
                stored_bytes: report.stored_bytes,
                bases: report.bases.clone(),
                phases: report.phases.clone(),
            };
            warm.paged = Some(paged);
            tracing::debug!(%sandbox, ?report, "trimmed");
            Ok((warm, trimmed))
        }
        Err(error) => Err(Box::new(NotParked { warm, error: error.into() })),
    }
}
