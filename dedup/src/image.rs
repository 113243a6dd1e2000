//! A dedup image: everything that is left of a sandbox, in one run of bytes.
//!
//! ```text
//!  ┌──────────────────────────────────────────────────────────────┐ 0
//!  │ magic "MedesImg" · version · level · base count · page count │
//!  │ lengths · key check value                                    │
//!  ├──────────────────────────────────────────────────────────────┤ 64
//!  │ arena: the stored bytes of each page, in page order, no gaps │
//!  ├──────────────────────────────────────────────────────────────┤
//!  │ recipes: about 10 bytes for each page (see `recipe`)         │
//!  ├──────────────────────────────────────────────────────────────┤
//!  │ base snapshots: 8 bytes each, every number once              │
//!  ├──────────────────────────────────────────────────────────────┤
//!  │ relations: one for each base (level 1 only)                  │
//!  ├──────────────────────────────────────────────────────────────┤
//!  │ sections: named byte strings, compressed together            │
//!  ├──────────────────────────────────────────────────────────────┤ -48
//!  │ seal: keyed hash of all the above                            │
//!  ├──────────────────────────────────────────────────────────────┤ -32
//!  │ checksum: blake3 of all the above                            │
//!  └──────────────────────────────────────────────────────────────┘ end
//! ```
//!
//! Integers are little-endian. The arena comes first so that an image under construction is one growing buffer
//! and is never held twice.
//!
//! The checksum says "these are the bytes that were written", the key check value "by a holder of this key, or one
//! who copied it", the seal "by a holder of this key". They are looked at in this order, right after the magic number
//! and before anything else is believed; version and limits come next. The last 80 bytes rule holds for every version
//! to come, so an old reader can tell a newer image from a broken one.
//!
//! `version` changes when old readers cannot read the file. `level` says what it is made of: 0 has pages that each
//! need one base page at most, 1 also has pages of words and the relations to their bases (pointer table, secret, coder's tables) these need. Every page is readable alone.

mod build;
mod layout;
mod open;
mod reuse;
mod seal;
mod section;
mod tables;

pub use build::{BuildImageError, ImageBuilder};
pub use open::{DedupImage, OpenImageError, PageClasses};
pub use seal::{UnsealError, seal, unseal};
pub use section::{ReadSectionsError, Sections};

/// Most pages in one image: 64 GiB of memory.
pub const PAGES_MAX: usize = 1 << 24;

/// Most base snapshots behind one image. A recipe names one in a byte.
pub const BASES_MAX: usize = 255;

/// Most named sections.
pub const SECTIONS_MAX: usize = 4096;

/// Longest section name in bytes.
pub const SECTION_NAME_BYTES_MAX: usize = 255;

/// Most bytes in all sections together, names included, before compression.
pub const SECTIONS_BYTES_MAX: usize = 64 << 20;
