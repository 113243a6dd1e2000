//! How small and how fast the dedup engine makes real memory, against everything else that could store it.

pub(crate) mod clock;
pub(crate) mod dump;
mod dumps;
mod methods;
pub(crate) mod ours;
pub(crate) mod probe;
mod report;
mod speed;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    experiment::{self, Became},
    functions::{self, Candidate, Function, Places},
    record::write_json,
    station::{self, Station},
};
use dump::{Data, Dump, Origin, Series};
use methods::METHODS;
use ours::{Base, Level};
use report::{Grown, Memory, Report, Row};
use speed::Times;

/// What to measure, on what, and where to leave it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these functions and programs, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    functions: Vec<String>,
    /// Measures the dumps in this folder instead of making new ones
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Only these ways to store, by their names in engine.json and separated by commas; nothing is timed then
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    ways: Vec<String>,
    /// Tries slow ways on every dump, and grows images to 10 GB
    #[arg(long)]
    full: bool,
    /// Folder for engine.json, and for the dumps
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// Call it before any thread exists.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its speeds say little; use `cargo xtask bench engine`");
    }
    let unknown = options.ways.iter().find(|way| !METHODS.iter().any(|method| method.name == way.as_str()));
    ensure!(unknown.is_none(), "no way to store is called {}", unknown.map_or("", String::as_str));
    let images = match &options.images {
        Some(images) => images.clone(),
        None => {
            let images = options.out.join("images");
            make_dumps(options, &images)?;
            images
        }
    };
    let series = dump::find(&images, &options.functions)?;
    ensure!(!series.is_empty(), "no dumps to measure in {}", images.display());
    let mut report = Report::new();
    let measured = measure(&series, options, &mut report);
    report.judge();
    // What was measured is kept, even if the end was a bad one.
    write_json(&options.out.join("engine.json"), &report)?;
    println!("{}", report.tables());
    measured.map(|()| ExitCode::SUCCESS)
}

/// Dumps every function and every program that this machine can run.
fn make_dumps(options: &Options, images: &Path) -> Result<()> {
    let candidates = functions::find_with_programs(&options.places, &options.functions)?;
    let agent = options.places.program("medes-agent")?;
    station::at(agent, async |station: &mut Station| dump_each(station, candidates, images).await)
}

async fn dump_each(station: &mut Station, candidates: Vec<Candidate>, images: &Path) -> Result<()> {
    let one = async |station: &mut Station, function: &Function| dumps::make(station, function, images).await;
    experiment::each(station, candidates, one, |function, became| match became {
        Became::Failed(error) => Err(error.context(format!("dump {function}"))),
        Became::Measured(()) | Became::Skipped(_) => Ok(()),
    })
    .await
}

/// A page that does not come back ends it.
fn measure(series: &[Series], options: &Options, report: &mut Report) -> Result<()> {
    let Options { full, ways, .. } = options;
    let count = series.len();
    for (at, one) in series.iter().enumerate() {
        eprintln!("[{}/{count}] store {} ({:?}, {:?} data)", at + 1, one.program, one.origin, one.data);
        report.rows.push(store(one, *full, ways)?);
    }
    if !ways.is_empty() {
        return Ok(());
    }
    // Speeds are those of the usual case, on the functions for which there are targets.
    let usual = |one: &&Series| {
        one.data == Data::Own && one.origin == Origin::Independent && functions::is_function(&one.program)
    };
    let mut total: Option<Times> = None;
    for one in series.iter().filter(usual) {
        eprintln!("speed of {}", one.program);
        let times = times(one)?;
        match &mut total {
            Some(total) => total.add(&times),
            None => total = Some(times),
        }
        report.memory.push(memory(one)?);
    }
    report.speeds = total.map(|total| total.speeds());
    // The largest one needs the fewest copies.
    match series.iter().filter(usual).max_by_key(|one| size(&one.base)) {
        Some(largest) => grow(largest, *full, report),
        None => Ok(()),
    }
}

/// Every method on every target of a base, or some of them.
fn store(series: &Series, full: bool, ways: &[String]) -> Result<Row> {
    let Series { program, data, origin, .. } = series;
    let mut row = Row::new(program.clone(), functions::is_function(program), *data, *origin);
    let base = read(&series.base)?;
    let base = Base::new(&base)?;
    for (position, folder) in series.targets.iter().enumerate() {
        let target = read(folder)?;
        row.plain_bytes += target.bytes.len() as u64;
        let wanted = |name| ways.is_empty() || ways.iter().any(|way| way == name);
        for method in METHODS.iter().filter(|method| wanted(method.name)) {
            if method.effort.covers(position, target.bytes.len(), full) {
                let found = method.run(&target, &base);
                row.add(method.name, &found.with_context(|| folder.display().to_string())?);
            }
        }
    }
    Ok(row)
}

fn read(folder: &Path) -> Result<Dump> {
    Dump::read(folder).with_context(|| format!("read the dump {}", folder.display()))
}

fn first(series: &Series) -> Result<&Path> {
    series.targets.first().map(PathBuf::as_path).context("a base without targets")
}

fn times(series: &Series) -> Result<Times> {
    let folder = first(series)?;
    Times::measure(&read(folder)?, &read(&series.base)?).with_context(|| folder.display().to_string())
}

fn memory(series: &Series) -> Result<Memory> {
    let multiple = |level| -> Result<f64> {
        let taken = probe::measure(&series.base, first(series)?, level, None)?;
        Ok(taken.peak_bytes as f64 / taken.plain_bytes as f64)
    };
    Ok(Memory {
        program: series.program.clone(),
        fast: multiple(Level::Fast)?,
        small: multiple(Level::Small)?,
    })
}

const GROW_MB: [usize; 6] = [10, 30, 100, 300, 1000, 2000];
const GROW_FULL_MB: [usize; 2] = [4000, 10_000];
/// Memory that a size needs: base and target, each a second time while it is grown, the index, the work on them.
const GROW_NEEDS: usize = 6;

fn grow(series: &Series, full: bool, report: &mut Report) -> Result<()> {
    let more = if full { &GROW_FULL_MB[..] } else { &[] };
    for mb in GROW_MB.iter().chain(more) {
        if available_bytes()? / (GROW_NEEDS as u64) < *mb as u64 * 1_000_000 {
            eprintln!("growth ends below {mb} MB: there is not memory enough");
            break;
        }
        eprintln!("growth: {mb} MB");
        for (name, level) in [("fast", Level::Fast), ("small", Level::Small)] {
            let taken = probe::measure(&series.base, first(series)?, level, Some(mb * 1_000_000))?;
            report.growth.push(Grown { level: name, taken });
        }
    }
    Ok(())
}

/// Bytes of the images in a folder; of one that cannot be listed, none.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn available_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read how much memory there is")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no such field")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("read a size")?;
    Ok(kilobytes * 1024)
}
