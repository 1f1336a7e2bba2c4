//! Prints text for people. A daemon's message, a document or a file's name may hold characters that move the cursor,
//! reverse the direction of writing or are invisible; escaped, they can neither hide nor forge anything.

use std::io::Write;

use serde_json::Value;

/// Prints one line on standard error, escaped as [`printable`] does it.
pub(crate) fn say(line: impl std::fmt::Display) {
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "{}", printable(&line.to_string()));
}

/// A text fit for a terminal: control characters, format characters and line separators are shown escaped.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if is_harmless(c) { c.to_string() } else { c.escape_default().to_string() };
    text.chars().map(shown).collect()
}

/// So many of something, of which this is the word for one.
pub(crate) fn counted(n: u64, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

/// One line of JSON, in which those characters are escaped as JSON does it.
pub(crate) fn json_line(value: &Value) -> String {
    let text = value.to_string();
    let escaped = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    // JSON has such characters in strings only.
    let mut line: String = text.chars().map(|c| if is_harmless(c) { c.to_string() } else { escaped(c) }).collect();
    line.push('\n');
    line
}

/// Whether a character is shown as itself and has no other effect. The standard library's debug form knows Unicode's
/// categories: it escapes all that is not printable, and three printable characters. A combining mark is escaped only
/// at the start of a text, so a letter is put before it.
fn is_harmless(c: char) -> bool {
    matches!(c, '\\' | '\'' | '"') || String::from_iter(['a', c]).escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cc, Cf (UnicodeData.txt 15.0), Zl and Zp: the ends of each range.
    const HARMFUL: [(u32, u32); 26] = [
        (0, 0x1f),
        (0x7f, 0x9f),
        (0xad, 0xad),
        (0x600, 0x605),
        (0x61c, 0x61c),
        (0x6dd, 0x6dd),
        (0x70f, 0x70f),
        (0x890, 0x891),
        (0x8e2, 0x8e2),
        (0x180e, 0x180e),
        (0x200b, 0x200f),
        (0x2028, 0x202e),
        (0x2060, 0x2064),
        (0x2066, 0x206f),
        (0xfeff, 0xfeff),
        (0xfff9, 0xfffb),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x1343f),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0001, 0xe0001),
        (0xe0020, 0xe007f),
        // Not assigned, and invisible where they are shown at all.
        (0x2065, 0x2065),
        (0xfff0, 0xfff8),
        (0xe0000, 0xe0000),
    ];

    #[test]
    fn no_control_or_format_character_passes() {
        for c in HARMFUL.iter().flat_map(|&(first, last)| first..=last).map(|c| char::from_u32(c).unwrap()) {
            let shown = printable(&format!("a{c}b"));
            assert!(shown.is_ascii() && shown.starts_with("a\\") && shown.ends_with('b'), "{shown}");
            let value = Value::from(format!("a{c}b"));
            let line = json_line(&value);
            assert!(line.trim_end().chars().all(|c| (' '..='~').contains(&c)), "{line:?}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
        }
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["it's \"C:\\x\"", "zoë e\u{301}", "水印", "हिन्दी", "ไทย", "עברית", "👍"]
        {
            assert_eq!(printable(text), text);
            assert_eq!(json_line(&Value::from(text)).trim_end(), Value::from(text).to_string());
        }
        assert_eq!(printable("a\x1b[2Jé\n\u{202e}"), "a\\u{1b}[2Jé\\n\\u{202e}");
    }
}
