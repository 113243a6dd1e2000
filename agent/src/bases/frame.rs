//! The frames of the page service: how base pages are asked for and answered between nodes.
//!
//! ```text
//! reader: greeting   magic 8 · version 4 · token 32
//! holder: welcome    magic 8 · version 4 · verdict 4
//! reader: request    snapshot 8 · number 4 · runs 2 · kind 2 · check 8, then for each run: first page 4 · pages 4
//! holder: answer     number 4 · status 2 · zero 2 · pages 4 · zero 4 · check 8, then for each page: sum 8, then the pages
//!
//! reader: request    the same head of another kind, as if it had one run, and in its place: RDMA connection 8
//! holder: answer     the same head without pages and of another status, then: address 8 · bytes 8 · key 4 · zero 4
//! ```
//!
//! Integers are little-endian. A run is neighbouring pages. `check` covers its frame but for the pages, `sum` one page:
//! both are the first eight bytes of a blake3 hash, against errors of wires and memory, not against forgers (pages have
//! a keyed hash where they are used). Answers come in the order of requests. Every count is checked before memory is
//! taken for it; a peer that breaks a rule is not talked to any more.
//!
//! The second kind has a snapshot exposed to the reader's RDMA connection, which can read nothing before: so the page
//! service stays the only door, with its token and, where there are certificates, its proof of who speaks.

use medes_dedup::page::{PAGE_BYTES, Page, PageIndex, SnapshotId};

const MAGIC: [u8; 8] = *b"medespag";
/// Changes when a peer may be sent a frame that it does not know. Only a holder that says it listens for RDMA is asked to
/// expose anything, so those that cannot never see such a frame.
const VERSION: u32 = 1;
/// Kinds of requests.
const READ: u16 = 1;
const EXPOSE: u16 = 2;
/// The status of an answer that says where memory is exposed.
const EXPOSED: u16 = 3;

/// Pages one request may ask for: an answer is a mebibyte, and waits for no larger one before it.
pub const REQUEST_PAGES_MAX: usize = 256;
/// Runs one request may have.
pub const REQUEST_RUNS_MAX: usize = 256;
/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 44;
/// Bytes of a welcome.
pub const WELCOME_BYTES: usize = 16;
/// Bytes of a request without its runs.
pub const REQUEST_HEAD_BYTES: usize = 24;
/// Bytes of a run.
pub const RUN_BYTES: usize = 8;
/// Bytes of an answer without sums and pages.
pub const ANSWER_HEAD_BYTES: usize = 24;
/// Bytes of a sum.
pub const SUM_BYTES: usize = 8;
/// Bytes behind the head of an answer that says where memory is exposed.
pub const EXPOSED_BYTES: usize = 24;

/// Proves that a reader was told by this holder's Node service how to come here.
pub type Token = [u8; 32];

/// A frame that no honest peer of this version sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another program, or bytes out of step.
    #[error("not the page service")]
    Magic,
    /// Another version of this one.
    #[error("version {0} of the page service, not {VERSION}")]
    Version(u32),
    /// Something was damaged on the way.
    #[error("a frame's check does not fit")]
    Check,
    /// A value that means nothing.
    #[error("{0} makes no sense")]
    Value(&'static str),
    /// More than is allowed.
    #[error("too many {0}")]
    TooMany(&'static str),
}

/// What a holder says to a greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Come in.
    Welcome,
    /// The token is not of this life of the holder.
    Stranger,
    /// Enough readers are here.
    Full,
}

/// Why an answer has no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The snapshot is not here.
    #[error("it does not hold the snapshot")]
    NoSnapshot,
    /// The snapshot has fewer pages.
    #[error("the snapshot has no such page")]
    NoPage,
    /// It has no such RDMA connection, or no longer.
    #[error("it has no such RDMA connection")]
    NoConnection,
    /// The snapshot cannot be exposed.
    #[error("it cannot expose the snapshot by RDMA")]
    NotExposed,
}

/// Where a snapshot is open to one RDMA connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposed {
    /// Where it begins, in the holder's memory.
    pub address: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// The key that opens it, to this connection only.
    pub key: u32,
}

