//! What a parked sandbox was stored as in haste is stored small while it waits: pages that were kept as they are become words of the base.
//!
//! Nobody waits for it, and nothing of the sandbox is touched: what is stored is the same pages before and after, proven as for a park. It may be given
//! back, or run, in the middle: then what there is stays as it is.

use std::io;
use std::num::NonZeroUsize;

use super::park::Paged;
use super::recipes::{Recipes, StorePagesError};
use super::saved::Saved;
use super::space::Space;
use crate::faults::{Injected, Step};
use crate::maps;

/// Why a parked sandbox stays stored as it is.
#[derive(Debug, thiserror::Error)]
pub enum ShrinkParkedError {
    /// What it has mapped cannot be read: it has ended, or is ending.
    #[error("read what it has mapped")]
    Maps(#[source] io::Error),
    /// There is no memory for its pages.
    #[error("copy its pages")]
    Copy(#[source] io::Error),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StorePagesError),
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl Paged {
    /// Makes recipes of what was kept as it is; whether there was anything. Blocks: some 10 us a page. `recipes`: how, with the bases that the rest is
    /// made from.
    pub fn shrink(&self, recipes: &Recipes) -> Result<bool, ShrinkParkedError> {
        let mut any = false;
        for space in &self.spaces {
            any |= space.shrink(recipes)?;
        }
        Ok(any)
    }
}

impl Space {
    fn shrink(&self, recipes: &Recipes) -> Result<bool, ShrinkParkedError> {
        let (round, before, hot, files) = {
            let state = self.lock();
            (state.round, state.store().clone(), state.working_set.numbers(), state.files.clone())
        };
        let Some(pid) = self.pid.filter(|_| before.plain().is_some()) else { return Ok(false) };
        let maps = maps::read(pid).map_err(ShrinkParkedError::Maps)?;
        let mut saved = Saved { maps, files, hot, before: before.clone(), ..Saved::default() };
        let nothing = |_none: &[u64], _nothing: &mut [u8]| Ok::<_, io::Error>(());
        saved.copy(NonZeroUsize::MIN, nothing).map_err(ShrinkParkedError::Copy)?;
        let base = before.image().and_then(|image| image.held().last().cloned());
        let stored = recipes.with_base(base).store(saved)?;
        recipes.faults.pass(Step::ShrinkParked)?;
        Ok(stored.is_some_and(|stored| self.lock().store_as(stored, (round, &before))))
    }
}
