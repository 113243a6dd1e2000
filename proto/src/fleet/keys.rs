//! Tenants' keys between these types and what the wire carries.

use medes_dedup::key::{DomainKey, KeyId};

use super::{HeldKey, TenantKey};
use crate::{WireError, ids::TenantName, limits::NODE_TENANTS_MAX, wire};

impl From<HeldKey> for wire::HeldKey {
    fn from(held: HeldKey) -> Self {
        let HeldKey { tenant, id } = held;
        Self { tenant: tenant.into(), key_id: id.0 }
    }
}

fn tenant_from_wire(raw: &str) -> Result<TenantName, WireError> {
    raw.parse().map_err(|_name| WireError::invalid("keys.tenant", "not a tenant's name"))
}

fn bounded(count: usize) -> Result<(), WireError> {
    if count > NODE_TENANTS_MAX {
        return Err(WireError::invalid("keys", "too many"));
    }
    Ok(())
}

pub(super) fn held_from_wire(raw: Vec<wire::HeldKey>) -> Result<Vec<HeldKey>, WireError> {
    bounded(raw.len())?;
    let held = raw.into_iter().map(|wire::HeldKey { tenant, key_id }| {
        Ok(HeldKey { tenant: tenant_from_wire(&tenant)?, id: KeyId(key_id) })
    });
    held.collect()
}

pub(super) fn keys_to_wire(keys: Vec<TenantKey>) -> Vec<wire::TenantKey> {
    let keys = keys.into_iter().map(|TenantKey { tenant, key }| wire::TenantKey {
        tenant: tenant.into(),
        key: key.expose().to_vec().into(),
    });
    keys.collect()
}

pub(super) fn keys_from_wire(raw: Vec<wire::TenantKey>) -> Result<Vec<TenantKey>, WireError> {
    bounded(raw.len())?;
    let keys = raw.into_iter().map(|wire::TenantKey { tenant, key }| {
        let key = key[..].try_into().map_err(|_length| WireError::invalid("keys.key", "not 32 bytes"))?;
        Ok(TenantKey { tenant: tenant_from_wire(&tenant)?, key: DomainKey::from_bytes(key) })
    });
    keys.collect()
}

pub(super) fn tenants_from_wire(raw: &[String]) -> Result<Vec<TenantName>, WireError> {
    bounded(raw.len())?;
    raw.iter().map(|tenant| tenant_from_wire(tenant)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_nothing_else_is_one() {
        let key = |byte| DomainKey::from_bytes([byte; 32]);
        let keys = ["a", "b"]
            .map(|tenant| TenantKey { tenant: tenant.parse().unwrap(), key: key(tenant.as_bytes()[0]) });
        let sent = keys_to_wire(keys.to_vec());
        assert_eq!(keys_from_wire(sent.clone()).unwrap(), keys);
        let wrong = |change: fn(&mut wire::TenantKey)| {
            let mut sent = sent.clone();
            change(&mut sent[1]);
            keys_from_wire(sent).unwrap_err().field
        };
        assert_eq!(wrong(|raw| raw.key = raw.key.slice(1..)), "keys.key");
        assert_eq!(wrong(|raw| raw.tenant = "B!".into()), "keys.tenant");
        assert_eq!(
            keys_from_wire(vec![sent[0].clone(); NODE_TENANTS_MAX + 1]).unwrap_err().problem,
            "too many"
        );
    }

    #[test]
    fn a_key_is_never_printed() {
        let tenant: TenantName = "a".parse().unwrap();
        let shown = format!("{:?}", TenantKey { tenant, key: DomainKey::from_bytes([0xab; 32]) });
        assert!(
            !shown.contains("171") && !shown.contains("ab, ab") && shown.contains("DomainKey(..)"),
            "{shown}"
        );
    }

    #[test]
    fn what_a_node_knows_comes_back() {
        let held = HeldKey { tenant: "a".parse().unwrap(), id: KeyId(7) };
        assert_eq!(held_from_wire(vec![held.clone().into()]).unwrap(), [held]);
        let raw = wire::HeldKey { tenant: String::new(), key_id: 7 };
        assert_eq!(held_from_wire(vec![raw]).unwrap_err().field, "keys.tenant");
        assert_eq!(tenants_from_wire(&["a".into(), String::new()]).unwrap_err().field, "keys.tenant");
    }
}
