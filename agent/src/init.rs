//! What an init snapshot keeps besides pages, so that new sandboxes can be made of it: an image of its sandbox in which
//! every page is one of the snapshot's, with CRIU's other files and the sandbox's private files.
//!
//! A clone wakes up with memory that another one wakes up with, too: seeds, numbers that must be unique, connections. So a
//! program is asked first whether it can live with that (README, "Clones"), and told afterwards.

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Method, StatusCode, header::HeaderMap};
use medes_dedup::{
    encode::{EncodeRules, EncodedRun},
    image::{BuildImageError, ImageBuilder, Sections},
    key::DomainKey,
    page::{BasePage, PAGE_BYTES, PageIndex},
};
use medes_proto::{function::StartMode, ids::SandboxId, limits::CLONE_BYTES_MAX};
use serde::{Deserialize, Serialize};

use crate::{
    bases::{HeldPages, local::Snapshot},
    dump::Dump,
    engine::Engine,
    memory_file::{MappedFile, MemoryFile},
    page_work::{self, MissingBasePage},
    sandbox::{Housing, Request, RequestError},
    skeleton::{self, PackError},
};

/// Asked with GET: which of the others the program wants to hear. A program that knows nothing of clones may answer
/// anything to that, and takes no harm.
const HOOKS_PATH: &str = "/medes/hooks";
/// Told before its memory is copied.
const SNAPSHOT_PATH: &str = "/medes/snapshot";
/// Told in a clone, before the first request.
const RESTORED_PATH: &str = "/medes/restored";
/// How long a program may take to answer one of these.
const HOOK_DEADLINE: Duration = Duration::from_secs(10);
const HOOK_BYTES_MAX: usize = 64 << 10;

const HOOKS: &str = "clone/hooks";
const FILES: &str = "clone/files";

/// What a program wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    snapshot: bool,
    restored: bool,
}

/// A program that was told something did not say that it is done.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// No answer.
    #[error("tell the program by {path}")]
    NoAnswer {
        /// Which hook.
        path: &'static str,
        /// What happened.
        #[source]
        source: RequestError,
    },
    /// An answer that is no yes.
    #[error("the program answered {path} with {status}")]
    Refused {
        /// Which hook.
        path: &'static str,
        /// What it answered.
        status: StatusCode,
    },
}

/// Asks a program that is ready, and tells it that its memory is about to be copied. `None`: it must not be cloned.
pub async fn ask(housing: &Housing, start: StartMode) -> Result<Option<Hooks>, HookError> {
    if start == StartMode::Cold {
        return Ok(None);
    }
    let said = housing.request(Request::get(HOOKS_PATH, HOOK_DEADLINE, HOOK_BYTES_MAX)).await;
    let said = said.ok().filter(|said| said.status.is_success());
    let Some(hooks) = said.and_then(|said| named(&said.body)) else {
        let unaware = Hooks { snapshot: false, restored: false };
        return Ok((start == StartMode::Clone).then_some(unaware));
    };
    if hooks.snapshot {
        // Something, for a server that wants to know how much.
        tell(housing, SNAPSHOT_PATH, Bytes::from_static(b"{}")).await?;
    }
    Ok(Some(hooks))
}

/// `{"hooks": ["snapshot", "restored"]}`, or some of them. Anything else is no answer to our question.
fn named(body: &[u8]) -> Option<Hooks> {
    #[derive(Deserialize)]
    struct Answer {
        hooks: Vec<String>,
    }
    let Answer { hooks } = serde_json::from_slice(body).ok()?;
    let has = |name: &str| hooks.iter().any(|hook| hook == name);
    let hooks = Hooks { snapshot: has("snapshot"), restored: has("restored") };
    hooks.restored.then_some(hooks)
}

/// Tells a clone who it is, if it wants to hear.
pub async fn tell_restored(housing: &Housing, hooks: Hooks, sandbox: SandboxId) -> Result<(), HookError> {
    if !hooks.restored {
        return Ok(());
    }
    let who = serde_json::json!({ "sandbox": sandbox.to_string(), "generation": sandbox.get() });
    tell(housing, RESTORED_PATH, who.to_string().into()).await
}

async fn tell(housing: &Housing, path: &'static str, body: Bytes) -> Result<(), HookError> {
    let request = Request {
        method: Method::POST,
        path: path.to_owned(),
        headers: HeaderMap::new(),
        body,
        response_bytes_max: HOOK_BYTES_MAX,
        deadline: HOOK_DEADLINE,
    };
    match housing.request(request).await {
        Ok(answer) if answer.status.is_success() => Ok(()),
        Ok(answer) => Err(HookError::Refused { path, status: answer.status }),
        Err(source) => Err(HookError::NoAnswer { path, source }),
    }
}

