//! Which pieces of the base each page of a target is made of.

use super::align::Piece;

/// The pieces of many pages, page after page.
#[derive(Debug, Clone, Default)]
pub(super) struct PagePieces {
    pieces: Vec<Piece>,
    /// For each page, where its pieces end.
    ends: Vec<usize>,
}

impl PagePieces {
    /// Room for the pieces of one more page, to be pushed; [`Self::end_page`] ends it.
    pub(super) const fn open_page(&mut self) -> &mut Vec<Piece> {
        &mut self.pieces
    }

    /// What was pushed since the last page is one page. Returns it.
    pub(super) fn end_page(&mut self) -> &[Piece] {
        self.ends.push(self.pieces.len());
        self.of(self.ends.len() - 1)
    }

    /// All pages of another list behind those of this one.
    pub(super) fn append(&mut self, other: Self) {
        let before = self.pieces.len();
        self.pieces.extend(other.pieces);
        self.ends.extend(other.ends.into_iter().map(|end| before + end));
    }

    /// The pieces of a page; none if there is no such page.
    pub(super) fn of(&self, page: usize) -> &[Piece] {
        let start = page.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(page).and_then(|end| self.pieces.get(start..*end)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::align::Origin;

    #[test]
    fn pages_keep_their_pieces() {
        let piece = |blocks| Piece { blocks, from: Origin::Zeros };
        let mut first = PagePieces::default();
        first.open_page().extend([piece(1), piece(2)]);
        assert_eq!(first.end_page(), [piece(1), piece(2)]);
        assert_eq!(first.end_page(), []);
        let mut second = PagePieces::default();
        second.open_page().push(piece(3));
        second.end_page();
        first.append(second);
        assert_eq!(first.of(0), [piece(1), piece(2)]);
        assert_eq!(first.of(1), []);
        assert_eq!(first.of(2), [piece(3)]);
        assert_eq!(first.of(3), []);
    }
}