/// Neighbouring pages of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first of them.
    pub first: PageIndex,
    /// How many, at least one.
    pub pages: u32,
}

/// What is asked for of one snapshot: pages, all at once, or to have it exposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Comes back in the answer.
    pub number: u32,
    /// The snapshot.
    pub snapshot: SnapshotId,
    subject: Subject,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    /// Pages.
    Pages(Vec<Run>),
    /// All of it, for an RDMA connection of this number.
    Exposure(u64),
}

impl Request {
    /// A request for `pages`, which are sorted and without repeats; `None` if it would be too large, or for nothing.
    pub fn new(
        number: u32,
        snapshot: SnapshotId,
        pages: impl IntoIterator<Item = PageIndex>,
    ) -> Option<Self> {
        let mut runs: Vec<Run> = Vec::new();
        let mut count = 0;
        for page in pages {
            count += 1;
            match runs.last_mut() {
                Some(last) if last.first.0.checked_add(last.pages) == Some(page.0) => last.pages += 1,
                _ => runs.push(Run { first: page, pages: 1 }),
            }
        }
        let subject = Subject::Pages(runs);
        ((1..=REQUEST_PAGES_MAX).contains(&count)).then_some(Self { number, snapshot, subject })
    }

    /// A request that the snapshot be exposed to the RDMA connection `session`.
    pub const fn to_expose(number: u32, snapshot: SnapshotId, session: u64) -> Self {
        Self { number, snapshot, subject: Subject::Exposure(session) }
    }

    /// The pages it asks for, in the order of the answer.
    pub fn runs(&self) -> &[Run] {
        match &self.subject {
            Subject::Pages(runs) => runs,
            Subject::Exposure(_) => &[],
        }
    }

    /// The RDMA connection that the snapshot is to be exposed to, if that is what it asks for.
    pub const fn session(&self) -> Option<u64> {
        match self.subject {
            Subject::Pages(_) => None,
            Subject::Exposure(session) => Some(session),
        }
    }

    /// How many pages it asks for.
    pub fn pages(&self) -> usize {
        self.runs().iter().map(|run| run.pages as usize).sum()
    }

    /// Its frame.
    pub fn frame(&self) -> Vec<u8> {
        let (kind, runs) = match &self.subject {
            Subject::Pages(runs) => (READ, runs.len()),
            Subject::Exposure(_) => (EXPOSE, 1),
        };
        let mut frame = Vec::with_capacity(REQUEST_HEAD_BYTES + runs * RUN_BYTES);
        frame.extend(self.snapshot.get().to_le_bytes());
        frame.extend(self.number.to_le_bytes());
        frame.extend(u16::try_from(runs).unwrap_or(u16::MAX).to_le_bytes());
        frame.extend(kind.to_le_bytes());
        frame.extend([0; 8]);
        match &self.subject {
            Subject::Pages(runs) => {
                for run in runs {
                    frame.extend(run.first.0.to_le_bytes());
                    frame.extend(run.pages.to_le_bytes());
                }
            }
            Subject::Exposure(session) => frame.extend(session.to_le_bytes()),
        }
        set_check(&mut frame, REQUEST_HEAD_BYTES);
        frame
    }

    /// How many bytes of runs follow a head.
    pub fn body_bytes(head: &[u8; REQUEST_HEAD_BYTES]) -> Result<usize, FrameError> {
        let runs = usize::from(u16_at(head, 12));
        match runs {
            0 => Err(FrameError::Value("a request for nothing")),
            1..=REQUEST_RUNS_MAX => Ok(runs * RUN_BYTES),
            _ => Err(FrameError::TooMany("runs")),
        }
    }

