//! The receiving side against a sender that plays CRIU, as it should and as it should not.

use std::io::Write as _;
use std::os::unix::net::UnixStream as Line;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tempfile::TempDir;

use super::*;

/// CRIU, as far as the one who takes its images sees it.
struct Sender(Line);

impl Sender {
    /// Asks with these bytes, as if they were a message. Nobody may listen any more.
    fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.0.write_all(&u32::try_from(request.len()).unwrap().to_ne_bytes())?;
        self.0.write_all(request)
    }

    /// Where to write this file.
    fn open(&mut self, name: &str) -> io::PipeWriter {
        self.ask(&StreamRequest { filename: name.into() }.encode_to_vec()).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let rights = [reader.as_raw_fd()];
        let parts = [io::IoSlice::new(&[0])];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(self.0.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        writer
    }
}

/// What becomes of what is sent.
fn captured(send: impl FnOnce(Sender) + Send + 'static) -> Result<InMemory, CaptureError> {
    let folder = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (sender, captured) = runtime.block_on(async {
        let capture = Capture::listen(folder.path()).unwrap();
        let line = Line::connect(folder.path().join(SOCKET)).unwrap();
        let sender = std::thread::spawn(move || send(Sender(line)));
        let taken = take(capture.accept().await.unwrap());
        let captured = tokio::time::timeout(Duration::from_secs(30), taken).await;
        (sender, captured.expect("it ends"))
    });
    // What was given up is dropped with it.
    drop(runtime);
    sender.join().unwrap();
    captured
}

#[test]
fn files_that_come_at_once_are_told_apart() {
    let pages: Vec<u8> = (0..3 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    let expected = pages.clone();
    let taken = captured(move |mut sender| {
        let mut map = sender.open("pagemap-1.img");
        let mut file = sender.open("pages-1.img");
        map.write_all(b"begin").unwrap();
        let (first, second) = pages.split_at(4096);
        file.write_all(first).unwrap();
        drop(sender.open("pages-2.img"));
        map.write_all(b" and end").unwrap();
        drop(map);
        file.write_all(second).unwrap();
        drop(sender.open("empty.img"));
    });
    let taken = taken.unwrap();
    let others: Vec<_> = taken.others().collect();
    assert_eq!(others, [("empty.img", &b""[..]), ("pagemap-1.img", b"begin and end")]);
    assert!(taken.pages("pages-1.img").unwrap().as_ref() == expected);
    assert!(taken.pages("pages-2.img").unwrap().is_empty() && taken.pages("pages-3.img").is_none());
}

#[test]
fn what_is_no_request_is_refused() {
    let request = |name: &str| StreamRequest { filename: name.into() }.encode_to_vec();
    let requests = [
        request("../core-1.img"),
        request("core-1.img/x"),
        request(""),
        request(&format!("{}.img", "x".repeat(400))),
        vec![],
        vec![0xff; 8],
    ];
    for wrong in requests {
        let shown = format!("{wrong:?}");
        let taken = captured(move |mut sender| drop(sender.ask(&wrong)));
        assert!(matches!(taken, Err(CaptureError::Request { .. })), "{shown}: {taken:?}");
    }
}

#[test]
fn a_request_that_ends_in_the_middle_is_no_end() {
    let whole = StreamRequest { filename: "core-1.img".into() }.encode_to_vec();
    let framed = [&u32::try_from(whole.len()).unwrap().to_ne_bytes()[..], &whole].concat();
    for length in 1..=framed.len() {
        let part = framed[..length].to_vec();
        let taken = captured(move |mut sender| sender.0.write_all(&part).unwrap());
        assert!(matches!(taken, Err(CaptureError::Request { .. })), "{length} bytes: {taken:?}");
    }
}

#[test]
fn a_name_comes_once_and_a_pipe_with_it() {
    let twice = captured(|mut sender| {
        drop(sender.open("core-1.img"));
        drop(sender.open("core-1.img"));
    });
    assert!(matches!(twice, Err(CaptureError::Request { .. })), "{twice:?}");
    let bare = captured(|mut sender| {
        sender.ask(&StreamRequest { filename: "core-1.img".into() }.encode_to_vec()).unwrap();
        sender.0.write_all(&[0]).unwrap();
    });
    assert!(matches!(bare, Err(CaptureError::Request { what: "it comes without a pipe" })), "{bare:?}");
}

#[test]
fn who_gives_up_breaks_the_pipes() {
    let taken = captured(|mut sender| {
        let mut file = sender.open("core-1.img");
        sender.ask(b"nonsense").unwrap();
        // A full pipe waits for its reader, or for its end.
        let broken = (0..100_000).find_map(|_| file.write_all(&[0; 4096]).err());
        assert_eq!(broken.expect("nobody reads any more").kind(), io::ErrorKind::BrokenPipe);
    });
    assert!(matches!(taken, Err(CaptureError::Request { .. })), "{taken:?}");
}
