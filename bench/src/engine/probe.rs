//! Memory and time of encoding, in a process of its own: what a process has needed at most, only the kernel knows, and
//! it knows it per process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use medes_dedup::{
    mapping::{Backing, Mapping, Mappings},
    page::PAGE_BYTES,
};
use serde::{Deserialize, Serialize};

use super::{
    clock::timed,
    dump::Dump,
    ours::{self, Base, Level},
};
use medes_load::dice::Dice;

/// One target to store.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    #[arg(long)]
    level: WhichLevel,
    /// Makes base and target this large
    #[arg(long, value_name = "BYTES")]
    grow_to: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WhichLevel {
    Fast,
    Small,
}

/// What encoding one target took. The base was prepared before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) seconds: f64,
    /// Memory in use at most while encoding, less what was in use before: the result counts, both dumps and the base's
    /// index do not.
    pub(super) peak_bytes: u64,
    pub(super) index_bytes: u64,
}

/// Starts this program again to store a target, grown to a size if one is given.
pub(super) fn measure(base: &Path, target: &Path, level: Level, grow_to: Option<usize>) -> Result<Taken> {
    let level = match level {
        Level::Fast => "fast",
        Level::Small | Level::SmallGeneric => "small",
    };
    let mut child = Command::new(std::env::current_exe().context("find this program")?);
    // What is freed goes back to the kernel at once, so that memory in use is memory needed.
    child.env("MALLOC_MMAP_THRESHOLD_", "131072").env("MALLOC_TRIM_THRESHOLD_", "131072");
    child.arg("engine-probe").arg("--base").arg(base).arg("--target").arg(target).args(["--level", level]);
    if let Some(bytes) = grow_to {
        child.args(["--grow-to", &bytes.to_string()]);
    }
    let output = child.output().context("start this program again")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("read what the other process found")
}

/// The other process.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let read = |folder: &Path, seed| {
        let dump = Dump::read(folder)?;
        options.grow_to.map_or(Ok(dump), |bytes| grown(&Dump::read(folder)?, bytes, seed))
    };
    let (base, target) = (read(&options.base, 1)?, read(&options.target, 2)?);
    let level = match options.level {
        WhichLevel::Fast => Level::Fast,
        WhichLevel::Small => Level::Small,
    };
    let base = Base::new(&base)?;
    // The kernel forgets what was needed so far (proc(5)).
    fs::write("/proc/self/clear_refs", "5").context("forget the peak of memory")?;
    let before = status("VmRSS:")?;
    let (stored, seconds) = timed(|| ours::store(&target, &base, level));
    let stored = stored?;
    let peak_bytes = status("VmHWM:")?.saturating_sub(before);
    ours::prove(&stored, &target, &base)?;
    let taken = Taken {
        plain_bytes: target.bytes.len() as u64,
        stored_bytes: stored.bytes(),
        seconds,
        peak_bytes,
        index_bytes: base.memory_bytes() as u64,
    };
    println!("{}", serde_json::to_string(&taken)?);
    Ok(ExitCode::SUCCESS)
}

/// A size out of this process's status, in bytes.
fn status(field: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("read this process's status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("read a size")?;
    Ok(kilobytes * 1024)
}

/// Words changed in each page of a copy.
const CHANGES: usize = 4;
/// Where copies go: far below anything that is mapped with address space randomisation.
const COPIES_AT: u64 = 1 << 44;

/// The first part of a dump, and copies of its pages in one more mapping until the whole has `bytes`. In each copy a few
/// words are others, so that none is like the next.
fn grown(dump: &Dump, bytes: usize, seed: u64) -> Result<Dump> {
    let part = dump.parts.first().context("a dump without pages")?;
    let real = &dump.pages()[part.pages.clone()];
    let wanted = bytes / PAGE_BYTES;
    let mut grown = Dump::default();
    if wanted <= real.len() {
        let addresses = part.addresses[..wanted].to_vec();
        grown.push(real[..wanted].as_flattened(), addresses, part.mappings.clone());
        return Ok(grown);
    }
    let copies = wanted - real.len();
    let end = COPIES_AT + (copies * PAGE_BYTES) as u64;
    let place = Mapping { start: COPIES_AT, end, backing: Backing::Anonymous };
    let mappings = Mappings::new(part.mappings.as_slice().iter().copied().chain([place]))?;
    let mut dice = Dice(seed);
    let mut pages = Vec::with_capacity(wanted * PAGE_BYTES);
    for page in real.iter().cycle().take(copies) {
        let mut page = *page;
        for _ in 0..CHANGES {
            let at = dice.below((PAGE_BYTES / 8) as u32) as usize;
            page.as_chunks_mut::<8>().0[at] = dice.bits().to_le_bytes();
        }
        pages.extend_from_slice(&page);
    }
    // In order of address, wherever the copies come to lie among the real pages.
    let below = part.addresses.partition_point(|address| *address < COPIES_AT);
    let mut addresses = part.addresses.clone();
    let new = (COPIES_AT..end).step_by(PAGE_BYTES);
    addresses.splice(below..below, new);
    let (front, back) = real.split_at(below);
    let bytes = [front.as_flattened(), &pages, back.as_flattened()].concat();
    grown.push(&bytes, addresses, mappings);
    Ok(grown)
}

#[cfg(test)]
mod tests {
    use super::{super::methods::tests::process, *};

    #[test]
    fn a_grown_dump_has_its_size_and_can_be_stored() {
        let (base, target) = (process(0x5550_0000_0000, 20, 1), process(0x5660_0000_0000, 20, 2));
        let [base, target] =
            [(base, 1), (target, 2)].map(|(dump, seed)| grown(&dump, 100 * PAGE_BYTES, seed).unwrap());
        assert_eq!(target.pages().len(), 100);
        assert_ne!(base.pages()[0], target.pages()[0], "each in its own way");
        assert_ne!(target.pages()[0], target.pages()[20], "copies differ");
        let base = Base::new(&base).unwrap();
        let stored = ours::store(&target, &base, Level::Fast).unwrap();
        ours::prove(&stored, &target, &base).unwrap();
        assert_eq!(grown(&target, 7 * PAGE_BYTES, 1).unwrap().pages(), &target.pages()[..7], "or shrunk");
    }

    #[test]
    fn this_process_has_a_size() {
        assert!(status("VmHWM:").unwrap() >= status("VmRSS:").unwrap() / 2);
        assert!(status("VmNothing:").is_err());
    }
}