    /// Reads a whole frame.
    pub fn parse(frame: &[u8]) -> Result<Self, FrameError> {
        let (head, body) =
            frame.split_first_chunk::<REQUEST_HEAD_BYTES>().ok_or(FrameError::Value("a short request"))?;
        if body.len() != Self::body_bytes(head)? {
            return Err(FrameError::Value("the length of a request"));
        }
        verify(frame, REQUEST_HEAD_BYTES)?;
        let (snapshot, number) = (SnapshotId::new(u64_at(head, 0)), u32_at(head, 8));
        let snapshot = snapshot.ok_or(FrameError::Value("snapshot 0"))?;
        match (u16_at(head, 14), body.len()) {
            (READ, _) => {}
            (EXPOSE, RUN_BYTES) => return Ok(Self::to_expose(number, snapshot, u64_at(body, 0))),
            _ => return Err(FrameError::Value("the kind of a request")),
        }
        let mut pages = 0_usize;
        let mut runs = Vec::with_capacity(body.len() / RUN_BYTES);
        for run in body.chunks_exact(RUN_BYTES) {
            let (first, count) = (u32_at(run, 0), u32_at(run, 4));
            let last = count.checked_sub(1).and_then(|more| first.checked_add(more));
            if last.is_none() {
                return Err(FrameError::Value("a run"));
            }
            pages = pages.saturating_add(count as usize);
            runs.push(Run { first: PageIndex(first), pages: count });
        }
        if pages > REQUEST_PAGES_MAX {
            return Err(FrameError::TooMany("pages"));
        }
        Ok(Self { number, snapshot, subject: Subject::Pages(runs) })
    }
}

/// What follows the head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// So many sums, and then as many pages.
    Pages(usize),
    /// An [`Exposed`].
    Exposed,
}

impl Content {
    /// How many bytes that are.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Pages(pages) => pages * (SUM_BYTES + PAGE_BYTES),
            Self::Exposed => EXPOSED_BYTES,
        }
    }

    /// How many of them the check of the head covers.
    pub const fn checked_bytes(self) -> usize {
        match self {
            Self::Pages(pages) => pages * SUM_BYTES,
            Self::Exposed => EXPOSED_BYTES,
        }
    }
}

/// What comes before the pages of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerHead {
    /// Of the request.
    pub number: u32,
    /// What follows, or why nothing does.
    pub content: Result<Content, Refusal>,
}

impl AnswerHead {
    /// Head and sums of an answer with so many pages.
    pub fn frame(number: u32, sums: &[u64]) -> Vec<u8> {
        let pages = u32::try_from(sums.len()).unwrap_or(u32::MAX);
        let mut frame = Self::head(number, 0, pages);
        frame.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        set_check(&mut frame, ANSWER_HEAD_BYTES);
        frame
    }

    /// An answer without pages.
    pub fn refusal(number: u32, refusal: Refusal) -> Vec<u8> {
        let status = match refusal {
            Refusal::NoSnapshot => 1,
            Refusal::NoPage => 2,
            Refusal::NoConnection => 4,
            Refusal::NotExposed => 5,
        };
        let mut frame = Self::head(number, status, 0);
        set_check(&mut frame, ANSWER_HEAD_BYTES);
        frame
    }

    /// An answer that says where a snapshot is exposed.
    pub fn exposed(number: u32, exposed: Exposed) -> Vec<u8> {
        let mut frame = Self::head(number, EXPOSED, 0);
        frame.extend(exposed.address.to_le_bytes());
        frame.extend(exposed.bytes.to_le_bytes());
        frame.extend(exposed.key.to_le_bytes());
        frame.extend([0; 4]);
        set_check(&mut frame, ANSWER_HEAD_BYTES);
        frame
    }

    fn head(number: u32, status: u16, pages: u32) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ANSWER_HEAD_BYTES + pages as usize * SUM_BYTES);
        frame.extend(number.to_le_bytes());
        frame.extend(status.to_le_bytes());
        frame.extend([0; 2]);
        frame.extend(pages.to_le_bytes());
        frame.extend([0; 12]);
        frame
    }

    /// Reads a head. Its check covers some of what follows, so it is not looked at yet: see [`check_answer`].
    pub fn parse(head: &[u8; ANSWER_HEAD_BYTES]) -> Result<Self, FrameError> {
        if u16_at(head, 6) != 0 || u32_at(head, 12) != 0 {
            return Err(FrameError::Value("the head of an answer"));
        }
        let content = match (u16_at(head, 4), u32_at(head, 8) as usize) {
            (0, pages @ 1..=REQUEST_PAGES_MAX) => Ok(Content::Pages(pages)),
            (0, 0) => return Err(FrameError::Value("an answer with nothing")),
            (0, _) => return Err(FrameError::TooMany("pages")),
            (1, 0) => Err(Refusal::NoSnapshot),
            (2, 0) => Err(Refusal::NoPage),
            (EXPOSED, 0) => Ok(Content::Exposed),
            (4, 0) => Err(Refusal::NoConnection),
            (5, 0) => Err(Refusal::NotExposed),
            _ => return Err(FrameError::Value("the status of an answer")),
        };
        Ok(Self { number: u32_at(head, 0), content })
    }
}

