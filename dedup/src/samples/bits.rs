//! Rice codes as bits, from the lowest bit of each byte on: so many ones as the number's upper bits say, a zero, the lower bits.

/// Ones before a number that is written as it is, in eight bits: its code would be longer.
const ONES_MAX: u32 = 16;

/// Bits of the longest code.
const CODE_BITS_MAX: u32 = ONES_MAX + 8;

/// Appends codes to bytes.
pub(super) struct BitWriter<'o> {
    out: &'o mut Vec<u8>,
    bits: u64,
    count: u32,
}

impl<'o> BitWriter<'o> {
    pub(super) const fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, bits: 0, count: 0 }
    }

    /// A number whose lowest bits, at most eight, are written as they are.
    #[inline]
    pub(super) fn put(&mut self, number: u8, plain_bits: u32) {
        let number = u64::from(number);
        let ones = (number >> plain_bits) as u32;
        let (code, bits) = if ones < ONES_MAX {
            let lower = number & ((1 << plain_bits) - 1);
            (lower << (ones + 1) | ((1 << ones) - 1), ones + 1 + plain_bits)
        } else {
            (number << ONES_MAX | ((1 << ONES_MAX) - 1), CODE_BITS_MAX)
        };
        self.bits |= code << self.count;
        self.count += bits;
        while self.count >= 32 {
            self.out.extend_from_slice(&(self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.count -= 32;
        }
    }

    /// Writes what is left.
    pub(super) fn end(self) {
        let bytes = self.bits.to_le_bytes();
        self.out.extend_from_slice(&bytes[..self.count.div_ceil(8) as usize]);
    }
}

/// Takes codes out again.
pub(super) struct BitReader<'d> {
    rest: &'d [u8],
    bits: u64,
    count: u32,
}

impl<'d> BitReader<'d> {
    pub(super) const fn new(bytes: &'d [u8]) -> Self {
        Self { rest: bytes, bits: 0, count: 0 }
    }

    /// The next number. `None` if the bits are over.
    #[inline]
    pub(super) fn take(&mut self, plain_bits: u32) -> Option<u8> {
        if self.count < CODE_BITS_MAX {
            self.fill();
        }
        let ones = (!self.bits).trailing_zeros();
        let (number, bits) = if ones < ONES_MAX {
            let lower = (self.bits >> (ones + 1)) & ((1 << plain_bits) - 1);
            (u64::from(ones) << plain_bits | lower, ones + 1 + plain_bits)
        } else {
            (self.bits >> ONES_MAX, CODE_BITS_MAX)
        };
        self.count = self.count.checked_sub(bits)?;
        self.bits >>= bits;
        Some(number as u8)
    }

    #[inline]
    fn fill(&mut self) {
        match self.rest.split_first_chunk::<4>() {
            Some((four, rest)) => {
                self.bits |= u64::from(u32::from_le_bytes(*four)) << self.count;
                self.count += 32;
                self.rest = rest;
            }
            None => self.fill_at_end(),
        }
    }

    #[cold]
    fn fill_at_end(&mut self) {
        for byte in self.rest {
            self.bits |= u64::from(*byte) << self.count;
            self.count += 8;
        }
        self.rest = &[];
    }

    /// Is nothing left but the unused bits of the last byte, which are zero?
    pub(super) const fn is_at_end(&self) -> bool {
        self.rest.is_empty() && self.count < 8 && self.bits == 0
    }
}
