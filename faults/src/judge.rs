//! What a cell must not have seen.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    cell::{Cell, Expected, Fault, Victim},
    cluster::SILENT,
    hosts::Place,
    http::{Asked, End},
};

/// A busy machine needs this much longer to notice.
const NOTICING: Duration = Duration::from_millis(1500);

/// All answers of a lane: no count of a life comes twice, whatever happened in between.
#[derive(Debug, Default)]
pub(crate) struct Lives(BTreeSet<(String, u64)>);

impl Lives {
    /// Takes an answer in; says so if it cannot be.
    pub(crate) fn add(&mut self, asked: &Asked) -> Option<String> {
        let answer = asked.answer()?;
        if !answer.sound {
            return Some(format!("{} answered with wrong bytes in its memory", answer.sandbox));
        }
        if answer.life.is_empty() || self.0.insert((answer.life.clone(), answer.count)) {
            return None;
        }
        Some(format!("{} counted {} twice: it was resumed twice", answer.sandbox, answer.count))
    }
}

/// When it happened, and when all was well again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    pub(crate) struck: Instant,
    pub(crate) mended: Instant,
}

/// What is wrong with requests: those of the cell's own, and those of everybody else meanwhile.
pub(crate) fn complaints(
    cell: &Cell,
    expected: &Expected,
    lives: &mut Lives,
    (own, others): (&[Asked], &[Asked]),
    moments: Moments,
) -> Vec<String> {
    let mut complaints: Vec<String> = own.iter().chain(others).filter_map(|asked| lives.add(asked)).collect();
    let cut_off = matches!(cell.fault, Fault::Cut(Place::Client, ..));
    let late = own.iter().chain(others).filter(|asked| asked.overdue() && !cut_off);
    complaints.extend(
        late.map(|asked| format!("a request took {:.1} s: {}", asked.took.as_secs_f64(), asked.word())),
    );
    let unexcused =
        others.iter().filter(|asked| asked.answer().is_none() && !is_excused(cell, expected, asked, moments));
    complaints.extend(unexcused.map(|asked| {
        let after = asked.at.saturating_duration_since(moments.struck).as_secs_f64();
        let why = match &asked.end {
            End::Refused { kind, message, status } => format!("{status} {kind}: {message}"),
            End::Broken(why) => why.clone(),
            _ => asked.word(),
        };
        format!("somebody else's request, {after:.2} s after, was not answered: {why}")
    }));
    complaints
}

/// Whether a request may have ended so: it was under way when it happened, or came before that must have been noticed.
pub(crate) fn is_excused(cell: &Cell, expected: &Expected, asked: &Asked, moments: Moments) -> bool {
    // Whoever has nobody to ask, or cannot, waits for all to be well.
    let until = match cell.fault {
        Fault::Kill(Victim::Controller) | Fault::Cut(Place::Client, ..) => moments.mended + SILENT + NOTICING,
        // Given up late, since it still ends in order; again and again, as long as its word does not get through.
        Fault::Kill(Victim::Keeper) | Fault::Throttle => moments.mended + SILENT + NOTICING,
        _ => moments.struck + SILENT + NOTICING,
    };
    expected.excuses.contains(&asked.word().as_str())
        && asked.at <= until
        && asked.at + asked.took >= moments.struck
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cell::Act, cluster::Kind, http::Answer};

    fn answered(life: &str, count: u64, sound: bool) -> Asked {
        let [start, sandbox] = ["warm", "sb-1-1"].map(str::to_owned);
        let answer = Answer { start, sandbox, life: life.into(), count, sound };
        Asked { at: Instant::now(), took: Duration::from_millis(1), end: End::Answered(answer) }
    }

    fn cell(fault: Fault) -> Cell {
        Cell { act: Act::Serve, step: None, fault, at: Place::A, kind: Kind::Usual }
    }

    fn judged(fault: Fault, others: &[Asked], moments: Moments) -> Vec<String> {
        let cell = cell(fault);
        complaints(&cell, &cell.expected(), &mut Lives::default(), (&[], others), moments)
    }

    #[test]
    fn a_count_that_comes_twice_and_wrong_bytes_are_seen() {
        let now = Moments { struck: Instant::now(), mended: Instant::now() };
        let judged = |all: &[Asked]| judged(Fault::Litter, all, now).len();
        assert_eq!(judged(&[answered("x", 1, true), answered("x", 2, true), answered("y", 1, true)]), 0);
        assert_eq!(judged(&[answered("x", 1, true), answered("x", 1, true)]), 1);
        assert_eq!(judged(&[answered("x", 1, false)]), 1);
    }

    #[test]
    fn a_refusal_is_excused_only_while_nobody_could_know() {
        let struck = Instant::now();
        let moments = Moments { struck, mended: struck };
        let refused = |kind: &str, after: Duration| Asked {
            at: struck + after,
            took: Duration::from_millis(5),
            end: End::Refused { status: 502, kind: kind.into(), message: String::new() },
        };
        let killed = |asked| judged(Fault::Kill(Victim::Agent), &[asked], moments).len();
        assert_eq!(killed(refused("node_lost", Duration::ZERO)), 0);
        assert_eq!(killed(refused("internal", Duration::ZERO)), 1);
        assert_eq!(killed(refused("node_lost", Duration::from_secs(9))), 1);
        assert_eq!(judged(Fault::Litter, &[refused("node_lost", Duration::ZERO)], moments).len(), 1);
    }

    #[test]
    fn a_request_past_its_deadline_is_a_hang() {
        let now = Moments { struck: Instant::now(), mended: Instant::now() };
        let slow = Asked { took: Duration::from_secs(19), ..answered("x", 1, true) };
        assert_eq!(judged(Fault::Litter, &[slow], now).len(), 1);
    }
}
