//! How often it is doubted that a page will be touched: the less, the more often the doubt was wrong.

/// One in 2^this many pages is doubted each time: at first, and at most and at least.
const BITS: u32 = 6;
const BITS_MIN: u32 = 5;
const BITS_MAX: u32 = 10;
/// So many doubts are judged together.
const JUDGED: u32 = 16;

/// Which pages are doubted, and what became of that.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    bits: u32,
    round: u64,
    doubted: u32,
    /// How many of them were used all the same.
    used: u32,
}

impl Default for Doubt {
    fn default() -> Self {
        Self { bits: BITS, round: 0, doubted: 0, used: 0 }
    }
}

impl Doubt {
    /// It is others' turn.
    pub(super) const fn go_on(&mut self) {
        self.round += 1;
    }

    /// Whether this page is doubted now.
    pub(super) const fn is_of(&self, page: u64) -> bool {
        Self::is_turn(page, self.round, self.bits)
    }

    /// Whether it will be the next time.
    pub(super) const fn is_next_of(&self, page: u64) -> bool {
        Self::is_turn(page, self.round + 1, self.bits)
    }

    const fn is_turn(page: u64, round: u64, bits: u32) -> bool {
        page.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits) == round % (1 << bits)
    }

    /// So many pages were doubted, and so many of them were used.
    pub(super) const fn judge(&mut self, doubted: u32, used: u32) {
        self.doubted = self.doubted.saturating_add(doubted);
        self.used = self.used.saturating_add(used);
        if self.doubted < JUDGED {
            return;
        }
        let unused = self.doubted.saturating_sub(self.used);
        if unused <= self.doubted / 8 && self.bits < BITS_MAX {
            self.bits += 1;
        } else if unused > self.doubted / 2 && self.bits > BITS_MIN {
            self.bits -= 1;
        }
        (self.doubted, self.used) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubted(doubt: &Doubt) -> usize {
        (0..100_000).filter(|page| doubt.is_of(*page)).count()
    }

    #[test]
    fn who_is_always_wrong_doubts_less_and_who_is_right_more() {
        let mut doubt = Doubt::default();
        assert!((1200..1900).contains(&doubted(&doubt)), "one in 64: {}", doubted(&doubt));
        for _ in 0..40 {
            doubt.judge(8, 8);
        }
        assert!((50..150).contains(&doubted(&doubt)), "one in 1,024: {}", doubted(&doubt));
        for _ in 0..40 {
            doubt.judge(8, 6);
        }
        assert!((50..150).contains(&doubted(&doubt)), "neither: {}", doubted(&doubt));
        for _ in 0..40 {
            doubt.judge(8, 1);
        }
        assert!((2500..3800).contains(&doubted(&doubt)), "one in 32: {}", doubted(&doubt));
    }

    #[test]
    fn everybody_has_a_turn() {
        let mut doubt = Doubt::default();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1 << BITS {
            let next: Vec<u64> = (0..500).filter(|page| doubt.is_next_of(*page)).collect();
            doubt.go_on();
            assert_eq!(next, (0..500).filter(|page| doubt.is_of(*page)).collect::<Vec<_>>());
            seen.extend(next);
        }
        assert_eq!(seen.len(), 500);
    }
}
