//! One side does not keep the rules.

use std::sync::Arc;

use medes_agent::bases::{
    ReadPagesError,
    frame::{self, AnswerHead, Content, Exposed, GREETING_BYTES, Request, Run, Verdict},
    tcp::ConnectionError,
};
use medes_dedup::page::PageIndex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

use crate::support::{
    IMPATIENCE, PATIENCE, any_port, assert_right, bases, page, place, read, reader, reader_of, server,
};

/// What a holder sends to the greeting and to the first request, and then it stays there and says nothing.
async fn script(welcome: Vec<u8>, answer: Vec<u8>, leave: bool) -> std::net::SocketAddr {
    let listener = TcpListener::bind(any_port()).await.expect("works");
    let address = listener.local_addr().expect("works");
    TaskTracker::new().spawn(async move {
        let mut stay = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut greeting = [0; GREETING_BYTES];
            if stream.read_exact(&mut greeting).await.is_ok() && stream.write_all(&welcome).await.is_ok() {
                let asked = stream.read_u8().await.is_ok();
                if asked && stream.write_all(&answer).await.is_ok() && !leave {
                    stay.push(stream);
                }
            }
        }
    });
    address
}

async fn against(welcome: Vec<u8>, answer: Vec<u8>, leave: bool) -> ReadPagesError {
    let address = script(welcome, answer, leave).await;
    read(&reader(address, [0; 32], IMPATIENCE), &[place(1, 3)]).await.expect_err("nothing right was sent")
}

fn good_welcome() -> Vec<u8> {
    frame::welcome(Verdict::Welcome).to_vec()
}

