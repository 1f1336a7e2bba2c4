//! Grants: who may have which file, as a signed token says it (JWT, RFC 7519, as JWS compact serialization, RFC 7515).
//!
//! A token names one user and one file, lives for a bounded time, and is good once. The keys that may sign tokens come
//! by the handshake as a JWK set (GRANT_KEYS). A key is of one algorithm, and a token may name no other: nothing in a
//! token decides how it is checked (RFC 8725, 3.1).

mod date;
mod keys;
#[cfg(test)]
mod tests;
mod used;

use std::fmt;

use ::base64::Engine;
use ::base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use self::date::NumericDate;
use crate::base64;
use crate::digest::sha256;
use crate::hpke::{self, PublicKey};
use crate::json::{self, Text, string};
use crate::memory::Owner;
use crate::time::Utc;

pub use keys::{ALGORITHMS, GrantKey, GrantKeys, Kind};
pub use used::{Use, UsedGrants};

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 4096;
/// Longest life that is left to a token, in seconds: it is remembered for so long once it is used.
pub const MAX_LIFE: u64 = 24 * 3600;
/// By how many seconds the issuer's clock may differ (RFC 7519, 4.1.4).
const LEEWAY: u64 = 10;

/// A token that was checked: its signature, audience and times.
#[derive(Debug)]
pub struct Grant {
    user_id: String,
    file_id: String,
    /// SHA-256 of the encrypted file. Without one, any file that opens under this id will do.
    content_sha256: Option<[u8; 32]>,
    /// The key that the answer has to be sealed to. Without one, whoever holds the token chooses.
    reply_key: Option<PublicKey>,
    id: used::Id,
    /// When it is forgotten, in seconds since 1970.
    ends: u64,
}

/// Why a request has no right to its file.
#[derive(Debug, PartialEq, Eq)]
pub enum GrantError {
    /// There is no token.
    Missing,
    /// The token is not one, or of no issuer known, or for somebody else: what is wrong with it.
    Invalid(&'static str),
    Expired,
    NotYetValid,
    OtherFile,
    OtherUser,
    /// Another file was sent under the right id.
    OtherContent,
    /// The answer is to be sealed to another key than the token names.
    OtherKey,
    Used,
    /// As many used tokens are remembered as may be.
    Full,
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GrantError::Missing => "no grant: send Authorization: Bearer with one",
            GrantError::Invalid(reason) => return write!(f, "the grant is not valid: {reason}"),
            GrantError::Expired => "the grant has expired",
            GrantError::NotYetValid => "the grant is not valid yet",
            GrantError::OtherFile => "the grant is for another file_id",
            GrantError::OtherUser => "the grant is for another user_id",
            GrantError::OtherContent => "the grant is for another encrypted file under this file_id",
            GrantError::OtherKey => "the grant is for another reply_key",
            GrantError::Used => "the grant has been used",
            GrantError::Full => "too many grants are in use now",
        })
    }
}

/// A JWS header. serde refuses a member that stands twice, here and in the claims.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Option<Text<'a>>,
    #[serde(borrow)]
    kid: Option<Text<'a>>,
    #[serde(default, deserialize_with = "json::even_null")]
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow)]
    sub: Option<Text<'a>>,
    #[serde(borrow)]
    file_id: Option<Text<'a>>,
    #[serde(borrow)]
    jti: Option<Text<'a>>,
    #[serde(borrow)]
    aud: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "json::even_null")]
    reply_key: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "json::even_null")]
    content_sha256: Option<Text<'a>>,
    #[serde(borrow)]
    exp: Option<&'a RawValue>,
    #[serde(borrow)]
    nbf: Option<&'a RawValue>,
}

impl GrantKeys {
    /// Checks a token as of `now`. It has to be for one of `audiences`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, token: &str, audiences: &[String], now: Utc) -> Result<Grant, GrantError> {
        let invalid = GrantError::Invalid;
        if token.len() > MAX_TOKEN {
            return Err(invalid("it is over 4 KiB"));
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| invalid("it is not a JWT"));
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("it is not a JWT"));
        };
        let signed = &token.as_bytes()[..header.len() + 1 + claims.len()];
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);

        let header: Header = json::object(&header).map_err(|_| invalid("its header cannot be read"))?;
        if header.crit.is_some() {
            return Err(invalid("its header has crit"));
        }
        let kid = header.kid.ok_or(invalid("its header has no kid"))?;
        let key = self.find(&kid).ok_or(invalid("its kid is none of GRANT_KEYS"))?;
        if !header.alg.is_some_and(|alg| key.is_for(&alg)) {
            return Err(invalid("its alg is not its key's"));
        }
        if !key.verifies(signed, &signature) {
            return Err(invalid("its signature is wrong"));
        }
        let claims: Claims = json::object(&claims).map_err(|_| invalid("its claims cannot be read"))?;
        claims.check(&kid, audiences, now.0)
    }
}

