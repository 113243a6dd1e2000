//! How much of a sandbox's memory another one has, too: by chunk size, for two of one function and for two functions, with and without ASLR.

mod count;

use std::collections::BTreeMap;

use anyhow::Result;

use super::{
    Options,
    csv::{Csv, row},
    dumped::{self, Kind},
    leave::Found,
    published,
    section::{Drawing, Section, Sheet, Verdict},
};
use crate::{
    engine::dump::Dump,
    functions::Function,
    plot::{Line, Plot},
    show::percent,
    station::Station,
    stats::Spread,
};
use count::{Same, anywhere, sampled};

/// Those of the paper's figure.
const SIZES: [usize; 5] = [64, 128, 256, 512, 1024];
/// Of a function and kind: the paper had one.
const PAIRS: (usize, usize) = (1, 5);
/// Between functions the paper looked at these.
const CROSS_SIZE: usize = 64;

/// Two sandboxes held against each other.
struct Pair {
    of: String,
    with: String,
    kind: Kind,
    size: usize,
    /// As the paper counted.
    sampled: Same,
    /// At any place.
    anywhere: Same,
}

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("How much memory is the same", "Fig 1");
    about(section);
    let pairs_each = options.by_size(PAIRS.0, PAIRS.1);
    let mut pairs = Vec::new();
    let mut firsts: BTreeMap<Kind, Vec<(String, Dump)>> = BTreeMap::new();
    let measure = async |station: &mut Station, function: &Function| {
        let (mut found, mut firsts) = (Vec::new(), Vec::new());
        for kind in Kind::ALL {
            for number in 0..pairs_each {
                let a = dumped::dump(station, function, kind, 0..0).await?;
                let b = dumped::dump(station, function, kind, 0..0).await?;
                found.extend(by_size((&function.name, &a), (&function.name, &b), kind));
                if number == 0 && !kind.shared_data {
                    firsts.push((kind, a));
                }
            }
        }
        Ok((found, firsts))
    };
    let done = options.on_station(section, measure, |_, function, (found, own)| {
        pairs.extend(found);
        for (kind, dump) in own {
            firsts.entry(kind).or_default().push((function.clone(), dump));
        }
    });
    for (kind, dumps) in &firsts {
        for (name, a) in dumps {
            for (other, b) in dumps.iter().filter(|(other, _)| other != name) {
                pairs.push(Pair::of((name, a), (other, b), *kind, CROSS_SIZE));
            }
        }
    }
    files.push(("pairs.csv".into(), raw(&pairs)));
    tell(section, &pairs);
    done
}

fn about(section: &mut Section) {
    section.say(
        "Two sandboxes of each function, dumped by CRIU right after they said that they were ready, before any request. Counted as the paper did: \
         one chunk of K bytes at every offset that is a multiple of 2K, in both; a chunk that the other has is compared byte for byte and the match grown \
         on both sides, to 2K bytes at most; the larger of both directions counts. Beside it, because sampling at fixed offsets cannot see what has moved: \
         the fraction of all chunks at multiples of K that the other has at any byte offset.",
    );
    section.say(
        "Each function once with data of its own in every sandbox, and once with data that all share (MEDES_SEED): the paper's functions had no data at all. \
         Hash seeds of Python are random. ASLR is off for the sandboxes alone, by their personality (setarch); nothing of the machine is changed.",
    );
    section.warn(
        "One pair of sandboxes says little: what lies where depends on random hash seeds, and two runs of one function differ by ten points and more. A full run has five pairs.",
    );
    section.warn(
        "CRIU leaves out pages of files that nobody has written, and pages that were never touched. The paper's study changed CRIU to look at memory by kind, \
         and which kinds its figure counts is not printed. With ASLR on ours is far below it: pages full of pointers weigh most in what is left here, and least in a dump that \
         also has text and data of libraries as their files have them. That this is the reason was not shown.",
    );
}

impl Pair {
    fn of((of, a): (&str, &Dump), (with, b): (&str, &Dump), kind: Kind, size: usize) -> Self {
        let better = |there: Same, back: Same| if back.fraction() > there.fraction() { back } else { there };
        Self {
            of: of.into(),
            with: with.into(),
            kind,
            size,
            sampled: better(sampled(&a.bytes, &b.bytes, size), sampled(&b.bytes, &a.bytes, size)),
            anywhere: anywhere(&a.bytes, &b.bytes, size),
        }
    }

    fn is_one_function(&self) -> bool {
        self.of == self.with
    }
}

