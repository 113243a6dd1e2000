//! The end of a sandbox that nobody has asked for, seen by its processes.

use medes_proto::ids::SandboxId;
use tokio_util::sync::CancellationToken;

use super::{
    Input, Node,
    work::{self, Worked},
};
use crate::{pager::Paged, roads::Warm};

impl Node {
    /// Tells when its processes end, until the token is cancelled.
    pub(super) fn watch(&self, sandbox: SandboxId, warm: &Warm) -> CancellationToken {
        let watch = CancellationToken::new();
        let (tree, log, stop) = (warm.tree.clone(), warm.housing.log().clone(), watch.clone());
        let (inbox, paged) = (self.inbox.clone(), warm.paged.clone());
        self.tools.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = tree.ended() => ended,
                () = stop.cancelled() => return,
            };
            let lost = paged.as_ref().and_then(Paged::why_lost);
            let why = lost.map_or_else(|| work::ended(sandbox, ended, &log), work::lost);
            if inbox.send(Input::Worked(Box::new(Worked::Exited { sandbox, why }))).await.is_err() {
                tracing::debug!(%sandbox, "ended after its node");
            }
        });
        watch
    }
}
