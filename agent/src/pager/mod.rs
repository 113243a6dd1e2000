//! Dedup in place: takes the memory of a sandbox that stays where it is, and gives it back as it is touched.
//!
//! ```text
//! park:    stop ─► scan written pages ─► copy ─► recipes, proven ─► zap ─► freeze        (an error before the zap: warm)
//! unpark:  push the working set ─► thaw ─► serve what else is touched ─► learn
//! fill:    push everything else, while there is memory and nothing else to do
//! trim:    as park, of some pages that it does not touch, and it goes on
//! shrink:  what was kept as it is for haste ─► words of the base, while it waits
//! bring:   the same for a sandbox that was made without its memory
//! takeover: one that is parked goes to the next agent
//! ```
//!
//! Each process has a userfaultfd ([`space`]) that a few threads serve ([`handler`]), and that they give its working set back through ([`push`]). What its pages are made from is a dedup
//! image and a table ([`store`], [`table`]); the engine is used in one place ([`recipes`]). What is written and missed meanwhile is told window by window ([`window`]).
//!
//! Two promises. A page is either there, or comes back as it was, or the sandbox ends: never another page. And what the
//! program does with its memory meanwhile (madvise, munmap, mremap, fork) means what it always means.

mod bring;
mod changes;
mod counts;
mod deadline;
mod doubt;
mod fault;
mod file_pages;
mod fill;
mod handler;
mod learnt;
mod park;
mod process;
mod push;
mod put;
mod ranges;
mod read;
mod recipes;
mod saved;
mod shrink;
mod space;
mod stopped;
mod store;
mod table;
mod take;
mod takeover;
mod window;
mod working_set;

pub use bring::{Missing, bring};
pub use counts::Counts;
pub use fault::FaultError;
pub use handler::{Guard, Pager};
pub use learnt::{Learnt, School};
pub use park::{Paged, ParkReport, Parked, ReleaseError, park, trim};
pub use recipes::{Recipes, StorePagesError};
pub use shrink::ShrinkParkedError;
pub use space::Unsettled;
pub use stopped::ParkError;
pub(crate) use takeover::{KeptProcess, ProcessRecord, TakeOverError};
pub use window::{Seen, Window};
