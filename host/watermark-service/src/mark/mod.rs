//! The mark: whose copy of which file this is, and the bytes that say so inside a picture or a text.
//!
//! The frame is the same for both kinds of content: magic `TM`, then file id and user id, each behind its length
//! (two bytes, big endian), then the CRC-32 of all that. A frame that was damaged is never taken for another mark.
//! It is neither encrypted nor signed: anyone who knows this source can remove or forge a mark. That is enough to develop
//! against; a production service keeps its method secret.

pub(crate) mod picture;
pub(crate) mod text;

use std::fmt;

use serde::Serialize;

/// The longest file id or user id, in bytes of UTF-8.
pub(crate) const MAX_ID: usize = 256;

/// The first bytes of every frame.
pub(crate) const MAGIC: [u8; 2] = *b"TM";

/// What a frame holds besides the two ids: magic, two lengths, CRC-32.
const FRAME_OVERHEAD: usize = 2 + 2 + 2 + 4;

/// The longest frame, in bytes.
pub(crate) const MAX_FRAME: usize = FRAME_OVERHEAD + 2 * MAX_ID;

/// A file id and a user id, each of 1 to 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mark {
    file_id: String,
    user_id: String,
}

/// An id is empty or too long to be carried.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IdError {
    field: &'static str,
    length: usize,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has {} bytes; 1 to {MAX_ID} are allowed", self.field, self.length)
    }
}

impl std::error::Error for IdError {}

impl Mark {
    /// A mark of these ids.
    ///
    /// # Errors
    /// An id is empty or longer than [`MAX_ID`]; the error says which.
    pub(crate) fn new(file_id: impl Into<String>, user_id: impl Into<String>) -> Result<Self, IdError> {
        let (file_id, user_id) = (file_id.into(), user_id.into());
        for (field, id) in [("file_id", &file_id), ("user_id", &user_id)] {
            if !(1..=MAX_ID).contains(&id.len()) {
                return Err(IdError { field, length: id.len() });
            }
        }
        Ok(Mark { file_id, user_id })
    }

    /// The bytes that the picture or text carries.
    fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(FRAME_OVERHEAD + self.file_id.len() + self.user_id.len());
        frame.extend(MAGIC);
        for id in [&self.file_id, &self.user_id] {
            frame.extend(u16::try_from(id.len()).expect("Mark::new has bounded it").to_be_bytes());
            frame.extend(id.as_bytes());
        }
        frame.extend(crc32fast::hash(&frame).to_be_bytes());
        frame
    }

    /// Reads the mark from a frame at the start of `bytes`. Takes no byte after the first that cannot be part of a frame.
    fn read(mut bytes: impl Iterator<Item = u8>) -> Option<Mark> {
        let mut frame = Vec::new();
        for expected in MAGIC {
            frame.push(bytes.next().filter(|byte| *byte == expected)?);
        }
        let file_id = read_id(&mut bytes, &mut frame)?;
        let user_id = read_id(&mut bytes, &mut frame)?;
        for expected in crc32fast::hash(&frame).to_be_bytes() {
            bytes.next().filter(|byte| *byte == expected)?;
        }
        Mark::new(file_id, user_id).ok()
    }
}

/// Takes a length and as many bytes as it says, and keeps all of them in `frame` for the checksum.
fn read_id(bytes: &mut impl Iterator<Item = u8>, frame: &mut Vec<u8>) -> Option<String> {
    let head = [bytes.next()?, bytes.next()?];
    let length = usize::from(u16::from_be_bytes(head));
    if length > MAX_ID {
        return None;
    }
    frame.extend(head);
    let start = frame.len();
    frame.extend(bytes.take(length));
    let id = frame.get(start..start + length)?;
    String::from_utf8(id.to_vec()).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any ids that a mark can carry.
    pub(crate) fn any_mark() -> impl Strategy<Value = Mark> {
        let id = || ".{1,256}".prop_filter("at most 256 bytes", |id| id.len() <= MAX_ID);
        (id(), id()).prop_map(|(file, user)| Mark::new(file, user).unwrap())
    }

    proptest! {
        #[test]
        fn a_frame_gives_its_mark_back_whatever_follows(mark in any_mark(), rest: Vec<u8>) {
            prop_assert_eq!(Mark::read(mark.frame().into_iter().chain(rest)), Some(mark));
        }

        #[test]
        fn a_frame_with_one_byte_changed_or_its_end_missing_is_none(mark in any_mark(), at: prop::sample::Index, flip in 1u8..) {
            let mut frame = mark.frame();
            let at = at.index(frame.len());
            prop_assert_eq!(Mark::read(frame[..at].iter().copied()), None);
            frame[at] ^= flip;
            prop_assert_eq!(Mark::read(frame.into_iter()), None);
        }
    }

    #[test]
    fn the_longest_ids_fill_the_longest_frame_and_one_byte_more_is_refused() {
        let id = "x".repeat(MAX_ID);
        assert_eq!(Mark::new(id.clone(), id.clone()).unwrap().frame().len(), MAX_FRAME);
        let error = Mark::new(id.clone() + "x", id).unwrap_err();
        assert_eq!(error.to_string(), "file_id has 257 bytes; 1 to 256 are allowed");
        assert_eq!(Mark::new("f", "").unwrap_err().to_string(), "user_id has 0 bytes; 1 to 256 are allowed");
    }
}
