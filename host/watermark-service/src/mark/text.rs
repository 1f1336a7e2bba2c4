//! Marks in UTF-8 text: the frame in invisible characters, two bits each.
//!
//! It is at the start (after a byte order mark), at the end of the last line if there are two lines or more,
//! and at ends of lines between them, so that a text whose end or beginning was cut off usually keeps one. Everything
//! else stays as it was, byte for byte, and [`strip`] gives the text back exactly.
//!
//! Survives: copying, cutting, editing anywhere but within the mark, other line ends, Unicode normalization (the
//! characters have no decomposition), UTF-16 and back. Does not survive: conversion to a character set without these
//! characters, and programs that drop invisible characters. A file in a format that forbids them outside its strings,
//! such as JSON, is no longer valid after marking.

use std::ops::Range;

use super::Mark;

/// Zero width space, zero width non-joiner, word joiner, invisible separator: invisible by the Unicode standard
/// (Default_Ignorable_Code_Point) and without effect at the end of a line. The zero width joiner is left out, since
/// it changes the shape of the Arabic letter before it.
const SYMBOLS: [char; 4] = ['\u{200B}', '\u{200C}', '\u{2060}', '\u{2063}'];

/// Each symbol's length in UTF-8.
const SYMBOL_LEN: usize = 3;

/// Text between two marks is at least this many times as long as a mark, so that marks add an eighth at most to a
/// long text.
const SPACING: usize = 8;

/// The text with `mark` in it, in place of any mark that it already had.
pub(crate) fn embed(text: &str, mark: &Mark) -> String {
    let text = strip(text);
    let symbols = symbols(mark);
    let mut marked = String::with_capacity(text.len() + text.len() / SPACING + 2 * symbols.len());
    let mut written = 0;
    for place in places(&text, symbols.len()) {
        marked.push_str(&text[written..place]);
        marked.push_str(&symbols);
        written = place;
    }
    marked.push_str(&text[written..]);
    marked
}

/// The first mark in the text.
pub(crate) fn extract(text: &str) -> Option<Mark> {
    Frames { text, at: 0 }.next().map(|(_, mark)| mark)
}

/// The text without its marks. Invisible characters that belong to no mark are the author's and stay.
pub(crate) fn strip(text: &str) -> String {
    let mut stripped = text.to_owned();
    // Removing a mark can join two halves of another one around it.
    loop {
        let mut rest = String::with_capacity(stripped.len());
        let mut kept = 0;
        for (range, _) in (Frames { text: &stripped, at: 0 }) {
            rest.push_str(&stripped[kept..range.start]);
            kept = range.end;
        }
        if kept == 0 {
            return stripped;
        }
        rest.push_str(&stripped[kept..]);
        stripped = rest;
    }
}

fn symbols(mark: &Mark) -> String {
    let pairs = |byte: u8| [byte >> 6, byte >> 4 & 3, byte >> 2 & 3, byte & 3];
    mark.frame().into_iter().flat_map(pairs).map(|pair| SYMBOLS[usize::from(pair)]).collect()
}

/// Where marks of `length` bytes go, in ascending order.
fn places(text: &str, length: usize) -> Vec<usize> {
    let start = if text.starts_with('\u{FEFF}') { '\u{FEFF}'.len_utf8() } else { 0 };
    let mut places = vec![start];
    let mut last = start;
    let line_ends = text.match_indices('\n').map(|(at, _)| if text[..at].ends_with('\r') { at - 1 } else { at });
    for end in line_ends {
        if end - last >= SPACING * length {
            places.push(end);
            last = end;
        }
    }
    let final_line = text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t));
    if final_line.contains('\n') && final_line.len() > last {
        places.push(final_line.len());
    }
    places
}

/// The marks in a text with their ranges of bytes, first to last.
struct Frames<'t> {
    text: &'t str,
    at: usize,
}

