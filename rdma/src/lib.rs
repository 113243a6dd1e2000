//! One-sided reads of another host's memory over RDMA, as safe types.
//!
//! A [`Holder`] listens, lets readers in who show the right word, and exposes sealed memory files to each of them, for
//! reading only; a [`Reader`] has many reads under way at once and waits for them without spinning. rdma-core is loaded
//! at run time: where it is missing, [`available`] says so and nothing else works. All unsafe code is in `verbs`.
#![cfg(feature = "verbs")]

mod holder;
mod reader;
mod verbs;

pub use holder::{ExposeError, Holder, WORD_BYTES};
pub use reader::{ConnectError, PIECE_BYTES_MAX, Piece, READS_MAX, ReadError, Reader, Remote};
pub use verbs::{VerbsError, available};
