//! The log and the audit trail: records, numbered from the boot on and chained by hashes.
//!
//! A record is a line, `NUMBER HASH KIND BODY`. Its hash is the SHA-256 of the hash before it (32 bytes; zeros before the
//! first) and `NUMBER KIND BODY`. So a line that is cut, changed, moved or put in breaks the chain, and a [`Checkpoint`],
//! signed by the identity key, vouches for every line before it.
//!
//! On the wire a stream begins with [`hello`], and the collector answers with lines of [`Ack`]. In a sealed log, a record
//! of kind [`Kind::Key`] begins a segment: it has the segment's key, sealed by HPKE to each log key, and the records after
//! it are sealed under that key (AES-256-GCM, the number as the nonce).

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};
use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::attestation::BootNonce;
use crate::base64;
use crate::digest::Sha256;
use crate::hpke::{self, PrivateKey, PublicKey, Sender};
use crate::signature::VerifyingKey;

/// Longest line of a log, in bytes, its end included.
pub const MAX_LINE: usize = 64 << 10;
/// Longest line of a collector's answers, in bytes, its end included.
pub const MAX_ACK: usize = 256;
/// The prefix of what a checkpoint's signature is over.
pub const CHECKPOINT: &[u8] = b"teemark log checkpoint v1";
/// The prefix of what an acknowledgement's signature is over.
pub const ACK: &[u8] = b"teemark log ack v1";
/// HPKE's info of a segment's key.
pub const SEGMENT: &[u8] = b"teemark log segment v1";
/// How the first line of a stream begins.
const HELLO: &str = "teemark-log 1";

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Which boot this is: [`Boot`]. A few records of the start come before it.
    Boot,
    /// An attestation document of this boot, in base64.
    Document,
    /// A segment of sealed records begins.
    Key,
    /// A record of another kind, sealed: base64.
    Sealed,
    /// A line of the daemon.
    Log,
    /// A line of the enclave's PID 1.
    Init,
    /// A decision: an object.
    Audit,
    /// [`Checkpoint`].
    Checkpoint,
    /// [`Dropped`].
    Dropped,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Boot, "boot"),
    (Kind::Document, "document"),
    (Kind::Key, "key"),
    (Kind::Sealed, "sealed"),
    (Kind::Log, "log"),
    (Kind::Init, "init"),
    (Kind::Audit, "audit"),
    (Kind::Checkpoint, "checkpoint"),
    (Kind::Dropped, "dropped"),
];

impl Kind {
    /// The word in a line.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    fn from_name(name: &str) -> Option<Kind> {
        KINDS.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// The last record of a chain: its number and its hash. The default is that of an empty chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: Sha256,
}

impl Head {
    /// Writes the next record's line to `out`, and is the head from then on. The body has no line end in it.
    pub fn write(&mut self, kind: Kind, body: &[u8], out: &mut Vec<u8>) {
        let number = (self.number + 1).to_string();
        let rest: [&[u8]; 3] = [kind.name().as_bytes(), b" ", body];
        *self = self.after(self.number + 1, &rest);
        out.reserve(number.len() + 64 + kind.name().len() + body.len() + 4);
        let mut hash = [0; 64];
        hex::encode_to_slice(self.hash, &mut hash).expect("twice 32 bytes");
        for part in [number.as_bytes(), b" ", &hash, b" "].into_iter().chain(rest) {
            out.extend_from_slice(part);
        }
        out.push(b'\n');
    }

    /// The head after a record of this number; `rest` is `KIND BODY`.
    fn after(&self, number: u64, rest: &[&[u8]]) -> Head {
        let mut hash = Context::new(&SHA256);
        hash.update(self.hash.as_ref());
        hash.update(number.to_string().as_bytes());
        hash.update(b" ");
        rest.iter().for_each(|part| hash.update(part));
        Head { number, hash: Sha256::from_slice(hash.finish().as_ref()).expect("SHA-256 has 32 bytes") }
    }

    fn to_be_signed(self, prefix: &[u8], boot: BootNonce, rest: &[u8]) -> Vec<u8> {
        [prefix, boot.as_ref(), &self.number.to_be_bytes(), self.hash.as_ref(), rest].concat()
    }
}

/// A record's line, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number and hash, as the line gives them.
    pub head: Head,
    /// What it is.
    pub kind: Kind,
    /// Its body.
    pub body: &'a str,
    rest: &'a str,
}

