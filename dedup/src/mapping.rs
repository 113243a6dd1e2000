//! The mappings of a process: what each address is for, whatever the address happens to be this time.
//!
//! With address space randomisation two processes of one program have the same libraries, heap and stack at other
//! addresses. What stays is the file and the offset in it, the kind of memory, its size and its order. This room
//! holds mappings as checked values and pairs those of two processes up by what stays.

use std::collections::{BTreeMap, VecDeque};

use thiserror::Error;

use crate::page::PAGE_BYTES;
use crate::steps::Steps;

/// Most mappings of one process. Linux allows 65,530 unless told otherwise.
pub const MAPPINGS_MAX: usize = 1 << 17;

/// The name of a mapped file, as a number: names are only ever compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(u64);

impl FileName {
    /// The number of a path.
    pub fn of(path: &[u8]) -> Self {
        let hash = blake3::hash(path);
        let (front, _) = hash.as_bytes().split_at(8);
        let mut number = [0; 8];
        number.copy_from_slice(front);
        Self(u64::from_le_bytes(number))
    }

    pub(crate) const fn number(self) -> u64 {
        self.0
    }
}

/// What memory is behind a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backing {
    /// A file, from this offset on, private or shared.
    File {
        /// The file.
        name: FileName,
        /// Where in it the mapping begins, in bytes.
        offset: u64,
    },
    /// The heap that grows by `brk`.
    Heap,
    /// The main thread's stack.
    Stack,
    /// Any other memory without a file: arenas, stacks of threads, zeroed data of libraries.
    Anonymous,
}

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What is there.
    pub backing: Backing,
}

impl Mapping {
    const fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Would an address that is in both mean the same in both?
    fn is_part_of_what(&self, other: &Self) -> bool {
        match (self.backing, other.backing) {
            (Backing::File { name: a, offset: from }, Backing::File { name: b, offset: to }) => {
                a == b && self.start.wrapping_sub(from) == other.start.wrapping_sub(to)
            }
            (mine, theirs) => mine == theirs,
        }
    }
}

/// Why some mappings cannot be those of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MappingsError {
    /// More than any process has.
    #[error("more than {MAPPINGS_MAX} mappings")]
    TooMany,
    /// Ends where it starts or before, or does not consist of whole pages.
    #[error("mapping {start:#x}-{end:#x} does not consist of whole pages")]
    Bounds {
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// Two mappings share an address.
    #[error("two mappings at {start:#x}")]
    Overlap {
        /// Where the second one starts.
        start: u64,
    },
}

/// All mappings of one process, in order of address.
#[derive(Debug, Clone, Default)]
pub struct Mappings {
    list: Vec<Mapping>,
    starts: Steps,
}

impl Mappings {
    /// Checks and sorts them.
    pub fn new(mappings: impl IntoIterator<Item = Mapping>) -> Result<Self, MappingsError> {
        let mut list: Vec<Mapping> = mappings.into_iter().take(MAPPINGS_MAX + 1).collect();
        if list.len() > MAPPINGS_MAX {
            return Err(MappingsError::TooMany);
        }
        list.sort_unstable_by_key(|mapping| mapping.start);
        let mut free_from = 0;
        for &Mapping { start, end, .. } in &list {
            let whole = (start | end).is_multiple_of(PAGE_BYTES as u64);
            if start >= end || !whole {
                return Err(MappingsError::Bounds { start, end });
            }
            if start < free_from {
                return Err(MappingsError::Overlap { start });
            }
            free_from = end;
        }
        let starts = list.iter().map(|mapping| mapping.start).collect();
        let starts = Steps::new(starts, (0..list.len() as u32).collect(), free_from);
        Ok(Self { list, starts })
    }

    /// The mappings, in order of address.
    pub fn as_slice(&self) -> &[Mapping] {
        &self.list
    }

