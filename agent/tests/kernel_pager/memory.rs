//! Memory whose every word is known, and calls that change it.
#![allow(unsafe_code, reason = "the calls that map, move and give up memory are what is tested")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, mmap_anonymous, mprotect, mremap,
    munmap,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, ftruncate};

const WORDS: u64 = 512;

/// Private pages, and what each was last filled with; 0: zeros.
pub(crate) struct Region {
    start: NonNull<u64>,
    filled: Vec<u64>,
}

fn bytes(pages: u64) -> NonZeroUsize {
    NonZeroUsize::new(usize::try_from(pages).unwrap() * 4096).unwrap()
}

impl Region {
    pub(crate) fn new(pages: u64) -> Self {
        Self::with(pages, MapFlags::MAP_PRIVATE)
    }

    pub(crate) fn with(pages: u64, flags: MapFlags) -> Self {
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, bytes(pages), rights, flags) }.unwrap();
        Self { start: start.cast(), filled: vec![0; usize::try_from(pages).unwrap()] }
    }

    /// Pages of a file of zeros: who fills one has it for himself.
    pub(crate) fn of_file(pages: u64) -> Self {
        let file = memfd_create(c"region", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, i64::try_from(pages * 4096).unwrap()).unwrap();
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory at an address of the kernel's choice.
        let start = unsafe { mmap(None, bytes(pages), rights, MapFlags::MAP_PRIVATE, file, 0) }.unwrap();
        Self { start: start.cast(), filled: vec![0; usize::try_from(pages).unwrap()] }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.filled.len() as u64
    }

    fn page(&self, page: u64) -> NonNull<u64> {
        // SAFETY: callers name pages of this region.
        unsafe { self.start.add(usize::try_from(page * WORDS).unwrap()) }
    }

    fn place(&self, page: u64, word: u64) -> NonNull<u64> {
        // SAFETY: callers name words of a page of this region.
        unsafe { self.page(page).add(usize::try_from(word).unwrap()) }
    }

    fn word(salt: u64, at: u64) -> u64 {
        if salt == 0 { 0 } else { salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at }
    }

    pub(crate) fn fill(&mut self, page: u64, salt: u64) {
        for at in 0..WORDS {
            let place = self.place(page, at);
            // SAFETY: within a page of this region, which is mapped for writing.
            unsafe { place.write_volatile(Self::word(salt, at)) };
        }
        self.filled[usize::try_from(page).unwrap()] = salt;
    }

    /// What is wrong with a page.
    pub(crate) fn check(&self, page: u64) -> Option<String> {
        let salt = self.filled[usize::try_from(page).unwrap()];
        for at in 0..WORDS {
            let place = self.place(page, at);
            // SAFETY: within a page of this region, which is mapped for reading.
            let found = unsafe { place.read_volatile() };
            if found != Self::word(salt, at) {
                return Some(format!("page {page} word {at} of {salt:#x} is {found:#x}"));
            }
        }
        None
    }

    pub(crate) fn give_up(&mut self, page: u64, pages: u64, advice: MmapAdvise) {
        // SAFETY: pages of this region, whose contents nobody refers to.
        unsafe { madvise(self.page(page).cast(), bytes(pages).get(), advice) }.unwrap();
        let range = usize::try_from(page).unwrap()..usize::try_from(page + pages).unwrap();
        self.filled[range].fill(0);
    }

    /// Advice that changes nothing.
    pub(crate) fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: all of this region.
        unsafe { madvise(self.start.cast(), bytes(self.pages()).get(), advice) }
    }

    pub(crate) fn resize(&mut self, pages: u64) {
        let flags = MRemapFlags::MREMAP_MAYMOVE;
        // SAFETY: all of this region, which nobody refers to; it is what the kernel returns from now on.
        let moved =
            unsafe { mremap(self.start.cast(), bytes(self.pages()).get(), bytes(pages).get(), flags, None) };
        self.start = moved.unwrap().cast();
        self.filled.resize(usize::try_from(pages).unwrap(), 0);
    }

    pub(crate) fn protect(&self, rights: ProtFlags) {
        // SAFETY: this thread alone uses the region, and not before it may again.
        unsafe { mprotect(self.start.cast(), bytes(self.pages()).get(), rights) }.unwrap();
    }

    /// Fills all pages with something of their own.
    pub(crate) fn fill_all(&mut self, salt: u64) {
        (0..self.pages()).for_each(|page| self.fill(page, salt + page));
    }

    /// What is wrong with its pages.
    pub(crate) fn check_all(&self) -> Option<String> {
        (0..self.pages()).find_map(|page| self.check(page))
    }

    /// What is wrong with pages that may be zeros instead.
    pub(crate) fn check_or_zeros(&mut self) -> Option<String> {
        for page in 0..self.pages() {
            let at = usize::try_from(page).unwrap();
            let salt = self.filled[at];
            if let Some(wrong) = self.check(page) {
                self.filled[at] = 0;
                if self.check(page).is_some() {
                    self.filled[at] = salt;
                    return Some(wrong);
                }
            }
        }
        None
    }

    /// Unmaps some pages and maps new ones in their place.
    pub(crate) fn map_anew(&mut self, page: u64, pages: u64) {
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: pages of this region, whose contents nobody refers to.
        unsafe { munmap(self.page(page).cast(), bytes(pages).get()) }.unwrap();
        let at = Some(self.page(page).addr());
        // SAFETY: where there is nothing, by the flag.
        unsafe { mmap_anonymous(at, bytes(pages), rights, flags) }.unwrap();
        let range = usize::try_from(page).unwrap()..usize::try_from(page + pages).unwrap();
        self.filled[range].fill(0);
    }

    /// Moves all pages to where another region is, which is gone then.
    pub(crate) fn move_over(&mut self, other: Self) {
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        let (size, to) = (bytes(self.pages()).get(), other.start);
        assert_eq!(other.pages(), self.pages());
        std::mem::forget(other);
        // SAFETY: both regions are ours, and nobody refers to either.
        let moved = unsafe { mremap(self.start.cast(), size, size, flags, Some(to.cast())) };
        self.start = moved.unwrap().cast();
    }

    /// Keeps it in memory.
    pub(crate) fn lock(&self) -> nix::Result<()> {
        // SAFETY: all of this region.
        unsafe { mlock(self.start.cast(), bytes(self.pages()).get()) }
    }

    /// One page as bytes.
    pub(crate) fn as_bytes(&self, page: u64) -> &[u8] {
        // SAFETY: a page of this region, readable, which nobody writes to while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.page(page).cast().as_ptr(), 4096) }
    }

    /// The same, to be written by the kernel; it is then what a page filled with `salt` is.
    pub(crate) fn as_bytes_mut(&mut self, page: u64, salt: u64) -> &mut [u8] {
        self.filled[usize::try_from(page).unwrap()] = salt;
        // SAFETY: a page of this region, writable, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.page(page).cast().as_ptr(), 4096) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: all of this region, which is gone now.
        unsafe { munmap(self.start.cast(), bytes(self.pages()).get()) }.unwrap();
    }
}

