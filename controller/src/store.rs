//! What survives a restart: functions, tokens, the count of starts, tenants' keys. One redb file, readable by its owner only.
//!
//! Calls block (they end with an fsync): call them off the async threads.

mod keys;
mod scrub;

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use self::keys::TENANTS;
use crate::{keyring::KeptKey, tokens::Token};
use medes_dedup::key::DomainKey;
use medes_proto::{
    function::{FunctionFileError, FunctionSpec},
    ids::{FunctionName, NodeId, TenantName, TokenName},
    standing::Standing,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};

/// Name to (revision, text).
const FUNCTIONS: TableDefinition<'_, &str, (u64, &str)> = TableDefinition::new("functions");
/// Name to the revision of a function that was removed: its next text must not look like its last one.
const REMOVED: TableDefinition<'_, &str, u64> = TableDefinition::new("removed");
/// Node to the word of its standing; nodes that are open are not in it.
const STANDINGS: TableDefinition<'_, &str, &str> = TableDefinition::new("standings");
/// Token to the hash of its secret, the functions it is for, separated by spaces (none: all), and when it was made.
const TOKENS: TableDefinition<'_, &str, (&[u8; 32], &str, u64)> = TableDefinition::new("tokens");
/// Operators' tokens, apart, so that a controller that does not know of them lets nobody in by them: hash of the secret, when it was made.
const OPERATORS: TableDefinition<'_, &str, (&[u8; 32], u64)> = TableDefinition::new("operators");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

const FORMAT: u64 = 1;

/// The open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    /// The same file, to wipe what the database has let go of.
    file: File,
}

/// What a start of the controller finds.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Starts of the controller on this store, this one included.
    pub incarnation: u32,
    /// Every tenant's key.
    pub keys: Vec<(TenantName, KeptKey)>,
    /// What keys of tenants of an earlier version were derived from, until one of these is deleted.
    pub domain_key: Option<DomainKey>,
    /// All functions.
    pub functions: Vec<(FunctionSpec, u64)>,
    /// Nodes that people keep work away from.
    pub standings: Vec<(NodeId, Standing)>,
    /// Tokens of the gateway.
    pub tokens: Vec<(TokenName, Token)>,
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The folder or the file cannot be made or opened.
    #[error("open {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a store, or another controller has it open.
    #[error("open the database {path}")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        source: redb::DatabaseError,
    },
    /// Reading or writing it failed.
    #[error("start the store")]
    Access(#[from] StoreError),
    /// Made by another version.
    #[error("the store has format {found}, this program knows {FORMAT}")]
    Format {
        /// Its format.
        found: u64,
    },
    /// Something in it is not what this program wrote.
    #[error("the store's {what} is damaged")]
    Damaged {
        /// What.
        what: &'static str,
    },
    /// A function in it cannot be read.
    #[error("function {name} in the store")]
    Function {
        /// Which.
        name: String,
        /// Why.
        source: FunctionFileError,
    },
}

