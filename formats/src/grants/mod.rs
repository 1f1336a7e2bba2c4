//! Grants: signed tokens that say who may have which file (JWT, RFC 7519, in JWS compact serialization, RFC 7515).
//!
//! A token names one user and one file, is valid for a bounded time, and can be used once. The keys that may sign
//! tokens come by the handshake as a JWK set (GRANT_KEYS). Each key has one algorithm, and a token may name no other:
//! nothing in a token decides how it is checked (RFC 8725, 3.1).

mod date;
#[cfg(test)]
mod tests;

use std::fmt;

use base64_simd::URL_SAFE_NO_PAD;
use ring::error::Unspecified;
use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::date::NumericDate;
use crate::base64;
use crate::digest::{Sha256, sha256};
use crate::hpke::PublicKey;
use crate::json::{self, Text, string};
use crate::jwks::{GrantKey, GrantKeys, Kind};
use crate::time::Utc;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 4096;
/// Longest time that a token may still be valid, in seconds: a used token is remembered for that long.
pub const MAX_LIFE: u64 = 24 * 3600;
/// Seconds by which the issuer's clock may differ (RFC 7519, 4.1.4).
const LEEWAY: u64 = 10;

/// A token whose signature, audience and times have been checked.
#[derive(Debug)]
pub struct Grant {
    /// The user that may have the file: `sub`.
    pub user_id: String,
    /// The file's id.
    pub file_id: String,
    /// SHA-256 of the encrypted file. Without one, any file that opens under this id will do.
    pub content_sha256: Option<Sha256>,
    /// The key that the answer must be sealed to. Without one, whoever holds the token chooses.
    pub reply_key: Option<PublicKey>,
    /// Tells whether the grant was used before.
    pub id: Id,
    /// Its name among the grants of its issuer.
    pub jti: String,
    /// Which of the keys signed it.
    pub key: usize,
    /// Which of the accepted audiences it is for: the first of them that it names.
    pub audience: usize,
    /// From when on it is valid, by the fastest clock, in seconds since 1970.
    pub begins: u64,
    /// When it has expired by any clock, in seconds since 1970.
    pub ends: u64,
}

/// The time by which grants are judged. A clock may be set back, and then a grant that was used up, expired and was
/// forgotten would be valid again: so none is valid past the latest time that the clock ever showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The clock's time. A grant that begins later is not valid yet.
    pub clock: Utc,
    /// The latest time that it ever showed. A grant that ends before has expired.
    pub latest: Utc,
}

/// The claims of a new grant (RFC 7519, 4.1, and three of teemark's own).
#[derive(Clone, Debug, Serialize)]
pub struct NewClaims<'a> {
    sub: &'a str,
    file_id: &'a str,
    aud: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_sha256: Option<Sha256>,
}

/// What a new grant is to say.
#[derive(Clone, Copy, Debug)]
pub struct NewGrant<'a> {
    /// The user that may have the file.
    pub user_id: &'a str,
    /// The file's id.
    pub file_id: &'a str,
    /// Where it is valid: a fleet's name, or one enclave's identity key in hex.
    pub audience: &'a str,
    /// From when it is valid, by the issuer's clock.
    pub from: Utc,
    /// Seconds until it expires, at most [`MAX_LIFE`].
    pub valid: u64,
    /// Random bits that make it unique.
    pub jti: [u8; 16],
    /// The key that the answer must be sealed to, if any.
    pub reply_key: Option<PublicKey>,
    /// SHA-256 of the only encrypted file that it is for, if any.
    pub content_sha256: Option<Sha256>,
}

impl<'a> NewGrant<'a> {
    /// The claims to be signed.
    pub fn claims(&self) -> NewClaims<'a> {
        let Utc(now) = self.from;
        NewClaims {
            sub: self.user_id,
            file_id: self.file_id,
            aud: self.audience,
            iat: now,
            nbf: now,
            exp: now.saturating_add(self.valid),
            jti: URL_SAFE_NO_PAD.encode_to_string(self.jti),
            reply_key: self.reply_key.map(base64::encode),
            content_sha256: self.content_sha256,
        }
    }
}

/// A key that signs grants. Its kind decides the algorithm.
pub struct Issuer {
    key: SigningKey,
    public: GrantKey,
}

enum SigningKey {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

#[derive(Serialize)]
struct NewHeader<'a> {
    alg: &'a str,
    kid: &'a str,
    typ: &'a str,
}

impl From<Ed25519KeyPair> for Issuer {
    fn from(key: Ed25519KeyPair) -> Issuer {
        let public = GrantKey::new(Kind::Ed25519, key.public_key().as_ref().to_vec());
        Issuer { key: SigningKey::Ed25519(key), public }
    }
}

