//! Who speaks.
//!
//! A cluster has one certificate authority ([`authority`]). Each certificate names its holder as a SPIFFE ID,
//! `spiffe://CLUSTER/ROLE/NAME`, in its only URI name ([`identity`]); host names and addresses mean nothing, so a node
//! may move. Both ends of every connection show one ([`security`]), TLS 1.3 only, and what a holder may call is one
//! table ([`access`]), kept by [`guard`]: what is not in it nobody may call.
//!
//! Callers from outside have tokens instead; what they are shown comes from an authority of theirs ([`web`]).
//!
//! Lifetimes: an authority lives ten years, a certificate 90 days unless asked otherwise. Both begin five minutes
//! early, for clocks that differ. Files are read again when they change ([`credentials`]); a connection that is open
//! lives on with what was shown when it began. Nothing is ever resumed: every connection shows its certificates anew.
#![forbid(unsafe_code)]

pub mod access;
pub mod authority;
pub mod certificate;
pub mod credentials;
pub mod folder;
mod fresh;
pub mod guard;
pub mod identity;
pub mod security;
mod verify;
pub mod web;