/// Each size on a thread of its own: nothing is timed here.
fn by_size(one: (&str, &Dump), other: (&str, &Dump), kind: Kind) -> Vec<Pair> {
    std::thread::scope(|scope| {
        let started = SIZES.map(|size| scope.spawn(move || Pair::of(one, other, kind, size)));
        let done =
            started.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.into()
    })
}

fn raw(pairs: &[Pair]) -> Csv {
    let mut csv = Csv::new(&[
        "function",
        "with",
        "aslr",
        "data",
        "chunk_bytes",
        "sampled_fraction",
        "sampled_zero_fraction",
        "anywhere_fraction",
        "anywhere_zero_fraction",
        "bytes",
    ]);
    for Pair { of, with, kind, size, sampled, anywhere } in pairs {
        csv.push(row![
            of,
            with,
            kind.aslr_word(),
            kind.data_word(),
            *size,
            sampled.fraction(),
            sampled.zero_fraction(),
            anywhere.fraction(),
            anywhere.zero_fraction(),
            anywhere.bytes,
        ]);
    }
    csv
}

fn tell(section: &mut Section, pairs: &[Pair]) {
    let of = |kind: Kind, size: usize, value: &dyn Fn(&Pair) -> f64| {
        let some =
            pairs.iter().filter(|pair| pair.is_one_function() && pair.kind == kind && pair.size == size);
        some.map(value).collect::<Vec<_>>()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let head = [
        "chunk",
        "ASLR",
        "data",
        "sampled, mean",
        "least",
        "most",
        "anywhere, mean",
        "paper, mean",
        "least",
        "most",
    ];
    let mut sheet = Sheet::new("Fraction of a sandbox that another one of its function has", &head);
    let mut lines: Vec<Line> = Vec::new();
    for kind in Kind::ALL {
        let aslr = if kind.aslr { "ASLR on" } else { "ASLR off" };
        let paper = |what: &str, size: usize| {
            published::value("Fig 1", &format!("{aslr}, {what}"), &size.to_string())
        };
        let (mut ours, mut anyplace, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for size in SIZES {
            let sampled = of(kind, size, &|pair| pair.sampled.fraction());
            let anywhere = mean(&of(kind, size, &|pair| pair.anywhere.fraction()));
            let Spread { min, max, .. } = Spread::of(sampled.iter().copied());
            let row = [
                mean(&sampled),
                min,
                max,
                anywhere,
                paper("mean", size),
                paper("least", size),
                paper("most", size),
            ];
            let front = [size.to_string(), kind.aslr_word().into(), kind.data_word().into()];
            sheet.push(front.into_iter().chain(row.map(percent)));
            ours.push((size as f64, row[0]));
            anyplace.push((size as f64, anywhere));
            theirs.push((size as f64, row[4]));
            if kind.shared_data && (size == 64 || size == 1024) {
                let what =
                    format!("sampled redundancy at {size} B, {aslr}, shared data, against the paper's");
                section.verdicts.push(Verdict::more(what, (row[0], row[4]), percent));
            }
        }
        let name = format!("{aslr}, {} data", kind.data_word());
        lines.push(Line { name: format!("{name}, sampled"), points: ours });
        lines.push(Line { name: format!("{name}, anywhere"), points: anyplace });
        if kind.shared_data {
            lines.push(Line { name: format!("paper, {aslr}"), points: theirs });
        }
    }
    section.drawings.push(Drawing::Lines(Plot {
        title: "Redundancy by chunk size, two sandboxes of one function, mean of functions".into(),
        x: "bytes of a chunk".into(),
        y: "fraction of the memory".into(),
        lines,
    }));
    section.sheets.push(sheet);
    across(section, pairs);
}

fn across(section: &mut Section, pairs: &[Pair]) {
    let head = ["sandbox", "found in", "ASLR", "sampled", "anywhere", "paper, least", "paper, most"];
    let mut sheet = Sheet::new("Across functions, chunks of 64 B, own data", &head);
    let paper = |of| percent(published::value("Fig 1", "across functions, 64 B", of));
    for pair in pairs.iter().filter(|pair| !pair.is_one_function()) {
        sheet.push([
            pair.of.clone(),
            pair.with.clone(),
            pair.kind.aslr_word().into(),
            percent(pair.sampled.fraction()),
            percent(pair.anywhere.fraction()),
            paper("least"),
            paper("most"),
        ]);
    }
    section.sheets.push(sheet);
}
