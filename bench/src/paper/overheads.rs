//! What Medes itself takes: agents on a real cluster, the controller for each sandbox and each base page, the registry for each lookup.

mod controller;

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use medes_controller::registry::{PageIndex, Registry as _, Table, TableSettings};
use medes_dedup::{fingerprint::ChunkHash, page::SnapshotId};
use medes_load::{dice::Dice, made_up};
use medes_proto::{registry::Fingerprints, units::ByteSize};

use super::{
    Options,
    csv::{Csv, row},
    leave::Found,
    published,
    section::{Section, Sheet, Verdict},
};
use crate::{
    functions::{self, Candidate},
    processes::Process,
    replay::{self, First, Plan, Real},
    show::{mib, percent},
};

/// Base pages in the registry: of a small cluster, and of a large one.
const BASE_PAGES: (u32, u32) = (250_000, 4_000_000);
/// As agents sample pages by default.
const CHUNKS: usize = 10;
/// Pages in one question, and questions.
const BATCH_PAGES: usize = 256;
const BATCHES: usize = 400;
/// Pages of one snapshot.
const SNAPSHOT_PAGES: u32 = 8192;
const SANDBOXES: (usize, usize) = (50_000, 200_000);
const NODES: u32 = 2;
const NODE_MEMORY: ByteSize = ByteSize(2 << 30);
const MINUTES: (usize, usize) = (6, 60);
const SPEEDUP: f64 = 10.0;
const PROGRAMS: [&str; 2] = ["html", "auth"];

/// Whether what is asked for is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Known,
    Unknown,
}

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("What Medes itself takes", "Section 7.8");
    let mut csv = Csv::new(&["what", "value", "unit"]);
    let mut sheet = Sheet::new("Overheads", &["what", "measured", "paper"]);
    // One that fails leaves the others. The controller comes first: in a process that has freed nothing yet, what is new is new.
    let mut first = Ok(());
    let parts: [(&str, Part); 3] =
        [("controller", controller_memory), ("registry", registry), ("agents", agents)];
    for (name, part) in parts {
        eprintln!("    {name}");
        if let Err(error) =
            part(options, section, &mut (&mut csv, &mut sheet)).with_context(|| format!("measure {name}"))
        {
            section.warn(format!("{error:#}"));
            first = first.and(Err(error));
        }
    }
    section.sheets.push(sheet);
    files.push(("overheads.csv".into(), csv));
    first
}

type Part = fn(&Options, &mut Section, &mut (&mut Csv, &mut Sheet)) -> Result<()>;

/// One figure, for programs and for people.
fn put(
    (csv, sheet): &mut (&mut Csv, &mut Sheet),
    what: &str,
    (value, unit): (f64, &str),
    shown: String,
    paper: &str,
) {
    csv.push(row![what, value, unit]);
    sheet.push([what.to_owned(), shown, paper.to_owned()]);
}

fn random(dice: &mut Dice, pages: usize) -> Vec<Vec<ChunkHash>> {
    (0..pages).map(|_| (0..CHUNKS).map(|_| ChunkHash::new(dice.bits())).collect()).collect()
}

fn fingerprints(pages: &[Vec<ChunkHash>]) -> Fingerprints {
    let mut all = Fingerprints::default();
    pages.iter().for_each(|page| all.push(page));
    all
}

fn registry(options: &Options, section: &mut Section, out: &mut (&mut Csv, &mut Sheet)) -> Result<()> {
    let pages = options.by_size(BASE_PAGES.0, BASE_PAGES.1);
    section.say(format!(
        "Registry: {pages} base pages of {CHUNKS} random chunk hashes each, registered as snapshots of {SNAPSHOT_PAGES} pages; then one thread asks {BATCHES} times for {BATCH_PAGES} pages, \
         of which all ten chunks, or none, are known. No network: what that adds is in `bench restore` (step lookup)."
    ));
    let table = Table::new(TableSettings::default());
    let mut dice = Dice(options.seed);
    let mut known = Vec::new();
    for (number, first) in (1_u64..).zip((0..pages).step_by(SNAPSHOT_PAGES as usize)) {
        let count = SNAPSHOT_PAGES.min(pages - first) as usize;
        let hashes = random(&mut dice, count);
        let snapshot = SnapshotId::new(number).context("numbers start at one")?;
        table.register(snapshot, PageIndex(0), &fingerprints(&hashes));
        if known.len() < BATCHES * BATCH_PAGES {
            known.extend(hashes);
        }
    }
    let size = table.size();
    let bytes = size.bytes as f64 / f64::from(pages);
    put(out, "registry, memory for each base page", (bytes, "bytes"), format!("{bytes:.0} B"), "-");
    let entry = size.bytes as f64 / size.entries.max(1) as f64;
    put(out, "registry, memory for each entry", (entry, "bytes"), format!("{entry:.1} B"), "-");
    let paper_us = published::value("Section 7.8", "registry lookup of one page", "mean");
    for asked in [Asked::Known, Asked::Unknown] {
        let unknown = random(&mut dice, BATCH_PAGES);
        let batches: Vec<Fingerprints> = (0..BATCHES)
            .map(|batch| match asked {
                Asked::Known => {
                    let from = batch * BATCH_PAGES % known.len().saturating_sub(BATCH_PAGES).max(1);
                    fingerprints(&known[from..(from + BATCH_PAGES).min(known.len())])
                }
                Asked::Unknown => fingerprints(&unknown),
            })
            .collect();
        let began = Instant::now();
        let answers: usize = batches.iter().map(|batch| table.lookup(batch, &|_| true).len()).sum();
        let per_page = began.elapsed().as_secs_f64() * 1e6 / answers.max(1) as f64;
        let name = if asked == Asked::Known { "all chunks known" } else { "no chunk known" };
        let lookups = CHUNKS as f64 / per_page;
        let shown = format!("{per_page:.2} us a page, {lookups:.1} million chunks/s");
        put(
            out,
            &format!("registry lookup, {name}, one thread"),
            (per_page, "us a page"),
            shown,
            &format!("{paper_us} us a page"),
        );
        let what = format!("registry lookup of a page, {name}, against the paper's");
        section.verdicts.push(Verdict::less(what, (per_page, paper_us), |us| format!("{us:.1} us")));
    }
    Ok(())
}

