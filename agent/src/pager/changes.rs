//! What the kernel has told of changed mappings, and in which order it happened.
//!
//! The kernel tells of an unmapping or of a move after it has let go of its lock. By then another thread of the process may
//! have moved memory of its own to that very place, and be heard first; and whoever is heard goes on at once, so that a fault
//! told of before may be of a place that has changed since. So nothing is acted on until the kernel says that no change is
//! under way, which costs nothing, as until then it takes no page either.
//!
//! Then, where the order matters, the kernel is asked what is true: pages that are stored and missing carry a mark in the page
//! table, which moves with them and goes when they are given up. An order that leaves a mark without a stored page is wrong.

use std::ops::Range;

use medes_dedup::page::PAGE_BYTES;

use super::ranges::pages;
use super::table::Table;
use crate::uffd::Uffd;

/// Something that the kernel has told of. Addresses.
#[derive(Debug)]
pub(super) enum Change {
    /// Pages have moved.
    Moved { from: Range<u64>, to: u64 },
    /// Contents were given up.
    Removed(Range<u64>),
    /// Nothing is mapped there any more.
    Unmapped(Range<u64>),
    /// A child has the same pages from here on.
    Forked(Uffd),
}

/// Changes that cannot be told apart. What the process's pages are now is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unclear;

/// Changes that may have been heard late, at most.
const LATE_MAX: usize = 6;

const fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Change {
    fn to(&self) -> Option<Range<u64>> {
        match self {
            Self::Moved { from, to } => Some(*to..*to + (from.end - from.start)),
            _ => None,
        }
    }

    fn apply(&self, table: &mut Table) {
        match self {
            Self::Moved { from, to } => {
                let from = pages(from);
                table.moved(from.start, to / PAGE_BYTES as u64, from.end - from.start);
            }
            Self::Removed(range) | Self::Unmapped(range) => drop(table.forget(&pages(range))),
            Self::Forked(_) => {}
        }
    }

    /// What nothing of the process's is left at.
    const fn left(&self) -> Option<&Range<u64>> {
        match self {
            Self::Moved { from, .. } | Self::Unmapped(from) => Some(from),
            Self::Removed(_) | Self::Forked(_) => None,
        }
    }
}

/// Changes that may have been heard late, each with the one that it may have happened before.
fn late(changes: &[Change]) -> Vec<(usize, usize)> {
    let mut late = Vec::new();
    for (at, change) in changes.iter().enumerate() {
        let Some(left) = change.left() else { continue };
        let first = changes[..at].iter().position(|before| {
            let came_there = before.to().is_some_and(|to| overlap(&to, left));
            // A neighbour may have grown over what was unmapped, of which nobody tells, and was moved away as a whole.
            let is_part = |from: &Range<u64>| from != left && overlap(from, left);
            came_there || matches!((before, change), (Change::Moved { from, .. }, Change::Unmapped(_)) if is_part(from))
        });
        late.extend(first.map(|first| (at, first)));
    }
    late
}

/// Places of which it has to be looked which pages are marked, in order and apart: those moved to, if something may have been
/// heard late.
pub(super) fn in_question(changes: &[Change]) -> Vec<Range<u64>> {
    if late(changes).is_empty() {
        return Vec::new();
    }
    let mut places: Vec<Range<u64>> = changes.iter().filter_map(Change::to).collect();
    places.sort_unstable_by_key(|place| place.start);
    places.dedup_by(|next, place| {
        let is_one = next.start <= place.end;
        if is_one {
            place.end = place.end.max(next.end);
        }
        is_one
    });
    places
}

