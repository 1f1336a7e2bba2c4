//! DER (X.690), as much as certificates and keys take: elements are taken one after the other, and written.

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;

/// Takes the next element if it has this tag, and returns its content (X.690, 8.1).
pub(crate) fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&first, rest) = input.strip_prefix(&[tag])?.split_first()?;
    // A long length begins with how many bytes it has.
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, &b| length << 8 | usize::from(b)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some(content)
}

/// Tag, length, and the parts one after the other: at most 65,535 bytes.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match u16::try_from(content.len()).expect("at most 65,535 bytes").to_be_bytes() {
        [0, n @ 0..0x80] => bytes.push(n),
        [0, n] => bytes.extend([0x81, n]),
        [high, low] => bytes.extend([0x82, high, low]),
    }
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_of_each_length_is_taken_as_it_was_written() {
        for (length, head) in [(0, 2), (1, 2), (127, 2), (128, 3), (255, 3), (256, 4), (65_535, 4)] {
            let content = vec![7; length];
            let written = element(OCTET_STRING, &[&content[..length / 2], &content[length / 2..]]);
            assert_eq!(written.len(), head + length);
            let bytes = [&written[..], b"rest"].concat();
            let mut input = &bytes[..];
            assert_eq!(take(&mut input, SEQUENCE), None, "it has another tag");
            assert_eq!((take(&mut input, OCTET_STRING), input), (Some(&content[..]), &b"rest"[..]));
            let mut cut = &written[..written.len() - 1];
            assert_eq!(take(&mut cut, OCTET_STRING), None, "cut at {length}");
        }
    }
}
