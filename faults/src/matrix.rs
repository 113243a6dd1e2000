//! Which cells there are.

use crate::{
    cell::{Act, Cell, Fault, Victim},
    cluster::Kind,
    hosts::Place,
};

/// The roads, and the steps of each.
const ROADS: [(Act, Place, &[&str]); 10] = [
    (Act::Launch, Place::A, &["launch"]),
    (
        Act::Dedup,
        Place::A,
        &["preflight", "dump", "find-base", "align", "lookup", "read-bases", "encode", "seal", "acquire"],
    ),
    (Act::Restore, Place::A, &["open", "read-back", "rebuild", "criu-restore", "resume"]),
    (Act::Clone, Place::A, &["clone", "open", "rebuild", "criu-restore", "resume"]),
    (Act::Park, Place::A, &["park-encode", "park-zap"]),
    (Act::Shrink, Place::A, &["shrink-parked"]),
    (Act::Unpark, Place::A, &["give-back"]),
    (Act::Replicate, Place::B, &["replicate", "replicated"]),
    (Act::Move, Place::B, &["take", "give-up", "given-up"]),
    (Act::Evict, Place::A, &["remove"]),
];

/// Steps of a road that only agents take which trim. The others would take it in the middle of something else.
const TRIM: [&str; 2] = ["park-encode", "park-zap"];

/// What happens at every step of every road.
fn everywhere(at: Place, long: bool) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Fail,
        Fault::Kill(Victim::Agent),
        Fault::Kill(Victim::Controller),
        Fault::Cut(Place::Controller, at, 1),
    ];
    if long {
        faults.extend([Fault::Cut(Place::Controller, at, 10), Fault::Kill(Victim::Other)]);
    }
    faults
}

/// What happens at some of them only.
const SOMEWHERE: [(Act, Place, Option<&str>, Fault); 34] = {
    use Fault::{Clock, Cut, FullDisk, FullScratch, Hoard, Kill, Litter, Starve, Stop};
    use Place::{A, B, Client, Controller};
    use Victim::{Criu, Function, Helper, Keeper, Other, Pager};
    [
        (Act::Serve, A, None, Kill(Victim::Agent)),
        (Act::Serve, A, None, Kill(Other)),
        (Act::Serve, A, None, Kill(Victim::Controller)),
        (Act::Serve, A, None, Kill(Keeper)),
        (Act::Serve, A, None, Kill(Pager)),
        (Act::Serve, A, None, Kill(Criu)),
        (Act::Serve, A, None, Kill(Function)),
        (Act::Serve, A, None, Cut(Controller, A, 1)),
        (Act::Serve, A, None, Cut(Controller, A, 10)),
        (Act::Serve, A, None, Cut(A, B, 1)),
        (Act::Serve, A, None, Cut(A, B, 10)),
        (Act::Serve, A, None, Cut(Client, Controller, 1)),
        (Act::Serve, A, None, Cut(Client, Controller, 10)),
        (Act::Serve, A, None, Stop(A, 1)),
        (Act::Serve, A, None, Stop(A, 10)),
        (Act::Serve, A, None, Stop(Controller, 1)),
        (Act::Serve, A, None, Stop(Controller, 10)),
        (Act::Serve, A, None, FullDisk),
        (Act::Serve, A, None, Hoard),
        (Act::Serve, A, None, Litter),
        (Act::Dedup, A, Some("preflight"), Starve),
        (Act::Dedup, A, Some("preflight"), Kill(Criu)),
        (Act::Dedup, A, Some("dump"), Kill(Function)),
        (Act::Dedup, A, Some("preflight"), FullScratch),
        (Act::Restore, A, Some("criu-restore"), Kill(Criu)),
        (Act::Restore, A, Some("resume"), Kill(Function)),
        (Act::Restore, A, Some("open"), FullScratch),
        (Act::Clone, A, Some("criu-restore"), Kill(Criu)),
        (Act::Park, A, Some("park-encode"), Kill(Helper)),
        (Act::Unpark, A, Some("give-back"), Kill(Pager)),
        (Act::Replicate, B, Some("replicate"), Cut(A, B, 10)),
        (Act::Move, B, Some("take"), Cut(A, B, 10)),
        (Act::Move, B, Some("give-up"), Cut(A, B, 10)),
        (Act::Move, B, None, Clock),
    ]
};

/// What happens between two nodes of which one has what the other one needs. The subject is on B.
const BETWEEN: [(Act, Option<&str>, Fault); 18] = {
    use Place::{A, B};
    [
        (Act::Dedup, None, Fault::Flip),
        (Act::Restore, None, Fault::Flip),
        (Act::Clone, None, Fault::Flip),
        (Act::Move, None, Fault::Flip),
        (Act::Dedup, None, Fault::Delay),
        (Act::Restore, None, Fault::Delay),
        (Act::Clone, None, Fault::Delay),
        (Act::Move, None, Fault::Delay),
        (Act::Dedup, None, Fault::Throttle),
        (Act::Restore, None, Fault::Throttle),
        (Act::Dedup, Some("read-bases"), Fault::Cut(A, B, 1)),
        (Act::Dedup, Some("read-bases"), Fault::Cut(A, B, 10)),
        (Act::Restore, Some("read-back"), Fault::Cut(A, B, 1)),
        (Act::Restore, Some("read-back"), Fault::Cut(A, B, 10)),
        (Act::Restore, Some("read-back"), Fault::Kill(Victim::Other)),
        (Act::Restore, Some("read-back"), Fault::Stop(A, 10)),
        (Act::Clone, Some("clone"), Fault::Cut(A, B, 1)),
        (Act::Dedup, Some("read-bases"), Fault::Kill(Victim::Other)),
    ]
};