impl<'a> Record<'a> {
    /// Reads a line, without its end; `None` if it is not a record's.
    pub fn parse(line: &'a [u8]) -> Option<Record<'a>> {
        let (number, rest) = str::from_utf8(line).ok()?.split_once(' ')?;
        let (hash, rest) = rest.split_once(' ')?;
        let (kind, body) = rest.split_once(' ')?;
        // So that there is always a next number.
        let number = decimal(number).filter(|number| (1..u64::MAX).contains(number))?;
        let head = Head { number, hash: lower_hex(hash)? };
        Some(Record { head, kind: Kind::from_name(kind)?, body, rest })
    }

    /// Whether it is the next one after this head, and as it was written.
    pub fn follows(&self, before: &Head) -> bool {
        self.head.number.checked_sub(1) == Some(before.number) && self.is_after(before.hash)
    }

    /// Whether its hash is the one that it has after this one.
    pub fn is_after(&self, before: Sha256) -> bool {
        self.hash_after(before) == self.head.hash
    }

    /// The hash that a record with its number and content has after this one.
    pub fn hash_after(&self, before: Sha256) -> Sha256 {
        Head { hash: before, ..Head::default() }.after(self.head.number, &[self.rest.as_bytes()]).hash
    }
}

/// A number as it is written here, in only one way.
fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn lower_hex(text: &str) -> Option<Sha256> {
    Sha256::from_hex(text).filter(|_| !text.bytes().any(|b| b.is_ascii_uppercase()))
}

/// The body of a record of kind [`Kind::Boot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// `off`, `best_effort` or `required`.
    pub audit: String,
    /// Which boot of the enclave this is.
    pub boot_nonce: BootNonce,
    /// The key that signs the checkpoints.
    pub identity: VerifyingKey,
    /// `off`, `clear` or `sealed`.
    pub log: String,
    /// The daemon's version.
    pub version: String,
}

/// The enclave's signed word on all records up to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which boot of the enclave this is.
    pub boot_nonce: BootNonce,
    /// The last of those records.
    #[serde(flatten)]
    pub head: Head,
    /// The identity key's signature, in base64, of [`Checkpoint::to_be_signed`].
    pub signature: String,
    /// When it was signed, in milliseconds since 1970.
    pub time_ms: u64,
}

impl Checkpoint {
    /// A checkpoint that `sign` signs.
    pub fn new(boot_nonce: BootNonce, head: Head, time_ms: u64, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Checkpoint {
        let mut checkpoint = Checkpoint { boot_nonce, head, signature: String::new(), time_ms };
        checkpoint.signature = base64::encode(sign(&checkpoint.to_be_signed()));
        checkpoint
    }

    /// `teemark log checkpoint v1` || boot nonce || number || hash || time, numbers as 8 bytes, big endian.
    pub fn to_be_signed(&self) -> Vec<u8> {
        self.head.to_be_signed(CHECKPOINT, self.boot_nonce, &self.time_ms.to_be_bytes())
    }

    /// Whether this key signed it.
    pub fn is_by(&self, identity: &VerifyingKey) -> bool {
        base64::decode(&self.signature).is_some_and(|signature| identity.verifies(&self.to_be_signed(), &signature))
    }
}

/// What the enclave dropped: lines before they had a number, for lack of room, or records that no collector
/// took in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dropped {
    /// So many lines, which have no number, right before this record.
    Lines {
        /// How many.
        lines: u64,
    },
    /// Records that have a number and are gone from the enclave's memory.
    Records {
        /// The first of them.
        from: u64,
        /// The last of them.
        #[serde(flatten)]
        last: Head,
    },
}

/// A collector's word that it has kept all records up to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The last of those records.
    pub head: Head,
    /// The collector's signature of [`Ack::to_be_signed`], if it has a key.
    pub signature: Option<Vec<u8>>,
}

impl Ack {
    /// `teemark log ack v1` || boot nonce || number (8 bytes, big endian) || hash.
    pub fn to_be_signed(head: Head, boot: BootNonce) -> Vec<u8> {
        head.to_be_signed(ACK, boot, b"")
    }

