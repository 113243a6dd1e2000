//! What may change while the controller runs: the section `policy` of its configuration, by `medes policy set` or by the file read again.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::{
    config::{ConfigError, Document},
    driver::{Event, Tuning},
    shell::{Handle, Stopped},
};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// It cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The controller is stopping.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What came of a configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// The policy is another one now.
    pub changed: bool,
    /// Sections that differ from what the controller was started with, and count when it is started again.
    pub later: Vec<String>,
}

/// The configuration as it is now. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tuner {
    document: Arc<Mutex<Document>>,
    driver: Handle,
}

impl Tuner {
    pub(crate) fn new(document: Document, driver: Handle) -> Self {
        Self { document: Arc::new(Mutex::new(document)), driver }
    }

    /// The section of the policy, as a file would have it.
    pub(crate) async fn policy(&self) -> String {
        self.document.lock().await.policy()
    }

    /// Changes single lines of it, or only looks what that would come to: the section then, and whether it is another one.
    pub(crate) async fn set(&self, changes: &[String], dry_run: bool) -> Result<(String, bool), TuneError> {
        let mut document = self.document.lock().await;
        let next = document.with_policy(changes)?;
        let tuning = next.check()?.tuning();
        let (toml, changed) = (next.policy(), next != *document);
        if changed && !dry_run {
            self.take_over(&mut document, (next, tuning)).await?;
        }
        Ok((toml, changed))
    }

    /// Takes the policy over from a configuration that was read again. Lines that were set since it was read before are forgotten.
    pub(crate) async fn reload(&self, read: &Document) -> Result<Reloaded, TuneError> {
        let mut document = self.document.lock().await;
        // All of it must make sense, though not all of it counts yet.
        let tuning = read.check()?.tuning();
        let (next, later) = document.with_policy_of(read);
        let changed = next != *document;
        if changed {
            self.take_over(&mut document, (next, tuning)).await?;
        }
        Ok(Reloaded { changed, later })
    }

    async fn take_over(
        &self,
        document: &mut Document,
        (next, tuning): (Document, Tuning),
    ) -> Result<(), Stopped> {
        // One step: a caller who goes away leaves either both changed or none.
        let turn = self.driver.turn().await?;
        turn.tell(Event::Tuned(Box::new(tuning)));
        *document = next;
        Ok(())
    }
}
