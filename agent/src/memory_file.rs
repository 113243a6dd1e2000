//! Files as memory: sealed memory files that nobody can change any more, and mapped files of a dump.
//!
//! Base snapshots and dedup images live in sealed memory files. Such a file is charged to the node's cgroup,
//! belongs to no file system, can be handed to another process as a file descriptor, and goes when its last
//! holder goes. The pages of a dump are mapped where CRIU wrote or will read them, so that no byte is copied
//! that does not have to be.
#![allow(unsafe_code, reason = "the fence around mmap")]

use std::{
    ffi::CString,
    fmt,
    fs::File,
    io::{self, Write},
    num::NonZeroUsize,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    ptr::NonNull,
    slice,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, SpliceFFlags, fallocate, fcntl, splice},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap},
    },
};

/// The kernel seals no file of which somebody still holds a page, and that may be the kernel itself, for a moment: it moves a page, or
/// counts. It waits for that a while (memfd_wait_for_pins in its mm/memfd.c) and then refuses; so it is asked again, after these pauses.
const SEAL_PAUSES: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20)];

/// A memory file being written.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
}

impl MemoryFile {
    /// An empty one. The name shows in `/proc/PID/maps` only.
    pub fn create(name: &str) -> io::Result<Self> {
        let name = CString::new(name).map_err(|nul| io::Error::new(io::ErrorKind::InvalidInput, nul))?;
        let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        Ok(Self { file: File::from(fd) })
    }

    /// A sealed one of these bytes.
    pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<MappedFile> {
        let mut file = Self::create(name)?;
        file.write_all(bytes)?;
        file.seal()
    }

    /// Writes at a place in it; several threads may.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Moves what lies in a pipe, at most `most` bytes, to the end of the file, without a detour through this process. Waits for the
    /// first byte; 0 when the pipe is at its end.
    pub fn append_from(&self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        loop {
            match splice(pipe, None, &self.file, None, most, SpliceFFlags::empty()) {
                Err(Errno::EINTR) => {}
                moved => return Ok(moved?),
            }
        }
    }

    /// No more changes: seals the file and maps it. Takes longer only where the kernel is busy with the file's pages.
    pub fn seal(self) -> io::Result<MappedFile> {
        let seals =
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        let mut pauses = SEAL_PAUSES.iter();
        loop {
            match (fcntl(self.file.as_fd(), FcntlArg::F_ADD_SEALS(seals)), pauses.next()) {
                (Err(Errno::EBUSY), Some(pause)) => thread::sleep(*pause),
                (sealed, _) => {
                    sealed?;
                    return MappedFile::map(self.file);
                }
            }
        }
    }
}

impl Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole file in memory, unmapped on drop.
struct Mapping {
    /// `None` when there are no bytes: an empty mapping does not exist.
    start: Option<NonNull<u8>>,
    bytes: usize,
}

// SAFETY: a mapping is plain memory of this process; which thread uses or frees it does not matter. Shared use
// is governed by the two types that own one.
unsafe impl Send for Mapping {}
// SAFETY: a `&Mapping` gives out nothing but its address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, bytes: u64, protection: ProtFlags) -> io::Result<Self> {
        let bytes =
            usize::try_from(bytes).map_err(|large| io::Error::new(io::ErrorKind::FileTooLarge, large))?;
        let start = match NonZeroUsize::new(bytes) {
            None => None,
            Some(length) => {
                // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
                let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
                Some(start.cast())
            }
        };
        let mapping = Self { start, bytes };
        mapping.keep_out_of_dumps()?;
        Ok(mapping)
    }

    /// It is memory of sandboxes: whoever is sent a core dump of the agent is not to have it.
    fn keep_out_of_dumps(&self) -> io::Result<()> {
        let Some(start) = self.start else { return Ok(()) };
        // SAFETY: a mapping of our own, of this length; the advice changes nothing but what a dump has of it.
        unsafe { madvise(start.cast(), self.bytes, MmapAdvise::MADV_DONTDUMP) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // SAFETY: `start` and `bytes` are what mmap returned and was asked for, and no slice of it outlives
            // its owner.
            let unmapped = unsafe { munmap(start.cast(), self.bytes) };
            debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
        }
    }
}

/// A file that nobody writes to any more, readable as a slice. Cheap to clone.
#[derive(Clone)]
pub struct MappedFile {
    mapping: Arc<Mapping>,
    file: Arc<File>,
}

impl MappedFile {
    fn map(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let mapping = Arc::new(Mapping::new(&file, bytes, ProtFlags::PROT_READ)?);
        Ok(Self { mapping, file: Arc::new(file) })
    }

    /// One that another process has sealed. What is not sealed could still change, and is refused.
    pub fn received(file: OwnedFd) -> io::Result<Self> {
        let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(sealed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Self::map(file.into())
    }

    /// Whether both are the same mapping, not only equal.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }

    /// Maps a finished file of a dump.
    ///
    /// The file must be one that nobody else changes: those of a dump lie in a directory of the agent's private
    /// mount namespace, CRIU has closed them, and the agent writes each only once.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::map(File::open(path)?)
    }

