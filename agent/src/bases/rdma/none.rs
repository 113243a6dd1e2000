//! What stands for RDMA in an agent that was built without it.

use std::{net::SocketAddr, sync::Arc};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::NoRdma;
use crate::bases::{frame::Token, local::Expose, onesided::Dial};

/// Whether there is RDMA here: there is not.
pub const fn available() -> Result<(), NoRdma> {
    Err(NoRdma::NotBuilt)
}

/// Would connect to a holder.
pub fn dial(_address: SocketAddr, _token: Token, _tasks: &TaskTracker) -> Result<Arc<dyn Dial>, NoRdma> {
    Err(NoRdma::NotBuilt)
}

/// Would let readers in.
pub fn listen(
    _address: SocketAddr,
    _token: Token,
    _tasks: &TaskTracker,
    _stop: CancellationToken,
) -> Result<(Arc<dyn Expose>, SocketAddr), NoRdma> {
    Err(NoRdma::NotBuilt)
}