/// Whether an answer's head and what its check covers behind it ([`Content::checked_bytes`]) are as they were sent.
pub fn check_answer(head: &[u8; ANSWER_HEAD_BYTES], checked: &[u8]) -> Result<(), FrameError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..ANSWER_HEAD_BYTES - 8]).update(checked);
    let fits = first_eight(&hasher.finalize()) == u64_at(head, ANSWER_HEAD_BYTES - 8);
    fits.then_some(()).ok_or(FrameError::Check)
}

/// Reads what follows the head of an answer that says where a snapshot is exposed.
pub fn parse_exposed(body: &[u8; EXPOSED_BYTES]) -> Result<Exposed, FrameError> {
    let (address, bytes, key) = (u64_at(body, 0), u64_at(body, 8), u32_at(body, 16));
    match address.checked_add(bytes) {
        Some(_) if u32_at(body, 20) == 0 => Ok(Exposed { address, bytes, key }),
        _ => Err(FrameError::Value("where a snapshot is exposed")),
    }
}

/// The sum of a page.
pub fn sum(page: &Page) -> u64 {
    first_eight(&blake3::hash(page))
}

/// Splits the bytes behind a head into sums and pages.
pub fn split_body(body: &[u8], pages: usize) -> Option<(&[u8], &[Page])> {
    let (sums, pages) = body.split_at_checked(pages.checked_mul(SUM_BYTES)?)?;
    let (pages, rest) = pages.as_chunks::<PAGE_BYTES>();
    (rest.is_empty() && pages.len() * SUM_BYTES == sums.len()).then_some((sums, pages))
}

/// A reader's first words.
pub fn greeting(token: &Token) -> [u8; GREETING_BYTES] {
    let mut frame = [0; GREETING_BYTES];
    frame[..8].copy_from_slice(&MAGIC);
    frame[8..12].copy_from_slice(&VERSION.to_le_bytes());
    frame[12..].copy_from_slice(token);
    frame
}

/// The token of a greeting.
pub fn parse_greeting(frame: &[u8; GREETING_BYTES]) -> Result<Token, FrameError> {
    begins_well(frame)?;
    let mut token = Token::default();
    token.copy_from_slice(&frame[12..]);
    Ok(token)
}

/// A holder's first words.
pub fn welcome(verdict: Verdict) -> [u8; WELCOME_BYTES] {
    let verdict: u32 = match verdict {
        Verdict::Welcome => 0,
        Verdict::Stranger => 1,
        Verdict::Full => 2,
    };
    let mut frame = [0; WELCOME_BYTES];
    frame[..8].copy_from_slice(&MAGIC);
    frame[8..12].copy_from_slice(&VERSION.to_le_bytes());
    frame[12..].copy_from_slice(&verdict.to_le_bytes());
    frame
}

/// What the holder said.
pub fn parse_welcome(frame: &[u8; WELCOME_BYTES]) -> Result<Verdict, FrameError> {
    begins_well(frame)?;
    match u32_at(frame, 12) {
        0 => Ok(Verdict::Welcome),
        1 => Ok(Verdict::Stranger),
        2 => Ok(Verdict::Full),
        _ => Err(FrameError::Value("the verdict of a welcome")),
    }
}

fn begins_well(frame: &[u8]) -> Result<(), FrameError> {
    if !frame.starts_with(&MAGIC) {
        return Err(FrameError::Magic);
    }
    match u32_at(frame, 8) {
        VERSION => Ok(()),
        other => Err(FrameError::Version(other)),
    }
}

