//! How small and how fast real memory is stored, one core, everything counted.
//!
//! `cargo run -p medes-dedup --release --example measure -- DIR [NAME,NAME...|all] [words]`: DIR holds dumps in folders
//! `<program>-<n>` (see `dump`). The first of each program is the base of the others. Prints, in percent of the
//! target's bytes (with `words` only the last of these): identical pages, the paper's method, zstd alone, the default engine, pages of words; and speeds.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on stops")]
#![allow(clippy::disallowed_methods, reason = "it is here to take the time")]

mod dump;
mod methods;

use std::fs;
use std::path::{Path, PathBuf};

use dump::Dump;
use medes_dedup::candidate::CandidateRules;
use medes_dedup::encode::EncodeRules;
use medes_dedup::fingerprint::Sampling;
use medes_dedup::page::Page;
use medes_dedup::paper;
use medes_dedup::words::{BaseIndex, Facts, Memory};
use methods::{Measured, alone, hinted, planned, same};

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let root: PathBuf = arguments.next().expect("a folder of dumps").into();
    let only = arguments.next().map(|names| names.into_string().unwrap());
    let mut names: Vec<String> = fs::read_dir(&root)
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix("-1")?.to_owned()))
        .filter(|name| {
            only.as_ref().is_none_or(|only| only == "all" || only.split(',').any(|one| one == name))
        })
        .collect();
    names.sort();
    let words_only = arguments.next().is_some_and(|which| which == "words");
    let mut total = Vec::new();
    for name in &names {
        let measured = program(&root, name, words_only);
        print(name, &measured);
        if total.is_empty() {
            total = measured;
        } else {
            total.iter_mut().zip(measured).for_each(|(sum, one)| sum.add(&one));
        }
    }
    print("TOTAL", &total);
}

/// All methods on all targets of one program.
fn program(root: &Path, name: &str, words_only: bool) -> Vec<Measured> {
    let dump = |n: usize| Some(root.join(format!("{name}-{n}"))).filter(|folder| folder.is_dir());
    let base = Dump::read(&dump(1).unwrap());
    let base_pages = base.pages();
    let memory = Memory::new(&base_pages, &base.addresses, &base.mappings).unwrap();
    let (index, index_seconds) = methods::timed(|| BaseIndex::new(memory));
    let (facts, facts_seconds) = methods::timed(|| {
        if std::env::var_os("GENERIC").is_some() { Facts::none() } else { Facts::study(memory) }
    });
    println!(
        "facts {:.0} MB/s {:.3} of base",
        base.bytes().len() as f64 / 1e6 / facts_seconds,
        facts.memory_bytes() as f64 / base.bytes().len() as f64
    );
    let mut sums: Vec<Measured> = Vec::new();
    for folder in (2..).map_while(dump) {
        let target = Dump::read(&folder);
        let mut all = Vec::new();
        if !words_only {
            all.extend(others(&target, &base_pages));
        }
        all.extend(planned(&target, &base_pages, &index, &facts));
        if sums.is_empty() {
            sums = all;
        } else {
            sums.iter_mut().zip(all).for_each(|(sum, one)| sum.add(&one));
        }
    }
    println!(
        "{name}: base {:.1} MB indexed at {:.0} MB/s, index takes {:.2} of it",
        base.bytes().len() as f64 / 1e6,
        base.bytes().len() as f64 / 1e6 / index_seconds,
        index.memory_bytes() as f64 / base.bytes().len() as f64,
    );
    sums
}

/// What there was before.
fn others(target: &Dump, base: &[&Page]) -> Vec<Measured> {
    let rules = (paper::candidate_rules(), paper::encode_rules());
    let mut all = vec![same(target, base), hinted("paper", target, base, paper::sampling(), rules)];
    all.extend(alone(target));
    let rules = (CandidateRules::default(), EncodeRules::default());
    all.push(hinted("default", target, base, Sampling::default(), rules));
    all
}

fn print(name: &str, measured: &[Measured]) {
    println!("{name}: {:.1} MB", measured.first().map_or(0.0, |one| one.plain as f64 / 1e6));
    for one in measured {
        print!("    {:<14} {:6.2} %", one.method, 100.0 * one.stored as f64 / one.plain as f64);
        for (step, seconds) in &one.seconds {
            print!("  {step} {:.0} MB/s", one.plain as f64 / 1e6 / seconds);
        }
        for (part, bytes) in &one.parts {
            print!("  {part} {:.2} %", 100.0 * *bytes as f64 / one.plain as f64);
        }
        if !one.note.is_empty() {
            print!("  ({})", one.note);
        }
        println!();
    }
}
