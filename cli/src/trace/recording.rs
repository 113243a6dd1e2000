//! A recorded trace: JSON lines. The first names format and version; then one event, or one count of lost events,
//! a line. `medes trace --json` prints the same, so its output is a recording too.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use medes_proto::{WireError, trace::Event};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

const FORMAT: &str = "medes-trace";
const VERSION: u32 = 1;
/// No event is longer: the texts, lists and numbers in one are bounded.
const LINE_BYTES_MAX: usize = 256 << 10;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// Who wrote it; for people.
    medes: String,
}

/// Any other line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Event(Box<Event>),
    /// This many events are missing here.
    Dropped(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DroppedLine {
    dropped: u64,
}

/// A recording that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error("create {}", .path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a recorded trace", .path.display())]
    Foreign { path: PathBuf },
    #[error("{} has version {version}; this medes reads version {VERSION}", .path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("{}:{line}: longer than any event", .path.display())]
    TooLong { path: PathBuf, line: u64 },
    #[error("{}:{line}: cut off in the middle", .path.display())]
    CutOff { path: PathBuf, line: u64 },
    #[error("{}:{line}: not an event", .path.display())]
    Damaged { path: PathBuf, line: u64, source: serde_json::Error },
    #[error("{}:{line}: an event that makes no sense", .path.display())]
    Nonsense { path: PathBuf, line: u64, source: WireError },
}

/// The first line, as a line.
pub(super) fn header() -> String {
    let header = Header { format: FORMAT.into(), version: VERSION, medes: env!("CARGO_PKG_VERSION").into() };
    as_line(&header)
}

/// An entry, as a line.
pub(super) fn to_line(entry: &Entry) -> String {
    match entry {
        Entry::Event(event) => as_line(event),
        Entry::Dropped(dropped) => as_line(&DroppedLine { dropped: *dropped }),
    }
}

fn as_line<T: Serialize>(value: &T) -> String {
    // None of these types has a map with keys that are not text, which is all that can fail.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// Writes a recording, a whole line at a time: whoever is killed leaves whole lines.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    file: File,
}

impl Recorder {
    /// A new file; one that exists is not overwritten.
    pub(super) fn create(path: &Path) -> Result<Self, CliError> {
        let file =
            File::create_new(path).map_err(|source| RecordingError::Create { path: path.into(), source })?;
        Ok(Self { path: path.into(), file })
    }

    pub(super) fn begin(&mut self) -> Result<(), CliError> {
        self.line(&header())
    }

    pub(super) fn write(&mut self, entry: &Entry) -> Result<(), CliError> {
        self.line(&to_line(entry))
    }

    fn line(&mut self, line: &str) -> Result<(), CliError> {
        let written = self.file.write_all(line.as_bytes());
        Ok(written.map_err(|source| RecordingError::Write { path: self.path.clone(), source })?)
    }
}

/// Reads a recording, a line at a time. After an error it ends.
#[derive(Debug)]
pub(super) struct Reader<R = BufReader<File>> {
    path: PathBuf,
    from: R,
    line: u64,
    broken: bool,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        let file = File::open(path).map_err(|source| RecordingError::Read { path: path.into(), source })?;
        Ok(Self::new(path, BufReader::new(file))?)
    }
}

