//! The codec: a page as the bytes that turn a base page into it, or as compressed bytes alone.
//!
//! A delta is a zstd frame made with the base page as dictionary. The 7 bytes every such frame begins with
//! are the same for every page (magic, flags, content size 4096), so they are left out and put back for
//! decoding; that also means that no stored byte can claim any other content size.
//!
//! The codec byte of a recipe says which codec made its bytes, so a better one can live beside this one.

use std::fmt;

use thiserror::Error;
use zstd::zstd_safe::{CCtx, DCtx, get_error_name};

use crate::page::{PAGE_BYTES, Page};
use crate::samples::DecodeSamplesError;
use crate::words::DecodeWordsError;

/// How zstd begins every frame of exactly one page: magic, "content size given in 2 bytes, no checksum, no
/// dictionary number", 4096 - 256.
const FRAME_START: [u8; 7] = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f];

/// Room for the worst frame of one page: a bit more than `zstd::zstd_safe::compress_bound(4096)`.
const FRAME_BYTES_MAX: usize = PAGE_BYTES + 128;

/// Most bytes a compressed page may take. What takes as much as the page itself is kept as it is.
pub const CODED_BYTES_MAX: usize = PAGE_BYTES - 1;

/// How hard to look for matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(i32);

impl Level {
    /// The lightest, which the paper's prototype used (of xdelta3).
    pub const FASTEST: Self = Self(1);

    /// A level known to be one.
    pub(crate) const fn constant(level: i32) -> Self {
        match Self::new(level) {
            Some(level) => level,
            None => Self::FASTEST,
        }
    }

    /// `None` outside 1..=19: above, zstd takes memory for windows that one page never fills.
    pub const fn new(level: i32) -> Option<Self> {
        if level < 1 || level > 19 { None } else { Some(Self(level)) }
    }
}

/// Level 3. Measured on the pages of a Python process without a base: 1 makes 2 % more bytes and is hardly faster, 5 makes
/// 4 % fewer at two thirds of the speed, 9 makes 5 % fewer at a tenth.
impl Default for Level {
    fn default() -> Self {
        Self(3)
    }
}

/// Why stored bytes did not give a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeDeltaError {
    /// Not a length this codec writes.
    #[error("{bytes} bytes cannot be one coded page")]
    Length {
        /// The length.
        bytes: usize,
    },
    /// zstd refused the bytes.
    #[error("zstd: {problem}")]
    Frame {
        /// What zstd says.
        problem: &'static str,
    },
    /// Not the corrections of a page of words.
    #[error("decode words")]
    Words(#[from] DecodeWordsError),
    /// Not a page of samples.
    #[error("decode samples")]
    Samples(#[from] DecodeSamplesError),
    /// The bytes ended before the page was full.
    #[error("coded bytes give {bytes} bytes instead of a page")]
    Short {
        /// What they give.
        bytes: usize,
    },
}

/// Turns pages into deltas and back. Holds zstd's working memory (a few hundred KiB once used), so one lives
/// per worker and serves all its pages: nothing is allocated per page.
pub struct DeltaCodec {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    frame: Box<[u8; FRAME_BYTES_MAX]>,
}

impl DeltaCodec {
    /// A codec with its working memory.
    pub fn new() -> Self {
        let mut frame = Box::new([0; FRAME_BYTES_MAX]);
        frame[..FRAME_START.len()].copy_from_slice(&FRAME_START);
        Self { compressor: CCtx::create(), decompressor: DCtx::create(), frame }
    }

    /// The bytes that turn `base` into `page`, if there are at most `max_bytes` of them.
    ///
    /// `None` also when zstd cannot use this base: a caller then stores the page another way, so nothing is lost.
    /// The bytes are valid until the next call.
    pub fn encode(&mut self, page: &Page, base: &Page, max_bytes: usize, level: Level) -> Option<&[u8]> {
        self.compress(page, base, max_bytes, level)
    }

    /// The page compressed without any base, if that takes at most `max_bytes`.
    pub fn encode_alone(&mut self, page: &Page, max_bytes: usize, level: Level) -> Option<&[u8]> {
        self.compress(page, &[], max_bytes, level)
    }

    /// Applies a delta to the base page it was made with.
    ///
    /// The bytes may come from anywhere: they are checked, and at most one page is written. With another base than the
    /// original the result is some error or some other page, so compare the page's hash. After an error `page` is all zeros.
    pub fn decode(&mut self, delta: &[u8], base: &Page, page: &mut Page) -> Result<(), DecodeDeltaError> {
        self.decompress(delta, base, page)
    }

    /// Like [`Self::decode`], on the page that lies where the result is wanted.
    pub(crate) fn decode_over(&mut self, delta: &[u8], page: &mut Page) -> Result<(), DecodeDeltaError> {
        let base = *page;
        self.decompress(delta, &base, page)
    }

    /// Undoes [`Self::encode_alone`]. Same promises as [`Self::decode`].
    pub fn decode_alone(&mut self, coded: &[u8], page: &mut Page) -> Result<(), DecodeDeltaError> {
        self.decompress(coded, &[], page)
    }

    fn compress(&mut self, page: &Page, dictionary: &[u8], max_bytes: usize, level: Level) -> Option<&[u8]> {
        let frame: &mut [u8] = &mut self.frame[..];
        let result = self.compressor.compress_using_dict(frame, page, dictionary, level.0);
        let start_is_usual = frame.starts_with(&FRAME_START);
        // Decoding relies on this start, also where it has just been overwritten by something else.
        frame[..FRAME_START.len()].copy_from_slice(&FRAME_START);
        // A base page that looks like a trained dictionary of zstd is refused here; so is being out of memory.
        let length = result.ok()?;
        let coded = frame.get(FRAME_START.len()..length)?;
        (start_is_usual && coded.len() <= max_bytes.min(CODED_BYTES_MAX)).then_some(coded)
    }

    fn decompress(
        &mut self,
        coded: &[u8],
        dictionary: &[u8],
        page: &mut Page,
    ) -> Result<(), DecodeDeltaError> {
        let result = self.try_decompress(coded, dictionary, page);
        if result.is_err() {
            page.fill(0);
        }
        result
    }

    fn try_decompress(
        &mut self,
        coded: &[u8],
        dictionary: &[u8],
        page: &mut Page,
    ) -> Result<(), DecodeDeltaError> {
        if coded.is_empty() || coded.len() > CODED_BYTES_MAX {
            return Err(DecodeDeltaError::Length { bytes: coded.len() });
        }
        let end = FRAME_START.len() + coded.len();
        self.frame[FRAME_START.len()..end].copy_from_slice(coded);
        let written = self
            .decompressor
            .decompress_using_dict(page, &self.frame[..end], dictionary)
            .map_err(|code| DecodeDeltaError::Frame { problem: get_error_name(code) })?;
        if written == PAGE_BYTES { Ok(()) } else { Err(DecodeDeltaError::Short { bytes: written }) }
    }
}

impl Default for DeltaCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DeltaCodec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DeltaCodec")
    }
}