/// The check of a frame whose head ends with it.
fn check(frame: &[u8], head_bytes: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&frame[..head_bytes - 8]).update(&frame[head_bytes..]);
    first_eight(&hasher.finalize())
}

fn set_check(frame: &mut [u8], head_bytes: usize) {
    let value = check(frame, head_bytes);
    frame[head_bytes - 8..head_bytes].copy_from_slice(&value.to_le_bytes());
}

fn verify(frame: &[u8], head_bytes: usize) -> Result<(), FrameError> {
    let fits = check(frame, head_bytes) == u64_at(frame, head_bytes - 8);
    fits.then_some(()).ok_or(FrameError::Check)
}

fn first_eight(hash: &blake3::Hash) -> u64 {
    u64_at(hash.as_bytes(), 0)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        let pages = prop::collection::btree_set(0..5_000_u32, 1..REQUEST_PAGES_MAX);
        let subject = prop_oneof![4 => pages.prop_map(Ok), 1 => any::<u64>().prop_map(Err)];
        (any::<u32>(), 1..=u64::MAX, subject).prop_map(|(number, snapshot, subject)| {
            let snapshot = SnapshotId::new(snapshot).unwrap();
            match subject {
                Ok(pages) => Request::new(number, snapshot, pages.into_iter().map(PageIndex)).unwrap(),
                Err(session) => Request::to_expose(number, snapshot, session),
            }
        })
    }

    #[test]
    fn neighbours_become_one_run() {
        let snapshot = SnapshotId::new(9).unwrap();
        let request = Request::new(1, snapshot, [3, 4, 5, 9, u32::MAX].map(PageIndex)).unwrap();
        let run = |first, pages| Run { first: PageIndex(first), pages };
        assert_eq!(request.runs(), [run(3, 3), run(9, 1), run(u32::MAX, 1)]);
        assert!(Request::new(1, snapshot, []).is_none(), "a request for nothing");
        let many = 0..=u32::try_from(REQUEST_PAGES_MAX).unwrap();
        assert!(Request::new(1, snapshot, many.map(PageIndex)).is_none(), "too large");
    }

    #[test]
    fn a_greeting_must_be_of_this_service_and_version() {
        let token = [7; 32];
        let good = greeting(&token);
        assert_eq!(parse_greeting(&good), Ok(token));
        let mut bad = good;
        bad[0] ^= 1;
        assert_eq!(parse_greeting(&bad), Err(FrameError::Magic));
        bad = good;
        bad[8] += 1;
        assert_eq!(parse_greeting(&bad), Err(FrameError::Version(VERSION + 1)));
        for verdict in [Verdict::Welcome, Verdict::Stranger, Verdict::Full] {
            assert_eq!(parse_welcome(&welcome(verdict)), Ok(verdict));
        }
    }

    proptest! {
        #[test]
        fn a_request_comes_back(request in requests()) {
            let frame = request.frame();
            let head = frame.first_chunk().unwrap();
            prop_assert_eq!(Request::body_bytes(head), Ok(frame.len() - REQUEST_HEAD_BYTES));
            prop_assert_eq!(Request::parse(&frame), Ok(request));
        }

        #[test]
        fn a_flipped_bit_or_a_cut_in_a_request_is_seen(request in requests(), at: Index, bit in 0..8_u32) {
            let mut frame = request.frame();
            let at = at.index(frame.len());
            prop_assert!(Request::parse(&frame[..at]).is_err());
            frame[at] ^= 1_u8 << bit;
            prop_assert!(Request::parse(&frame).is_err());
        }

        #[test]
        fn what_a_hostile_peer_sends_is_within_bounds_or_refused(
            mut bytes in vec(any::<u8>(), 0..600), runs in 0..300_u16, kind in READ..=EXPOSE,
            honest_check: bool,
        ) {
            // Bytes that are nearly a request, with a check that fits: whoever is hostile can count it too.
            if let Some(place) = bytes.get_mut(12..14) {
                place.copy_from_slice(&runs.to_le_bytes());
            }
            bytes.truncate(REQUEST_HEAD_BYTES + usize::from(runs) * RUN_BYTES);
            if honest_check && bytes.len() >= REQUEST_HEAD_BYTES {
                bytes[14..16].copy_from_slice(&kind.to_le_bytes());
                set_check(&mut bytes, REQUEST_HEAD_BYTES);
            }
            if let Ok(request) = Request::parse(&bytes)
                && request.session().is_none()
            {
                prop_assert!((1..=REQUEST_PAGES_MAX).contains(&request.pages()));
                prop_assert!(request.runs().len() <= REQUEST_RUNS_MAX);
                prop_assert!(request.runs().iter().all(|run| run.first.0.checked_add(run.pages - 1).is_some()));
            }
        }

        #[test]
        fn an_answer_comes_back_and_a_flipped_bit_is_seen(
            number: u32, sums in vec(any::<u64>(), 1..REQUEST_PAGES_MAX), at: Index, bit in 0..8_u32,
        ) {
            let mut frame = AnswerHead::frame(number, &sums);
            let seen = |frame: &[u8]| {
                let (head, rest) = frame.split_first_chunk().unwrap();
                AnswerHead::parse(head).and_then(|answer| check_answer(head, rest).map(|()| answer))
            };
            prop_assert_eq!(seen(&frame), Ok(AnswerHead { number, content: Ok(Content::Pages(sums.len())) }));
            let at = at.index(frame.len());
            frame[at] ^= 1_u8 << bit;
            prop_assert!(seen(&frame).is_err());
        }

        #[test]
        fn any_head_of_an_answer_is_within_bounds_or_refused(head: [u8; ANSWER_HEAD_BYTES]) {
            if let Ok(AnswerHead { content: Ok(Content::Pages(pages)), .. }) = AnswerHead::parse(&head) {
                prop_assert!((1..=REQUEST_PAGES_MAX).contains(&pages));
            }
        }

        #[test]
        fn a_body_is_split_where_it_was_joined(pages in 0..4_usize, cut in 0..5000_usize) {
            let body = vec![1; pages * (SUM_BYTES + PAGE_BYTES)];
            let (sums, split) = split_body(&body, pages).unwrap();
            prop_assert_eq!((sums.len(), split.len()), (pages * SUM_BYTES, pages));
            let cut = body.len().saturating_sub(cut + 1);
            prop_assert!(pages == 0 || split_body(&body[..cut], pages).is_none());
        }
    }

    #[test]
    fn a_refusal_says_why() {
        for refusal in [Refusal::NoSnapshot, Refusal::NoPage, Refusal::NoConnection, Refusal::NotExposed] {
            let frame = AnswerHead::refusal(7, refusal);
            let (head, rest) = frame.split_first_chunk().unwrap();
            assert_eq!(AnswerHead::parse(head), Ok(AnswerHead { number: 7, content: Err(refusal) }));
            assert_eq!(check_answer(head, rest), Ok(()));
        }
    }

    #[test]
    fn where_a_snapshot_is_exposed_comes_back() {
        let exposed = Exposed { address: 1 << 47, bytes: 1 << 30, key: 77 };
        let frame = AnswerHead::exposed(3, exposed);
        let (head, body) = frame.split_first_chunk().unwrap();
        assert_eq!(AnswerHead::parse(head), Ok(AnswerHead { number: 3, content: Ok(Content::Exposed) }));
        assert_eq!(body.len(), Content::Exposed.bytes());
        assert_eq!(check_answer(head, body), Ok(()));
        let body: &[u8; EXPOSED_BYTES] = body.try_into().unwrap();
        assert_eq!(parse_exposed(body), Ok(exposed));
        let mut beyond = *body;
        beyond[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(parse_exposed(&beyond).is_err(), "it does not end");
    }

    #[test]
    fn different_pages_have_different_sums() {
        let sums: BTreeSet<u64> = (0..=255).map(|byte| sum(&[byte; PAGE_BYTES])).collect();
        assert_eq!(sums.len(), 256);
    }
}
