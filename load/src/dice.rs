//! Chance that can be repeated.

/// Numbers at random, the same in every run.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next of 64 bits (splitmix64).
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not zero.
    pub const fn below(&mut self, limit: u32) -> u32 {
        (((self.bits() >> 32) * limit as u64) >> 32) as u32
    }

    /// A number from 0 to less than 1.
    pub const fn part(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_are_fair_enough_and_stay_below() {
        let mut dice = Dice(1);
        let mut seen = [0; 6];
        (0..6000).for_each(|_| seen[dice.below(6) as usize] += 1);
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        let parts: Vec<f64> = (0..6000).map(|_| dice.part()).collect();
        assert!(parts.iter().all(|part| (0.0..1.0).contains(part)), "{parts:?}");
        let mean = parts.iter().sum::<f64>() / 6000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
    }
}
