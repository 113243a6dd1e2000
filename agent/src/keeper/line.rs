//! What goes to a keeper and from it: a word, and descriptors with it. One word is one message.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::sandbox::sys;

/// What to do, and a number.
const WORD_BYTES: usize = 9;

/// Most descriptors of one word: less than the kernel sends at once (SCM_MAX_FD).
pub(crate) const FILES_MAX: usize = 240;

/// What is left to the next agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The node itself: where its control groups and its mounts are. Comes with parked sandboxes only.
    Node,
    /// A base snapshot, by its number.
    Base(u64),
    /// A parked sandbox, by its number.
    Parked(u64),
    /// A sandbox in dedup, by its number.
    Sandbox(u64),
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Hold the userfaultfd of this number; as an answer: it is held.
    Hold(u64),
    /// Let go of it; as an answer: it is not held.
    LetGo(u64),
    /// The next agent is to have this.
    Leave(Key),
    /// It is not.
    TakeBack(Key),
    /// That was all: so many things. As an answer: they have arrived.
    End(u64),
}

/// A word and the descriptors that came with it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) word: Word,
    pub(super) files: Vec<OwnedFd>,
}

impl Word {
    fn write(self) -> [u8; WORD_BYTES] {
        let (what, number) = match self {
            Self::Hold(number) => (b'+', number),
            Self::LetGo(number) => (b'-', number),
            Self::Leave(Key::Node) => (b'n', 0),
            Self::Leave(Key::Base(number)) => (b'b', number),
            Self::Leave(Key::Parked(number)) => (b'p', number),
            Self::Leave(Key::Sandbox(number)) => (b's', number),
            Self::TakeBack(Key::Node) => (b'N', 0),
            Self::TakeBack(Key::Base(number)) => (b'B', number),
            Self::TakeBack(Key::Parked(number)) => (b'P', number),
            Self::TakeBack(Key::Sandbox(number)) => (b'S', number),
            Self::End(number) => (b'.', number),
        };
        let mut word = [what; WORD_BYTES];
        word[1..].copy_from_slice(&number.to_ne_bytes());
        word
    }

    fn read([what, number @ ..]: [u8; WORD_BYTES]) -> Option<Self> {
        let number = u64::from_ne_bytes(number);
        Some(match what {
            b'+' => Self::Hold(number),
            b'-' => Self::LetGo(number),
            b'n' => Self::Leave(Key::Node),
            b'b' => Self::Leave(Key::Base(number)),
            b'p' => Self::Leave(Key::Parked(number)),
            b's' => Self::Leave(Key::Sandbox(number)),
            b'N' => Self::TakeBack(Key::Node),
            b'B' => Self::TakeBack(Key::Base(number)),
            b'P' => Self::TakeBack(Key::Parked(number)),
            b'S' => Self::TakeBack(Key::Sandbox(number)),
            b'.' => Self::End(number),
            _ => return None,
        })
    }
}

/// Sends a word; whoever it is for has copies of the descriptors then.
pub(super) fn send(line: RawFd, word: Word, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_bytes(line, &word.write(), files)
}

/// Sends any bytes as one message.
pub(super) fn send_bytes(line: RawFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let rights = if files.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(line, &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The next word; `None` when the other end is closed.
pub(super) fn receive(line: RawFd) -> io::Result<Option<Heard>> {
    let mut bytes = [0; WORD_BYTES];
    let (length, files) = sys::receive(line, &mut bytes, FILES_MAX)?;
    match length {
        0 => Ok(None),
        WORD_BYTES => match Word::read(bytes) {
            Some(word) => Ok(Some(Heard { word, files })),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn words_and_files_come_as_they_were_sent() {
        let (ours, theirs) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"left").unwrap();
        let keys = [Key::Node, Key::Base(u64::MAX), Key::Parked(4), Key::Sandbox(3)];
        let words = [Word::Hold(1), Word::LetGo(2), Word::End(0)];
        for word in words.into_iter().chain(keys.map(Word::TakeBack)) {
            send(ours.as_raw_fd(), word, &[]).unwrap();
            let heard = receive(theirs.as_raw_fd()).unwrap().unwrap();
            assert_eq!((heard.word, heard.files.len()), (word, 0));
        }
        for key in keys {
            send(ours.as_raw_fd(), Word::Leave(key), &[file.as_fd(); FILES_MAX]).unwrap();
            let heard = receive(theirs.as_raw_fd()).unwrap().unwrap();
            assert_eq!((heard.word, heard.files.len()), (Word::Leave(key), FILES_MAX));
            let mut copy = std::fs::File::from(heard.files.into_iter().next_back().unwrap());
            let mut bytes = String::new();
            copy.rewind().unwrap();
            copy.read_to_string(&mut bytes).unwrap();
            assert_eq!(bytes, "left");
        }
        drop(ours);
        assert!(receive(theirs.as_raw_fd()).unwrap().is_none());
    }

    #[test]
    fn what_is_no_word_is_refused() {
        for bytes in [&b"+"[..], b"?12345678", b"+123456789"] {
            let (ours, theirs) = pair();
            send_bytes(ours.as_raw_fd(), bytes, &[]).unwrap();
            let heard = receive(theirs.as_raw_fd());
            // A longer one is cut to the length of a word; whether that is one is all that can be seen.
            assert!(heard.is_err() || bytes.len() > WORD_BYTES, "{bytes:?}");
        }
    }
}
