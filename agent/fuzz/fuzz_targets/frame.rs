//! `cargo +nightly fuzz run frame`: any bytes as every frame of the page service, by whoever reads it.
//!
//! A check that fits is put into each: whoever is hostile can count it too, and a fuzzer cannot guess it.
#![no_main]

#[path = "../../src/bases/frame.rs"]
#[allow(dead_code, reason = "the whole module, of which only what reads frames is called")]
mod frame;

use frame::{
    ANSWER_HEAD_BYTES, AnswerHead, Content, EXPOSED_BYTES, GREETING_BYTES, REQUEST_HEAD_BYTES,
    REQUEST_PAGES_MAX, REQUEST_RUNS_MAX, Request, WELCOME_BYTES,
};
use libfuzzer_sys::fuzz_target;

/// Puts the check into a head that ends with it; it covers so much of what follows.
fn check(frame: &mut [u8], head_bytes: usize, covered_bytes: usize) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&frame[..head_bytes - 8]);
    hasher.update(&frame[head_bytes..head_bytes + covered_bytes]);
    frame[head_bytes - 8..head_bytes].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
}

/// What a holder does with it.
fn request(mut bytes: Vec<u8>) {
    let Some(head) = bytes.first_chunk::<REQUEST_HEAD_BYTES>() else { return };
    let Ok(body_bytes) = Request::body_bytes(head) else { return };
    assert!(body_bytes <= REQUEST_RUNS_MAX * 8);
    bytes.resize(REQUEST_HEAD_BYTES + body_bytes, 0);
    check(&mut bytes, REQUEST_HEAD_BYTES, body_bytes);
    let Ok(request) = Request::parse(&bytes) else { return };
    assert_eq!(request.frame(), bytes, "one request, one frame");
    assert!(request.session().is_some() || (1..=REQUEST_PAGES_MAX).contains(&request.pages()));
    assert!(request.runs().iter().all(|run| run.first.0.checked_add(run.pages - 1).is_some()));
}

/// What a reader does with it.
fn answer(mut bytes: Vec<u8>) {
    let Some(head) = bytes.first_chunk::<ANSWER_HEAD_BYTES>() else { return };
    let Ok(AnswerHead { content, .. }) = AnswerHead::parse(head) else { return };
    let (all, covered) = content.map_or((0, 0), |content| (content.bytes(), content.checked_bytes()));
    assert!(all <= REQUEST_PAGES_MAX * (8 + 4096) && covered <= all);
    bytes.resize(ANSWER_HEAD_BYTES + all, 0);
    check(&mut bytes, ANSWER_HEAD_BYTES, covered);
    let (head, body) = bytes.split_first_chunk::<ANSWER_HEAD_BYTES>().expect("long enough");
    assert_eq!(frame::check_answer(head, &body[..covered]), Ok(()));
    match content {
        Ok(Content::Pages(pages)) => {
            let (sums, found) = frame::split_body(body, pages).expect("as many as it says");
            assert_eq!((sums.len(), found.len()), (pages * 8, pages));
        }
        Ok(Content::Exposed) => {
            let body: &[u8; EXPOSED_BYTES] = body.try_into().expect("as long as it says");
            if let Ok(exposed) = frame::parse_exposed(body) {
                assert!(exposed.address.checked_add(exposed.bytes).is_some());
            }
        }
        Err(_refusal) => {}
    }
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (kind, bytes) = input;
    match kind % 4 {
        0 => request(bytes),
        1 => answer(bytes),
        2 => drop(bytes.first_chunk::<GREETING_BYTES>().map(frame::parse_greeting)),
        _ => drop(bytes.first_chunk::<WELCOME_BYTES>().map(frame::parse_welcome)),
    }
});