/// A minute of cutting off, for those who have it.
const MINUTE: [(Act, Place, Option<&str>, Fault); 4] = [
    (Act::Serve, Place::A, None, Fault::Cut(Place::Controller, Place::A, 60)),
    (Act::Serve, Place::A, None, Fault::Cut(Place::A, Place::B, 60)),
    (Act::Serve, Place::A, None, Fault::Cut(Place::Client, Place::Controller, 60)),
    (Act::Serve, Place::A, None, Fault::Stop(Place::A, 60)),
];

/// The handful that the end-to-end level has.
const SHORT: [(Act, Place, Option<&str>, Fault); 6] = [
    (Act::Dedup, Place::A, Some("seal"), Fault::Kill(Victim::Agent)),
    (Act::Restore, Place::A, Some("rebuild"), Fault::Kill(Victim::Controller)),
    (Act::Restore, Place::A, Some("criu-restore"), Fault::Kill(Victim::Agent)),
    (Act::Clone, Place::A, Some("resume"), Fault::Kill(Victim::Agent)),
    (Act::Unpark, Place::A, Some("give-back"), Fault::Kill(Victim::Agent)),
    (Act::Move, Place::B, Some("give-up"), Fault::Kill(Victim::Agent)),
];

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Short,
    Usual,
    /// With cuts of ten seconds at every step, and of a minute.
    Long,
}

/// All cells.
pub(crate) fn cells(extent: Extent) -> Vec<Cell> {
    let usual = |&(act, at, step, fault): &(Act, Place, Option<&'static str>, Fault)| Cell {
        act,
        step,
        fault,
        at,
        kind: Kind::Usual,
    };
    if extent == Extent::Short {
        return SHORT.iter().map(usual).collect();
    }
    let long = extent == Extent::Long;
    let mut cells: Vec<Cell> = SOMEWHERE.iter().map(usual).collect();
    for (act, at, steps) in ROADS {
        for step in steps {
            // A removal can only wait.
            let faults =
                everywhere(at, long).into_iter().filter(|fault| act != Act::Evict || *fault != Fault::Fail);
            cells.extend(faults.map(|fault| Cell { act, step: Some(step), fault, at, kind: Kind::Usual }));
        }
    }
    cells.extend(BETWEEN.iter().map(|&(act, step, fault)| Cell {
        act,
        step,
        fault,
        at: Place::B,
        kind: Kind::Bare,
    }));
    cells.extend(trimming(long));
    cells.extend(kept());
    if long {
        cells.extend(MINUTE.iter().map(usual));
    }
    cells
}

fn trimming(long: bool) -> impl Iterator<Item = Cell> {
    let mut faults = everywhere(Place::A, long);
    faults.extend([Fault::Kill(Victim::Helper), Fault::Kill(Victim::Function)]);
    TRIM.into_iter().flat_map(move |step| {
        let (act, at, kind) = (Act::Trim, Place::A, Kind::Trims);
        faults.clone().into_iter().map(move |fault| Cell { act, step: Some(step), fault, at, kind })
    })
}

/// An agent is killed at every step, and the next one takes over what rests: nothing must come back that was in the middle of something.
fn kept() -> impl Iterator<Item = Cell> {
    ROADS.into_iter().flat_map(|(act, at, steps)| {
        let other = matches!(act, Act::Replicate | Act::Move).then_some(Victim::Other);
        steps.iter().flat_map(move |step| {
            let victims = [Victim::Agent].into_iter().chain(other);
            let cell = move |victim| Cell {
                act,
                step: Some(*step),
                fault: Fault::Kill(victim),
                at,
                kind: Kind::Kept,
            };
            victims.map(cell)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        for extent in [Extent::Short, Extent::Usual, Extent::Long] {
            let cells = cells(extent);
            let names: BTreeSet<_> = cells.iter().map(Cell::name).collect();
            assert_eq!(names.len(), cells.len());
        }
    }

    #[test]
    fn the_short_ones_are_among_the_usual() {
        let usual: BTreeSet<_> = cells(Extent::Usual).iter().map(Cell::name).collect();
        assert!(cells(Extent::Short).iter().all(|cell| usual.contains(&cell.name())));
    }

    #[test]
    fn nothing_is_lost_where_nothing_of_it_was_hit() {
        for cell in cells(Extent::Long) {
            let kept = cell.expected().kept;
            match (cell.fault, cell.act) {
                (_, Act::Launch | Act::Clone | Act::Evict) => assert!(!kept, "{}", cell.name()),
                (Fault::Kill(Victim::Controller), _) => assert!(kept, "{}", cell.name()),
                (Fault::Fail, Act::Dedup | Act::Park | Act::Shrink | Act::Trim | Act::Replicate) => {
                    assert!(kept, "{}", cell.name());
                }
                (Fault::Kill(Victim::Agent), Act::Dedup) => assert!(!kept, "{}", cell.name()),
                (Fault::Kill(Victim::Agent), Act::Shrink) | (Fault::Kill(Victim::Other), Act::Move) => {
                    assert_eq!(kept, cell.kind == Kind::Kept, "{}", cell.name());
                }
                _ => {}
            }
        }
    }
}