fn connection(error: ReadPagesError) -> Arc<ConnectionError> {
    match error {
        ReadPagesError::Connection { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_holder_that_greets_wrongly_is_left() {
    let error = against(vec![b'x'; 16], Vec::new(), false).await;
    assert!(matches!(error, ReadPagesError::Greeting { .. }), "{error:?}");
    let error = against(Vec::new(), Vec::new(), false).await;
    assert!(matches!(error, ReadPagesError::Connect { .. }), "it says nothing: {error:?}");
    let error = against(frame::welcome(Verdict::Full).to_vec(), Vec::new(), true).await;
    assert!(matches!(error, ReadPagesError::NotWelcome { verdict: Verdict::Full, .. }), "{error:?}");
}

#[tokio::test]
async fn a_holder_that_answers_wrongly_is_left() {
    let right = page(place(1, 3));
    let sum = frame::sum(&right);
    let whole = |frame: Vec<u8>| [frame, right.to_vec()].concat();
    // Another request's number, and more pages than were asked for.
    let error = against(good_welcome(), whole(AnswerHead::frame(1, &[sum])), false).await;
    assert!(matches!(*connection(error), ConnectionError::Order { asked: 0, answered: 1 }));
    let error = against(good_welcome(), whole(AnswerHead::frame(0, &[sum, sum])), false).await;
    assert!(matches!(
        *connection(error),
        ConnectionError::Content { asked: Content::Pages(1), sent: Content::Pages(2) }
    ));
    // Memory, where pages were asked for.
    let exposed = Exposed { address: 4096, bytes: 4096, key: 1 };
    let error = against(good_welcome(), AnswerHead::exposed(0, exposed), false).await;
    assert!(matches!(*connection(error), ConnectionError::Content { sent: Content::Exposed, .. }));
    // A damaged sum, a damaged page, garbage.
    let mut damaged = whole(AnswerHead::frame(0, &[sum]));
    damaged[frame::ANSWER_HEAD_BYTES] ^= 1;
    let error = against(good_welcome(), damaged, false).await;
    assert!(matches!(*connection(error), ConnectionError::Frame(_)));
    let mut damaged = whole(AnswerHead::frame(0, &[sum]));
    damaged[1000] ^= 1;
    let error = against(good_welcome(), damaged, false).await;
    assert!(matches!(error, ReadPagesError::Damaged { page } if page == place(1, 3)), "{error:?}");
    let error = against(good_welcome(), vec![0xff; 5000], false).await;
    assert!(matches!(*connection(error), ConnectionError::Frame(_)));
}

#[tokio::test]
async fn a_holder_that_breaks_off_or_says_nothing_is_left() {
    let right = page(place(1, 3));
    let answer = [AnswerHead::frame(0, &[frame::sum(&right)]), right.to_vec()].concat();
    for sent in [0, 1, frame::ANSWER_HEAD_BYTES, 40, 2000, answer.len() - 1] {
        let error = against(good_welcome(), answer[..sent].to_vec(), true).await;
        assert!(matches!(*connection(error), ConnectionError::Io(_)), "{sent} bytes");
        let error = against(good_welcome(), answer[..sent].to_vec(), false).await;
        assert!(matches!(*connection(error), ConnectionError::Silent(_)), "{sent} bytes");
    }
    // Nobody is there at all.
    let listener = TcpListener::bind(any_port()).await.expect("works");
    let address = listener.local_addr().expect("works");
    drop(listener);
    let error = read(&reader(address, [0; 32], PATIENCE), &[place(1, 3)]).await.unwrap_err();
    assert!(matches!(error, ReadPagesError::Connect { .. }), "{error:?}");
}

/// Greets as it should.
async fn let_in(server: &medes_agent::bases::serve::PageServer) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.expect("works");
    stream.write_all(&frame::greeting(&server.access().token)).await.expect("works");
    let mut welcome = [0; frame::WELCOME_BYTES];
    stream.read_exact(&mut welcome).await.expect("works");
    assert_eq!(frame::parse_welcome(&welcome), Ok(Verdict::Welcome));
    stream
}

#[tokio::test]
async fn hostile_readers_are_let_go_and_hurt_nobody() {
    let server = server(bases(&[(1, 100)])).await;
    let good = Request::new(0, place(1, 0).snapshot, (0..100).map(PageIndex)).expect("works").frame();
    let mut wrong_check = good.clone();
    wrong_check[16] ^= 1;
    let mut huge = good.clone();
    huge[12..14].copy_from_slice(&u16::MAX.to_le_bytes());
    for sent in [vec![0; 64], vec![0xff; 64], wrong_check, huge] {
        let mut stream = let_in(&server).await;
        stream.write_all(&sent).await.expect("works");
        // It is closed on us, perhaps with a reset, and nothing was said.
        let mut heard = Vec::new();
        drop(stream.read_to_end(&mut heard).await);
        assert!(heard.is_empty(), "{heard:?}");
    }
    // Not even a greeting.
    let mut stream = TcpStream::connect(server.address()).await.expect("works");
    stream.write_all(&[b'G'; GREETING_BYTES]).await.expect("works");
    let mut heard = Vec::new();
    drop(stream.read_to_end(&mut heard).await);
    assert!(heard.is_empty(), "{heard:?}");
    // One that asks much and takes nothing, and one that asks half, while another reads.
    let mut greedy = let_in(&server).await;
    for _ in 0..50 {
        greedy.write_all(&good).await.expect("works");
    }
    let mut slow = let_in(&server).await;
    slow.write_all(&good[..good.len() - 1]).await.expect("works");
    let wanted: Vec<_> = (0..100).map(|at| place(1, at)).collect();
    assert_right(&wanted, &read(&reader_of(&server), &wanted).await.expect("works"));
}

#[tokio::test]
async fn runs_that_go_over_the_end_are_refused() {
    let server = server(bases(&[(1, 100)])).await;
    let mut stream = let_in(&server).await;
    let request = Request::new(5, place(1, 0).snapshot, (90..101).map(PageIndex)).expect("works");
    assert_eq!(request.runs(), [Run { first: PageIndex(90), pages: 11 }]);
    stream.write_all(&request.frame()).await.expect("works");
    let mut head = [0; frame::ANSWER_HEAD_BYTES];
    stream.read_exact(&mut head).await.expect("works");
    assert_eq!(AnswerHead::parse(&head).expect("works").content, Err(frame::Refusal::NoPage));
}