/// Why no image for clones was made.
#[derive(Debug, thiserror::Error)]
pub enum InitImageError {
    /// A page of the dump is not in the snapshot.
    #[error("find its pages in the snapshot")]
    Page(#[from] MissingBasePage),
    /// The image has more of something than an image may have.
    #[error("build the image")]
    Build(#[from] BuildImageError),
    /// The skeleton could not be kept.
    #[error("keep its skeleton")]
    Skeleton(#[from] PackError),
    /// There was no memory for it.
    #[error("keep the image")]
    Seal(#[source] io::Error),
    /// It would not travel with the snapshot.
    #[error("the image has {bytes} bytes, more than {CLONE_BYTES_MAX}: its private files are too large")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// What the sandbox was besides pages.
#[derive(Debug)]
pub struct Besides {
    /// What its program wants to be told.
    pub hooks: Hooks,
    /// Its private files, packed.
    pub files: Vec<u8>,
}

/// The image of a dumped sandbox whose pages are those of `snapshot`. `order`: the dump's files in the order of the snapshot's pages.
pub fn image(
    dump: &Dump,
    (snapshot, order): (&Arc<Snapshot>, &[usize]),
    (engine, key): (&Engine, &DomainKey),
    Besides { hooks, files }: Besides,
) -> Result<MappedFile, InitImageError> {
    let mut held = HeldPages::default();
    held.hold(snapshot.clone());
    let choices = choices(dump, snapshot, order);
    let rules = EncodeRules { whole_level: None, prefer_whole: None, ..engine.encode_rules() };
    let runs = page_work::encode(&dump.pages(), &choices, &held, (key, rules), engine.threads)?;
    let mut image = ImageBuilder::new(key);
    runs.iter().flat_map(EncodedRun::iter).try_for_each(|page| image.push(&page))?;
    skeleton::pack(dump, &mut image)?;
    image.section(HOOKS, serde_json::to_vec(&hooks).map_err(PackError::from)?)?;
    image.section(FILES, files)?;
    let bytes = image.finish()?;
    if bytes.len() > CLONE_BYTES_MAX {
        return Err(InitImageError::TooLarge { bytes: bytes.len() });
    }
    seal(&bytes).map_err(InitImageError::Seal)
}

/// For each page of the dump the page of the snapshot that it is.
fn choices(dump: &Dump, snapshot: &Snapshot, order: &[usize]) -> Vec<Vec<BasePage>> {
    let pages: Vec<u32> =
        dump.files().iter().map(|file| u32::try_from(file.len() / PAGE_BYTES).unwrap_or(u32::MAX)).collect();
    let mut starts = vec![0; pages.len()];
    let mut next = 0;
    for &file in order {
        starts[file] = next;
        next += pages[file];
    }
    let place = |page| vec![BasePage { snapshot: snapshot.id, page: PageIndex(page) }];
    starts.iter().zip(&pages).flat_map(|(first, pages)| (*first..first + pages).map(place)).collect()
}

/// An image as it came from elsewhere, or as it was just built; whoever opens it checks it.
pub fn seal(bytes: &[u8]) -> io::Result<MappedFile> {
    MemoryFile::sealed("medes-clone", bytes)
}

/// Packs the private files of a sandbox that stands still. What is too large for an image is found out when that is built.
pub fn pack_files(folder: &Path) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.sparse(true);
    add(&mut archive, folder, Path::new(""))?;
    archive.into_inner()
}

/// All but sockets, which CRIU makes anew.
fn add(archive: &mut tar::Builder<Vec<u8>>, folder: &Path, inside: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(folder.join(inside))? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, inside.join(entry.file_name()));
        if kind.is_socket() {
            continue;
        }
        if archive.get_ref().len() > CLONE_BYTES_MAX.saturating_mul(4) {
            // Nothing compresses so well that it is worth going on.
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        archive.append_path_with_name(entry.path(), &path)?;
        if kind.is_dir() {
            add(archive, folder, &path)?;
        }
    }
    Ok(())
}

/// What an image says of its sandbox besides pages and CRIU's files; `None`: no clones can be made of it.
pub fn hooks(sections: &Sections) -> Option<Hooks> {
    serde_json::from_slice(sections.get(HOOKS)?).ok()
}

/// Puts the private files of the first sandbox where those of a clone are.
pub fn unpack_files(sections: &Sections, folder: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(sections.get(FILES).unwrap_or_default());
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    archive.unpack(folder)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn only_a_program_that_names_the_hook_knows_it() {
        let both = Hooks { snapshot: true, restored: true };
        assert_eq!(named(br#"{"hooks": ["restored", "snapshot", "later"]}"#), Some(both));
        assert_eq!(named(br#"{"hooks": ["restored"]}"#), Some(Hooks { snapshot: false, restored: true }));
        for other in
            [&b"ok"[..], b"{}", br#"{"hooks": []}"#, br#"{"hooks": ["snapshot"]}"#, br#"{"hooks": 1}"#]
        {
            assert_eq!(named(other), None);
        }
    }

    /// Sections as an image has them that holds these files.
    fn sections(files: Vec<u8>) -> Sections {
        let key = DomainKey::from_bytes([1; 32]);
        let mut image = ImageBuilder::new(&key);
        image.section(FILES, files).unwrap();
        medes_dedup::image::DedupImage::open(image.finish().unwrap(), &key).unwrap().sections().unwrap()
    }

    #[test]
    fn nothing_is_written_outside_of_the_folder() {
        let (outside, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut archive = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "tmp", outside.path()).unwrap();
        let file = |path: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            header
        };
        archive.append(&file("tmp/through"), &b"evil"[..]).unwrap();
        let packed = archive.into_inner().unwrap();
        assert!(unpack_files(&sections(packed), to.path()).is_err());
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&file("../up"), &b"evil"[..]).unwrap();
        let _skipped_or_refused = unpack_files(&sections(archive.into_inner().unwrap()), to.path());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!to.path().parent().unwrap().join("up").exists());
    }

    #[test]
    fn private_files_come_back_as_they_were() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("tmp/deep")).unwrap();
        fs::create_dir(to.path().join("tmp")).unwrap();
        fs::write(from.path().join("tmp/deep/data"), [7; 5000]).unwrap();
        fs::set_permissions(from.path().join("tmp/deep/data"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("deep/data", from.path().join("tmp/link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.path().join("tmp/socket")).unwrap();
        let packed = pack_files(from.path()).unwrap();
        unpack_files(&sections(packed), to.path()).unwrap();
        assert_eq!(fs::read(to.path().join("tmp/link")).unwrap(), [7; 5000]);
        let mode = fs::metadata(to.path().join("tmp/deep/data")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert!(!to.path().join("tmp/socket").exists());
    }
}