    /// The mapping an address is in.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        let mapping = self.list.get(self.starts.find(address)?)?;
        (address < mapping.end).then_some(mapping)
    }

    /// For each mapping of `self`, what to add (wrapping) to an address in it for the same place in `other`, where
    /// there is a mapping that seems to be the same one.
    pub fn shifts_to(&self, other: &Self) -> Vec<Option<u64>> {
        if let Some(at_home) = self.at_home_in(other) {
            let shifts = self.shifts_by_likeness(other);
            return at_home
                .into_iter()
                .zip(shifts)
                .map(|(stays, shift)| if stays { Some(0) } else { shift })
                .collect();
        }
        self.shifts_by_likeness(other)
    }

    /// Is `other` of a process that descends from the one of this, so that what both have is at the same addresses?
    pub fn stayed_in(&self, other: &Self) -> bool {
        self.at_home_in(other).is_some()
    }

    /// Which mappings are, at least in part, where `other` has the same; `None` if less than three quarters of all bytes are. Where mappings have
    /// grown or merged since, their starts and sizes tell nothing, but nothing has moved.
    fn at_home_in(&self, other: &Self) -> Option<Vec<bool>> {
        let mut theirs = other.list.iter().peekable();
        let (mut all, mut same) = (0, 0);
        let mut at_home = Vec::with_capacity(self.list.len());
        for mine in &self.list {
            all += mine.bytes();
            let mut here = 0;
            while let Some(other) = theirs.peek() {
                if other.start >= mine.end {
                    break;
                }
                if mine.is_part_of_what(other) {
                    here += mine.end.min(other.end).saturating_sub(mine.start.max(other.start));
                }
                if other.end > mine.end {
                    break;
                }
                theirs.next();
            }
            same += here;
            at_home.push(here > 0);
        }
        (same > 0 && same / 3 >= all / 4).then_some(at_home)
    }

    fn shifts_by_likeness(&self, other: &Self) -> Vec<Option<u64>> {
        // From the strictest idea of "same" to the loosest. Each takes from what the ones before have left over.
        let ideas: [Idea; 4] = [Self::by_neighbour, Self::by_size, Self::by_order, Self::by_file];
        let mut pairs: Vec<Option<usize>> = vec![None; self.list.len()];
        let mut taken = vec![false; other.list.len()];
        for idea in ideas {
            let mut open: BTreeMap<Likeness, VecDeque<usize>> = BTreeMap::new();
            for (at, likeness) in idea(other).into_iter().enumerate() {
                if let (Some(likeness), false) = (likeness, taken[at]) {
                    open.entry(likeness).or_default().push_back(at);
                }
            }
            for (at, likeness) in idea(self).into_iter().enumerate() {
                let found =
                    likeness.filter(|_| pairs[at].is_none()).and_then(|key| open.get_mut(&key)?.pop_front());
                if let Some(found) = found {
                    pairs[at] = Some(found);
                    taken[found] = true;
                }
            }
        }
        let shift = |(one, pair): (&Mapping, Option<usize>)| Some(shift(one, other.list.get(pair?)?));
        self.list.iter().zip(pairs).map(shift).collect()
    }

    /// Same backing, same size, behind the same file mapping.
    fn by_neighbour(&self) -> Vec<Option<Likeness>> {
        let mut before = None;
        let likeness = |mapping: &Mapping| {
            if let Backing::File { .. } = mapping.backing {
                before = Some(mapping.backing);
            }
            Some(Likeness { backing: mapping.backing, bytes: mapping.bytes(), before })
        };
        self.list.iter().map(likeness).collect()
    }

    /// Same backing and size.
    fn by_size(&self) -> Vec<Option<Likeness>> {
        let likeness = |mapping: &Mapping| {
            Some(Likeness { backing: mapping.backing, bytes: mapping.bytes(), before: None })
        };
        self.list.iter().map(likeness).collect()
    }

    /// Same backing: for heap and stack, which grow, and files cut off elsewhere.
    fn by_order(&self) -> Vec<Option<Likeness>> {
        let likeness =
            |mapping: &Mapping| Some(Likeness { backing: mapping.backing, bytes: 0, before: None });
        self.list.iter().map(likeness).collect()
    }

    /// Same file, another part of it: the rest is as far away as it is in the file.
    fn by_file(&self) -> Vec<Option<Likeness>> {
        let likeness = |mapping: &Mapping| match mapping.backing {
            Backing::File { name, .. } => {
                Some(Likeness { backing: Backing::File { name, offset: 0 }, bytes: 0, before: None })
            }
            _ => None,
        };
        self.list.iter().map(likeness).collect()
    }
}

/// For each mapping what another must have in common with it to be the same.
type Idea = fn(&Mappings) -> Vec<Option<Likeness>>;

/// What two mappings have in common that are taken for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    backing: Backing,
    bytes: u64,
    before: Option<Backing>,
}

fn shift(from: &Mapping, to: &Mapping) -> u64 {
    match (from.backing, to.backing) {
        (Backing::File { offset: a, .. }, Backing::File { offset: b, .. }) => {
            to.start.wrapping_sub(b).wrapping_sub(from.start.wrapping_sub(a))
        }
        // A stack grows downwards.
        (Backing::Stack, _) => to.end.wrapping_sub(from.end),
        _ => to.start.wrapping_sub(from.start),
    }
}
