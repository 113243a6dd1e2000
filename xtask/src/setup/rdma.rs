//! What the RDMA binding is built with. rdma-core itself is looked for when an agent starts, not here.

use super::{Name, Part, apt};
use crate::build;

pub(super) fn look() -> Part {
    let missing = build::rdma_lacks();
    Part {
        name: Name::Rdma,
        packages: if missing.is_none() { Vec::new() } else { apt::missing(&["cmake", "libclang-dev"]) },
        found: missing.map_or_else(|| Ok("cmake and libclang".to_owned()), Err),
        steps: Vec::new(),
        without: "agents are built without RDMA: they read base pages over TCP",
        by_hand: "Install CMake and libclang (Debian: cmake libclang-dev)",
    }
}