fn controller_memory(
    options: &Options,
    section: &mut Section,
    out: &mut (&mut Csv, &mut Sheet),
) -> Result<()> {
    let count = options.by_size(SANDBOXES.0, SANDBOXES.1);
    let bytes = controller::bytes_of_a_sandbox(count)?;
    section.say(format!(
        "Controller: how much this process grows when the controller's driver is told of {count} sandboxes in dedup, by heartbeats of their nodes, divided by them."
    ));
    put(
        out,
        "controller, memory for each sandbox",
        (bytes, "bytes"),
        format!("{bytes:.0} B"),
        "11.8 % more memory",
    );
    Ok(())
}

fn agents(options: &Options, section: &mut Section, out: &mut (&mut Csv, &mut Sheet)) -> Result<()> {
    let names = PROGRAMS.map(str::to_owned);
    let programs = functions::find(&options.places.functions_dir, &names)?.into_iter();
    let programs: Vec<_> = programs
        .filter_map(|one| if let Candidate::Ready(function) = one { Some(function) } else { None })
        .collect();
    anyhow::ensure!(!programs.is_empty(), "none of {} can run here", PROGRAMS.join(", "));
    let minutes = options.by_size(MINUTES.0, MINUTES.1);
    let trace = made_up::trace(12, minutes, options.seed);
    let medes = options.places.program("medes")?;
    fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let plan = Plan {
        medes: &medes,
        nodes: NODES,
        node_memory: NODE_MEMORY,
        // As everything is by default, but that sandboxes are idle as much sooner as the trace is faster.
        config: "[policy]\nidle = \"6s\"\nkeep_alive = \"1m\"\nkeep_dedup = \"90s\"\n",
        first: First::Snapshots,
        seed: options.seed,
        speedup: SPEEDUP,
        log: &options.out.join("cluster.log"),
    };
    section.say(format!(
        "Agents and controller: `medes up` with {NODES} agents, {} requests of {} functions ({}), {minutes} minutes of a made-up trace {SPEEDUP} times as fast, everything as by default. \
         Processor time of each process while requests came, dumps and restores by CRIU included; its memory (its part of what is shared) after the last answer, base snapshots and images \
         included where they lie in it.",
        trace.requests(),
        trace.functions.len(),
        PROGRAMS.join(", "),
    ));
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let real = runtime.block_on(replay::run(&plan, &trace, &programs))?;
    tell(section, out, &real);
    Ok(())
}

fn tell(section: &mut Section, out: &mut (&mut Csv, &mut Sheet), real: &Real) {
    let (before, after) = &real.processes;
    let seconds = real.length.as_secs_f64();
    let mut agents = 0.0;
    for Process { pid, name, cpu_seconds, memory_bytes } in after {
        let earlier = before.iter().find(|one| one.pid == *pid).map_or(0.0, |one| one.cpu_seconds);
        let part = (cpu_seconds - earlier) / seconds;
        put(
            out,
            &format!("{name} {pid}, processor"),
            (part, "of one"),
            format!("{} of one", percent(part)),
            "-",
        );
        put(
            out,
            &format!("{name} {pid}, memory"),
            (*memory_bytes as f64, "bytes"),
            mib(*memory_bytes as f64),
            "-",
        );
        if name.starts_with("medes-agent") {
            agents += *memory_bytes as f64;
        }
    }
    if let Some(last) = real.parts.last() {
        for (what, bytes) in
            [("agents", last.agents), ("base snapshots", last.bases), ("dedup images", last.images)]
        {
            put(
                out,
                &format!("as agents report it, {what}"),
                (bytes as f64, "bytes"),
                mib(bytes as f64),
                "-",
            );
        }
    }
    let part = agents / (NODE_MEMORY.0 * u64::from(NODES)) as f64;
    let paper = published::value("Section 7.8", "agent metadata and bases, at most", "node");
    put(out, "agents' memory, of the nodes'", (part, "fraction"), percent(part), "below 10 %");
    section.verdicts.push(Verdict::less(
        "agents' memory of that of their nodes, against the paper's bound",
        (part, paper),
        percent,
    ));
    section.warn("An agent's processor time is of a cluster that is played ten times as fast: at real speed it is a tenth.");
}
