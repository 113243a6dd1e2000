//! Encoding with a plan: a page as words of its base first, and another way only where that is not short enough.

use super::{EncodedPage, Encoder, Form};
use crate::delta::{CODED_BYTES_MAX, Level};
use crate::page::{BasePage, Page, PageIndex, SnapshotId, is_zero};
use crate::rebuild::{BasePages, put_right};
use crate::recipe::Codec;
use crate::words::{Facts, Plan};

/// How hard to work on pages of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordRules {
    /// From this many bytes on, other ways to store the page are tried too: the predicted page as a dictionary, which finds
    /// bytes that moved by less than a word, and the page by itself.
    pub enough_bytes_max: usize,
    /// How hard to work on these. `None`: no other way is tried, and the page is kept as it is.
    pub other_level: Option<Level>,
}

impl WordRules {
    /// For a sandbox that is parked just now: most pages stay as the prediction left them.
    pub const FAST: Self = Self { enough_bytes_max: 1024, other_level: Some(Level::FASTEST) };

    /// For pages that will be wanted back first, and are likely to be stored again soon: compressed by themselves they would take longer than anything else,
    /// both ways.
    pub const HOT: Self = Self { enough_bytes_max: 1024, other_level: None };

    /// For what stays parked, with a plan that was refined.
    pub const SMALL: Self = Self { enough_bytes_max: 384, other_level: Some(Level::constant(3)) };
}

/// A base that a target is planned with.
#[derive(Debug, Clone, Copy)]
pub struct WordsOf<'w> {
    /// Its name.
    pub snapshot: SnapshotId,
    /// Its pages, all of them.
    pub pages: &'w [&'w Page],
    /// What they say about themselves.
    pub facts: &'w Facts,
    /// How the target is made of it.
    pub plan: &'w Plan,
    /// How hard to work.
    pub rules: WordRules,
}

impl BasePages for WordsOf<'_> {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        let found = (page.snapshot == self.snapshot).then(|| self.pages.get(page.page.0 as usize));
        found.flatten().copied()
    }

    fn facts(&self, snapshot: SnapshotId) -> Option<&Facts> {
        (snapshot == self.snapshot).then_some(self.facts)
    }
}

impl Encoder {
    /// Page `at` of the planned target in the smallest way, proven to give the page back.
    ///
    /// Cannot fail: in the worst case the page is kept as it is. An image with such pages needs the plan's pointer table.
    pub fn encode_planned(&mut self, page: &Page, at: PageIndex, base: &WordsOf<'_>) -> EncodedPage<'_> {
        let (hash, form) = if is_zero(page) {
            (self.hasher.zero(), Form::Zero)
        } else {
            (self.hasher.hash(page), self.words_or_else(page, at, base))
        };
        let form = match form {
            Form::Delta { base: named, codec, bytes } if codec.is_of_words() => {
                match self.gives_back(page, at, base, (named.page, codec, bytes)) {
                    true => form,
                    false => self.distrust(page),
                }
            }
            other => self.proven(page, (base, base.plan.relation()), other),
        };
        self.finished(hash, form)
    }

    /// Does the code just made give the page back? As `unpack` does it, but for the prediction, which is at hand.
    fn gives_back(
        &mut self,
        page: &Page,
        at: PageIndex,
        base: &WordsOf<'_>,
        (named, codec, bytes): (PageIndex, Codec, usize),
    ) -> bool {
        let Some(rest) = base.plan.reread(at, &self.best[..bytes], named) else { return false };
        self.rebuilt.copy_from_slice(self.words.predicted());
        put_right(&mut self.codec, codec, rest, &mut self.rebuilt).is_ok() && *self.rebuilt == *page
    }

    fn words_or_else(&mut self, page: &Page, at: PageIndex, base: &WordsOf<'_>) -> Form<usize> {
        if let Some(number) = base.plan.only_page(at) {
            let name = BasePage { snapshot: base.snapshot, page: number };
            if base.base_page(name) == Some(page) {
                return Form::Same(name);
            }
        }
        let mut form = None;
        let mut limit = CODED_BYTES_MAX;
        if let Some(words) = base.plan.encode(&mut self.words, at, page, (base.pages, base.facts)) {
            let name = BasePage { snapshot: base.snapshot, page: words.named };
            if words.bytes.len() <= limit {
                limit = words.bytes.len();
                self.best[..limit].copy_from_slice(words.bytes);
                form = Some(Form::Delta { base: name, codec: Codec::Words, bytes: limit });
            }
            if words.bytes.len() <= base.rules.enough_bytes_max
                && let Some(form) = form
            {
                return form;
            }
            let pieces = words.pieces;
            let room = limit.saturating_sub(pieces.len() + 1);
            if let Some(level) = base.rules.other_level
                && let Some(delta) = self.codec.encode(page, words.predicted, room, level)
            {
                limit = pieces.len() + delta.len();
                self.best[..pieces.len()].copy_from_slice(pieces);
                self.best[pieces.len()..limit].copy_from_slice(delta);
                form = Some(Form::Delta { base: name, codec: Codec::Predicted, bytes: limit });
            }
        }
        let Some(level) = base.rules.other_level else { return self.raw(page) };
        // A page by itself is rarely shorter than good corrections.
        if limit > WHOLE_TRIED_FROM {
            form = self.by_itself(page, limit - 1, level).or(form);
        }
        form.unwrap_or_else(|| self.raw(page))
    }
}

/// Pages that take fewer bytes as words are not compressed by themselves to see whether that is shorter.
const WHOLE_TRIED_FROM: usize = 768;