    /// The file itself, for system calls that read it without copying it here first.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.mapping.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.mapping.bytes == 0
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        match self.mapping.start {
            // SAFETY: a live, readable mapping of this many bytes until `self` is dropped. Nobody writes to the
            // file: it is sealed, or a finished file that only the agent can reach (see `open`).
            Some(start) => unsafe { slice::from_raw_parts(start.as_ptr(), self.mapping.bytes) },
            None => &[],
        }
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "MappedFile({} bytes)", self.len())
    }
}

/// A new file of a known size, written through memory.
pub struct NewFile {
    mapping: Mapping,
    file: File,
}

impl NewFile {
    /// Creates a file of `bytes` zeros. The space is taken now: on a full file system this fails, and not the
    /// first write to a page of it.
    pub fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        Self::of(File::options().read(true).write(true).create_new(true).open(path)?, bytes)
    }

    /// The same as a memory file, to be [sealed](Self::seal).
    pub fn in_memory(name: &str, bytes: u64) -> io::Result<Self> {
        Self::of(MemoryFile::create(name)?.file, bytes)
    }

    fn of(file: File, bytes: u64) -> io::Result<Self> {
        if bytes > 0 {
            let length =
                i64::try_from(bytes).map_err(|large| io::Error::new(io::ErrorKind::FileTooLarge, large))?;
            fallocate(&file, FallocateFlags::empty(), 0, length)?;
        }
        let mapping = Mapping::new(&file, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        Ok(Self { mapping, file })
    }

    /// No more changes to one [in memory](Self::in_memory).
    pub fn seal(self) -> io::Result<MappedFile> {
        let Self { mapping, file } = self;
        drop(mapping);
        MemoryFile { file }.seal()
    }
}

impl AsMut<[u8]> for NewFile {
    fn as_mut(&mut self) -> &mut [u8] {
        match self.mapping.start {
            // SAFETY: a live, writable mapping of this many bytes until `self` is dropped, of a file that was
            // created by `self` (`create_new`, or in memory) and is mapped nowhere else; `&mut self` makes the slice unique.
            Some(start) => unsafe { slice::from_raw_parts_mut(start.as_ptr(), self.mapping.bytes) },
            None => &mut [],
        }
    }
}

impl fmt::Debug for NewFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "NewFile({} bytes)", self.mapping.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_there_and_cannot_be_changed() {
        let mut file = MemoryFile::create("test").unwrap();
        file.write_all(b"one two").unwrap();
        let mut handle = file.file.try_clone().unwrap();
        let sealed = file.seal().unwrap();
        assert_eq!(sealed.as_ref(), b"one two");
        assert!(handle.write_all(b"three").is_err());
        assert!(handle.set_len(0).is_err());
    }

    #[test]
    fn what_was_written_in_any_order_is_sealed_as_it_is() {
        let file = MemoryFile::create("test").unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        file.write_all_at(&[3; 4096], 0).unwrap();
        let sealed = file.seal().unwrap();
        let bytes = sealed.as_ref();
        assert_eq!((bytes.len(), bytes[0], bytes[4096], bytes[8192]), (3 * 4096, 3, 0, 7));
        assert!(MemoryFile::create("test").unwrap().seal().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_somebody_can_still_write_to_is_not_sealed() {
        let mut file = MemoryFile::create("test").unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let handle = file.file.try_clone().unwrap();
        let writable = Mapping::new(&handle, 4096, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).unwrap();
        let refused = file.seal().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EBUSY as i32));
        drop(writable);
        assert!(MemoryFile { file: handle }.seal().is_ok(), "it was only refused, not broken");
    }

    #[test]
    fn what_another_sealed_is_taken_and_what_nobody_did_is_not() {
        let sealed = MemoryFile::sealed("test", b"one two").unwrap();
        let taken = MappedFile::received(sealed.file().try_clone().unwrap().into()).unwrap();
        assert_eq!(taken.as_ref(), b"one two");
        let open = MemoryFile::create("test").unwrap();
        assert_eq!(
            MappedFile::received(open.file.into()).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
        assert!(MappedFile::received(tempfile::tempfile().unwrap().into()).is_err());
    }

    #[test]
    fn no_core_dump_has_it() {
        let sealed = MemoryFile::sealed("undumped", &[1; 8192]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let new = NewFile::create(&dir.path().join("undumped-too"), 4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags: Vec<_> = maps
            .lines()
            .skip_while(|line| !line.contains("undumped"))
            .filter(|line| line.starts_with("VmFlags:") || line.contains("undumped"))
            .collect();
        for name in ["memfd:undumped", "undumped-too"] {
            let at = flags.iter().position(|line| line.contains(name)).expect("mapped");
            assert!(flags[at + 1].split(' ').any(|flag| flag == "dd"), "{name}: {}", flags[at + 1]);
        }
        drop((sealed, new));
    }

    #[test]
    fn nothing_is_a_slice_too() {
        assert!(MemoryFile::create("empty").unwrap().seal().unwrap().as_ref().is_empty());
    }

    #[test]
    fn a_new_file_holds_what_was_written_through_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages");
        let mut file = NewFile::create(&path, 8192).unwrap();
        file.as_mut()[4096..4100].copy_from_slice(b"page");
        drop(file);
        let read = MappedFile::open(&path).unwrap();
        assert_eq!((read.len(), &read.as_ref()[4096..4100]), (8192, &b"page"[..]));
        assert!(NewFile::create(&path, 1).is_err(), "an existing file is never taken over");
    }
}
