//! How many requests each function had in each minute, and how long they took.
//!
//! Files are CSV with a header, one line for a function: its name in the first column, its mean duration in milliseconds in `Average` or
//! `avg_ms`, and last a column `m<number>` for each minute. So are those that descend from Azure's public data set of 2019 (CC-BY 4.0;
//! Shahrad et al., ATC'20). A file that ends in `.zst` is compressed.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

/// Longer requests are cut to this: a run has an end.
const EXECUTION_MAX: Duration = Duration::from_secs(300);
/// A day of all functions of the public data set has less.
const BYTES_MAX: u64 = 1 << 30;
const FUNCTIONS_MAX: usize = 1 << 20;

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("read the trace {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no trace.
    #[error("{}: {problem}", .path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: FormatError,
    },
}

/// What is wrong with a trace's text. Lines are numbered from one, the header's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is empty, or has no functions.
    #[error("it has no functions")]
    Empty,
    /// There is no such column.
    #[error("it has no column {0}")]
    NoColumn(&'static str),
    /// Something stands behind the minutes.
    #[error("column {0:?} stands behind the minutes and is none")]
    BehindMinutes(String),
    /// Another number of fields than the header has.
    #[error("line {line}: {fields} fields, the header has {wanted}")]
    Fields {
        /// Which line.
        line: usize,
        /// What it has.
        fields: usize,
        /// What it should have.
        wanted: usize,
    },
    /// A field that should be a number is none, or none that makes sense.
    #[error("line {line}: {text:?} is not {wanted}")]
    Number {
        /// Which line.
        line: usize,
        /// What stands there.
        text: String,
        /// What should.
        wanted: &'static str,
    },
    /// More than this program takes.
    #[error("it is longer than {0} {1}")]
    TooLong(u64, &'static str),
}

/// One function of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceFunction {
    /// As the trace calls it.
    pub name: String,
    /// Mean time of a request.
    pub execution: Duration,
    /// Requests in each minute.
    pub counts: Vec<u32>,
}

/// A trace. All functions have the same minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// At least one.
    pub functions: Vec<TraceFunction>,
}

impl Trace {
    /// A file.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let mut text = String::new();
        let read = match path.extension().is_some_and(|extension| extension == "zst") {
            true => {
                zstd::Decoder::new(file).and_then(|plain| plain.take(BYTES_MAX + 1).read_to_string(&mut text))
            }
            false => file.take(BYTES_MAX + 1).read_to_string(&mut text),
        };
        let wrong = |problem| TraceError::Format { path: path.into(), problem };
        if read.map_err(failed)? as u64 > BYTES_MAX {
            return Err(wrong(FormatError::TooLong(BYTES_MAX, "bytes")));
        }
        Self::parse(&text).map_err(wrong)
    }

    /// A file's text. Fields are never quoted in these files.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().ok_or(FormatError::Empty)?.split(',').collect();
        let duration = header.iter().position(|name| matches!(*name, "Average" | "avg_ms"));
        let duration = duration.ok_or(FormatError::NoColumn("Average or avg_ms"))?;
        let minute = |name: &str| name.strip_prefix('m').is_some_and(|rest| rest.parse::<u32>().is_ok());
        let first = header.iter().position(|name| minute(name)).ok_or(FormatError::NoColumn("m<number>"))?;
        if let Some(other) = header[first..].iter().find(|name| !minute(name)) {
            return Err(FormatError::BehindMinutes((*other).into()));
        }
        let mut functions = Vec::new();
        for (number, line) in lines.enumerate() {
            if functions.len() >= FUNCTIONS_MAX {
                return Err(FormatError::TooLong(FUNCTIONS_MAX as u64, "functions"));
            }
            functions.push(function(number + 2, line, header.len(), (duration, first))?);
        }
        if functions.is_empty() {
            return Err(FormatError::Empty);
        }
        Ok(Self { functions })
    }

    /// How long it is.
    pub fn minutes(&self) -> usize {
        self.functions.first().map_or(0, |function| function.counts.len())
    }

    /// Requests of all functions.
    pub fn requests(&self) -> u64 {
        self.functions.iter().flat_map(|function| &function.counts).map(|count| u64::from(*count)).sum()
    }

    /// Leaves only so many minutes, from this one on.
    pub fn cut(&mut self, first: usize, minutes: Option<usize>) {
        for function in &mut self.functions {
            let counts = function.counts.iter().skip(first);
            function.counts = counts.take(minutes.unwrap_or(usize::MAX)).copied().collect();
        }
    }

    /// The functions that are asked for most, so many of them, the first one most; of two alike the one that comes first.
    pub fn most_asked(&mut self, count: usize) {
        self.functions.sort_by_key(|function| {
            std::cmp::Reverse(function.counts.iter().map(|count| u64::from(*count)).sum::<u64>())
        });
        self.functions.truncate(count);
    }

    /// So many functions at most, evenly spread over all, the first one among them.
    pub fn thin_out(&mut self, count: usize) {
        let all = self.functions.len();
        if count >= all {
            return;
        }
        let kept = (0..count).map(|number| self.functions[number * all / count].clone());
        self.functions = kept.collect();
    }

    /// So many times the requests in each minute.
    pub fn more_often(&mut self, times: u32) {
        for count in self.functions.iter_mut().flat_map(|function| &mut function.counts) {
            *count = count.saturating_mul(times);
        }
    }

    /// Every function so many times: a larger cluster's trace.
    pub fn repeat(&mut self, times: u32) {
        let once = self.functions.clone();
        (1..times).for_each(|_| self.functions.extend(once.iter().cloned()));
    }
}

