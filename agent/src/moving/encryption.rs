//! Bytes of a sandbox on their way to another node: encrypted part by part, for one sandbox, one reader and one question of it.
//!
//! The key is the tenant's, with what both ends drew for this one answer: the sender's salt, so that no key is used twice, and the reader's
//! challenge, so that nothing that was sent earlier answers it. Parts are those of STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, "Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance"): the nonce is where a part stands, and whether it is the last one. So a
//! part that was changed, left out, doubled or moved does not open, nor does an end that comes too early, nor what was meant for somebody else.

use std::fmt;

use bytes::{Bytes, BytesMut};
use medes_dedup::key::{Challenge, DomainKey, Salt};
use medes_proto::{
    ids::FunctionName,
    moving::{EncryptedPart, ImageRequest},
};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{self, SystemRandom},
};

/// Where the position of a part begins in its nonce. The last byte says whether it is the last part.
const POSITION_AT: usize = NONCE_LEN - 5;

/// Why something cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncryptError {
    /// The kernel gave no random bytes.
    #[error("draw a salt")]
    Salt,
    /// There is no such key.
    #[error("make a key")]
    Key,
    /// More parts than there are nonces, or more bytes than the cipher takes.
    #[error("encrypt part {position}: that is too much")]
    TooMuch {
        /// Which.
        position: u32,
    },
}

/// Why what comes is not taken for what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// There is no such key.
    #[error("make a key")]
    Key,
    /// Changed, left out, doubled or moved; or of another tenant, function, sandbox or question, or for another node.
    #[error("part {position} is not what was sent here")]
    Forged {
        /// Where it should stand.
        position: u32,
    },
    /// The last part did not come.
    #[error("it ends after {parts} parts, and none of them was the last one")]
    Truncated {
        /// How many came.
        parts: u32,
    },
    /// Something follows the last part.
    #[error("something follows its last part")]
    AfterLast,
    /// More parts than there are nonces.
    #[error("it has too many parts")]
    TooMany,
}

/// Draws a challenge. `None` if the kernel gives no random bytes.
pub fn challenge() -> Option<Challenge> {
    random().map(Challenge)
}

fn random() -> Option<[u8; 32]> {
    rand::generate(&SystemRandom::new()).ok().map(rand::Random::expose)
}

/// What both ends have.
struct Cipher {
    key: LessSafeKey,
    /// Whose it is and whose it will be: every part is bound to it.
    about: Vec<u8>,
    position: u32,
}

impl Cipher {
    /// `None` if there is no such key.
    fn new(key: &DomainKey, function: &FunctionName, salt: &Salt, request: &ImageRequest) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &key.transfer_key(salt, &request.challenge)).ok()?;
        let (sandbox, to) = (request.offered.sandbox.get().to_le_bytes(), request.offered.to.as_str());
        // No name has a zero byte: the first one ends where it says.
        let about = [&sandbox, to.as_bytes(), &[0], function.as_str().as_bytes()].concat();
        Some(Self { key: LessSafeKey::new(key), about, position: 0 })
    }

    /// Never twice the same: a key has one stream, which has each position once.
    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[POSITION_AT..NONCE_LEN - 1].copy_from_slice(&self.position.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(last);
        Nonce::assume_unique_for_key(nonce)
    }

    fn about(&self) -> Aad<&[u8]> {
        Aad::from(&self.about)
    }
}

/// The sending end.
pub struct Encryptor(Cipher);

impl Encryptor {
    /// For one answer, and the salt that it begins with.
    pub fn new(
        key: &DomainKey,
        function: &FunctionName,
        request: &ImageRequest,
    ) -> Result<(Self, Salt), EncryptError> {
        let salt = random().map(Salt).ok_or(EncryptError::Salt)?;
        let cipher = Cipher::new(key, function, &salt, request).ok_or(EncryptError::Key)?;
        Ok((Self(cipher), salt))
    }

    /// The next part.
    pub fn encrypt(&mut self, plain: &[u8], last: bool) -> Result<EncryptedPart, EncryptError> {
        let cipher = &mut self.0;
        let too_much = EncryptError::TooMuch { position: cipher.position };
        let next = cipher.position.checked_add(1).ok_or(too_much)?;
        let mut bytes = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
        bytes.extend_from_slice(plain);
        let sealed = cipher.key.seal_in_place_append_tag(cipher.nonce(last), cipher.about(), &mut bytes);
        sealed.map_err(|ring::error::Unspecified| too_much)?;
        cipher.position = next;
        Ok(EncryptedPart { bytes: bytes.into(), last })
    }
}

/// The reading end. What it gives out was sent, exactly so, up to there.
pub struct Decryptor {
    cipher: Cipher,
    over: bool,
}

impl Decryptor {
    /// Of the answer to `request` that begins with `salt`.
    pub fn new(
        key: &DomainKey,
        function: &FunctionName,
        salt: &Salt,
        request: &ImageRequest,
    ) -> Result<Self, DecryptError> {
        let cipher = Cipher::new(key, function, salt, request).ok_or(DecryptError::Key)?;
        Ok(Self { cipher, over: false })
    }

    /// The next part as it was before it was encrypted.
    pub fn decrypt(&mut self, part: EncryptedPart) -> Result<Bytes, DecryptError> {
        if self.over {
            return Err(DecryptError::AfterLast);
        }
        let (cipher, EncryptedPart { bytes, last }) = (&mut self.cipher, part);
        let next = cipher.position.checked_add(1).ok_or(DecryptError::TooMany)?;
        // It came over the network, so nobody else has these bytes and they are not copied.
        let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let opened = cipher.key.open_in_place(cipher.nonce(last), cipher.about(), &mut bytes);
        let forged = |ring::error::Unspecified| DecryptError::Forged { position: cipher.position };
        let plain_bytes = opened.map_err(forged)?.len();
        bytes.truncate(plain_bytes);
        (cipher.position, self.over) = (next, last);
        Ok(bytes.freeze())
    }

    /// Nothing more comes.
    pub fn finish(&self) -> Result<(), DecryptError> {
        if self.over { Ok(()) } else { Err(DecryptError::Truncated { parts: self.cipher.position }) }
    }
}

/// Never prints the key, nor what was bound to it.
impl fmt::Debug for Encryptor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Encryptor(at part {})", self.0.position)
    }
}

/// The same.
impl fmt::Debug for Decryptor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Decryptor(at part {})", self.cipher.position)
    }
}

#[cfg(test)]
mod tests;
