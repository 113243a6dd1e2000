//! Tenants' keys: 32 random bytes each, made before anything uses them, kept until somebody deletes them.
//!
//! A store of an earlier version has one key for the whole cluster, from which tenants' keys were derived. They are derived once more, so that
//! what rests on nodes still opens, and kept. The key of the cluster stays for agents of that version, and for a way back to it, until the
//! first key is deleted that was derived from it: whoever had the one could make the other again.

use std::{
    fs::File,
    io::Read,
    time::{Duration, SystemTime},
};

use medes_dedup::key::DomainKey;
use medes_proto::{function::FunctionSpec, ids::TenantName};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use super::{OpenStoreError, Store, StoreError, scrub};
use crate::keyring::{KeptKey, is_derived};

/// Tenant to its key, and when that was made.
pub(super) const TENANTS: TableDefinition<'_, &str, (&[u8; KEY_BYTES], u64)> =
    TableDefinition::new("tenants");
/// What an earlier version kept.
const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");
const DOMAIN_KEY: &str = "domain key";

const KEY_BYTES: usize = 32;
const ZEROS: [u8; KEY_BYTES] = [0; KEY_BYTES];

impl Store {
    /// The key of a tenant, made if it has none. It is kept when this returns.
    pub fn key_of(&self, tenant: &TenantName, now: SystemTime) -> Result<KeptKey, StoreError> {
        if let Some(kept) = self.known_key(tenant)? {
            return Ok(kept);
        }
        let kept = KeptKey { key: random_key().map_err(StoreError::Random)?, created: whole_seconds(now) };
        let write = self.database.begin_write()?;
        insert(&mut write.open_table(TENANTS)?, tenant, &kept)?;
        write.commit()?;
        Ok(kept)
    }

    fn known_key(&self, tenant: &TenantName) -> Result<Option<KeptKey>, StoreError> {
        let table = self.database.begin_read()?.open_table(TENANTS)?;
        known(&table, tenant)
    }

    pub(super) fn keys(&self) -> Result<Vec<(TenantName, KeptKey)>, OpenStoreError> {
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let table = read.open_table(TENANTS).map_err(StoreError::from)?;
        let mut keys = Vec::new();
        for row in table.iter().map_err(StoreError::from)? {
            let (tenant, kept) = row.map_err(StoreError::from)?;
            if *kept.value().0 == ZEROS {
                // A crash in the middle of its deletion. The next key of this tenant is a new one.
                continue;
            }
            let tenant = tenant.value().parse().ok();
            let tenant = tenant.ok_or(OpenStoreError::Damaged { what: "list of tenants" })?;
            keys.push((tenant, kept.value().into()));
        }
        Ok(keys)
    }

    /// Deletes a tenant's key, and what it was derived from, if it was. The file has nothing of them afterwards; what copies the disk or
    /// somebody else has made, nobody knows here. After a failure it can be called again, as long as somebody still has the key.
    pub fn delete_key(&self, tenant: &TenantName, key: &DomainKey) -> Result<(), StoreError> {
        let domain_key = self.known_domain_key()?.filter(|domain| is_derived(key, domain, tenant));
        // Zeros first: the last two states of the database, which a crash may choose from, are without the key.
        let write = self.database.begin_write()?;
        let zeros = KeptKey { key: DomainKey::from_bytes(ZEROS), created: SystemTime::UNIX_EPOCH };
        insert(&mut write.open_table(TENANTS)?, tenant, &zeros)?;
        if domain_key.is_some() {
            write.open_table(SECRETS)?.insert(DOMAIN_KEY, &ZEROS[..])?;
        }
        write.commit()?;
        let write = self.database.begin_write()?;
        write.open_table(TENANTS)?.remove(tenant.as_str())?;
        if domain_key.is_some() {
            write.delete_table(SECRETS)?;
        }
        write.commit()?;
        for secret in [Some(key), domain_key.as_ref()].into_iter().flatten() {
            scrub::wipe(&self.file, secret.expose()).map_err(StoreError::Wipe)?;
        }
        Ok(())
    }

