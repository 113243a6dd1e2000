//! Reads pages of a process that stands still.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use medes_dedup::page::PAGE_BYTES;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// Ranges read at once.
const READ_MAX: usize = 256;
const PAGE: u64 = PAGE_BYTES as u64;

/// Reads pages of a process. Memory that the program itself may not read is read another way.
pub(super) fn read(pid: Pid, memory: &File, pages: &[u64], out: &mut [u8]) -> io::Result<()> {
    let runs: Vec<&[u64]> = pages.chunk_by(|a, b| a + 1 == *b).collect();
    let mut rest = out;
    for some in runs.chunks(READ_MAX) {
        let place = |run: &&[u64]| RemoteIoVec {
            base: usize::try_from(run[0] * PAGE).unwrap_or(0),
            len: run.len() * PAGE_BYTES,
        };
        let remote: Vec<RemoteIoVec> = some.iter().map(place).collect();
        let bytes = remote.iter().map(|one| one.len).sum();
        let (out, after) = rest.split_at_mut(bytes);
        rest = after;
        if process_vm_readv(pid, &mut [IoSliceMut::new(out)], &remote).is_ok_and(|read| read == bytes) {
            continue;
        }
        let mut out = out;
        for run in some {
            let (one, after) = out.split_at_mut(run.len() * PAGE_BYTES);
            memory.read_exact_at(one, run[0] * PAGE).map_err(|error| named(memory, run, &error))?;
            out = after;
        }
    }
    Ok(())
}

/// The error, with the first page of the run that cannot be read: what that page is tells why.
fn named(memory: &File, run: &[u64], error: &io::Error) -> io::Error {
    let unreadable = run.iter().find(|page| memory.read_exact_at(&mut [0], **page * PAGE).is_err());
    let page = unreadable.unwrap_or(&run[0]);
    io::Error::new(error.kind(), format!("page {page:#x}, of {} from {:#x} on: {error}", run.len(), run[0]))
}
