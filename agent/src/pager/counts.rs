//! How many pages were brought back, and in which way.

/// What was done for a process since it was first parked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages it had to wait for.
    pub missed: u64,
    /// Those of them that were not in its working set.
    pub unforeseen: u64,
    /// New pages of zeros it had to wait for.
    pub zeros: u64,
    /// Pages given back before they were missed.
    pub pushed: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.missed += more.missed;
        self.unforeseen += more.unforeseen;
        self.zeros += more.zeros;
        self.pushed += more.pushed;
    }
}

impl std::ops::Sub for Counts {
    type Output = Self;

    /// What was done since.
    fn sub(self, before: Self) -> Self {
        Self {
            missed: self.missed.saturating_sub(before.missed),
            unforeseen: self.unforeseen.saturating_sub(before.unforeseen),
            zeros: self.zeros.saturating_sub(before.zeros),
            pushed: self.pushed.saturating_sub(before.pushed),
        }
    }
}
