//! What was read from files, and is read again when these change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::credentials::LoadError;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// No file of these is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a look at the files found.
#[derive(Debug)]
pub enum Look {
    /// Nothing new.
    Same,
    /// New ones, in use from now on.
    Renewed,
    /// Something that cannot be used, perhaps because it is still being written. The old ones stay in use.
    Doubted,
    /// It has not got better since the last look. Said once.
    Bad(LoadError),
}

/// Tells one version of the files from another.
type Stamps = Vec<Option<(u64, i64, i64, u64)>>;

/// What some files say, as they were read last and made sense.
#[derive(Debug)]
pub(crate) struct Fresh<T, const FILES: usize> {
    files: [PathBuf; FILES],
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    loaded: Arc<T>,
    /// Of the files that were read last, whatever came of it.
    seen: Stamps,
    /// Of files that made no sense; said when they have not changed until the next look.
    doubted: bool,
}

impl<T, const FILES: usize> Fresh<T, FILES> {
    /// Reads the files for the first time.
    pub(crate) fn load(
        files: [PathBuf; FILES],
        read: impl FnOnce(&[PathBuf; FILES]) -> Result<T, LoadError>,
    ) -> Result<Self, LoadError> {
        // In this order: what changes meanwhile is read again.
        let seen = stamps(&files);
        let loaded = Arc::new(read(&files)?);
        Ok(Self { files, state: Mutex::new(State { loaded, seen, doubted: false }) })
    }

    /// What they say.
    pub(crate) fn get(&self) -> Arc<T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).loaded.clone()
    }

    /// Looks whether the files have changed, and reads them again if so; `read` is given what they said before. Blocks on the disk.
    pub(crate) fn look(&self, read: impl FnOnce(&[PathBuf; FILES], &T) -> Result<T, LoadError>) -> Look {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = stamps(&self.files);
        let changed = seen != state.seen;
        if !changed && !state.doubted {
            return Look::Same;
        }
        state.seen = seen;
        match read(&self.files, &state.loaded) {
            Ok(loaded) => {
                (state.loaded, state.doubted) = (Arc::new(loaded), false);
                Look::Renewed
            }
            Err(_) if changed => {
                state.doubted = true;
                Look::Doubted
            }
            Err(error) => {
                state.doubted = false;
                Look::Bad(error)
            }
        }
    }
}

/// Looks again and again until `stop`, and tells what it found. `whose`: for the log.
pub(crate) async fn keep<L>(look: L, whose: String, stop: CancellationToken)
where
    L: Fn() -> Look + Clone + Send + 'static,
{
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        match tokio::task::spawn_blocking(look.clone()).await {
            Ok(Look::Renewed) => tracing::info!(identity = whose, "new certificates are in use"),
            Ok(Look::Bad(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    identity = whose,
                    "the new certificates cannot be used; the old ones stay in use"
                );
            }
            Ok(Look::Same | Look::Doubted) | Err(_) => {}
        }
    }
}

fn stamps(files: &[PathBuf]) -> Stamps {
    let stamp = |file: &PathBuf| {
        let found = fs::metadata(file).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
    };
    files.iter().map(stamp).collect()
}

/// A whole file, if it is as short as these are.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    let error = |source| LoadError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(error)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX), &mut bytes).map_err(error)?;
    Ok(bytes)
}
