//! Recorded arrivals: how many requests each function had in each minute, and how long they took.
//!
//! The files descend from Azure's public data set of 2019 (CC-BY 4.0; Shahrad et al., ATC'20), one line for a function.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::dice::Dice;

/// Longer requests are cut to this: a simulation has an end.
const EXECUTION_MAX: Duration = Duration::from_secs(300);

/// One function of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TraceFunction {
    /// Mean time of a request.
    pub(super) execution: Duration,
    /// Requests in each minute.
    pub(super) counts: Vec<u32>,
}

/// A trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) functions: Vec<TraceFunction>,
}

impl Trace {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let doing = || format!("read the trace {}", path.display());
        let bytes = fs::read(path).with_context(doing)?;
        let bytes = match path.extension().is_some_and(|extension| extension == "zst") {
            true => zstd::decode_all(bytes.as_slice()).with_context(doing)?,
            false => bytes,
        };
        Self::parse(std::str::from_utf8(&bytes).with_context(doing)?).with_context(doing)
    }

    /// Fields are never quoted in these files.
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().context("it is empty")?.split(',').collect();
        let duration = header.iter().position(|name| matches!(*name, "Average" | "avg_ms"));
        let duration = duration.context("no column Average or avg_ms")?;
        let minute = |name: &str| name.strip_prefix('m').is_some_and(|rest| rest.parse::<u32>().is_ok());
        let first = header.iter().position(|name| minute(name)).context("no column of a minute")?;
        ensure!(header[first..].iter().all(|name| minute(name)), "a column behind the minutes is none");
        let mut functions = Vec::new();
        for (number, line) in lines.enumerate() {
            let fields: Vec<&str> = line.split(',').collect();
            let doing = || format!("line {}", number + 2);
            ensure!(fields.len() == header.len(), "{}: {} fields of {}", doing(), fields.len(), header.len());
            let ms: f64 = fields[duration].parse().with_context(doing)?;
            let counts = fields[first..]
                .iter()
                .map(|count| count.parse())
                .collect::<Result<_, _>>()
                .with_context(doing)?;
            let execution = Duration::from_secs_f64(ms.max(0.0) / 1e3).min(EXECUTION_MAX);
            functions.push(TraceFunction { execution, counts });
        }
        ensure!(!functions.is_empty(), "it has no functions");
        Ok(Self { functions })
    }

    pub(super) fn minutes(&self) -> usize {
        self.functions.first().map_or(0, |function| function.counts.len())
    }

    pub(super) fn requests(&self) -> u64 {
        self.functions.iter().flat_map(|function| &function.counts).map(|count| u64::from(*count)).sum()
    }

    /// Leaves only the first minutes.
    pub(super) fn cut(&mut self, minutes: Option<usize>) {
        if let Some(minutes) = minutes {
            self.functions.iter_mut().for_each(|function| function.counts.truncate(minutes));
        }
    }

    /// Every function so many times: a larger cluster's trace.
    pub(super) fn repeat(&mut self, times: u32) {
        let once = self.functions.clone();
        (1..times).for_each(|_| self.functions.extend(once.iter().cloned()));
    }

    /// When the requests of a minute come, in order: function, and time from the minute's start. Drawn evenly, each by itself:
    /// the trace only says how many they were.
    pub(super) fn arrivals(&self, minute: usize, dice: &mut Dice) -> Vec<(Duration, u32)> {
        let mut arrivals = Vec::new();
        for (number, function) in (0..).zip(&self.functions) {
            for _ in 0..function.counts.get(minute).copied().unwrap_or(0) {
                arrivals.push((Duration::from_micros(dice.below(60_000_000).into()), number));
            }
        }
        arrivals.sort_unstable();
        arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "HashFunction,avg_ms,memory,m1,m2\na,1500,90,0,3\nb,20,90,1,0\n";

    #[test]
    fn lines_become_functions() {
        let trace = Trace::parse(TEXT).unwrap();
        assert_eq!((trace.functions.len(), trace.minutes(), trace.requests()), (2, 2, 4));
        assert_eq!(trace.functions[0].execution, Duration::from_millis(1500));
        assert_eq!(trace.functions[1].counts, [1, 0]);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for text in ["", "a,b\n1,2", "avg_ms,m1\n1", "avg_ms,m1\nx,1", "avg_ms,m1,end\n1,1,1", "avg_ms,m1\n"]
        {
            assert!(Trace::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn arrivals_are_as_many_as_counted_and_in_order() {
        let mut trace = Trace::parse(TEXT).unwrap();
        trace.repeat(2);
        let arrivals = trace.arrivals(1, &mut Dice(7));
        assert_eq!(arrivals.len(), 6);
        assert!(arrivals.is_sorted() && arrivals.iter().all(|(at, of)| at.as_secs() < 60 && of % 2 == 0));
        trace.cut(Some(1));
        assert_eq!(trace.requests(), 2);
    }
}
