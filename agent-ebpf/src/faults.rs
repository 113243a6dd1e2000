//! Faults of sandboxes that are asked for: an event each, and the heat of each page.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, RingBuf};
use medes_agent_ebpf::{
    FAULTS_BYTES, FaultWords, HEAT_MAX, HEAT_ONE, HeatKey, HeatWords, Lost, SANDBOXES_MAX, decayed, fault,
    wants, word,
};

use crate::lose;
use crate::runs::{Sandbox, now_ns};
use crate::task::{Running, Task};

/// Sandboxes nobody asks about are not in it.
#[map]
static WANTED: HashMap<u64, u64> = HashMap::with_max_entries(SANDBOXES_MAX, 0);

#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(FAULTS_BYTES, 0);

#[map]
static HEAT: LruHashMap<HeatKey, HeatWords> = LruHashMap::with_max_entries(HEAT_MAX, 0);

/// Bit of the error code (x86): the access was a write.
const WRITE: u64 = 1 << 1;
const PAGE_SHIFT: u64 = 12;

#[inline(always)]
pub(crate) fn seen(address: u64, error: u64, in_kernel: bool) {
    // The upper half of the addresses is the kernel's own.
    if address >> 63 != 0 {
        return;
    }
    let Running { process, owner: key, .. } = Running::ask(Task::running());
    // SAFETY: entries are words; one that is replaced meanwhile is read as the old or the new one.
    let Some(wanted) = (unsafe { WANTED.get(key) }).copied() else { return };
    let Some(sandbox) = Sandbox::find(key) else { return };
    let now_ns = now_ns();
    let write = error & WRITE != 0;
    sandbox.add(word::FAULTS, 1);
    if wanted & wants::EVENTS != 0 {
        let mut last = u64::from(process);
        if write {
            last |= fault::WRITE;
        }
        if in_kernel {
            last |= fault::IN_KERNEL;
        }
        let event: FaultWords = [key, address, now_ns, last];
        if FAULTS.output::<FaultWords>(&event, 0).is_err() {
            lose(Lost::Faults);
        }
    }
    if wanted & wants::HEAT != 0 {
        warm(&[key, u64::from(process), address >> PAGE_SHIFT], write, now_ns);
    }
}

#[inline(always)]
fn warm(page: &HeatKey, write: bool, now_ns: u64) {
    let written = if write { HEAT_ONE } else { 0 };
    let Some(words) = HEAT.get_ptr_mut(page) else {
        // Full cannot be: another page gives way. Two CPUs with the same new page: one touch is forgotten.
        let _forgotten = HEAT.insert(page, &[HEAT_ONE, written, now_ns], 0);
        return;
    };
    // SAFETY: the map gave a row of three words, valid until the program ends. Two CPUs in the same page at once
    // may lose a touch, no more.
    let [touches, writes, last_ns] = unsafe { &mut *words };
    let age_ns = now_ns.saturating_sub(*last_ns);
    *touches = decayed(*touches, age_ns).saturating_add(HEAT_ONE);
    *writes = decayed(*writes, age_ns).saturating_add(written);
    *last_ns = now_ns;
}
