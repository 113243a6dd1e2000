//! What came of a simulated cluster, in numbers.

use std::{collections::BTreeMap, time::Duration};

use medes_load::tally::{Percentiles, Times};
use medes_proto::sandbox::StartKind;

/// What came of it all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Requests by how they found their sandbox.
    pub(crate) warm: u64,
    pub(crate) unparked: u64,
    pub(crate) restored: u64,
    pub(crate) cloned: u64,
    pub(crate) cold: u64,
    /// Requests that were refused.
    pub(crate) refused: u64,
    /// From a request's arrival until its sandbox had it.
    pub(crate) waits: Times,
    /// From its arrival to its answer.
    pub(crate) answers: Times,
    by_start: BTreeMap<&'static str, Times>,
    /// By function of the trace.
    pub(crate) functions: BTreeMap<u32, OfFunction>,
    /// The same by what it takes in the sandbox, in thousandths.
    pub(crate) slowdowns: Vec<u32>,
    /// Commands that succeeded.
    pub(crate) dedups: u64,
    pub(crate) parks: u64,
    pub(crate) restores: u64,
    pub(crate) unparks: u64,
    pub(crate) bases: u64,
    pub(crate) inits: u64,
    pub(crate) copies: u64,
    pub(crate) purges: u64,
    /// Memory of the whole cluster at the end of each minute.
    pub(crate) bytes: Vec<u64>,
    /// Most sandboxes at a time.
    pub(crate) sandboxes_max: usize,
    /// Most that one node held beyond its memory, at any time.
    pub(crate) over_bytes_max: u64,
    /// Nodes that ended, messages that were lost.
    pub(crate) failures: u64,
    pub(crate) lost: u64,
    /// Events that the driver was told.
    pub(crate) events: u64,
}

/// What came of one function.
#[derive(Debug, Clone, Default)]
pub(crate) struct OfFunction {
    pub(crate) cold: u64,
    /// From a request's arrival to its answer.
    pub(crate) answers: Times,
}

impl Outcome {
    /// A request to a function was answered: how it found its sandbox, how long it waited for it, and how long it was in there.
    pub(crate) fn count(&mut self, function: u32, start: StartKind, wait: Duration, took: Duration) {
        let of_function = self.functions.entry(function).or_default();
        of_function.cold += u64::from(start == StartKind::Cold);
        of_function.answers.add(wait + took);
        match start {
            StartKind::Cold => self.cold += 1,
            StartKind::Clone => self.cloned += 1,
            StartKind::Restore => self.restored += 1,
            StartKind::Unpark => self.unparked += 1,
            _ => self.warm += 1,
        }
        self.waits.add(wait);
        self.answers.add(wait + took);
        self.by_start.entry(start.word()).or_default().add(wait + took);
        let took = took.as_secs_f64().max(1e-3);
        self.slowdowns.push(((wait.as_secs_f64() + took) / took * 1e3) as u32);
    }

    /// Answers by how their sandbox came to be ready.
    pub(crate) fn by_start(&self) -> BTreeMap<&'static str, Percentiles> {
        self.by_start.iter().map(|(start, times)| (*start, times.percentiles())).collect()
    }

    /// Requests that were served.
    pub(crate) fn requests(&self) -> u64 {
        self.warm + self.unparked + self.restored + self.cloned + self.cold
    }
}
