//! What the loop knows for the accounts. Everything that takes a look is left to who asks.

use super::{Body, Node};
use crate::account::{Books, Entry, Images};

impl Node {
    pub(super) fn books(&self) -> Books {
        let entry = |holder: crate::driver::Holder<'_>| Entry {
            id: holder.id,
            tenant: holder.spec.tenant.clone(),
            function: holder.spec.name.clone(),
            state: holder.state,
            bases: holder.bases.to_vec(),
            stored_bytes: holder.stored_bytes,
            images: self.bodies.get(&holder.id).map(|body| match body {
                Body::Warm(warm, _) | Body::Parked(warm, _) => Images::of_warm(warm),
                Body::Stored(stored) => Images::of_stored(stored),
                Body::Ruin(_) => Images::default(),
            }),
        };
        Books {
            host: self.tools.host.clone(),
            bases: self.tools.bases.clone(),
            sandboxes: self.driver.holders().map(entry).collect(),
        }
    }
}
