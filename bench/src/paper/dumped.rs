//! Memory of real sandboxes, as CRIU dumps it, for experiments that only look at bytes.

use std::sync::Arc;

use anyhow::{Context, Result};
use medes_agent::roads::{Warm, blocking};
use medes_proto::function::FunctionSpec;

use crate::{
    engine::dump::Dump,
    functions::{Function, SHARED_SEED},
    station::{Station, ask::ask, plain},
};

/// What sandboxes of a function have in common beside its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// The kernel places their mappings at random, as always.
    pub(super) aslr: bool,
    /// All have the same data, as if it were part of what was deployed; else each draws its own.
    pub(super) shared_data: bool,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [
        Self { aslr: false, shared_data: true },
        Self { aslr: false, shared_data: false },
        Self { aslr: true, shared_data: true },
        Self { aslr: true, shared_data: false },
    ];

    pub(super) const fn aslr_word(self) -> &'static str {
        if self.aslr { "on" } else { "off" }
    }

    pub(super) const fn data_word(self) -> &'static str {
        if self.shared_data { "shared" } else { "own" }
    }

    /// The function, started so.
    pub(super) fn spec(self, function: &Function) -> Result<Arc<FunctionSpec>> {
        let mut spec = FunctionSpec::from_toml(&function.toml).context("read its function file")?;
        if !self.aslr {
            // For this process and what it becomes alone: no setting of the machine is touched.
            spec.command.splice(0..0, ["setarch".to_owned(), "--addr-no-randomize".to_owned()]);
        }
        if self.shared_data {
            spec.env.insert(SHARED_SEED.0.to_owned(), SHARED_SEED.1.to_owned());
        }
        Ok(Arc::new(spec))
    }
}

/// A new sandbox that has answered so many requests, no two sandboxes the same ones; then it is gone.
pub(super) async fn dump(
    station: &mut Station,
    function: &Function,
    kind: Kind,
    requests: std::ops::Range<u64>,
) -> Result<Dump> {
    let spec = kind.spec(function)?;
    let (sandbox, _) = station.number()?;
    let Warm { housing, tree, .. } = station.start(sandbox, &spec).await?;
    for request in requests {
        ask(&housing, request).await?;
    }
    let images = plain::dump(station, &housing, &tree, "images").await?;
    let folder = images.path().to_owned();
    let dump = blocking(move || Dump::read(&folder)).await?;
    drop(images);
    station.remove(sandbox, &housing).await?;
    Ok(dump)
}
