//! Bearer tokens for callers of the HTTP gateway: who may invoke which functions; and for operators, who look at the page and invoke nothing.
//!
//! A token is `medes_NAME_SECRET`. Of the secret only a hash is kept; it has 256 random bits, so nobody finds it by
//! trying. As soon as there is a token every caller needs one; while there is none, only where others than this machine
//! cannot come in, or where everything is plain, is nobody asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use medes_proto::{
    ids::{FunctionName, TokenName},
    limits::TOKENS_MAX,
};

const PREFIX: &str = "medes_";
const SECRET_BYTES: usize = 32;

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Of its secret. Comparing hashes of this type takes the same time wherever they differ.
    pub hash: blake3::Hash,
    /// What its holder may invoke; `None`: everything.
    pub functions: Option<BTreeSet<FunctionName>>,
    /// Its holder may look at the page, and may invoke nothing.
    pub operator: bool,
    /// To the second.
    pub created: SystemTime,
}

/// Why a caller is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It shows none.
    #[error("a token is needed: authorization: Bearer TOKEN")]
    Missing,
    /// There is no such token (any more).
    #[error("the token is not good")]
    Unknown,
    /// It is for other functions.
    #[error("the token is not for this function")]
    OtherFunction,
    /// It is for functions, not for people who operate the cluster.
    #[error("the token is not an operator's")]
    NotOperator,
}

/// A token that cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddTokenError {
    /// There is one of this name.
    #[error("there is a token of this name")]
    Exists,
    /// There are enough.
    #[error("there are {TOKENS_MAX} tokens")]
    Full,
}

/// What a caller of the gateway has shown, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Nobody was asked: what it shows is the function's business.
    Unasked,
    /// By its token, which is nobody else's business.
    ByToken,
}

/// All tokens.
#[derive(Debug)]
pub struct Tokens {
    /// Whether callers are let through while there is no token.
    open: bool,
    all: RwLock<BTreeMap<TokenName, Token>>,
}

/// A new secret: the token as its holder shows it, and what is kept of it.
pub fn make(name: &TokenName) -> io::Result<(String, blake3::Hash)> {
    let mut secret = [0; SECRET_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("{PREFIX}{name}_{text}"), blake3::hash(text.as_bytes())))
}

impl Tokens {
    /// These. `open`: whether callers are let through while there is none.
    pub fn new(open: bool, all: impl IntoIterator<Item = (TokenName, Token)>) -> Self {
        Self { open, all: RwLock::new(all.into_iter().collect()) }
    }

    /// Whether a caller that shows this may invoke a function. `shown`: the value of the header `authorization`.
    pub fn admit(&self, shown: Option<&[u8]>, function: &FunctionName) -> Result<Admitted, Denied> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        if self.open && all.values().all(|token| token.operator) {
            return Ok(Admitted::Unasked);
        }
        let known = shown_one(&all, shown)?;
        match &known.functions {
            _ if known.operator => Err(Denied::OtherFunction),
            Some(functions) if !functions.contains(function) => Err(Denied::OtherFunction),
            _ => Ok(Admitted::ByToken),
        }
    }

    /// Whether somebody who shows this may look at the page. `open`: while there is no operator's token nobody is asked.
    pub fn look(&self, shown: Option<&[u8]>, open: bool) -> Result<Admitted, Denied> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        if open && !all.values().any(|token| token.operator) {
            return Ok(Admitted::Unasked);
        }
        if shown_one(&all, shown)?.operator { Ok(Admitted::ByToken) } else { Err(Denied::NotOperator) }
    }

    /// Whether a token of this name may be added.
    pub fn may_add(&self, name: &TokenName) -> Result<(), AddTokenError> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        match all.contains_key(name) {
            true => Err(AddTokenError::Exists),
            false if all.len() >= TOKENS_MAX => Err(AddTokenError::Full),
            false => Ok(()),
        }
    }

    /// From now on it is good.
    pub fn add(&self, name: TokenName, token: Token) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(name, token);
    }

    /// From now on it is not.
    pub fn revoke(&self, name: &TokenName) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<(TokenName, Token)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, token)| (name.clone(), token.clone())).collect()
    }
}