    /// Gives tenants of an earlier version the keys that they had.
    pub(super) fn derive_keys(
        &self,
        domain_key: &DomainKey,
        functions: &[(FunctionSpec, u64)],
    ) -> Result<(), StoreError> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(TENANTS)?;
            for (FunctionSpec { tenant, .. }, _) in functions {
                if known(&table, tenant)?.is_none() {
                    let (key, created) = (domain_key.for_tenant(tenant.as_str()), SystemTime::now());
                    insert(&mut table, tenant, &KeptKey { key, created })?;
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    /// The key of the cluster, if there is one.
    pub(super) fn domain_key(&self) -> Result<Option<DomainKey>, OpenStoreError> {
        match self.secret()? {
            Some(bytes) if bytes.len() != KEY_BYTES => Err(OpenStoreError::Damaged { what: "domain key" }),
            _ => Ok(self.known_domain_key()?),
        }
    }

    fn known_domain_key(&self) -> Result<Option<DomainKey>, StoreError> {
        let bytes: Option<[u8; KEY_BYTES]> = self.secret()?.and_then(|bytes| bytes.try_into().ok());
        // Zeros: a crash in the middle of its deletion.
        Ok(bytes.filter(|bytes| *bytes != ZEROS).map(DomainKey::from_bytes))
    }

    fn secret(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let table = match self.database.begin_read()?.open_table(SECRETS) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(table.get(DOMAIN_KEY)?.map(|row| row.value().to_vec()))
    }
}

/// The row of a tenant, if it has a key. Zeros: a crash in the middle of its deletion.
fn known(
    table: &impl ReadableTable<&'static str, (&'static [u8; KEY_BYTES], u64)>,
    tenant: &TenantName,
) -> Result<Option<KeptKey>, StoreError> {
    let row = table.get(tenant.as_str())?;
    Ok(row.filter(|row| *row.value().0 != ZEROS).map(|row| row.value().into()))
}

fn insert(
    table: &mut redb::Table<'_, &'static str, (&'static [u8; KEY_BYTES], u64)>,
    tenant: &TenantName,
    KeptKey { key, created }: &KeptKey,
) -> Result<(), StoreError> {
    let created = created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    table.insert(tenant.as_str(), (key.expose(), created))?;
    Ok(())
}

impl From<(&[u8; KEY_BYTES], u64)> for KeptKey {
    fn from((key, created): (&[u8; KEY_BYTES], u64)) -> Self {
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(created);
        Self { key: DomainKey::from_bytes(*key), created }
    }
}

/// As the store keeps it.
fn whole_seconds(now: SystemTime) -> SystemTime {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn random_key() -> std::io::Result<DomainKey> {
    let mut key = ZEROS;
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(DomainKey::from_bytes(key))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    /// Whether these bytes are anywhere in the store's file.
    fn is_in_file(folder: &Path, bytes: &[u8]) -> bool {
        let file = std::fs::read(folder.join("controller.redb")).unwrap();
        file.windows(bytes.len()).any(|window| window == bytes)
    }

    #[test]
    fn a_key_is_made_once_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        assert!(first.keys.is_empty());
        let [a, b] = ["a", "b"].map(tenant);
        let made = first.store.key_of(&a, NOW + Duration::from_millis(5_700)).unwrap();
        assert_eq!(made.created, NOW + Duration::from_secs(5));
        assert_eq!(first.store.key_of(&a, NOW).unwrap(), made);
        let other = first.store.key_of(&b, NOW).unwrap();
        assert_ne!(other.key, made.key);
        drop(first);
        let second = Store::open(folder.path()).unwrap();
        assert_eq!(second.keys, [(a.clone(), made.clone()), (b, other)]);
        assert_eq!(second.store.key_of(&a, NOW).unwrap(), made);
    }

    /// As a version before this one left it.
    fn earlier_store(folder: &Path, domain_key: [u8; 32], functions: &[&str]) {
        let opened = Store::open(folder).unwrap();
        for text in functions {
            opened.store.apply(&FunctionSpec::from_toml(text).unwrap()).unwrap();
        }
        let write = opened.store.database.begin_write().unwrap();
        write.open_table(SECRETS).unwrap().insert(DOMAIN_KEY, &domain_key[..]).unwrap();
        write.commit().unwrap();
    }

    #[test]
    fn a_store_of_an_earlier_version_keeps_its_tenants_keys() {
        let folder = tempfile::tempdir().unwrap();
        let old: [u8; 32] = std::array::from_fn(|at| at as u8 + 100);
        let functions =
            ["one", "two"].map(|name| format!("name = '{name}'\ncommand = ['x']\ntenant = 'acme'"));
        earlier_store(folder.path(), old, &[&functions[0], &functions[1], "name = 'three'\ncommand = ['x']"]);
        let derived = |name: &str| DomainKey::from_bytes(old).for_tenant(name);
        for _start in 0..2 {
            let opened = Store::open(folder.path()).unwrap();
            let keys = opened.keys.into_iter().map(|(tenant, kept)| (tenant, kept.key));
            let expected = ["acme", "default"].map(|name| (tenant(name), derived(name)));
            assert_eq!(keys.collect::<Vec<_>>(), expected);
            assert!(opened.domain_key == Some(DomainKey::from_bytes(old)), "agents of that version need it");
        }
        let opened = Store::open(folder.path()).unwrap();
        let late = opened.store.key_of(&tenant("late"), NOW).unwrap().key;
        assert_ne!(late, derived("late"), "who comes now has a random one");
        opened.store.delete_key(&tenant("late"), &late).unwrap();
        assert!(is_in_file(folder.path(), &old), "that one was not made of it");
        opened.store.delete_key(&tenant("acme"), &derived("acme")).unwrap();
        drop(opened);
        assert!(!is_in_file(folder.path(), &old), "the deleted key could be made of it again");
        let opened = Store::open(folder.path()).unwrap();
        assert!(opened.domain_key.is_none());
        let left: Vec<_> = opened.keys.into_iter().map(|(tenant, kept)| (tenant, kept.key)).collect();
        assert_eq!(left, [(tenant("default"), derived("default"))], "others stay");
    }

    #[test]
    fn a_domain_key_that_is_none_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Store::open(folder.path()).unwrap();
        let write = opened.store.database.begin_write().unwrap();
        write.open_table(SECRETS).unwrap().insert(DOMAIN_KEY, &[7; 31][..]).unwrap();
        write.commit().unwrap();
        drop(opened);
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, OpenStoreError::Damaged { what: "domain key" }), "{error:?}");
    }

    #[test]
    fn a_deleted_key_is_gone_from_the_file_and_the_next_one_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Store::open(folder.path()).unwrap();
        // Each of these copies the page that has the keys before it: more than one place has them.
        let kept: Vec<_> = (0..20)
            .map(|number| (tenant(&format!("t{number}")), number))
            .map(|(name, number)| {
                (name.clone(), opened.store.key_of(&name, NOW + Duration::from_secs(number)).unwrap())
            })
            .collect();
        let (gone, old) = kept[7].clone();
        assert!(is_in_file(folder.path(), old.key.expose()));
        opened.store.delete_key(&gone, &old.key).unwrap();
        opened.store.delete_key(&gone, &old.key).unwrap();
        assert!(!is_in_file(folder.path(), old.key.expose()), "while it is open");
        drop(opened);
        assert!(!is_in_file(folder.path(), old.key.expose()), "and afterwards");

        let mut opened = Store::open(folder.path()).unwrap();
        assert!(opened.store.database.check_integrity().unwrap(), "what was wiped is missed by nobody");
        let left: Vec<_> = kept.iter().filter(|(name, _)| *name != gone).cloned().collect();
        assert_eq!(opened.keys.len(), left.len());
        assert!(left.iter().all(|kept| opened.keys.contains(kept)));
        let new = opened.store.key_of(&gone, NOW).unwrap();
        assert_ne!(new.key.id(), old.key.id());
    }
}
