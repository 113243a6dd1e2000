//! What people would use instead of Medes, on the same machine and the same functions, in one run: what it holds, how soon it answers, what it costs.

mod kernel;
mod ksm;
mod packed;
mod spent;
mod swap;
mod ways;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use medes_proto::function::FunctionSpec;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Options,
    csv::{Csv, row},
    leave::Found,
    section::{Drawing, Section, Sheet, Verdict},
};
use crate::{
    functions::Function,
    plot::bars::{Bar, Bars},
    show::{mib, ms},
    station::Station,
    stats::Spread,
};
use ways::{Bench, Measured, WAYS, Way};

/// Sandboxes of a function at a time, and how often they go and come back.
const SANDBOXES: (usize, usize) = (3, 8);
const CYCLES: (usize, usize) = (2, 5);

/// One function, one way.
struct Row {
    function: String,
    way: Way,
    measured: Measured,
    sandboxes: usize,
}

/// What a function came to: each way, or why there is no figure.
type Ways = Vec<(Way, Result<Measured>)>;

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("Against what people would use instead", "");
    let sandboxes = options.by_size(SANDBOXES.0, SANDBOXES.1);
    let cycles = options.by_size(CYCLES.0, CYCLES.1);
    about(section, sandboxes, cycles);
    if !options.host_wide {
        let which: Vec<String> = WAYS.iter().filter(|way| way.is_host_wide()).map(|way| way.name()).collect();
        section.warn(format!(
            "Not measured, because they change the whole machine and --host-wide was not given: {}.",
            which.join(", ")
        ));
    }
    let told = AtomicBool::new(false);
    let measure = async |station: &mut Station, function: &Function| {
        ensure!(!told.load(Ordering::Relaxed), "told to end before");
        let pager = station.pager()?;
        let spec = Arc::new(FunctionSpec::from_toml(&function.toml).context("read its function file")?);
        let mut ways: Ways = Vec::new();
        for way in WAYS.into_iter().filter(|way| options.host_wide || !way.is_host_wide()) {
            let mut bench =
                Bench { station: &mut *station, pager: &pager, spec: spec.clone(), sandboxes, cycles };
            let done = Box::pin(unless_told(&told, bench.measure(way))).await;
            eprintln!("    {}", line(way, &done));
            ways.push((way, done));
            if told.load(Ordering::Relaxed) {
                break;
            }
            // What a failed way left must not stand in the next one's account.
            station.clear().await?;
        }
        Ok(ways)
    };
    let mut rows = Vec::new();
    let done = options.on_station(section, measure, |section, function, ways| {
        for (way, done) in ways {
            match done {
                Ok(measured) => rows.push(Row { function: function.clone(), way, measured, sandboxes }),
                Err(error) => section.warn(format!("{function}, {}: {error:#}", way.name())),
            }
        }
    });
    files.push(("sandboxes.csv".into(), of_sandboxes(&rows)));
    files.push(("ways.csv".into(), of_ways(&rows)));
    tell(section, &rows);
    done?;
    ensure!(!told.load(Ordering::Relaxed), "told to end");
    Ok(())
}

fn about(section: &mut Section, sandboxes: usize, cycles: usize) {
    section.say(format!(
        "For each function and way {sandboxes} new sandboxes of the function, each with data of its own, after the same four requests. All are put away; then their memory \
         is counted; then each is brought back and asked, and its answer must be the next one of the same process. {cycles} times over; before parking is counted \
         it goes two rounds in which it learns what is touched. In all ways CRIU's helper waits ready, as agents have it."
    ));
    section.say(
        "Held: what the kernel charges to the sandbox's control group (anonymous, tmpfs and kernel memory; not page cache) and all that is stored for it elsewhere: images, \
         compressed images, dedup images with everything in them, its part of what zram uses in all. Shared: held once for all sandboxes of the function: the init snapshot \
         that dedup images and parked sandboxes refer to; with KSM the kernel's items for mergeable pages. With share: both, the shared part divided by the sandboxes.",
    );
    section.say(
        "keep-alive: nothing is done. ksm: sandboxes ask for merging (prctl), 100,000 pages a second are scanned until a whole scan finds no more. zram: the kernel reclaims all it \
         can of the sandbox's group to swap on zram; files it had mapped are read into the cache again before it is asked. criu: images as CRIU writes them, on tmpfs; criu-zstd-N: \
         the same in one zstd stream at that level. parked, dedup: ours. cold, clone: the sandbox is not kept at all.",
    );
    section.say(
        "Processor time: of this process, its helpers, the sandboxes themselves and the kernel's merging thread, for putting one away and for bringing one back with its answer. \
         The request alone is what keep-alive takes.",
    );
}

