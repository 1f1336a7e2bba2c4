//! Encrypted files: what was sealed opens, and nothing else does.

use formats::file_keys::DeliveredKey;
use formats::files::{FileKey, FileKeys, OpenError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::config;

/// How a file is sealed. `id` is the key's id, the one in Tink's prefix.
#[derive(Clone, Debug)]
struct Sealed {
    key: [u8; 32],
    iv: [u8; 12],
    id: u32,
    tink: bool,
    bound: bool,
    file_id: String,
}

impl Arbitrary for Sealed {
    type Parameters = ();
    type Strategy = BoxedStrategy<Sealed>;

    fn arbitrary_with((): ()) -> BoxedStrategy<Sealed> {
        (any::<([u8; 32], [u8; 12], u32, bool, bool)>(), "[a-z]{1,9}")
            .prop_map(|((key, iv, id, tink, bound), file_id)| Sealed { key, iv, id, tink, bound, file_id })
            .boxed()
    }
}

impl Sealed {
    fn name(&self) -> String {
        self.id.to_string()
    }

    /// The key, alone.
    fn keys(&self) -> FileKeys {
        [(self.name(), FileKey::from(&DeliveredKey::new(Box::new(self.key), self.bound)))].into_iter().collect()
    }

    fn file(&self, plain: &[u8]) -> Vec<u8> {
        let body = seal(&self.key, self.iv, if self.bound { self.file_id.as_bytes() } else { b"" }, plain);
        let prefix = [&[1][..], &self.id.to_be_bytes()].concat();
        if self.tink { [prefix, body].concat() } else { body }
    }
}

/// IV, ciphertext, tag, made with ring alone.
fn seal(key: &[u8; 32], iv: [u8; 12], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut sealed = plain.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut sealed).unwrap();
    [&iv[..], &sealed].concat()
}

/// What may happen to a file in transit.
#[derive(Clone, Debug)]
enum Change {
    Bit(Index, u8),
    Byte(Index, u8),
    CutEnd(Index),
    Append(Vec<u8>),
    Insert(Index, u8),
    Remove(Index),
    Swap(Index, Index),
}

impl Arbitrary for Change {
    type Parameters = ();
    type Strategy = BoxedStrategy<Change>;

    fn arbitrary_with((): ()) -> BoxedStrategy<Change> {
        prop_oneof![
            (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Change::Bit(at, bit)),
            any::<(Index, u8)>().prop_map(|(at, byte)| Change::Byte(at, byte)),
            any::<Index>().prop_map(Change::CutEnd),
            vec(any::<u8>(), 1..20).prop_map(Change::Append),
            any::<(Index, u8)>().prop_map(|(at, byte)| Change::Insert(at, byte)),
            any::<Index>().prop_map(Change::Remove),
            any::<(Index, Index)>().prop_map(|(a, b)| Change::Swap(a, b)),
        ]
        .boxed()
    }
}

impl Change {
    fn apply(&self, file: &[u8]) -> Vec<u8> {
        let (mut file, len) = (file.to_vec(), file.len());
        match self {
            Change::Bit(at, bit) => file[at.index(len)] ^= 1 << bit,
            Change::Byte(at, byte) => file[at.index(len)] = *byte,
            Change::CutEnd(at) => file.truncate(at.index(len)),
            Change::Append(bytes) => file.extend_from_slice(bytes),
            Change::Insert(at, byte) => file.insert(at.index(len), *byte),
            Change::Remove(at) => drop(file.remove(at.index(len))),
            Change::Swap(a, b) => file.swap(a.index(len), b.index(len)),
        }
        file
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_file_under_any_key_opens_in_either_format_and_under_no_other_key(
        plain in vec(any::<u8>(), 0..3000),
        sealed in any::<Sealed>(),
        other in any::<[u8; 32]>(),
    ) {
        let file = sealed.file(&plain);
        prop_assert_eq!(file.len() - plain.len(), if sealed.tink { 33 } else { 28 });
        for asked in [None, Some(sealed.name())] {
            prop_assert_eq!(sealed.keys().open(file.clone(), &sealed.file_id, asked.as_deref()), Ok(plain.clone()));
        }
        prop_assume!(other != sealed.key);
        let wrong = Sealed { key: other, ..sealed.clone() };
        prop_assert_eq!(wrong.keys().open(file.clone(), &sealed.file_id, None), Err(OpenError::Failed));
        if sealed.bound {
            let elsewhere = format!("{}x", sealed.file_id);
            prop_assert_eq!(sealed.keys().open(file, &elsewhere, None), Err(OpenError::Failed));
        }
    }

    #[test]
    fn any_change_to_a_file_is_refused(
        plain in vec(any::<u8>(), 0..300),
        sealed in any::<Sealed>(),
        change in any::<Change>(),
        asks in any::<bool>(),
    ) {
        let file = sealed.file(&plain);
        let changed = change.apply(&file);
        prop_assume!(changed != file);
        let asked = asks.then(|| sealed.name());
        prop_assert_eq!(sealed.keys().open(changed, &sealed.file_id, asked.as_deref()), Err(OpenError::Failed));
    }

    #[test]
    fn no_bytes_are_a_file_by_chance(bytes in vec(any::<u8>(), 0..200), sealed in any::<Sealed>(), asks in any::<bool>()) {
        let asked = asks.then(|| sealed.name());
        prop_assert_eq!(sealed.keys().open(bytes, &sealed.file_id, asked.as_deref()), Err(OpenError::Failed));
    }
}
