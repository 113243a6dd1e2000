//! Makes a pointer table out of what was seen while a target was aligned.

use super::align::Seen;
use super::translation::{ENTRIES_MAX, Translation};
use crate::mapping::{Backing, Mappings};

/// Pointers that are counted before they are written down: the popular ones are met over and over.
const COUNTERS: usize = 1 << 13;

/// Sightings kept. More than this say nothing new.
const SEEN_MAX: usize = 1 << 24;

/// Numbers that are no addresses stay what they are: a wider gap between mappings gets an entry of its own.
const GAP_BYTES_MAX: u64 = 1 << 20;

/// A run with fewer votes does not pay for its entry.
const VOTES_MIN: u64 = 2;

/// A run between two equal ones must pay for two entries.
const VOTES_BETWEEN_MIN: u64 = 4;

/// Collects sightings of pointers.
#[derive(Debug, Clone)]
pub(super) struct Learner {
    counters: Box<[(Seen, u32)]>,
    seen: Vec<(Seen, u32)>,
}

/// Neighbouring pointers with the same shift.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    shift: u64,
    votes: u64,
}

impl Learner {
    pub(super) fn new() -> Self {
        let none = (Seen { base: 0, shift: 0 }, 0);
        Self { counters: vec![none; COUNTERS].into_boxed_slice(), seen: Vec::new() }
    }

    #[inline]
    pub(super) fn see(&mut self, seen: Seen) {
        let at = (seen.base >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - COUNTERS.trailing_zeros());
        let counter = &mut self.counters[at as usize];
        if counter.0 == seen {
            counter.1 = counter.1.saturating_add(1);
            return;
        }
        let (before, votes) = std::mem::replace(counter, (seen, 1));
        if votes > 0 && self.seen.len() < SEEN_MAX {
            self.seen.push((before, votes));
        }
    }

    /// Takes in what another one saw.
    pub(super) fn merge(&mut self, other: Self) {
        let counted = other.counters.into_iter().filter(|(_, votes)| *votes > 0);
        self.seen
            .extend(other.seen.into_iter().chain(counted).take(SEEN_MAX - self.seen.len().min(SEEN_MAX)));
    }

    /// The table that explains most of what was seen, at a fair price.
    pub(super) fn translation(mut self, base: &Mappings, target: &Mappings) -> Translation {
        self.seen.extend(self.counters.iter().filter(|(_, votes)| *votes > 0));
        self.seen.sort_unstable();
        let runs = runs(&self.seen);
        let mut entries: Vec<(u64, u64)> = Vec::new();
        let mut runs = runs.into_iter().peekable();
        let mut free_from = 0;
        for (mapping, shift) in base.as_slice().iter().zip(base.shifts_to(target)) {
            if mapping.start - free_from > GAP_BYTES_MAX && free_from > 0 {
                entries.push((free_from, 0));
            }
            free_from = mapping.end;
            // Until something else is seen, a mapping moved as a whole.
            let mut begins = true;
            while let Some(run) = runs.next_if(|run| run.start < mapping.end) {
                let outside = run.start < mapping.start || matches!(mapping.backing, Backing::File { .. });
                if outside || entries.len() >= ENTRIES_MAX / 2 {
                    continue;
                }
                entries.push((if begins { mapping.start } else { run.start }, run.shift));
                begins = false;
            }
            if begins {
                entries.push((mapping.start, shift.unwrap_or(0)));
            }
        }
        let end = base.as_slice().last().map_or(0, |mapping| mapping.end);
        Translation::new(entries, end)
    }
}

/// Sightings in order of base address, as runs worth an entry.
fn runs(seen: &[(Seen, u32)]) -> Vec<Run> {
    let mut raw: Vec<Run> = Vec::new();
    for group in seen.chunk_by(|(a, _), (b, _)| a.base & !7 == b.base & !7) {
        let start = group[0].0.base & !7;
        let before = raw.last().map(|run| run.shift);
        let mut best: Option<(u64, u64)> = None;
        let mut same = 0;
        // Equal shifts of one address are neighbours.
        for part in group.chunk_by(|(a, _), (b, _)| a == b) {
            let (shift, votes) = (part[0].0.shift, part.iter().map(|(_, votes)| u64::from(*votes)).sum());
            if Some(shift) == before {
                same += votes;
            }
            if best.is_none_or(|(_, most)| votes > most) {
                best = Some((shift, votes));
            }
        }
        let Some((shift, votes)) = best else { continue };
        match raw.last_mut() {
            Some(run) if same + VOTES_MIN > votes => run.votes += same,
            _ => raw.push(Run { start, shift, votes: votes - same }),
        }
    }
    let mut kept: Vec<Run> = Vec::with_capacity(raw.len());
    for (at, run) in raw.iter().enumerate() {
        let between = kept.last().zip(raw.get(at + 1)).is_some_and(|(a, b)| a.shift == b.shift);
        let needed = if between { VOTES_BETWEEN_MIN } else { VOTES_MIN };
        match kept.last_mut() {
            Some(last) if last.shift == run.shift => last.votes += run.votes,
            _ if run.votes >= needed => kept.push(*run),
            _ => {}
        }
    }
    kept
}
