//! A hash over all private memory of a stopped sandbox, to prove that a restore brought back every byte.
//!
//! Content is what counts, not residency: a page that was never touched and a page of zeros read the same, so
//! zero pages of anonymous memory are left out; private file mappings are read whole, copied-on-write or not.
//! Left out because the kernel writes them: vvar and vdso, each thread's rseq area (cpu numbers), and memory that it may
//! empty at any time (the C library's random state on new kernels), which CRIU does not take along.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use medes_dedup::page::{PAGE_BYTES, ZERO_PAGE};
use nix::unistd::Pid;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use crate::maps;

/// Bytes of one process that the kernel changes behind its back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// The process, by its number inside the sandbox.
    pub pid: i32,
    /// The addresses.
    pub range: Range<u64>,
}

/// Memory that could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The process ended, or its files in /proc say nothing.
    #[error("look at process {pid}")]
    Process {
        /// Host number of the process.
        pid: i32,
        /// What happened.
        #[source]
        source: procfs::ProcError,
    },
    /// Its memory could not be read.
    #[error("read memory of process {pid} at {address:#x}")]
    Read {
        /// Host number of the process.
        pid: i32,
        /// Where.
        address: u64,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

const BLOCK_PAGES: usize = 256;

/// Hashes the private memory of these processes (host numbers), which must not run meanwhile.
///
/// Blocks for about a second per GB of mappings.
pub fn digest(pids: &[i32], masks: &[Mask]) -> Result<[u8; 32], DigestError> {
    let mut processes = Vec::with_capacity(pids.len());
    for &pid in pids {
        let look = |source| DigestError::Process { pid, source };
        let process = Process::new(pid).map_err(look)?;
        // Its number inside the sandbox is the same after a restore; the host's is not.
        let inner = process.status().map_err(look)?.nspid.and_then(|all| all.last().copied()).unwrap_or(pid);
        processes.push((inner, process));
    }
    processes.sort_by_key(|(inner, _)| *inner);
    let mut hasher = blake3::Hasher::new();
    for (inner, process) in &processes {
        let masks: Vec<_> = masks.iter().filter(|mask| mask.pid == *inner).map(|m| m.range.clone()).collect();
        hasher.update(&inner.to_le_bytes());
        hash_process(process, &masks, &mut hasher)?;
    }
    Ok(*hasher.finalize().as_bytes())
}

fn hash_process(
    process: &Process,
    masks: &[Range<u64>],
    hasher: &mut blake3::Hasher,
) -> Result<(), DigestError> {
    let pid = process.pid;
    let look = |source: procfs::ProcError| DigestError::Process { pid, source };
    let open = |name: &str| {
        File::open(format!("/proc/{pid}/{name}")).map_err(|source| DigestError::Read {
            pid,
            address: 0,
            source,
        })
    };
    let (memory, pagemap) = (open("mem")?, open("pagemap")?);
    let droppable = maps::droppable(Pid::from_raw(pid));
    let droppable = droppable.map_err(|source| DigestError::Read { pid, address: 0, source })?;
    for map in process.maps().map_err(look)? {
        if is_hashed(&map) && !droppable.iter().any(|range| range.contains(&map.address.0)) {
            let anonymous = map.inode == 0;
            hash_mapping(pid, &memory, anonymous.then_some(&pagemap), &map, masks, hasher)?;
        }
    }
    Ok(())
}

fn is_hashed(map: &MemoryMap) -> bool {
    let kernels = match &map.pathname {
        MMapPath::Vdso | MMapPath::Vvar | MMapPath::Vsyscall => true,
        MMapPath::Other(name) => name.starts_with("vvar") || name.starts_with("uprobes"),
        _ => false,
    };
    map.perms.contains(MMPermissions::PRIVATE) && !kernels
}

/// `pagemap` is given for anonymous memory: pages that are not there are zeros and need no reading.
fn hash_mapping(
    pid: i32,
    memory: &File,
    pagemap: Option<&File>,
    map: &MemoryMap,
    masks: &[Range<u64>],
    hasher: &mut blake3::Hasher,
) -> Result<(), DigestError> {
    let (start, end) = map.address;
    let mut bytes = vec![0; BLOCK_PAGES * PAGE_BYTES];
    let block_bytes = bytes.len() as u64;
    for block in (start..end).step_by(bytes.len()) {
        let length = usize::try_from(block_bytes.min(end - block)).unwrap_or(bytes.len());
        if let Some(pagemap) = pagemap
            && !any_present(pagemap, block, length / PAGE_BYTES).map_err(|source| DigestError::Read {
                pid,
                address: block,
                source,
            })?
        {
            continue;
        }
        let bytes = &mut bytes[..length];
        let read = read_block(memory, block, bytes).map_err(|source| DigestError::Read {
            pid,
            address: block,
            source,
        })?;
        for mask in masks {
            let clip = |at: u64| usize::try_from(at.saturating_sub(block)).unwrap_or(read).min(read);
            bytes[clip(mask.start)..clip(mask.end)].fill(0);
        }
        for (page, at) in bytes[..read].as_chunks::<PAGE_BYTES>().0.iter().zip((block..).step_by(PAGE_BYTES))
        {
            if pagemap.is_none() || *page != ZERO_PAGE {
                hasher.update(&at.to_le_bytes());
                hasher.update(&map.perms.bits().to_le_bytes());
                hasher.update(page);
            }
        }
    }
    Ok(())
}

/// Reads what is readable of a block. A file mapping can reach beyond its file: nothing is there.
fn read_block(memory: &File, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match memory.read_at(&mut bytes[read..], address + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Whether any of the pages has memory of its own. Bits 62 and 63: swapped, present
/// (Documentation/admin-guide/mm/pagemap.rst).
fn any_present(pagemap: &File, address: u64, pages: usize) -> io::Result<bool> {
    let mut entries = [0; BLOCK_PAGES * 8];
    let entries = &mut entries[..pages * 8];
    pagemap.read_exact_at(entries, address / PAGE_BYTES as u64 * 8)?;
    Ok(entries.as_chunks::<8>().0.iter().any(|entry| u64::from_le_bytes(*entry) >> 62 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_changes_the_digest_and_a_masked_one_does_not() {
        // A child that waits: its memory stands still. Its own heap holds its command line's copy.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Wait until it sleeps in its own program, by the name the kernel gives it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let asleep = |p: &Process| p.stat().is_ok_and(|s| s.comm == "sleep" && s.state == 'S');
        while !asleep(&Process::new(pid).unwrap()) {
            assert!(std::time::Instant::now() < deadline, "sleep never slept");
            std::thread::yield_now();
        }
        let before = digest(&[pid], &[]).unwrap();
        assert_eq!(before, digest(&[pid], &[]).unwrap());
        let stack = Process::new(pid)
            .unwrap()
            .maps()
            .unwrap()
            .into_iter()
            .find(|map| map.pathname == MMapPath::Stack)
            .unwrap();
        let at = stack.address.1 - 64;
        let memory = File::options().write(true).open(format!("/proc/{pid}/mem")).unwrap();
        memory.write_all_at(b"changed", at).unwrap();
        assert_ne!(before, digest(&[pid], &[]).unwrap());
        let mask = [Mask { pid, range: at..at + 7 }];
        let masked = digest(&[pid], &mask).unwrap();
        memory.write_all_at(b"another", at).unwrap();
        assert_eq!(masked, digest(&[pid], &mask).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