impl From<EcdsaKeyPair> for Issuer {
    /// Takes a P-256 key for ES256 with signatures of fixed length.
    fn from(key: EcdsaKeyPair) -> Issuer {
        let public = GrantKey::new(Kind::P256, key.public_key().as_ref().to_vec());
        Issuer { key: SigningKey::P256(key), public }
    }
}

impl Issuer {
    /// The public half, for GRANT_KEYS.
    pub fn public(&self) -> &GrantKey {
        &self.public
    }

    /// Signs these claims (JWS compact serialization, RFC 7515, 7.1).
    ///
    /// # Errors
    /// The system gave no random numbers, which ES256 needs.
    pub fn sign(&self, claims: &NewClaims<'_>) -> Result<String, Unspecified> {
        let header = NewHeader { alg: self.public.kind.alg(), kid: &self.public.kid, typ: "JWT" };
        let signed = part(&header) + "." + &part(claims);
        let signature = match &self.key {
            SigningKey::Ed25519(key) => key.sign(signed.as_bytes()),
            SigningKey::P256(key) => key.sign(&SystemRandom::new(), signed.as_bytes())?,
        };
        Ok(signed + "." + &URL_SAFE_NO_PAD.encode_to_string(signature))
    }
}

fn part(value: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode_to_string(serde_json::to_vec(value).expect("texts and numbers are JSON"))
}

/// Whether the text has the form of a token: three parts in base64url, of at most [`MAX_TOKEN`] bytes in all.
pub fn is_token(text: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && URL_SAFE_NO_PAD.decode_to_vec(part).is_ok();
    text.len() <= MAX_TOKEN && text.split('.').count() == 3 && text.split('.').all(is_part)
}

/// Whether a token, which is not checked here, asks for the answer to be sealed to a key that it names.
pub fn names_reply_key(token: &str) -> bool {
    let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode_to_vec(claims).ok());
    claims.is_some_and(|claims| json::object::<Claims>(&claims).is_ok_and(|claims| claims.reply_key.is_some()))
}

/// Identifies a grant: half of the SHA-256 of the key's id and the jti, which is unique only within its issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id([u8; 16]);

impl Id {
    /// The id of the grant that this key signed with this jti.
    pub fn of(kid: &str, jti: &str) -> Id {
        let hash = sha256(&[&(kid.len() as u64).to_be_bytes(), kid.as_bytes(), jti.as_bytes()].concat());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        Id(id)
    }
}

/// Why a request is not entitled to its file.
#[derive(Debug, PartialEq, Eq)]
pub enum GrantError {
    /// There is no token.
    Missing,
    /// Not a JWT, from an unknown issuer, for another audience, and the like: the reason.
    Invalid(&'static str),
    /// Its exp has passed.
    Expired,
    /// Its nbf is still to come.
    NotYetValid,
    /// It is for another file_id.
    OtherFile,
    /// It is for another user_id.
    OtherUser,
    /// Another file was sent under the right id.
    OtherContent,
    /// The request names another reply key than the token does.
    OtherKey,
    /// It is in use or used up.
    Used,
    /// No more used tokens can be remembered.
    Full,
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GrantError::Missing => "no grant: send one as Authorization: Bearer",
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

/// A JWS header (RFC 7515, 4.1). serde refuses repeated members, here and in the claims.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Option<Text<'a>>,
    #[serde(borrow)]
    kid: Option<Text<'a>>,
    #[serde(default, deserialize_with = "json::deny_null")]
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
    #[serde(borrow, default, deserialize_with = "json::deny_null")]
    reply_key: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "json::deny_null")]
    content_sha256: Option<Text<'a>>,
    #[serde(borrow)]
    exp: Option<&'a RawValue>,
    #[serde(borrow)]
    nbf: Option<&'a RawValue>,
}