/// A change of the machine must be taken back when somebody ends this: dropping the work does it. Nothing is begun afterwards.
async fn unless_told<T>(told: &AtomicBool, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut ended = signal(SignalKind::terminate()).context("wait for signals")?;
    tokio::select! {
        done = work => return done,
        _ = tokio::signal::ctrl_c() => {}
        _ = ended.recv() => {}
    }
    told.store(true, Ordering::Relaxed);
    bail!("told to end")
}

fn line(way: Way, done: &Result<Measured>) -> String {
    match done {
        Ok(measured) => format!(
            "{}: {} held, {} to the answer",
            way.name(),
            mib(mean(measured.held_bytes.iter().map(|bytes| *bytes as f64))),
            ms(Spread::of(measured.answer_ms.iter().copied()).p50)
        ),
        Err(error) => format!("{}: {error:#}", way.name()),
    }
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

impl Row {
    fn held(&self) -> f64 {
        mean(self.measured.held_bytes.iter().map(|bytes| *bytes as f64))
    }

    fn with_share(&self) -> f64 {
        self.held() + self.measured.shared_bytes as f64 / self.sandboxes as f64
    }

    fn answer(&self) -> Spread {
        Spread::of(self.measured.answer_ms.iter().copied())
    }

    fn cpu(&self) -> f64 {
        mean(self.measured.away_cpu_ms.iter().copied()) + mean(self.measured.back_cpu_ms.iter().copied())
    }
}

fn of_sandboxes(rows: &[Row]) -> Csv {
    let mut csv = Csv::new(&["function", "way", "number", "held_bytes", "away_ms", "answer_ms"]);
    for Row { function, way, measured, .. } in rows {
        for (number, answer) in measured.answer_ms.iter().enumerate() {
            let held = measured.held_bytes.get(number).copied().unwrap_or(0);
            let away = measured.away_ms.get(number).copied().unwrap_or(f64::NAN);
            csv.push(row![function, way.name(), number, held, away, *answer]);
        }
    }
    csv
}

fn of_ways(rows: &[Row]) -> Csv {
    let mut csv =
        Csv::new(&["function", "way", "cycle", "sandboxes", "shared_bytes", "away_cpu_ms", "back_cpu_ms"]);
    for Row { function, way, measured, sandboxes } in rows {
        for (cycle, (away, back)) in measured.away_cpu_ms.iter().zip(&measured.back_cpu_ms).enumerate() {
            csv.push(row![function, way.name(), cycle, *sandboxes, measured.shared_bytes, *away, *back]);
        }
    }
    csv
}

fn tell(section: &mut Section, rows: &[Row]) {
    let head = [
        "function",
        "way",
        "held",
        "shared",
        "with share",
        "answer",
        "slowest",
        "away",
        "CPU away",
        "CPU back",
    ];
    let mut sheet = Sheet::new("Per sandbox: means of memory and processor time, medians of times", &head);
    for row in rows {
        let Row { function, way, measured, .. } = row;
        sheet.push([
            function.clone(),
            way.name(),
            mib(row.held()),
            mib(measured.shared_bytes as f64),
            mib(row.with_share()),
            ms(row.answer().p50),
            ms(row.answer().max),
            ms(Spread::of(measured.away_ms.iter().copied()).p50),
            ms(mean(measured.away_cpu_ms.iter().copied())),
            ms(mean(measured.back_cpu_ms.iter().copied())),
        ]);
    }
    section.sheets.push(sheet);
    for (title, y, value) in KINDS {
        let bars = rows.iter().filter(|row| row.way != Way::Cold);
        let bars = bars.map(|row| Bar {
            name: format!("{} {}", row.function, row.way.name()),
            heights: vec![value(row)],
        });
        section.drawings.push(Drawing::Bars(Bars {
            title: title.into(),
            y: y.into(),
            parts: vec!["mean or median".into()],
            bars: bars.collect(),
        }));
    }
    section.sheets.push(pays(rows));
    verdicts(section, rows);
}

/// What is shared is held however few sandboxes there are: with how many it is made up for.
fn pays(rows: &[Row]) -> Sheet {
    let others: Vec<Way> = WAYS.into_iter().filter(|way| way.keeps_the_sandbox() && !way.is_ours()).collect();
    let names: Vec<String> = others.iter().map(|way| way.name()).collect();
    let head: Vec<&str> = ["function", "ours"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut sheet =
        Sheet::new("From how many sandboxes of a function on ours holds less than each other way", &head);
    for ours in rows.iter().filter(|row| row.way.is_ours()) {
        let cell = |way: &Way| {
            let other = rows.iter().find(|row| row.way == *way && row.function == ours.function);
            let won = other.map_or(f64::NAN, |other| other.held() - ours.held());
            match won {
                won if won > 0.0 => format!("{:.0}", (ours.measured.shared_bytes as f64 / won).floor() + 1.0),
                won if won <= 0.0 => "never".into(),
                _ => "-".into(),
            }
        };
        let front = [ours.function.clone(), ours.way.name()];
        sheet.push(front.into_iter().chain(others.iter().map(cell)));
    }
    sheet
}

type Kind = (&'static str, &'static str, fn(&Row) -> f64);

/// What is compared.
const KINDS: [Kind; 3] = [
    ("Memory held, with share", "MiB", |row| row.with_share() / f64::from(1 << 20)),
    ("To the first answer", "ms", |row| row.answer().p50),
    ("Processor time, away and back", "ms", Row::cpu),
];

/// Each of ours against each other way, in sums over the functions that both were measured on.
fn verdicts(section: &mut Section, rows: &[Row]) {
    for ours in WAYS.into_iter().filter(|way| way.is_ours()) {
        for other in WAYS.into_iter().filter(|way| !way.is_ours()) {
            let pairs: Vec<(&Row, &Row)> = rows
                .iter()
                .filter(|row| row.way == ours)
                .filter_map(|row| {
                    Some((row, rows.iter().find(|o| o.way == other && o.function == row.function)?))
                })
                .collect();
            if pairs.is_empty() {
                continue;
            }
            for (title, unit, value) in KINDS {
                let sums = pairs
                    .iter()
                    .map(|(a, b)| (value(a), value(b)))
                    .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
                let what = format!(
                    "{title}, {} against {}, sum of {} functions",
                    ours.name(),
                    other.name(),
                    pairs.len()
                );
                section.verdicts.push(Verdict::less(what, sums, |value| format!("{value:.1} {unit}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(function: &str, way: Way, held: u64, answer: f64) -> Row {
        let measured = Measured {
            held_bytes: vec![held << 20, held << 20],
            shared_bytes: 8 << 20,
            answer_ms: vec![answer, answer],
            away_cpu_ms: vec![1.0],
            back_cpu_ms: vec![2.0],
            ..Measured::default()
        };
        Row { function: function.into(), way, measured, sandboxes: 4 }
    }

    #[test]
    fn what_is_shared_is_divided() {
        let row = row("a", Way::Dedup, 3, 10.0);
        assert_eq!((row.held(), row.with_share(), row.cpu()), (3.0 * 1048576.0, 5.0 * 1048576.0, 3.0));
    }

    #[test]
    fn a_share_pays_from_some_number_on() {
        let rows =
            [row("a", Way::Dedup, 1, 1.0), row("a", Way::Criu, 3, 1.0), row("a", Way::KeepAlive, 1, 1.0)];
        let sheet = pays(&rows);
        let cell = |name: &str| &sheet.rows[0][sheet.head.iter().position(|head| head == name).unwrap()];
        // 8 MiB shared, 2 MiB less for each: four are as good, five are better.
        assert_eq!(
            (cell("criu").as_str(), cell("keep-alive").as_str(), cell("ksm").as_str()),
            ("5", "never", "-")
        );
    }

    #[test]
    fn every_way_is_held_against_ours_on_the_same_functions() {
        let rows =
            [row("a", Way::Dedup, 3, 10.0), row("b", Way::Dedup, 3, 10.0), row("a", Way::Criu, 9, 5.0)];
        let mut section = Section::default();
        verdicts(&mut section, &rows);
        let told: Vec<(&str, bool)> =
            section.verdicts.iter().map(|one| (one.what.as_str(), one.won)).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(told[0], ("Memory held, with share, dedup against criu, sum of 1 functions", true));
        assert!(!told[1].1 && told[2].1, "{told:?}");
    }

    #[test]
    fn raw_figures_are_complete() {
        let rows = [row("a", Way::Dedup, 3, 10.0), row("a", Way::Cold, 0, 90.0)];
        assert_eq!((of_sandboxes(&rows).lines(), of_ways(&rows).lines()), (4, 2));
    }

    #[test]
    fn no_two_ways_share_a_name() {
        let names: std::collections::BTreeSet<String> = WAYS.iter().map(|way| way.name()).collect();
        assert_eq!(names.len(), WAYS.len());
    }
}
