//! How large the errors of a page are so far, and so how many bits of the next one are written as they are.

/// Contexts of each channel: how many bits its last errors had.
const ACTIVITIES: usize = 9;

/// How large the errors of one context are.
#[derive(Debug, Clone, Copy)]
struct Rate {
    sum: u16,
    count: u8,
    /// About as many bits as the average one has.
    plain_bits: u8,
}

impl Rate {
    /// The past counts half as much once there are so many more.
    const COUNT_MAX: u8 = 48;
    const NEW: Self = Self { sum: 16, count: 4, plain_bits: 2 };

    #[inline]
    const fn learn(&mut self, size: u32) {
        self.sum += size as u16;
        self.count += 1;
        if self.count > Self::COUNT_MAX {
            self.sum >>= 1;
            self.count >>= 1;
        }
        let (sum, count) = (self.sum as u32, self.count as u32);
        let bits = count.leading_zeros().saturating_sub(sum.leading_zeros());
        self.plain_bits = (bits + (count << bits < sum) as u32) as u8;
    }
}

// No error is larger than 128.
const _: () = assert!((Rate::COUNT_MAX as u32 + 1) * 128 < u16::MAX as u32);

/// All contexts of a page of `C` channels. Channels know nothing of each other, so that the processor can work on several at once.
#[derive(Debug)]
pub(super) struct Rates<const C: usize> {
    rates: [[Rate; ACTIVITIES]; C],
    /// Sizes of the last errors, added up.
    lately: [u32; C],
    /// The context that these lead to.
    activity: [usize; C],
}

impl<const C: usize> Rates<C> {
    pub(super) const fn new() -> Self {
        Self { rates: [[Rate::NEW; ACTIVITIES]; C], lately: [0; C], activity: [0; C] }
    }

    /// Bits of the channel's next error that are written as they are.
    #[inline]
    pub(super) const fn plain_bits(&self, channel: usize) -> u32 {
        self.rates[channel][self.activity[channel]].plain_bits as u32
    }

    #[inline]
    pub(super) fn learn(&mut self, channel: usize, number: u8) {
        let size = size(number);
        self.rates[channel][self.activity[channel]].learn(size);
        // Halves of what was, so never more than twice the largest.
        self.lately[channel] = (self.lately[channel] >> 1) + size;
        self.activity[channel] = (u32::BITS - self.lately[channel].leading_zeros()).min(8) as usize;
    }
}

/// Small errors of either sign as small numbers.
#[inline]
pub(super) const fn folded(error: u8) -> u8 {
    error << 1 ^ ((error as i8) >> 7) as u8
}

#[inline]
pub(super) const fn unfolded(number: u8) -> u8 {
    number >> 1 ^ (number & 1).wrapping_neg()
}

/// How far from zero the error is that stands for this number.
#[inline]
pub(super) const fn size(number: u8) -> u32 {
    (number as u32).div_ceil(2)
}
