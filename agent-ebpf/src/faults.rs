//! Faults of sandboxes that are asked for: an event each, and the heat of each page.
//!
//! The programs are attached only while somebody is asked about; a fault of anybody else then costs one look at [`WANTED`].

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use medes_agent_ebpf::{
    FAULTS_BYTES, FaultWords, HEAT_MAX, HEAT_ONE, HeatKey, HeatWords, Lost, SANDBOXES_MAX, WantedWords,
    decayed, fault, heat_place, wants,
};

use crate::lose;
use crate::runs::{add, now_ns};
use crate::task::current;

/// Sandboxes nobody asks about are not in it.
#[map]
static WANTED: HashMap<u64, WantedWords> = HashMap::with_max_entries(SANDBOXES_MAX, 0);

#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(FAULTS_BYTES, 0);

/// A table with two places for each page rather than a hash map: a place is found without a lock or a list.
#[map]
static HEAT: Array<HeatWords> = Array::with_max_entries(HEAT_MAX, 0);

/// Bit of the error code (x86): the access was a write.
const WRITE: u64 = 1 << 1;
const PAGE_SHIFT: u64 = 12;

#[inline(always)]
pub(crate) fn seen(address: u64, error: u64, in_kernel: bool) {
    // The upper half of the addresses is the kernel's own.
    if address >> 63 != 0 {
        return;
    }
    let (key, process) = current();
    let Some(wanted) = WANTED.get_ptr_mut(key) else { return };
    let wanted = wanted.cast::<u64>();
    // SAFETY: the map gave a row of two words, valid until the program ends; this is the first.
    let bits = unsafe { wanted.read_volatile() };
    // SAFETY: as above; this is the second.
    unsafe { add(wanted.add(1), 1) };
    let now_ns = now_ns();
    let write = error & WRITE != 0;
    if bits & wants::EVENTS != 0 {
        let mut last = u64::from(process);
        if write {
            last |= fault::WRITE;
        }
        if in_kernel {
            last |= fault::IN_KERNEL;
        }
        let event: FaultWords = [key, address, now_ns, last];
        // Nobody sleeps until there is one: the ring is looked at from time to time.
        if FAULTS.output::<FaultWords>(&event, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
            lose(Lost::Faults);
        }
    }
    if bits & wants::HEAT != 0 {
        warm(&[key, u64::from(process), address >> PAGE_SHIFT], write, now_ns);
    }
}

/// Two CPUs in the same place at once may lose a touch, or leave one to the wrong of two pages, no more.
#[inline(always)]
fn warm(page: &HeatKey, write: bool, now_ns: u64) {
    let place = heat_place(page);
    let (Some(first), Some(second)) = (HEAT.get_ptr_mut(place), HEAT.get_ptr_mut(place | 1)) else { return };
    // SAFETY: the map gave rows of words, valid until the program ends, and these are two rows.
    let (first, second) = unsafe { (&mut *first, &mut *second) };
    let [key, process, number] = *page;
    let is_its = |words: &HeatWords| words[0] == key && words[2] == number && words[1] == process;
    let words = if is_its(first) {
        first
    } else if is_its(second) {
        second
    } else {
        let heat = |words: &HeatWords| decayed(words[3], now_ns.saturating_sub(words[5]));
        let words = if heat(first) <= heat(second) { first } else { second };
        *words = [key, process, number, 0, 0, now_ns];
        words
    };
    let [_, _, _, touches, writes, last_ns] = words;
    let age_ns = now_ns.saturating_sub(*last_ns);
    *touches = decayed(*touches, age_ns).saturating_add(HEAT_ONE);
    *writes = decayed(*writes, age_ns).saturating_add(if write { HEAT_ONE } else { 0 });
    *last_ns = now_ns;
}