    /// Reads a line, without its end; `None` if it is not an acknowledgement.
    pub fn parse(line: &[u8]) -> Option<Ack> {
        let mut words = str::from_utf8(line).ok()?.strip_prefix("ack ")?.split(' ');
        let head = Head { number: decimal(words.next()?)?, hash: lower_hex(words.next()?)? };
        let signature = words.next().map(|text| base64::decode(text).ok_or(())).transpose().ok()?;
        words.next().is_none().then_some(Ack { head, signature })
    }
}

impl fmt::Display for Ack {
    /// A line with its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ack {} {}", self.head.number, self.head.hash)?;
        if let Some(signature) = &self.signature {
            write!(f, " {}", base64::encode(signature))?;
        }
        writeln!(f)
    }
}

/// The first line of a stream, with its end.
pub fn hello(boot: BootNonce) -> String {
    format!("{HELLO} {boot}\n")
}

/// The boot that a stream is of, by its first line without the end; `None` if it is not a log's.
pub fn parse_hello(line: &[u8]) -> Option<BootNonce> {
    BootNonce::from_hex(str::from_utf8(line).ok()?.strip_prefix(HELLO)?.strip_prefix(' ')?)
}

/// The key of a segment of sealed records.
pub struct Segment(LessSafeKey);

#[derive(Serialize, Deserialize)]
struct Wrapped {
    enc: String,
    sealed: String,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Wrapped>,
}

impl Segment {
    /// A new key, and the body of the record, of this number, that gives it to whoever holds one of the log keys.
    ///
    /// # Errors
    /// The system gave no random numbers.
    pub fn new(log_keys: &[PublicKey], number: u64) -> Result<(Segment, String), Unspecified> {
        let mut secret = Box::new([0; 32]);
        SystemRandom::new().fill(&mut *secret)?;
        let senders = log_keys.iter().map(|key| hpke::sender(key, SEGMENT)).collect::<Result<Vec<_>, _>>()?;
        Segment::new_by(&secret, senders, number)
    }

    pub(crate) fn new_by(
        secret: &[u8; 32],
        senders: Vec<(PublicKey, Sender)>,
        number: u64,
    ) -> Result<(Segment, String), Unspecified> {
        let mut keys = Vec::new();
        for (enc, mut sender) in senders {
            let mut sealed = secret.to_vec();
            sender.seal(&number.to_be_bytes(), &mut sealed, 0).map_err(|_| Unspecified)?;
            keys.push(Wrapped { enc: base64::encode(enc), sealed: base64::encode(sealed) });
        }
        Ok((Segment::of(secret), json!({"keys": keys}).to_string()))
    }

    fn of(secret: &[u8; 32]) -> Segment {
        Segment(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).expect("the length is AES-256's")))
    }

    /// The key that a record of this number and body gives to the holder of this log key; `None` if it gives none.
    pub fn open(body: &str, number: u64, log_key: &PrivateKey) -> Option<Segment> {
        let Keys { keys } = serde_json::from_str(body).ok()?;
        keys.iter().find_map(|Wrapped { enc, sealed }| {
            let (enc, mut sealed) = (PublicKey::from_base64(enc)?, base64::decode(sealed)?);
            let opened = hpke::recipient(&enc, SEGMENT, log_key).open(&number.to_be_bytes(), &mut sealed);
            Some(Segment::of((&*opened.ok()?).try_into().ok()?))
        })
    }

    /// The body of the sealed record of this number for a record of another kind.
    ///
    /// # Panics
    /// The body does not fit into memory.
    pub fn seal(&self, number: u64, kind: Kind, body: &[u8]) -> String {
        let mut record = [kind.name().as_bytes(), b" ", body].concat();
        let sealed = self.0.seal_in_place_append_tag(nonce(number), Aad::empty(), &mut record);
        sealed.expect("it is shorter than 64 GiB");
        base64::encode(record)
    }

    /// The kind and body of the record that was sealed; `None` if it is not of this segment, or was altered.
    pub fn open_record(&self, number: u64, body: &str) -> Option<(Kind, String)> {
        let mut sealed = base64::decode(body)?;
        let record = self.0.open_in_place(nonce(number), Aad::empty(), &mut sealed).ok()?;
        let (kind, body) = str::from_utf8(record).ok()?.split_once(' ')?;
        Some((Kind::from_name(kind)?, body.to_owned()))
    }
}

