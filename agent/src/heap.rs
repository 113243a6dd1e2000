//! Gives heap memory that is free back to the kernel.
//!
//! One dedup holds base pages and encoded pages for a moment, some of it in small pieces. The allocator would keep
//! the room for the next one; on a node that exists to save memory it goes back at once.
#![allow(unsafe_code, reason = "malloc_trim has no safe wrapper")]

/// Tells the allocator, before it is used much, to hand large pieces back as soon as they are free. Left alone, glibc
/// raises both thresholds with what it sees, and the agent keeps tens of megabytes after the first dedups.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 256 << 10), (libc::M_TRIM_THRESHOLD, 128 << 10)] {
        // SAFETY: mallopt changes the allocator's own settings under its lock; unknown values are refused by result.
        let set = unsafe { libc::mallopt(parameter, bytes) };
        if set != 1 {
            tracing::debug!(parameter, "the allocator keeps its own threshold");
        }
    }
}

/// Returns free heap pages to the kernel. Takes a few milliseconds: call it from a blocking thread, after large work.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes the allocator's own locks and frees only what no one holds; it has no other
        // demands on its caller.
        let released = unsafe { libc::malloc_trim(0) };
        tracing::trace!(released, "heap trimmed");
    }
}
