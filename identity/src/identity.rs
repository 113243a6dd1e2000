//! The name of a holder: cluster, role, name.

use std::{fmt, str::FromStr};

use medes_proto::ids::{ClusterName, HolderName, NameError};
use serde::{Deserialize, Serialize};

/// What a holder is there for. What it may call is in [`access`](crate::access).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The controller of the cluster.
    Controller,
    /// The agent of the node of the same name.
    Agent,
    /// A person or program that runs the cluster.
    Operator,
    /// A person or program that may invoke functions, and nothing else.
    Invoker,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Controller, Self::Agent, Self::Operator, Self::Invoker];

    /// As certificates and people spell it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Invoker => "invoker",
        }
    }

    /// Whether others connect to it.
    pub const fn serves(self) -> bool {
        matches!(self, Self::Controller | Self::Agent)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.word())
    }
}

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: controller, agent, operator or invoker")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let role = Self::ALL.into_iter().find(|role| role.word() == text);
        role.ok_or_else(|| RoleError(text.chars().take(64).collect()))
    }
}

/// Who a certificate is for. Reads and prints as `spiffe://CLUSTER/ROLE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Whose authority signed it.
    pub cluster: ClusterName,
    /// What it is there for.
    pub role: Role,
    /// Which one of these it is.
    pub name: HolderName,
}

/// Text that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Other than `spiffe://CLUSTER/ROLE/NAME`.
    #[error("{0:?} is not spiffe://CLUSTER/ROLE/NAME")]
    Form(String),
    /// Its role.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// Its cluster or name.
    #[error(transparent)]
    Name(#[from] NameError),
}

pub(crate) const SCHEME: &str = "spiffe://";

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, role, name } = self;
        write!(out, "{SCHEME}{cluster}/{role}/{name}")
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(text.chars().take(256).collect());
        let mut parts = text.strip_prefix(SCHEME).ok_or_else(form)?.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(cluster), Some(role), Some(name), None) => {
                Ok(Self { cluster: cluster.parse()?, role: role.parse()?, name: name.parse()? })
            }
            _ => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_as_it_prints() {
        for role in Role::ALL {
            let text = format!("spiffe://main/{role}/node-1");
            let identity: Identity = text.parse().unwrap();
            assert_eq!((identity.role, identity.to_string()), (role, text));
        }
    }

    #[test]
    fn what_names_nobody_is_refused() {
        let long = format!("spiffe://main/agent/{}", "a".repeat(64));
        for text in [
            "",
            "main/agent/a",
            "http://main/agent/a",
            "SPIFFE://main/agent/a",
            "spiffe://main/agent",
            "spiffe://main/agent/",
            "spiffe://main//a",
            "spiffe:///agent/a",
            "spiffe://main/agent/a/",
            "spiffe://main/agent/a/b",
            "spiffe://main/agent/..",
            "spiffe://main/agent/a?b",
            "spiffe://main/agent/a%2fb",
            "spiffe://main:80/agent/a",
            "spiffe://me@main/agent/a",
            "spiffe://main/Agent/a",
            "spiffe://main/king/a",
            &long,
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