/// Numbers never repeat within a boot, and a segment is within one.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    const BOOT: BootNonce = BootNonce::from_bytes([3; 32]);

    fn lines() -> (Head, Vec<Vec<u8>>) {
        let mut head = Head::default();
        let lines =
            [(Kind::Log, "one"), (Kind::Audit, "{}"), (Kind::Log, ""), (Kind::Dropped, "a  b")].map(|(kind, body)| {
                let mut line = Vec::new();
                head.write(kind, body.as_bytes(), &mut line);
                assert_eq!(line.pop(), Some(b'\n'));
                line
            });
        (head, lines.into())
    }

    #[test]
    fn records_follow_each_other_as_they_were_written_and_not_otherwise() {
        let (last, lines) = lines();
        let mut head = Head::default();
        for (i, line) in lines.iter().enumerate() {
            let record = Record::parse(line).unwrap();
            assert!(record.follows(&head) && record.head.number == i as u64 + 1);
            for at in 0..line.len() {
                let mut altered = line.clone();
                altered[at] ^= 1;
                assert!(!Record::parse(&altered).is_some_and(|record| record.follows(&head)), "{at}");
            }
            assert!(!record.follows(&record.head) && !record.follows(&Head { number: head.number + 1, ..head }));
            head = record.head;
        }
        assert_eq!(head, last);
        for bad in ["", "1", "1 00 log x", "0 ", "01 ", "+1 ", "18446744073709551615 ", "18446744073709551616 "] {
            let bad = if bad.ends_with(' ') { format!("{bad}{} log x", "0".repeat(64)) } else { bad.to_owned() };
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_checkpoint_is_the_identity_keys_and_of_one_boot_record_and_time() {
        let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let identity = VerifyingKey::from_slice(key.public_key().as_ref()).unwrap();
        let (head, _) = lines();
        let made = Checkpoint::new(BOOT, head, 7, |bytes| key.sign(bytes).as_ref().try_into().unwrap());
        let read: Checkpoint = serde_json::from_str(&serde_json::to_string(&made).unwrap()).unwrap();
        assert!(read == made && read.is_by(&identity));
        assert!(!read.is_by(&VerifyingKey::from_bytes([9; 32])));
        let other = Head { number: 9, ..head };
        for altered in [
            Checkpoint { boot_nonce: BootNonce::from_bytes([4; 32]), ..made.clone() },
            Checkpoint { head: other, ..made.clone() },
            Checkpoint { head: Head { hash: Sha256::default(), ..head }, ..made.clone() },
            Checkpoint { time_ms: 8, ..made.clone() },
        ] {
            assert!(!altered.is_by(&identity));
        }
    }

    #[test]
    fn acknowledgements_and_what_was_dropped_are_read_as_they_were_written() {
        let (head, _) = lines();
        for signature in [None, Some(vec![7; 64])] {
            let ack = Ack { head, signature };
            let line = ack.to_string();
            assert!(line.len() <= MAX_ACK);
            assert_eq!(Ack::parse(line.trim_end().as_bytes()), Some(ack));
            assert_eq!(Ack::parse(format!("{} x", line.trim_end()).as_bytes()), None);
        }
        assert_eq!(parse_hello(hello(BOOT).trim_end().as_bytes()), Some(BOOT));
        assert_eq!(parse_hello(b"GET / HTTP/1.1"), None);
        for dropped in [Dropped::Lines { lines: 3 }, Dropped::Records { from: 2, last: head }] {
            let text = serde_json::to_string(&dropped).unwrap();
            assert_eq!(serde_json::from_str::<Dropped>(&text).unwrap(), dropped, "{text}");
        }
    }

    #[test]
    fn each_holder_of_a_log_key_opens_a_segment_and_nobody_else() {
        let [one, two, stranger] = [5, 6, 7].map(|byte| PrivateKey::new(Box::new([byte; 32])));
        let (segment, body) = Segment::new(&[one.public(), two.public()], 4).unwrap();
        let sealed = segment.seal(5, Kind::Audit, b"{\"a\": 1}");
        for key in [&one, &two] {
            let opened = Segment::open(&body, 4, key).unwrap();
            assert_eq!(opened.open_record(5, &sealed), Some((Kind::Audit, "{\"a\": 1}".into())));
            assert_eq!(opened.open_record(6, &sealed), None);
            assert!(Segment::open(&body, 5, key).is_none());
        }
        assert!(Segment::open(&body, 4, &stranger).is_none());
        let (other, _) = Segment::new(&[one.public()], 4).unwrap();
        assert_eq!(other.open_record(5, &sealed), None);
    }
}