fn function(
    number: usize,
    line: &str,
    wanted: usize,
    (duration, first): (usize, usize),
) -> Result<TraceFunction, FormatError> {
    let fields: Vec<&str> = line.split(',').collect();
    if fields.len() != wanted {
        return Err(FormatError::Fields { line: number, fields: fields.len(), wanted });
    }
    let bad = |text: &str, wanted| FormatError::Number { line: number, text: text.into(), wanted };
    let ms: f64 = fields[duration]
        .parse()
        .ok()
        .filter(|ms: &f64| ms.is_finite())
        .ok_or_else(|| bad(fields[duration], "a duration in ms"))?;
    let count = |text: &&str| text.parse().map_err(|_error| bad(text, "a count of requests"));
    let counts = fields[first..].iter().map(count).collect::<Result<_, _>>()?;
    let execution = Duration::from_secs_f64((ms.max(0.0) / 1e3).min(EXECUTION_MAX.as_secs_f64()));
    Ok(TraceFunction { name: fields[0].into(), execution, counts })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "HashFunction,avg_ms,memory,m1,m2\na,1500,90,0,3\nb,20,90,1,0\n";

    #[test]
    fn the_most_asked_are_left_and_asked_more() {
        let mut trace = Trace::parse("f,avg_ms,m1,m2\na,1,0,1\nb,1,4,0\nc,1,2,2\nd,1,0,0\n").unwrap();
        trace.most_asked(3);
        trace.more_often(5);
        let left: Vec<_> =
            trace.functions.iter().map(|one| (one.name.as_str(), one.counts.as_slice())).collect();
        assert_eq!(left, [("b", &[20, 0][..]), ("c", &[10, 10]), ("a", &[0, 5])]);
    }

    #[test]
    fn those_that_are_kept_are_spread_evenly() {
        let text: String = (0..10).map(|n| format!("{n},1,1\n")).collect();
        let kept = |count| {
            let mut trace = Trace::parse(&format!("f,avg_ms,m1\n{text}")).unwrap();
            trace.thin_out(count);
            trace.functions.into_iter().map(|one| one.name).collect::<Vec<_>>().join("")
        };
        assert_eq!(
            (kept(2), kept(5), kept(10), kept(99)),
            ("05".into(), "02468".into(), "0123456789".into(), "0123456789".into())
        );
        assert_eq!(kept(3).len(), 3);
    }

    #[test]
    fn lines_become_functions() {
        let trace = Trace::parse(TEXT).unwrap();
        assert_eq!((trace.functions.len(), trace.minutes(), trace.requests()), (2, 2, 4));
        assert_eq!(trace.functions[0].execution, Duration::from_millis(1500));
        assert_eq!((trace.functions[1].name.as_str(), &*trace.functions[1].counts), ("b", &[1, 0][..]));
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        use FormatError::{BehindMinutes, Empty, Fields, NoColumn, Number};
        let number = |text: &str, wanted| Number { line: 2, text: text.into(), wanted };
        let cases = [
            ("", Empty),
            ("avg_ms,m1\n", Empty),
            ("a,b\n1,2", NoColumn("Average or avg_ms")),
            ("a,avg_ms\n1,2", NoColumn("m<number>")),
            ("avg_ms,m1\n1", Fields { line: 2, fields: 1, wanted: 2 }),
            ("avg_ms,m1\nx,1", number("x", "a duration in ms")),
            ("avg_ms,m1\nNaN,1", number("NaN", "a duration in ms")),
            ("avg_ms,m1\n1,-1", number("-1", "a count of requests")),
            ("avg_ms,m1,end\n1,1,1", BehindMinutes("end".into())),
        ];
        for (text, why) in cases {
            assert_eq!(Trace::parse(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn a_compressed_file_is_read_as_a_plain_one() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, packed) = (folder.path().join("a.csv"), folder.path().join("a.csv.zst"));
        std::fs::write(&plain, TEXT).unwrap();
        std::fs::write(&packed, zstd::encode_all(TEXT.as_bytes(), 1).unwrap()).unwrap();
        assert_eq!(Trace::read(&packed).unwrap(), Trace::read(&plain).unwrap());
        assert!(matches!(Trace::read(folder.path()), Err(TraceError::Read { .. })));
    }

    #[test]
    fn a_trace_is_cut_and_repeated() {
        let mut trace = Trace::parse(TEXT).unwrap();
        trace.repeat(2);
        assert_eq!((trace.functions.len(), trace.requests()), (4, 8));
        trace.cut(1, None);
        assert_eq!((trace.minutes(), trace.requests()), (1, 6));
        trace.cut(0, Some(0));
        assert_eq!((trace.minutes(), trace.requests()), (0, 0));
    }
}