/// An order in which it can have happened. `marks`: all marked pages of the places in question; `table`: what is stored before.
pub(super) fn order(changes: &[Change], table: &Table, marks: &[Range<u64>]) -> Result<Vec<usize>, Unclear> {
    let late = late(changes);
    if late.len() > LATE_MAX {
        return Err(Unclear);
    }
    let mut found: Option<(Vec<usize>, Vec<u32>)> = None;
    for chosen in 0..1_u32 << late.len() {
        let mut order: Vec<usize> = (0..changes.len()).collect();
        for (bit, &(at, first)) in late.iter().enumerate() {
            if chosen & (1 << bit) != 0 {
                let place = |wanted| order.iter().position(|one| *one == wanted).unwrap_or(at);
                let (from, to) = (place(at), place(first));
                order[to.min(from)..=from].rotate_right(1);
            }
        }
        let mut after = table.clone();
        order.iter().filter_map(|at| changes.get(*at)).for_each(|change| change.apply(&mut after));
        let stored: Option<Vec<u32>> =
            marks.iter().cloned().flatten().map(|page| Some(after.find(page)?.0)).collect();
        match (&found, stored) {
            (_, None) => {}
            (None, Some(stored)) => found = Some((order, stored)),
            (Some((_, before)), Some(stored)) if *before == stored => {}
            // Both can be, and are not the same.
            (Some(_), Some(_)) => return Err(Unclear),
        }
    }
    found.map(|(order, _)| order).ok_or(Unclear)
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: Range<u64> = 0x1000..0x3000;
    const Y: Range<u64> = 0x5000..0x7000;
    const Z: Range<u64> = 0x9000..0xb000;
    const W: Range<u64> = 0xd000..0xf000;

    fn moved(from: Range<u64>, to: &Range<u64>) -> Change {
        Change::Moved { from, to: to.start }
    }

    fn ordered(changes: &[Change], table: &[u64], marks: &[u64]) -> Result<String, Unclear> {
        let marks: Vec<Range<u64>> = marks.iter().map(|page| *page..page + 1).collect();
        let order = order(changes, &Table::of(table), &marks)?;
        let name = |address: u64| match address {
            0x1000 => 'x',
            0x5000 => 'y',
            0x9000 => 'z',
            _ => '?',
        };
        let text = |at: usize| match &changes[at] {
            Change::Moved { from, to } => format!("{}>{}", name(from.start), name(*to)),
            Change::Removed(range) => format!("-{}", name(range.start)),
            Change::Unmapped(range) => format!("!{}", name(range.start)),
            Change::Forked(_) => "fork".to_owned(),
        };
        Ok(order.into_iter().map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_has_nothing_to_do_with_each_other_stays_as_it_was_heard() {
        let changes = [moved(X, &Z), Change::Unmapped(X), Change::Removed(Y), Change::Unmapped(Y)];
        assert_eq!(in_question(&changes), []);
        assert_eq!(ordered(&changes, &[1, 2, 5, 6], &[]).unwrap(), "x>z !x -y !y");
    }

    #[test]
    fn who_left_goes_before_who_came_and_is_there() {
        let changes = [moved(Y, &X), Change::Unmapped(Y), Change::Unmapped(X)];
        assert_eq!(in_question(&changes).as_slice(), std::slice::from_ref(&X));
        assert_eq!(ordered(&changes, &[1, 5, 6], &[2]).unwrap(), "!x y>x !y");
        assert_eq!(
            ordered(&changes, &[1, 5, 6], &[]).unwrap(),
            "y>x !y !x",
            "as heard: it makes no difference"
        );
        assert_eq!(ordered(&changes, &[1, 6], &[1]), Err(Unclear), "nobody had that page");
    }

    #[test]
    fn who_came_and_shrank_is_not_taken_for_somebody_else() {
        let changes = [moved(Y, &X), Change::Unmapped(0x2000..0x3000)];
        assert_eq!(ordered(&changes, &[5, 6], &[1]).unwrap(), "y>x !?");
    }

    #[test]
    fn what_moved_away_late_keeps_its_order() {
        let changes = [moved(Y, &X), Change::Removed(0x1000..0x2000), moved(X, &Z), Change::Unmapped(X)];
        assert_eq!(ordered(&changes, &[1, 2, 6], &[2, 9, 10]).unwrap(), "x>z !x y>x -x");
        // The same was heard as it happened.
        assert_eq!(ordered(&changes, &[5, 6], &[10]).unwrap(), "y>x -x x>z !x");
    }

    #[test]
    fn a_place_that_two_came_to_is_told_apart_by_what_they_brought() {
        let changes = [moved(Y, &X), Change::Unmapped(X), moved(Z, &X)];
        assert_eq!(ordered(&changes, &[5, 9, 10], &[1, 2]).unwrap(), "y>x !x z>x");
    }

    #[test]
    fn what_a_neighbour_grew_over_and_took_away_is_looked_at() {
        let late = [moved(0x1000..0x4000, &Z), Change::Unmapped(0x2000..0x4000)];
        assert_eq!(in_question(&late).as_slice(), std::slice::from_ref(&(0x9000..0xc000)));
        assert_eq!(ordered(&late, &[1, 2], &[9]).unwrap(), "x>z !?");
        let in_time = [Change::Unmapped(0x2000..0x4000), moved(0x1000..0x4000, &Z)];
        assert_eq!(in_question(&in_time), []);
    }

    #[test]
    fn two_orders_that_are_not_the_same_are_unclear() {
        // Both y and z could be at x, and each would be stored.
        let changes = [moved(Y, &X), moved(X, &W), moved(Z, &X), Change::Unmapped(X)];
        assert_eq!(ordered(&changes, &[1, 5, 9], &[13]), Err(Unclear));
    }
}