// SAFETY: the memory belongs to the region alone, whichever thread has it.
unsafe impl Send for Region {}

/// Uses much stack; whether it is as it was on the way back.
pub(crate) fn deep(left: u64) -> bool {
    let mut frame = [left; 512];
    std::hint::black_box(&mut frame);
    let below = left == 0 || deep(left - 1);
    below && std::hint::black_box(&frame).iter().all(|word| *word == left)
}

/// Whether this is true in a child.
pub(crate) fn in_child(is_so: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child touches memory of its own, makes no call that may wait for another thread, and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = if is_so() { 0 } else { 1 };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => waitpid(child, None) == Ok(WaitStatus::Exited(child, 0)),
    }
}

/// Grows (or shrinks) the heap that `brk` makes by so many pages: where it ended before.
pub(crate) fn grow_heap(pages: i64) -> usize {
    // SAFETY: nothing but this test uses brk in this program: its allocator is told to use other memory when brk moves.
    unsafe { libc::sbrk((pages * 4096).try_into().unwrap()) }.addr()
}

/// A word at an address of the heap.
pub(crate) fn heap_word(address: usize, write: Option<u64>) -> u64 {
    let at = std::ptr::with_exposed_provenance_mut::<u64>(address);
    if let Some(word) = write {
        // SAFETY: within what `grow_heap` has added.
        unsafe { at.write_volatile(word) };
    }
    // SAFETY: as above.
    unsafe { at.read_volatile() }
}