/// The token that is shown. `shown`: the value of the header `authorization`.
fn shown_one<'t>(all: &'t BTreeMap<TokenName, Token>, shown: Option<&[u8]>) -> Result<&'t Token, Denied> {
    let shown = std::str::from_utf8(shown.ok_or(Denied::Missing)?).ok().ok_or(Denied::Unknown)?;
    let (scheme, token) = shown.split_once(' ').ok_or(Denied::Missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Denied::Missing);
    }
    let parts = token.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once('_'));
    let (name, secret) = parts.ok_or(Denied::Unknown)?;
    let name = name.parse::<TokenName>().ok().ok_or(Denied::Unknown)?;
    let known = all.get(&name).ok_or(Denied::Unknown)?;
    if known.hash == blake3::hash(secret.as_bytes()) { Ok(known) } else { Err(Denied::Unknown) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(open: bool, functions: &[(&str, Option<&[&str]>)]) -> (Tokens, Vec<String>) {
        let tokens = Tokens::new(open, []);
        let shown = functions.iter().map(|(name, functions)| {
            let name: TokenName = name.parse().unwrap();
            let (text, hash) = make(&name).unwrap();
            let functions = functions.map(|all| all.iter().map(|name| name.parse().unwrap()).collect());
            tokens.may_add(&name).unwrap();
            let created = SystemTime::UNIX_EPOCH;
            tokens.add(name, Token { hash, functions, operator: false, created });
            format!("Bearer {text}")
        });
        let shown = shown.collect();
        (tokens, shown)
    }

    fn admit(tokens: &Tokens, shown: &str, function: &str) -> Result<Admitted, Denied> {
        tokens.admit(Some(shown.as_bytes()), &function.parse().unwrap())
    }

    #[test]
    fn without_tokens_it_is_open_or_closed() {
        let f = "f".parse().unwrap();
        assert_eq!(tokens(true, &[]).0.admit(None, &f), Ok(Admitted::Unasked));
        assert_eq!(tokens(false, &[]).0.admit(None, &f), Err(Denied::Missing));
    }

    #[test]
    fn a_token_is_for_its_functions() {
        for open in [true, false] {
            let (tokens, shown) = tokens(open, &[("all", None), ("some", Some(&["f", "g"]))]);
            assert_eq!(tokens.admit(None, &"f".parse().unwrap()), Err(Denied::Missing));
            assert_eq!(admit(&tokens, &shown[0], "h"), Ok(Admitted::ByToken));
            assert_eq!(admit(&tokens, &shown[1], "f"), Ok(Admitted::ByToken));
            assert_eq!(admit(&tokens, &shown[1], "h"), Err(Denied::OtherFunction));
        }
    }

    #[test]
    fn a_revoked_token_is_none_and_the_last_one_opens_nothing_that_was_closed() {
        let (tokens, shown) = tokens(false, &[("a", None)]);
        tokens.revoke(&"a".parse().unwrap());
        assert_eq!(admit(&tokens, &shown[0], "f"), Err(Denied::Unknown));
        assert!(tokens.list().is_empty());
    }

    #[test]
    fn what_is_nearly_a_token_is_none() {
        let (tokens, shown) = tokens(true, &[("a", None), ("b", None)]);
        let (good, other) = (&shown[0], shown[1].rsplit_once('_').unwrap().1);
        let cut = &good[..good.len() - 1];
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer medes_",
            "Bearer medes_a_",
            "Bearer medes_c_00",
            "Basic YTpi",
            cut,
            &format!("{good}0"),
            &format!("Bearer medes_a_{other}"),
            &good.to_uppercase(),
            &good.replace("medes_", ""),
        ] {
            assert!(admit(&tokens, bad, "f").is_err(), "{bad}");
        }
        assert!(tokens.admit(Some(&[0xff; 80]), &"f".parse().unwrap()).is_err());
        assert!(admit(&tokens, &good.replace("Bearer", "bearer"), "f").is_ok());
    }

    #[test]
    fn an_operator_looks_and_invokes_nothing_and_nobody_else_looks() {
        let f = "f".parse().unwrap();
        let (tokens, shown) = tokens(true, &[]);
        assert!(shown.is_empty());
        assert_eq!(tokens.look(None, true), Ok(Admitted::Unasked));
        assert_eq!(tokens.look(None, false), Err(Denied::Missing));
        let make_one = |name: &str, operator| {
            let name: TokenName = name.parse().unwrap();
            let (text, hash) = make(&name).unwrap();
            tokens.add(name, Token { hash, functions: None, operator, created: SystemTime::UNIX_EPOCH });
            format!("Bearer {text}").into_bytes()
        };
        let operator = make_one("anna", true);
        // As soon as there is an operator's token operators need one; callers do not for that.
        for open in [true, false] {
            assert_eq!(tokens.look(None, open), Err(Denied::Missing));
            assert_eq!(tokens.look(Some(&operator), open), Ok(Admitted::ByToken));
        }
        assert_eq!(tokens.admit(None, &f), Ok(Admitted::Unasked));
        let caller = make_one("shop", false);
        assert_eq!(tokens.look(Some(&caller), true), Err(Denied::NotOperator));
        assert_eq!(tokens.admit(Some(&operator), &f), Err(Denied::OtherFunction));
        assert_eq!(tokens.admit(Some(&caller), &f), Ok(Admitted::ByToken));
        tokens.revoke(&"anna".parse().unwrap());
        assert_eq!(tokens.look(Some(&operator), false), Err(Denied::Unknown));
    }

    #[test]
    fn names_are_there_once() {
        let (tokens, _) = tokens(true, &[("a", None)]);
        assert_eq!(tokens.may_add(&"a".parse().unwrap()), Err(AddTokenError::Exists));
    }
}