impl<R: io::BufRead> Reader<R> {
    fn new(path: &Path, from: R) -> Result<Self, RecordingError> {
        let mut reader = Self { path: path.into(), from, line: 0, broken: false };
        let foreign = || RecordingError::Foreign { path: path.into() };
        // Whatever is wrong with the first line: it is no recording.
        let first = match reader.next_line() {
            Ok(line) => line.ok_or_else(foreign)?,
            Err(error @ RecordingError::Read { .. }) => return Err(error),
            Err(_) => return Err(foreign()),
        };
        let header: Header = serde_json::from_slice(&first).map_err(|_json| foreign())?;
        if header.format != FORMAT {
            return Err(foreign());
        }
        if header.version != VERSION {
            return Err(RecordingError::Version { path: path.into(), version: header.version });
        }
        Ok(reader)
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut line = Vec::new();
        let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        let (path, number) = (self.path.clone(), self.line + 1);
        let read = self.from.by_ref().take(most).read_until(b'\n', &mut line);
        match read {
            Err(source) => Err(RecordingError::Read { path, source }),
            Ok(0) => Ok(None),
            Ok(_) if line.ends_with(b"\n") => {
                self.line = number;
                Ok(Some(line))
            }
            Ok(length) if length >= LINE_BYTES_MAX => Err(RecordingError::TooLong { path, line: number }),
            Ok(_) => Err(RecordingError::CutOff { path, line: number }),
        }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, RecordingError> {
        let Some(line) = self.next_line()? else { return Ok(None) };
        if let Ok(DroppedLine { dropped }) = serde_json::from_slice(&line) {
            return Ok(Some(Entry::Dropped(dropped)));
        }
        let (path, number) = (self.path.clone(), self.line);
        let event: Event = serde_json::from_slice(&line).map_err(|source| RecordingError::Damaged {
            path: path.clone(),
            line: number,
            source,
        })?;
        event.check().map_err(|source| RecordingError::Nonsense { path, line: number, source })?;
        Ok(Some(Entry::Event(Box::new(event))))
    }
}

impl<R: io::BufRead> Iterator for Reader<R> {
    type Item = Result<Entry, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let entry = self.next_entry().transpose()?;
        self.broken = entry.is_err();
        Some(entry.map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use medes_proto::{
        ids::SandboxId,
        trace::{About, Alternative, Choice, EventId, What},
    };

    use super::*;

    fn entries() -> Vec<Entry> {
        let about = About { sandbox: SandboxId::of(1, 2), ..About::default() };
        let mut choice = Choice::of(Alternative::new("dedup", "line\nbreak \u{1b}[31m"));
        choice.reject(Alternative::new("keep", "idle"));
        let event = |number, what| {
            let id = EventId::new(number).unwrap();
            Entry::Event(Box::new(Event { id, unix_micros: 5, about: about.clone(), what }))
        };
        let asked = What::Asked { operation: "dedup".into() };
        vec![event(1, What::Review(choice)), Entry::Dropped(7), event(9, asked)]
    }

    fn read(text: &str) -> Result<Vec<Entry>, String> {
        let reader = Reader::new(Path::new("f"), text.as_bytes()).map_err(|error| error.to_string())?;
        reader.map(|entry| entry.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let mut recorder = Recorder::create(&path).unwrap();
        recorder.begin().unwrap();
        entries().iter().for_each(|entry| recorder.write(entry).unwrap());
        let again: Vec<_> = Reader::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(again, entries());
        assert!(Recorder::create(&path).is_err(), "it is not overwritten");
    }

    #[test]
    fn damaged_recordings_are_refused_with_their_line() {
        let good = header() + &entries().iter().map(to_line).collect::<String>();
        assert_eq!(read(&good).unwrap(), entries());
        let lines: Vec<_> = good.lines().collect();
        let cases = [
            (String::new(), "f is not a recorded trace"),
            ("{}\n".into(), "f is not a recorded trace"),
            (good.replace("medes-trace", "other"), "f is not a recorded trace"),
            (good.replace("\"version\":1", "\"version\":2"), "f has version 2; this medes reads version 1"),
            (good.replace("\"kind\":\"asked\"", "\"kind\":\"guessed\""), "f:4: not an event"),
            (good.replace("ev-0-9", "ev-0-0"), "f:4: not an event"),
            (format!("{}\nnonsense\n", lines[0]), "f:2: not an event"),
            (good.trim_end().into(), "f:4: cut off in the middle"),
            (format!("{}\n{}", lines[0], "x".repeat(LINE_BYTES_MAX + 1)), "f:2: longer than any event"),
            (
                good.replace("\"name\":\"keep\"", &format!("\"name\":\"{}\"", "k".repeat(5_000))),
                "f:2: an event that makes no sense",
            ),
        ];
        for (text, why) in cases {
            assert_eq!(read(&text).unwrap_err(), why);
        }
    }

    #[test]
    fn any_cut_of_a_recording_gives_its_first_lines_or_an_error() {
        let good = header() + &entries().iter().map(to_line).collect::<String>();
        for end in 0..good.len() {
            match read(&good[..end]) {
                Ok(some) => assert!(entries().starts_with(&some) && good[..end].ends_with('\n')),
                Err(why) => assert!(why.contains("cut off") || why.contains("not a recorded"), "{why}"),
            }
        }
    }
}
