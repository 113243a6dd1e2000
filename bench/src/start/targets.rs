//! What the design asks for of parking and of coming back, and what was measured of it.

use super::report::Figures;
use crate::{functions::kind, record::Target};

/// Something that is measured of each function.
type Value = fn(&Figures) -> f64;

/// At most so much of each function.
const AT_MOST: [(&str, f64, &str, Value); 4] = [
    ("unpark beyond the warm request, p99", 40.0, "ms", |of| of.unpark_beyond.p99),
    ("unpark beyond the warm request with a tenth resident, p50", 3.0, "ms", |of| {
        of.unpark_resident_beyond.p50
    }),
    ("unparks of many in one moment, p99, of that of one alone", 10.0, "x", |of| {
        of.unpark_at_once.p99 / of.unpark.p99
    }),
    ("memory of a parked sandbox besides what is stored", 1.0, "MiB", |of| {
        of.parked_memory.bytes() as f64 / f64::from(1 << 20)
    }),
];
/// At least so much of what it has in its memory, in MB/s.
const FIRST_PARK: (&str, f64) = ("first park", 250.0);

/// At most so much of each of the four kinds, in their order.
const OF_KINDS: [(&str, [f64; 4], &str, Value); 3] = [
    ("unpark beyond the warm request, p50", [2.0, 8.0, 8.0, 13.0], "ms", |of| of.unpark_beyond.p50),
    ("park again, p50", [3.0, 6.0, 10.0, 25.0], "ms", |of| of.park_again.p50),
    (CLONE, [0.15, 0.15, 0.15, 0.05], "x", cloned),
];
const CLONE: &str = "clone to first answer, of a cold start, p50 of the better way";
const CLONE_MAX: f64 = 0.15;

fn cloned(of: &Figures) -> f64 {
    of.clone_late.p50.min(of.clone.p50) / of.cold.p50
}

fn first_park(of: &Figures) -> f64 {
    of.warm_memory.anonymous as f64 / 1e3 / of.first_park.p50
}

/// Of each of the four kinds, and of the worst of the other functions.
pub(super) fn of(all: &[(&str, &Figures)]) -> Vec<Target> {
    let mut targets = Vec::new();
    for (name, of) in all {
        let Some(kind) = kind(name) else { continue };
        let own = OF_KINDS.map(|(what, most, unit, value)| (what, most[kind], unit, value));
        let at_most = own.into_iter().chain(AT_MOST);
        targets.extend(at_most.map(|(what, most, unit, value)| {
            Target::at_most(format!("{name}: {what}"), most, value(of), unit)
        }));
        let (what, least) = FIRST_PARK;
        targets.push(Target::at_least(format!("{name}: {what}"), least, first_park(of), "MB/s"));
    }
    let others: Vec<&Figures> =
        all.iter().filter(|(name, _)| kind(name).is_none()).map(|(_, of)| *of).collect();
    if others.is_empty() {
        return targets;
    }
    let all_values = |value: Value| others.iter().map(move |of| value(of));
    for (what, most, unit, value) in AT_MOST.into_iter().chain([(CLONE, CLONE_MAX, "x", cloned as Value)]) {
        let worst = all_values(value).fold(f64::NAN, f64::max);
        targets.push(Target::at_most(format!("worst of the other functions: {what}"), most, worst, unit));
    }
    let (what, least) = FIRST_PARK;
    let worst = all_values(first_park).fold(f64::NAN, f64::min);
    targets.push(Target::at_least(format!("worst of the other functions: {what}"), least, worst, "MB/s"));
    targets
}