impl Iterator for Frames<'_> {
    type Item = (Range<usize>, Mark);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = self.at + self.text[self.at..].find(SYMBOLS)?;
            // A mark may begin at any symbol: the author's own, or half a mark, can stand right before it.
            self.at = start + SYMBOL_LEN;
            if let Some(mark) = Mark::read(bytes(&self.text[start..])) {
                let end = start + symbols(&mark).len();
                self.at = end;
                return Some((start..end, mark));
            }
        }
    }
}

/// The bytes that the symbols at the start of `text` encode, up to the first other character.
fn bytes(text: &str) -> impl Iterator<Item = u8> {
    let pair = |c| (0u8..).zip(SYMBOLS).find_map(|(pair, symbol)| (symbol == c).then_some(pair));
    let mut pairs = text.chars().map_while(pair);
    std::iter::from_fn(move || (0..4).try_fold(0, |byte, _| Some(byte << 2 | pairs.next()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mark::tests::any_mark;

    fn mark() -> Mark {
        Mark::new("report-7", "alice").unwrap()
    }

    /// Text as authors write it, with what could be mistaken: line ends of every kind, invisible characters, BOMs.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            6 => ".{0,80}".boxed(),
            2 => Just("\r\n".to_owned()),
            2 => Just("\n".to_owned()),
            1 => Just("\r".to_owned()),
            1 => Just("\u{FEFF}".to_owned()),
            2 => prop::collection::vec(prop::sample::select(&SYMBOLS[..]), 0..40).prop_map(|s| s.into_iter().collect()),
            1 => (0..200usize).prop_map(|cut| symbols(&mark()).chars().take(cut.min(60)).collect()),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_text_gives_the_ids_and_is_itself_when_stripped(text in any_text(), mark in any_mark()) {
            let marked = embed(&text, &mark);
            prop_assert_eq!(extract(&marked), Some(mark));
            prop_assert_eq!(strip(&marked), text);
        }

        #[test]
        fn a_second_mark_takes_the_place_of_the_first(text in any_text(), first in any_mark(), second in any_mark()) {
            prop_assert_eq!(embed(&embed(&text, &first), &second), embed(&text, &second));
        }

        #[test]
        fn text_without_a_mark_has_none(text in any_text()) {
            prop_assert_eq!(extract(&text), None);
        }
    }

    #[test]
    fn either_half_of_a_text_still_has_the_mark() {
        let text = "All of this line is for alice's eyes only.\r\n".repeat(300);
        let marked = embed(&text, &mark());
        assert!(marked.len() < text.len() * 5 / 4, "{} bytes became {}", text.len(), marked.len());
        let middle = (marked.len() / 2..).find(|at| marked.is_char_boundary(*at)).unwrap();
        assert_eq!(extract(&marked[..middle]), Some(mark()));
        assert_eq!(extract(&marked[middle..]), Some(mark()));
        assert!(marked.ends_with("\r\n"));
        assert_eq!(marked.matches("\r\n").count(), 300);
    }

    #[test]
    fn two_lines_keep_a_mark_when_either_is_lost() {
        let marked = embed("first\nsecond\n", &mark());
        let (first, second) = marked.split_once('\n').unwrap();
        assert_eq!(extract(first), Some(mark()));
        assert_eq!(extract(second), Some(mark()));
    }

    #[test]
    fn an_empty_text_becomes_the_mark_alone() {
        let marked = embed("", &mark());
        assert_eq!(extract(&marked), Some(mark()));
        assert!(marked.chars().all(|c| SYMBOLS.contains(&c)));
    }

    #[test]
    fn a_byte_order_mark_stays_in_front() {
        assert!(embed("\u{FEFF}text", &mark()).starts_with('\u{FEFF}'));
    }

    #[test]
    fn the_authors_own_invisible_characters_stay() {
        let persian = "می\u{200C}خواهم";
        assert_eq!(strip(&embed(persian, &mark())), persian);
    }
}
