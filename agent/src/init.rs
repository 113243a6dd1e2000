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
    private_files,
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

/// What an image says of its sandbox besides pages and CRIU's files; `None`: no clones can be made of it.
pub fn hooks(sections: &Sections) -> Option<Hooks> {
    serde_json::from_slice(sections.get(HOOKS)?).ok()
}

/// Puts the private files of the first sandbox where those of a clone are.
pub fn unpack_files(sections: &Sections, folder: &Path) -> io::Result<()> {
    private_files::unpack(sections.get(FILES).unwrap_or_default(), folder)
}

#[cfg(test)]
mod tests {
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
}
