//! Putting pages to where they are missing.

use medes_dedup::page::{PAGE_BYTES, Page};

use super::fault::FaultError;
use super::space::Space;
use crate::uffd::How;

/// What became of pages that were put in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// They are there, or were, or are not wanted any more.
    Done { pages: usize },
    /// The process is changing its mappings: again when it has told how.
    Busy,
    /// The process has ended.
    Gone,
}

impl Space {
    /// Copies pages to where they are missing.
    pub(super) fn put(&self, page: u64, bytes: &[Page], how: How) -> Result<Put, FaultError> {
        let mut done = 0;
        let mut step = bytes.len();
        while done < bytes.len() {
            let part = &bytes[done..bytes.len().min(done + step)];
            let at = (page + done as u64) * PAGE_BYTES as u64;
            let copied = self.uffd.copy(at, part.as_flattened(), how);
            done += copied.pages;
            match copied.stopped {
                None => {}
                // Part of it: the next part says why not all.
                Some(libc::EAGAIN) if copied.pages > 0 => {}
                Some(libc::EAGAIN) if done == 0 => return Ok(Put::Busy),
                Some(libc::EAGAIN) => break,
                Some(libc::EEXIST) => {
                    self.wake(at);
                    done += 1;
                }
                // A copy must not cross the end of a mapping.
                Some(libc::ENOENT) if part.len() > 1 => step = 1,
                // Not mapped, or not registered, any more: what waits there finds out by itself.
                Some(libc::ENOENT) => {
                    self.wake(at);
                    break;
                }
                Some(libc::ESRCH) => return Ok(Put::Gone),
                Some(errno) => return Err(FaultError::Copy { page, errno }),
            }
        }
        Ok(Put::Done { pages: done.max(1) })
    }

    /// Has pages that are missing be zeros, at no cost until they are written.
    pub(super) fn put_zeros(&self, page: u64, zeros: &[Page], wake: bool) -> Result<Put, FaultError> {
        let put = self.uffd.zero(page * PAGE_BYTES as u64, zeros.len(), wake);
        // Whatever is in the way is so in the way of a copy as well, and told apart there; a mark is not.
        match (put.pages, put.stopped) {
            (pages, None) => Ok(Put::Done { pages }),
            (0, Some(_)) => self.put(page, zeros, How { protected: false, wake }),
            (pages, Some(_)) => Ok(Put::Done { pages }),
        }
    }

    fn wake(&self, address: u64) {
        if let Err(error) = self.uffd.wake(&(address..address + PAGE_BYTES as u64)) {
            tracing::debug!(%error, "wake who waits for a page");
        }
    }
}