impl GrantKeys {
    /// Checks a token as of `now`. Its audience must be one of `audiences`.
    ///
    /// # Errors
    /// Why the token is refused.
    pub fn check(&self, token: &str, audiences: &[String], now: Now) -> Result<Grant, GrantError> {
        let invalid = GrantError::Invalid;
        if token.len() > MAX_TOKEN {
            return Err(invalid("it is over 4 KiB"));
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode_to_vec(part).map_err(|_| invalid("it is not a JWT"));
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
        let (index, key) = self.find(&kid).ok_or(invalid("no key in GRANT_KEYS has its kid"))?;
        if !header.alg.is_some_and(|alg| key.is_for(&alg)) {
            return Err(invalid("its alg does not match its key"));
        }
        if !key.verifies(signed, &signature) {
            return Err(invalid("its signature is wrong"));
        }
        let claims: Claims = json::object(&claims).map_err(|_| invalid("its claims cannot be read"))?;
        claims.check((index, &kid), audiences, now)
    }
}

impl Claims<'_> {
    fn check(self, (key, kid): (usize, &str), audiences: &[String], now: Now) -> Result<Grant, GrantError> {
        let invalid = GrantError::Invalid;
        let exp = NumericDate::read(self.exp.ok_or(invalid("it has no exp"))?);
        let nbf = NumericDate::read(self.nbf.ok_or(invalid("it has no nbf"))?);
        // Rounded so that a token is never valid for longer than it says.
        let exp = exp.ok_or(invalid("its exp is not a number of seconds since 1970"))?.down();
        let nbf = nbf.ok_or(invalid("its nbf is not a number of seconds since 1970"))?.up();
        let jti = self.jti.filter(|jti| !jti.is_empty()).ok_or(invalid("it has no jti"))?;
        let user_id = self.sub.ok_or(invalid("it has no sub"))?;
        let file_id = self.file_id.ok_or(invalid("it has no file_id"))?;
        let aud = self.aud.ok_or(invalid("it has no aud"))?;
        let audience = audience(aud, audiences);
        let audience = audience.ok_or(GrantError::Invalid("it is for another enclave or fleet"))?;
        let (begins, ends) = (nbf.saturating_sub(LEEWAY), exp.saturating_add(LEEWAY));
        is_in_time(begins, ends, now)?;
        if exp > now.clock.0.saturating_add(MAX_LIFE + LEEWAY) {
            return Err(GrantError::Invalid("it is valid for more than a day"));
        }
        let no_key = GrantError::Invalid("its reply_key is not base64 of 32 bytes");
        let reply_key = self.reply_key.map(|key| reply_key(&key).ok_or(no_key)).transpose()?;
        let no_hash = GrantError::Invalid("its content_sha256 is not hex of 32 bytes");
        let content_sha256 = self.content_sha256.map(|text| Sha256::from_hex(&text).ok_or(no_hash)).transpose()?;
        let id = Id::of(kid, &jti);
        let [user_id, file_id, jti] = [user_id, file_id, jti].map(|text| text.0.into_owned());
        Ok(Grant { user_id, file_id, content_sha256, reply_key, id, jti, key, audience, begins, ends })
    }
}

fn is_in_time(begins: u64, ends: u64, now: Now) -> Result<(), GrantError> {
    if ends <= now.latest.0 {
        Err(GrantError::Expired)
    } else if begins > now.clock.0 {
        Err(GrantError::NotYetValid)
    } else {
        Ok(())
    }
}

/// Which of these an aud claim, a string or a list of strings (RFC 7519, 4.1.3), names first.
fn audience(aud: &RawValue, audiences: &[String]) -> Option<usize> {
    let known = |name: &str| audiences.iter().position(|audience| audience == name);
    match string(aud) {
        Some(name) => known(&name),
        None => serde_json::from_str::<Vec<Text>>(aud.get()).ok()?.iter().find_map(|name| known(name)),
    }
}

/// Parses a reply key: base64 of an X25519 public key, in the standard or the URL alphabet. `None` also for a key that
/// nothing can be sealed to.
pub fn reply_key(text: &str) -> Option<PublicKey> {
    let bytes = base64::decode(text).or_else(|| URL_SAFE_NO_PAD.decode_to_vec(text).ok())?;
    PublicKey::from_bytes(bytes.try_into().ok()?)
}

impl Grant {
    /// Identifies the user: the beginning of the user id's SHA-256.
    pub fn owner(&self) -> u64 {
        sha256(self.user_id.as_bytes()).as_bytes()[..8].iter().fold(0, |owner, byte| owner << 8 | u64::from(*byte))
    }

    /// Checks that the grant, which was valid before, still is as of `now`, if its key is still in force.
    ///
    /// # Errors
    /// It has expired, or is not valid yet by a clock that was set back.
    pub fn still_valid(&self, now: Now) -> Result<(), GrantError> {
        is_in_time(self.begins, self.ends, now)
    }

    /// Checks that the grant is for this file id and this user.
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

    /// Checks that the grant is for the encrypted file with this SHA-256.
    ///
    /// # Errors
    /// It is for another one.
    pub fn covers_content(&self, content_sha256: Sha256) -> Result<(), GrantError> {
        match self.content_sha256 {
            Some(hash) if hash != content_sha256 => Err(GrantError::OtherContent),
            _ => Ok(()),
        }
    }

    /// The key to seal the answer to: the grant's, if it names one, else the one that the request asks for.
    ///
    /// # Errors
    /// The request asks for another key than the grant names.
    pub fn seals_to(&self, asked: Option<PublicKey>) -> Result<Option<PublicKey>, GrantError> {
        match (self.reply_key, asked) {
            (Some(named), Some(asked)) if named != asked => Err(GrantError::OtherKey),
            (named, asked) => Ok(named.or(asked)),
        }
    }
}
