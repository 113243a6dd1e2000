//! Names and numbers that mean one thing each.

use std::{fmt, num::NonZeroU64, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::WireError;
pub use medes_dedup::page::SnapshotId;

/// A sandbox, unique in a cluster for ever: the controller's incarnation in the upper half, a counter in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SandboxId(NonZeroU64);

impl SandboxId {
    /// `None` for zero.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The `counter`-th sandbox of a controller's life. `None` when both are zero.
    pub const fn of(incarnation: u32, counter: u32) -> Option<Self> {
        Self::new((incarnation as u64) << 32 | counter as u64)
    }

    /// The number, as messages carry it.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Checked conversion of a wire field.
    pub fn from_wire(raw: u64, field: &'static str) -> Result<Self, WireError> {
        Self::new(raw).ok_or(WireError::invalid(field, "zero"))
    }
}

/// As people read and type it: `sb-3-17`.
impl fmt::Display for SandboxId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sb-{}-{}", self.0.get() >> 32, self.0.get() & u64::from(u32::MAX))
    }
}

/// Text that is not a sandbox's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a sandbox (they look like sb-1-17)")]
pub struct ParseSandboxIdError(String);

impl FromStr for SandboxId {
    type Err = ParseSandboxIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (incarnation, counter) = text.strip_prefix("sb-")?.split_once('-')?;
            Self::of(incarnation.parse().ok()?, counter.parse().ok()?)
        };
        parse().ok_or_else(|| ParseSandboxIdError(text.chars().take(64).collect()))
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for SandboxId {
    type Error = ParseSandboxIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Checked conversion of a wire field that names a base snapshot.
pub fn snapshot_from_wire(raw: u64, field: &'static str) -> Result<SnapshotId, WireError> {
    SnapshotId::new(raw).ok_or(WireError::invalid(field, "zero"))
}

/// A name that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?}: {rule}")]
pub struct NameError {
    /// What was to be named.
    pub what: &'static str,
    /// The text, cut to 64 characters.
    pub name: String,
    /// What such a name is made of.
    pub rule: &'static str,
}

/// Which texts are names. All of them are safe in paths, headers and labels.
enum Rule {
    /// One word.
    Word,
    /// What hosts are called: words with dots between them (RFC 1123, as Kubernetes names nodes). With `-key.pem` it still is the name
    /// of a file.
    Host,
}

impl Rule {
    const fn text(&self) -> &'static str {
        match self {
            Self::Word => "a name is 1 to 63 of a-z, 0-9 and '-', and begins with a letter or digit",
            Self::Host => {
                "a name is 1 to 200 of a-z, 0-9, '-' and '.', and begins with a letter or digit, also after each dot"
            }
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Word => is_word(text),
            Self::Host => text.len() <= 200 && text.split('.').all(is_word),
        }
    }
}

fn is_word(text: &str) -> bool {
    let first_ok = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest_ok = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    text.len() <= 63 && first_ok && rest_ok
}

fn check_name(what: &'static str, rule: &Rule, text: &str) -> Result<Arc<str>, NameError> {
    if rule.fits(text) {
        Ok(text.into())
    } else {
        Err(NameError { what, name: text.chars().take(64).collect(), rule: rule.text() })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name($what, &$rule, text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
    };
}

name_type!(
    /// A node: one agent and its sandboxes.
    NodeId,
    "node",
    Rule::Host
);
name_type!(
    /// A function, as its file names it.
    FunctionName,
    "function",
    Rule::Word
);
name_type!(
    /// Whose function it is. Pages are never shared between tenants.
    TenantName,
    "tenant",
    Rule::Word
);

name_type!(
    /// A cluster: everything that one certificate authority speaks for.
    ClusterName,
    "cluster",
    Rule::Word
);
name_type!(
    /// Who a certificate is for, within its role: a node, a person, a program.
    HolderName,
    "holder",
    Rule::Host
);

name_type!(
    /// A bearer token, in lists; what it is nobody is told twice.
    TokenName,
    "token",
    Rule::Word
);

/// A command of a controller to an agent; unique within one controller's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// An agent's certificate has the name of its node.
impl From<&NodeId> for HolderName {
    fn from(node: &NodeId) -> Self {
        Self(Arc::clone(&node.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_id_reads_as_it_prints() {
        let id = SandboxId::of(3, 17).unwrap();
        assert_eq!(id.to_string(), "sb-3-17");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "sb-", "sb-1", "sb--1", "3-17", "sb-1-99999999999", "sb-0-0"] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_safe_in_paths_and_headers() {
        for good in ["a", "model-serve", "0x"] {
            assert!(good.parse::<FunctionName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
        assert!("a.b".parse::<FunctionName>().is_err());
    }

    #[test]
    fn nodes_are_called_what_hosts_are_called() {
        let long = ["a".repeat(60).as_str(); 3].join(".");
        for good in ["n1", "ip-10-0-3-7.eu-central-1.compute.internal", &long] {
            let node: NodeId = good.parse().unwrap();
            assert_eq!(HolderName::from(&node).as_str().parse(), Ok(node));
        }
        for bad in [".", "a.", ".a", "a..b", "a.-b", "a.B", &["a".repeat(60).as_str(); 4].join(".")] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
            assert!(bad.parse::<HolderName>().is_err(), "{bad}");
        }
        let error = "A".parse::<NodeId>().unwrap_err().to_string();
        assert!(error.contains("200"), "{error}");
    }
}
