//! A bounded queue that never refuses: what does not fit is thrown away, and counted where it is missing.

use std::collections::VecDeque;

/// What a mailbox gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Letter<T> {
    One(T),
    /// This many are missing here.
    Lost(u64),
}

/// At most `max` letters, and one count behind the last of them.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    letters: VecDeque<Letter<T>>,
    max: usize,
}

impl<T> Mailbox<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { letters: VecDeque::new(), max }
    }

    pub(super) fn post(&mut self, letter: T) {
        if self.letters.len() < self.max {
            self.letters.push_back(Letter::One(letter));
        } else if let Some(Letter::Lost(count)) = self.letters.back_mut() {
            *count = count.saturating_add(1);
        } else {
            self.letters.push_back(Letter::Lost(1));
        }
    }

    pub(super) fn take(&mut self) -> Option<Letter<T>> {
        self.letters.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// Whatever the order of posts and takes: order is kept, the bound too, and letters plus losses add up.
        #[test]
        fn every_letter_is_delivered_or_counted_in_its_place(steps in vec(any::<bool>(), 0..200), max in 1..8_usize) {
            let mut mailbox = Mailbox::new(max);
            let (mut posted, mut seen) = (0_u64, 0_u64);
            let mut take = |mailbox: &mut Mailbox<u64>| {
                let letter = mailbox.take();
                match letter {
                    Some(Letter::One(number)) => {
                        assert_eq!(number, seen, "in order, losses in their place");
                        seen += 1;
                    }
                    Some(Letter::Lost(count)) => {
                        assert!(count > 0);
                        seen += count;
                    }
                    None => return false,
                }
                true
            };
            for post in steps {
                if post {
                    mailbox.post(posted);
                    posted += 1;
                } else {
                    take(&mut mailbox);
                }
                prop_assert!(mailbox.letters.len() <= max + 1);
            }
            while take(&mut mailbox) {}
            prop_assert_eq!(seen, posted);
        }
    }
}
