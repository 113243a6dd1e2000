//! Encoding with a plan: a page as words of its base first, and another way only where that is not short enough.

use super::{EncodedPage, Encoder, Form};
use crate::delta::{CODED_BYTES_MAX, Level, PACK_BYTES_MIN};
use crate::page::{BasePage, Page, PageIndex, SnapshotId, is_zero};
use crate::rebuild::BasePages;
use crate::recipe::Codec;
use crate::words::Plan;

/// How hard to work on pages of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordRules {
    /// From this many bytes on, other ways to store the page are tried too.
    pub enough_bytes_max: usize,
    /// From this many bytes on, also as a dictionary for the page: it finds bytes that moved by less than a word.
    pub dictionary_from: usize,
    /// How hard to work on corrections.
    pub pack_level: Level,
    /// How hard to work on pages that are better off without the base.
    pub whole_level: Level,
}

impl WordRules {
    /// For a sandbox that is parked just now: most pages stay as the prediction left them.
    ///
    /// Measured on Python processes: from 384 bytes on, 0.4 % of the memory less would be stored, and pages would come back
    /// about a tenth slower, because more of them pass through zstd.
    pub const FAST: Self = Self {
        enough_bytes_max: 768,
        dictionary_from: 1024,
        pack_level: Level::FASTEST,
        whole_level: Level::FASTEST,
    };

    /// For what stays parked, with a plan that was refined: every correction that is worth it is packed.
    ///
    /// Level 9 and the dictionary from 256 bytes on would store 0.25 % of the memory less, at a third
    /// of the speed.
    pub const SMALL: Self = Self {
        enough_bytes_max: PACK_BYTES_MIN,
        dictionary_from: 768,
        pack_level: Level::constant(3),
        whole_level: Level::constant(3),
    };
}

/// A base that a target is planned with.
#[derive(Debug, Clone, Copy)]
pub struct WordsOf<'w> {
    /// Its name.
    pub snapshot: SnapshotId,
    /// Its pages, all of them.
    pub pages: &'w [&'w Page],
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
        let form = self.proven(page, (base, base.plan.translation()), form);
        self.finished(hash, form)
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
        if let Some(words) = base.plan.encode(&mut self.words, at, page, base.pages) {
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
            let (pieces, corrections) = words.bytes.split_at(words.pieces_bytes);
            let room = limit.saturating_sub(pieces.len() + 1);
            if corrections.len() >= PACK_BYTES_MIN
                && let Some(packed) = self.codec.pack(corrections, room, base.rules.pack_level)
            {
                limit = pieces.len() + packed.len();
                self.best[..pieces.len()].copy_from_slice(pieces);
                self.best[pieces.len()..limit].copy_from_slice(packed);
                form = Some(Form::Delta { base: name, codec: Codec::PackedWords, bytes: limit });
            }
            let room = limit.saturating_sub(pieces.len() + 1);
            if words.bytes.len() > base.rules.dictionary_from
                && let Some(delta) = self.codec.encode(page, words.predicted, room, base.rules.whole_level)
            {
                limit = pieces.len() + delta.len();
                self.best[..pieces.len()].copy_from_slice(pieces);
                self.best[pieces.len()..limit].copy_from_slice(delta);
                form = Some(Form::Delta { base: name, codec: Codec::Predicted, bytes: limit });
            }
        }
        // A page by itself is rarely shorter than good corrections.
        if limit > WHOLE_TRIED_FROM
            && let Some(coded) = self.codec.encode_alone(page, limit - 1, base.rules.whole_level)
        {
            self.best[..coded.len()].copy_from_slice(coded);
            form = Some(Form::Whole { codec: Codec::Zstd, bytes: coded.len() });
        }
        form.unwrap_or_else(|| self.raw(page))
    }
}

/// Pages that take fewer bytes as words are not compressed by themselves to see whether that is shorter.
const WHOLE_TRIED_FROM: usize = 768;