impl Claims<'_> {
    fn check(self, kid: &str, audiences: &[String], now: u64) -> Result<Grant, GrantError> {
        let invalid = GrantError::Invalid;
        let exp = NumericDate::read(self.exp.ok_or(invalid("it has no exp"))?);
        let nbf = NumericDate::read(self.nbf.ok_or(invalid("it has no nbf"))?);
        // Rounded so that a token never lives for longer than it says.
        let exp = exp.ok_or(invalid("its exp is not a number of seconds since 1970"))?.down();
        let nbf = nbf.ok_or(invalid("its nbf is not a number of seconds since 1970"))?.up();
        let jti = self.jti.filter(|jti| !jti.is_empty()).ok_or(invalid("it has no jti"))?;
        let user_id = self.sub.ok_or(invalid("it has no sub"))?;
        let file_id = self.file_id.ok_or(invalid("it has no file_id"))?;
        let aud = self.aud.ok_or(invalid("it has no aud"))?;
        if !is_for(aud, audiences) {
            return Err(GrantError::Invalid("it is for another enclave or fleet"));
        }
        if exp.saturating_add(LEEWAY) <= now {
            return Err(GrantError::Expired);
        }
        if nbf > now.saturating_add(LEEWAY) {
            return Err(GrantError::NotYetValid);
        }
        if exp > now.saturating_add(MAX_LIFE + LEEWAY) {
            return Err(GrantError::Invalid("it lives for longer than a day"));
        }
        let no_key = GrantError::Invalid("its reply_key is not base64 of 32 bytes");
        let reply_key = self.reply_key.map(|key| reply_key(&key).ok_or(no_key)).transpose()?;
        let no_hash = GrantError::Invalid("its content_sha256 is not hex of 32 bytes");
        let content_sha256 = self.content_sha256.map(|text| hash(&text).ok_or(no_hash)).transpose()?;
        let (user_id, file_id) = (user_id.0.into_owned(), file_id.0.into_owned());
        Ok(Grant { user_id, file_id, content_sha256, reply_key, id: used::Id::of(kid, &jti), ends: exp + LEEWAY })
    }
}

/// Whether an aud claim, one text or a list of them (RFC 7519, 4.1.3), names one of these.
fn is_for(aud: &RawValue, audiences: &[String]) -> bool {
    let known = |name: &str| audiences.iter().any(|audience| audience == name);
    match string(aud) {
        Some(name) => known(&name),
        None => serde_json::from_str::<Vec<Text>>(aud.get()).is_ok_and(|names| names.iter().any(|name| known(name))),
    }
}

fn hash(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

/// A reply key as it is written: base64 of an X25519 public key, in the standard or the URL alphabet. `None` also for one
/// that nothing can be sealed to.
pub fn reply_key(text: &str) -> Option<PublicKey> {
    let key = base64::decode(text).or_else(|| URL_SAFE_NO_PAD.decode(text).ok())?.try_into().ok()?;
    hpke::is_usable(&key).then_some(key)
}

impl Grant {
    /// Whose it is: the beginning of its user id's SHA-256.
    pub fn owner(&self) -> Owner {
        let hash = sha256(self.user_id.as_bytes());
        hash[..8].iter().fold(0, |owner, byte| owner << 8 | Owner::from(*byte))
    }

    /// Whether it is for this file id and this user.
    ///
    /// # Errors
    /// Which of the two it is not for.
    pub fn covers(&self, file_id: &str, user_id: &str) -> Result<(), GrantError> {
        if self.file_id != file_id {
            Err(GrantError::OtherFile)
        } else if self.user_id != user_id {
            Err(GrantError::OtherUser)
        } else {
            Ok(())
        }
    }

    /// Whether it is for the encrypted file of this SHA-256.
    ///
    /// # Errors
    /// It is not.
    pub fn covers_content(&self, content_sha256: [u8; 32]) -> Result<(), GrantError> {
        match self.content_sha256 {
            Some(hash) if hash != content_sha256 => Err(GrantError::OtherContent),
            _ => Ok(()),
        }
    }

    /// The key that the answer is sealed to: the grant's, if it names one, else the one asked for.
    ///
    /// # Errors
    /// Another one is asked for than the grant names.
    pub fn seals_to(&self, asked: Option<PublicKey>) -> Result<Option<PublicKey>, GrantError> {
        match (self.reply_key, asked) {
            (Some(named), Some(asked)) if named != asked => Err(GrantError::OtherKey),
            (named, asked) => Ok(named.or(asked)),
        }
    }
}