/// The store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Begin.
    #[error("begin a transaction")]
    Begin(#[from] redb::TransactionError),
    /// Open a table.
    #[error("open a table")]
    Table(#[from] redb::TableError),
    /// Read or write a row.
    #[error("read or write a row")]
    Row(#[from] redb::StorageError),
    /// Make it last.
    #[error("commit")]
    Commit(#[from] redb::CommitError),
    /// No random bytes for a new key.
    #[error("make a tenant's key")]
    Random(#[source] io::Error),
    /// A key is deleted, but copies of it are still in the file.
    #[error("wipe a deleted key from the store's file")]
    Wipe(#[source] io::Error),
}

/// What applying a function came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Of its text.
    pub revision: u64,
    /// `false`: the same text was there before.
    pub changed: bool,
}

impl Store {
    /// Opens the store in a folder, makes it if it is not there, and counts the start.
    pub fn open(folder: &Path) -> Result<Opened, OpenStoreError> {
        let file_error = |path: &Path, source| OpenStoreError::File { path: path.into(), source };
        std::fs::create_dir_all(folder).map_err(|source| file_error(folder, source))?;
        let path = folder.join("controller.redb");
        // The mode counts when the file is made: it is never readable by others, not even for a moment.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|source| file_error(&path, source))?;
        let same = file.try_clone().map_err(|source| file_error(&path, source))?;
        let database = FileBackend::new(file).and_then(|file| Database::builder().create_with_backend(file));
        let database = database.map_err(|source| OpenStoreError::Database { path, source })?;
        let store = Self { database, file: same };
        let incarnation = store.count_start()?;
        let (functions, standings, tokens) = (store.functions()?, store.standings()?, store.tokens()?);
        let domain_key = store.domain_key()?;
        if let Some(domain_key) = &domain_key {
            store.derive_keys(domain_key, &functions)?;
        }
        let keys = store.keys()?;
        Ok(Opened { store, incarnation, keys, domain_key, functions, standings, tokens })
    }

    fn count_start(&self) -> Result<u32, OpenStoreError> {
        let write = self.database.begin_write().map_err(StoreError::from)?;
        let starts = {
            let mut numbers = write.open_table(NUMBERS).map_err(StoreError::from)?;
            let number =
                |name| -> Result<Option<u64>, StoreError> { Ok(numbers.get(name)?.map(|row| row.value())) };
            let (format, starts) = (number("format")?, number("starts")?.unwrap_or(0) + 1);
            match format {
                None => drop(numbers.insert("format", FORMAT).map_err(StoreError::from)?),
                Some(FORMAT) => {}
                Some(found) => return Err(OpenStoreError::Format { found }),
            }
            numbers.insert("starts", starts).map_err(StoreError::from)?;
            write.open_table(FUNCTIONS).map_err(StoreError::from)?;
            write.open_table(REMOVED).map_err(StoreError::from)?;
            write.open_table(STANDINGS).map_err(StoreError::from)?;
            write.open_table(TOKENS).map_err(StoreError::from)?;
            write.open_table(OPERATORS).map_err(StoreError::from)?;
            write.open_table(TENANTS).map_err(StoreError::from)?;
            starts
        };
        // Durable before any number of this incarnation is given out.
        write.commit().map_err(StoreError::from)?;
        u32::try_from(starts).map_err(|_over| OpenStoreError::Damaged { what: "count of starts" })
    }

    fn functions(&self) -> Result<Vec<(FunctionSpec, u64)>, OpenStoreError> {
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let table = read.open_table(FUNCTIONS).map_err(StoreError::from)?;
        let mut functions = Vec::new();
        for row in table.iter().map_err(StoreError::from)? {
            let (name, value) = row.map_err(StoreError::from)?;
            let (revision, text) = value.value();
            let spec = FunctionSpec::from_toml(text)
                .map_err(|source| OpenStoreError::Function { name: name.value().into(), source })?;
            functions.push((spec, revision));
        }
        Ok(functions)
    }

    fn standings(&self) -> Result<Vec<(NodeId, Standing)>, OpenStoreError> {
        let damaged = || OpenStoreError::Damaged { what: "list of nodes" };
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let table = read.open_table(STANDINGS).map_err(StoreError::from)?;
        let mut standings = Vec::new();
        for row in table.iter().map_err(StoreError::from)? {
            let (node, word) = row.map_err(StoreError::from)?;
            let node = node.value().parse::<NodeId>().ok().ok_or_else(damaged)?;
            standings.push((node, Standing::of_word(word.value()).ok_or_else(damaged)?));
        }
        Ok(standings)
    }

    fn tokens(&self) -> Result<Vec<(TokenName, Token)>, OpenStoreError> {
        let damaged = || OpenStoreError::Damaged { what: "list of tokens" };
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let table = read.open_table(TOKENS).map_err(StoreError::from)?;
        let mut tokens = Vec::new();
        for row in table.iter().map_err(StoreError::from)? {
            let (name, kept) = row.map_err(StoreError::from)?;
            let (hash, functions, created) = kept.value();
            let functions: Result<BTreeSet<FunctionName>, _> =
                functions.split_whitespace().map(str::parse).collect();
            let functions = functions.ok().ok_or_else(damaged)?;
            let token = Token {
                hash: blake3::Hash::from_bytes(*hash),
                functions: Some(functions).filter(|functions| !functions.is_empty()),
                operator: false,
                created: SystemTime::UNIX_EPOCH + Duration::from_secs(created),
            };
            tokens.push((name.value().parse().ok().ok_or_else(damaged)?, token));
        }
        let table = read.open_table(OPERATORS).map_err(StoreError::from)?;
        for row in table.iter().map_err(StoreError::from)? {
            let (name, kept) = row.map_err(StoreError::from)?;
            let (hash, created) = kept.value();
            let (hash, functions) = (blake3::Hash::from_bytes(*hash), None);
            let created = SystemTime::UNIX_EPOCH + Duration::from_secs(created);
            let token = Token { hash, functions, operator: true, created };
            tokens.push((name.value().parse().ok().ok_or_else(damaged)?, token));
        }
        Ok(tokens)
    }

    /// Keeps a token, in place of one of the same name.
    pub fn add_token(&self, name: &TokenName, token: &Token) -> Result<(), StoreError> {
        let functions: Vec<&str> = token.functions.iter().flatten().map(FunctionName::as_str).collect();
        let created = token.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let write = self.database.begin_write()?;
        if token.operator {
            write.open_table(OPERATORS)?.insert(name.as_str(), (token.hash.as_bytes(), created))?;
        } else {
            let kept = (token.hash.as_bytes(), &*functions.join(" "), created);
            write.open_table(TOKENS)?.insert(name.as_str(), kept)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Forgets a token. `false` if it was not there.
    pub fn revoke_token(&self, name: &TokenName) -> Result<bool, StoreError> {
        let write = self.database.begin_write()?;
        let mut found = write.open_table(TOKENS)?.remove(name.as_str())?.is_some();
        found |= write.open_table(OPERATORS)?.remove(name.as_str())?.is_some();
        write.commit()?;
        Ok(found)
    }

    /// Keeps what a node is given to do.
    pub fn set_standing(&self, node: &NodeId, standing: Standing) -> Result<(), StoreError> {
        let write = self.database.begin_write()?;
        {
            let mut standings = write.open_table(STANDINGS)?;
            match standing {
                Standing::Open | Standing::Unspecified => drop(standings.remove(node.as_str())?),
                Standing::Cordoned | Standing::Draining | Standing::Resting => {
                    standings.insert(node.as_str(), standing.word())?;
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Keeps a function. Its revision rises when its text differs from the last one.
    pub fn apply(&self, spec: &FunctionSpec) -> Result<Applied, StoreError> {
        let (name, text) = (spec.name.as_str(), spec.to_toml());
        let write = self.database.begin_write()?;
        let applied = {
            let mut functions = write.open_table(FUNCTIONS)?;
            let mut removed = write.open_table(REMOVED)?;
            let known = functions.get(name)?.map(|row| {
                let (revision, old) = row.value();
                (revision, old == text)
            });
            let applied = match known {
                Some((revision, true)) => Applied { revision, changed: false },
                Some((revision, false)) => Applied { revision: revision + 1, changed: true },
                None => {
                    let last = removed.remove(name)?.map_or(0, |row| row.value());
                    Applied { revision: last + 1, changed: true }
                }
            };
            if applied.changed {
                functions.insert(name, (applied.revision, text.as_str()))?;
            }
            applied
        };
        write.commit()?;
        Ok(applied)
    }

    /// Forgets a function. `false` if it was not there.
    pub fn remove(&self, name: &FunctionName) -> Result<bool, StoreError> {
        let write = self.database.begin_write()?;
        let revision = {
            let mut functions = write.open_table(FUNCTIONS)?;
            let revision = functions.remove(name.as_str())?.map(|row| row.value().0);
            if let Some(revision) = revision {
                write.open_table(REMOVED)?.insert(name.as_str(), revision)?;
            }
            revision
        };
        write.commit()?;
        Ok(revision.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn spec(text: &str) -> FunctionSpec {
        FunctionSpec::from_toml(text).unwrap()
    }

    #[test]
    fn functions_and_count_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        assert_eq!((first.incarnation, first.functions.len()), (1, 0));
        let one = spec("name = 'one'\ncommand = ['x']");
        assert_eq!(first.store.apply(&one).unwrap(), Applied { revision: 1, changed: true });
        assert_eq!(first.store.apply(&one).unwrap(), Applied { revision: 1, changed: false });
        let changed = spec("name = 'one'\ncommand = ['y']");
        assert_eq!(first.store.apply(&changed).unwrap(), Applied { revision: 2, changed: true });
        let two = spec("name = 'two'\ncommand = ['x']");
        first.store.apply(&two).unwrap();
        assert!(first.store.remove(&two.name).unwrap());
        assert!(!first.store.remove(&two.name).unwrap());
        drop(first);

        let second = Store::open(folder.path()).unwrap();
        assert_eq!(second.incarnation, 2);
        assert_eq!(second.functions, [(changed, 2)]);
        // Sandboxes of the removed text may still be about; they must not pass for the new one's.
        assert_eq!(second.store.apply(&two).unwrap().revision, 2);
    }

    #[test]
    fn what_was_said_of_a_node_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b]: [NodeId; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let first = Store::open(folder.path()).unwrap();
        assert!(first.standings.is_empty());
        first.store.set_standing(&a, Standing::Cordoned).unwrap();
        first.store.set_standing(&b, Standing::Cordoned).unwrap();
        first.store.set_standing(&a, Standing::Draining).unwrap();
        first.store.set_standing(&b, Standing::Open).unwrap();
        drop(first);
        assert_eq!(Store::open(folder.path()).unwrap().standings, [(a, Standing::Draining)]);
    }

    #[test]
    fn tokens_survive_a_restart_and_their_secrets_are_not_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        assert!(first.tokens.is_empty());
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let made = ["all", "some", "gone", "z-anna"].map(|name| {
            let name: TokenName = name.parse().unwrap();
            let (text, hash) = crate::tokens::make(&name).unwrap();
            let functions = (name.as_str() == "some").then(|| ["f", "g"].map(|f| f.parse().unwrap()).into());
            let token = Token { hash, functions, operator: name.as_str() == "z-anna", created };
            first.store.add_token(&name, &token).unwrap();
            (name, token, text)
        });
        assert!(first.store.revoke_token(&made[2].0).unwrap());
        assert!(!first.store.revoke_token(&made[2].0).unwrap());
        drop(first);
        let kept = made
            .iter()
            .filter(|(name, ..)| name.as_str() != "gone")
            .map(|(name, token, _)| (name.clone(), token.clone()));
        assert_eq!(Store::open(folder.path()).unwrap().tokens, kept.collect::<Vec<_>>());
        let file = std::fs::read(folder.path().join("controller.redb")).unwrap();
        let secret = made[0].2.rsplit_once('_').unwrap().1;
        assert!(!file.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()));
    }

    #[test]
    fn only_the_owner_may_read_the_keys() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let mode = std::fs::metadata(folder.path().join("controller.redb")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_controllers_cannot_share_a_store_and_nonsense_is_no_store() {
        let folder = tempfile::tempdir().unwrap();
        let open = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(OpenStoreError::Database { .. })));
        drop(open);
        std::fs::write(folder.path().join("controller.redb"), [7; 5000]).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(OpenStoreError::Database { .. })));
    }
}
