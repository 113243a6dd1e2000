//! Swap on compressed memory (zram): what an idle sandbox holds when the kernel has put all it can there.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use medes_agent::sandbox::cgroup::SandboxCgroup;

use super::kernel::{self, Changed};

const BLOCK: &str = "/sys/block/zram0";
const DEVICE: &str = "/dev/zram0";
/// Of what it may hold uncompressed. It takes only what it needs.
const DISK_BYTES: &str = "4G";
/// What cannot be taken is tried so often.
const ATTEMPTS: usize = 5;

/// Swap on zram. Dropped, it is off and the device empty.
#[derive(Debug)]
pub(super) struct Zram {
    _algorithm: Changed,
}

impl Zram {
    /// Switches it on. Refuses where it is not, or where somebody uses it already.
    pub(super) fn start(algorithm: &str) -> Result<Self> {
        let block = Path::new(BLOCK);
        ensure!(block.is_dir(), "this kernel has no zram: {BLOCK} is not there");
        ensure!(kernel::number(&block.join("disksize"))? == 0, "zram0 is in use, by somebody else");
        let known = kernel::read(&block.join("comp_algorithm"))?;
        let has = known.split_whitespace().any(|word| word.trim_matches(['[', ']']) == algorithm);
        ensure!(has, "zram has no {algorithm} here, only {}", known.trim());
        let mut changed = Changed::default();
        changed.set(&block.join("comp_algorithm"), algorithm)?;
        // From here on the value's end undoes it all.
        let zram = Self { _algorithm: changed };
        kernel::write(&block.join("disksize"), DISK_BYTES)?;
        command("mkswap", &[DEVICE])?;
        command("swapon", &[DEVICE])?;
        Ok(zram)
    }

    /// Memory that all compressed pages take, with what the allocator loses.
    pub(super) fn used_bytes(&self) -> Result<u64> {
        used(&kernel::read(&Path::new(BLOCK).join("mm_stat"))?)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let is_on = fs::read_to_string("/proc/swaps").is_ok_and(|text| text.contains(DEVICE));
        let off = if is_on { command("swapoff", &[DEVICE]) } else { Ok(()) };
        let reset = off.and_then(|()| kernel::write(&Path::new(BLOCK).join("reset"), "1"));
        if let Err(error) = reset {
            eprintln!("{error:#}: zram0 stays in use");
        }
    }
}

/// The third number: `mem_used_total`.
fn used(stat: &str) -> Result<u64> {
    let third = stat.split_whitespace().nth(2);
    third
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("zram's account {stat:?} makes no sense"))
}

/// Runs a program of the system. What it says, and how it ends, come through a pipe: the node in this process collects every child that ends,
/// and may be faster than whoever waits for one.
fn command(name: &str, arguments: &[&str]) -> Result<()> {
    let doing = || format!("{name} {}", arguments.join(" "));
    let mut child = Command::new("sh")
        .args(["-c", "\"$@\" 2>&1; echo $?", "sh", name])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(doing)?;
    let mut said = String::new();
    let mut pipe = child.stdout.take().with_context(doing)?;
    pipe.read_to_string(&mut said).with_context(doing)?;
    // An error means that the node has collected it.
    drop(child.wait());
    let (words, status) = said.trim_end().rsplit_once('\n').unwrap_or(("", said.trim_end()));
    ensure!(status == "0", "{}: {}", doing(), words.trim());
    Ok(())
}

/// Has the kernel take all memory of a group that it can.
pub(super) fn reclaim(group: &SandboxCgroup) -> Result<()> {
    for folder in group.procs_files().iter().filter_map(|file| file.parent()) {
        let (whole, some) = (folder.join("memory.force_empty"), folder.join("memory.reclaim"));
        if whole.exists() {
            return (0..ATTEMPTS).try_for_each(|_| kernel::write(&whole, "0"));
        }
        if some.exists() {
            kernel::write(&folder.join("memory.swap.max"), "max")?;
            // It says EAGAIN when there was less than that to take, and there always is.
            for _ in 0..ATTEMPTS {
                match fs::write(&some, "4G") {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                        return Err(error).with_context(|| format!("write {}", some.display()));
                    }
                    _ => {}
                }
            }
            return Ok(());
        }
    }
    bail!("no memory of this sandbox's group can be reclaimed on this kernel")
}

/// Reads the files that a group's processes have mapped: the kernel has dropped them from its cache with the rest, and in none of the
/// other ways do they come from disk.
pub(super) fn cache_files(group: &SandboxCgroup) -> Result<()> {
    for pid in group.pids()? {
        let maps = kernel::read(&PathBuf::from(format!("/proc/{pid}/maps")))?;
        for file in mapped(&maps) {
            let path = format!("/proc/{pid}/root{file}");
            // One that is deleted meanwhile is in no cache either.
            if let Ok(mut file) = fs::File::open(path) {
                io::copy(&mut file, &mut io::sink()).context("read a mapped file")?;
            }
        }
    }
    Ok(())
}

fn mapped(maps: &str) -> BTreeSet<&str> {
    let paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    paths.filter(|path| !path.starts_with("/dev/") && !path.ends_with(" (deleted)")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read_or_refused() {
        assert_eq!(used("  4096 74 12288 0 12288 0 0 0 0\n").unwrap(), 12_288);
        assert!(used("1 2").is_err());
    }

    #[test]
    fn files_are_read_once() {
        let maps = "55-56 r--p 0 fe:00 1 /usr/bin/python3.11\n56-57 r-xp 1 fe:00 1 /usr/bin/python3.11\n\
                    60-61 rw-p 0 00:00 0 [heap]\n70-71 rw-p 0 00:01 5 /dev/zero (deleted)\n";
        assert_eq!(mapped(maps).into_iter().collect::<Vec<_>>(), ["/usr/bin/python3.11"]);
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let error = command("ls", &["/nowhere/at/all"]).unwrap_err();
        assert!(error.to_string().contains("ls /nowhere/at/all: "), "{error}");
    }
}
