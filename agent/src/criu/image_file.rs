//! One CRIU image file: magic numbers, then entries with their length in front. Nothing in it is trusted.

use std::fs::File;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use medes_dedup::mapping::MappingsError;
use prost::Message;

/// Starts every image file but the inventory.
const IMAGE_MAGIC: u32 = 0x5456_4319;
/// Starts the statistics.
const SERVICE_MAGIC: u32 = 0x5510_5940;
pub(super) const PAGEMAP_MAGIC: u32 = 0x5608_4025;
pub(super) const PSTREE_MAGIC: u32 = 0x5027_3030;
pub(super) const CORE_MAGIC: u32 = 0x5505_3847;
pub(super) const MM_MAGIC: u32 = 0x5749_2820;
pub(super) const FILES_MAGIC: u32 = 0x5630_3138;
pub(super) const STATS_MAGIC: u32 = 0x5709_3306;

/// Larger than any core image: registers with all vector state are 11 KiB.
pub(super) const SMALL_BYTES_MAX: u64 = 1 << 20;
/// A pagemap entry takes about 12 bytes, so this is five million runs.
pub(super) const LARGE_BYTES_MAX: u64 = 64 << 20;
/// No entry we read comes near but the one with all mappings; CRIU's own buffer for one is smaller too.
const ENTRY_BYTES_MAX: usize = 256 * 1024;

/// Why a file of a dump makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// It cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is larger than anything CRIU would write.
    #[error("{path} is longer than {max} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// Its contents are wrong.
    #[error("{path}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
}

/// What is wrong with the bytes of an image file.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not the kind of file its name promises.
    #[error("the magic number is {found:#x}, not {expected:#x}")]
    Magic {
        /// What such a file starts with.
        expected: u32,
        /// What this one has there.
        found: u32,
    },
    /// It ends in the middle.
    #[error("it ends at byte {at}, in the middle of something")]
    Truncated {
        /// Its length.
        at: usize,
    },
    /// An entry is longer than any CRIU writes.
    #[error("an entry claims {len} bytes")]
    EntryTooLong {
        /// What it claims.
        len: u32,
    },
    /// An entry is no protobuf message of its kind.
    #[error("decode an entry")]
    Decode(#[source] prost::DecodeError),
    /// An entry is missing.
    #[error("there is no {what}")]
    Missing {
        /// What should be there.
        what: &'static str,
    },
    /// A run of pages is not aligned, empty, or leaves the address space.
    #[error("no run of pages can start at {address:#x} and have {pages} pages")]
    Run {
        /// Where it claims to start.
        address: u64,
        /// How long it claims to be.
        pages: u64,
    },
    /// Runs overlap or are out of order.
    #[error("the run of pages at {address:#x} comes after a later one")]
    Order {
        /// Where it starts.
        address: u64,
    },
    /// The page is kept elsewhere: in an earlier dump, or with a process that serves pages.
    #[error("the pages at {address:#x} are not in this dump (flags {flags:#x})")]
    Elsewhere {
        /// Where the run starts.
        address: u64,
        /// What CRIU says of it.
        flags: u32,
    },
    /// No process can have these mappings.
    #[error("these are the mappings of no process")]
    Mappings(#[source] MappingsError),
    /// More of something than can be.
    #[error("more than {max} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

/// Reads a whole file of at most `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> Result<Vec<u8>, ImageFileError> {
    let failed = |source| ImageFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= max) {
        return Ok(bytes);
    }
    Err(ImageFileError::TooLong { path: path.to_owned(), max })
}

/// The bytes of an image file of the kind with this magic number.
pub(super) fn image(kind: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [IMAGE_MAGIC, kind].iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for entry in entries {
        bytes.extend(u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(entry);
    }
    bytes
}

/// The entries of one file, in order. Ends after the first one that is wrong.
#[derive(Debug)]
pub(super) struct Entries<'a, M> {
    rest: &'a [u8],
    len: usize,
    entry_bytes_max: usize,
    entry: PhantomData<M>,
}

impl<'a, M: Message + Default> Entries<'a, M> {
    /// Opens an image file of the kind with this magic number.
    pub(super) fn image(bytes: &'a [u8], kind: u32) -> Result<Self, FormatError> {
        Self::open(bytes, [IMAGE_MAGIC, kind])
    }

    /// Opens a service file of the kind with this magic number.
    pub(super) fn service(bytes: &'a [u8], kind: u32) -> Result<Self, FormatError> {
        Self::open(bytes, [SERVICE_MAGIC, kind])
    }

    fn open(bytes: &'a [u8], magics: [u32; 2]) -> Result<Self, FormatError> {
        let entry_bytes_max = ENTRY_BYTES_MAX;
        let mut entries = Self { rest: bytes, len: bytes.len(), entry_bytes_max, entry: PhantomData };
        for expected in magics {
            let found = entries.number()?;
            if found != expected {
                return Err(FormatError::Magic { expected, found });
            }
        }
        Ok(entries)
    }

    /// Goes on with entries of another kind.
    pub(super) fn then<N>(self) -> Entries<'a, N> {
        let Self { rest, len, entry_bytes_max, .. } = self;
        Entries { rest, len, entry_bytes_max, entry: PhantomData }
    }

    /// Another limit for one entry.
    pub(super) fn up_to(self, entry_bytes_max: usize) -> Self {
        Self { entry_bytes_max, ..self }
    }

    fn number(&mut self) -> Result<u32, FormatError> {
        let (number, rest) = self.rest.split_first_chunk().ok_or(FormatError::Truncated { at: self.len })?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*number))
    }

    fn entry(&mut self) -> Result<M, FormatError> {
        let claimed = self.number()?;
        let len = usize::try_from(claimed).ok().filter(|len| *len <= self.entry_bytes_max);
        let len = len.ok_or(FormatError::EntryTooLong { len: claimed })?;
        let (entry, rest) = self.rest.split_at_checked(len).ok_or(FormatError::Truncated { at: self.len })?;
        self.rest = rest;
        M::decode(entry).map_err(FormatError::Decode)
    }
}

impl<M: Message + Default> Iterator for Entries<'_, M> {
    type Item = Result<M, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}
