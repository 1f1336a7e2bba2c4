//! Properties of HTTP framing: however a message is split, it is read the same.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use teemarkd::net::http::{Body, HttpError, request_head};

use super::config;

const MAX_BODY: u64 = 4096;

/// The outcome of reading a body: its content and what follows it, or that it is unfinished, or an error.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Done { content: Vec<u8>, rest: Vec<u8> },
    Unfinished { content: Vec<u8> },
    Refused(HttpError),
}

/// Cuts a message into pieces.
fn pieces(wire: &[u8], cuts: &[Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    places.extend([0, wire.len()]);
    places.sort_unstable();
    places.windows(2).map(|w| wire[w[0]..w[1]].to_vec()).collect()
}

/// Reads a body from pieces, as a connection does: what was not taken waits for the next piece.
fn read(body: Body, pieces: &[Vec<u8>]) -> Read {
    read_with_room(body, pieces, usize::MAX)
}

/// The same with room for at most this many bytes of content at once.
fn read_with_room(mut body: Body, pieces: &[Vec<u8>], room: usize) -> Read {
    let (mut buffer, mut content) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while !body.is_done() {
            let before = content.len();
            match body.take(&buffer, room, &mut content) {
                Ok(0) => break,
                Ok(taken) => {
                    assert!(taken <= buffer.len(), "took {taken} of {} bytes", buffer.len());
                    assert!(content.len() - before <= taken.min(room), "gave more than it took or had room for");
                    assert!(content.len() as u64 <= MAX_BODY, "gave more than is allowed");
                    buffer.drain(..taken);
                }
                Err(error) => return Read::Refused(error),
            }
        }
    }
    if body.is_done() { Read::Done { content, rest: buffer } } else { Read::Unfinished { content } }
}

/// The body that a request with this field announces.
fn announced(field: &str) -> Body {
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n");
    request_head(head.as_bytes(), MAX_BODY).unwrap().unwrap().0.body
}

/// A chunked body (RFC 9112, 7.1) with everything allowed: sizes in either case with leading zeros, extensions,
/// trailers.
fn chunked() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let extension = select(&["", ";a", ";a=b", ";name=\"v\"", ";a=1;b=2"][..]);
    let chunk = (vec(any::<u8>(), 1..200), any::<bool>(), 0..4_usize, extension.clone());
    let trailers = vec(select(&["T: v", "Digest: x=1", "A:"][..]), 0..3);
    (vec(chunk, 0..8), extension, trailers).prop_map(|(chunks, last, trailers)| {
        let (mut wire, mut content) = (Vec::new(), Vec::new());
        for (data, upper, zeros, extension) in chunks {
            let size = if upper { format!("{:X}", data.len()) } else { format!("{:x}", data.len()) };
            wire.extend_from_slice(format!("{}{size}{extension}\r\n", "0".repeat(zeros)).as_bytes());
            wire.extend_from_slice(&data);
            wire.extend_from_slice(b"\r\n");
            content.extend_from_slice(&data);
        }
        wire.extend_from_slice(format!("0{last}\r\n").as_bytes());
        for trailer in trailers {
            wire.extend_from_slice(format!("{trailer}\r\n").as_bytes());
        }
        wire.extend_from_slice(b"\r\n");
        (wire, content)
    })
}

/// Good request heads, with fields that do not affect the framing.
fn head() -> impl Strategy<Value = String> {
    let field = ("X-[A-Za-z0-9-]{1,12}", "[ -~]{0,30}").prop_map(|(name, value)| format!("{name}: {value}\r\n"));
    let framing = select(
        &[
            "Content-Length: 0",
            "Content-Length: 12",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue\r\nContent-Length: 1",
        ][..],
    );
    (select(&["GET", "POST", "PUT", "HEAD", "DELETE"][..]), "/[a-zA-Z0-9/?=&%._-]{0,30}", vec(field, 0..8), framing)
        .prop_map(|(method, target, fields, framing)| {
            format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{}{framing}\r\n\r\n", fields.concat())
        })
}

/// Bytes that are often a piece of HTTP.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => select(&["GET / HTTP/1.1", "POST /a HTTP/1.0", "HTTP/1.1 200 OK", "HTTP/1.1 100 Continue", "\r\n", "\n", "\r", ": ",
            "Content-Length", "Transfer-Encoding", "chunked", "0", "5", "fff", "-1", "ffffffffffffffff", ";x=", "hello", "Expect", "Connection"][..])
            .prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_chunked_body_is_the_same_however_it_is_split(
        (wire, content) in chunked(),
        next in vec(any::<u8>(), 0..20),
        cuts in vec(any::<Index>(), 0..12),
        room in 1..100_usize,
    ) {
        let sent = [wire, next.clone()].concat();
        let expected = Read::Done { content, rest: next };
        prop_assert_eq!(&read(announced("Transfer-Encoding: chunked"), &pieces(&sent, &cuts)), &expected);
        prop_assert_eq!(&read_with_room(announced("Transfer-Encoding: chunked"), &pieces(&sent, &cuts), room), &expected);
        let bytes: Vec<Vec<u8>> = sent.iter().map(|&b| vec![b]).collect();
        prop_assert_eq!(&read(announced("Transfer-Encoding: chunked"), &bytes), &expected);
    }

    #[test]
    fn a_chunked_body_that_is_not_over_is_never_done((wire, content) in chunked(), cut in any::<Index>()) {
        match read(announced("Transfer-Encoding: chunked"), &[wire[..cut.index(wire.len())].to_vec()]) {
            Read::Unfinished { content: some } => prop_assert!(content.starts_with(&some)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_body_with_a_length_is_the_same_however_it_is_split(
        content in vec(any::<u8>(), 0..1000),
        next in vec(any::<u8>(), 0..20),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let sent = [&content[..], &next].concat();
        let body = announced(&format!("Content-Length: {}", content.len()));
        prop_assert_eq!(read(body, &pieces(&sent, &cuts)), Read::Done { content, rest: next });
    }

    #[test]
    fn chunks_that_together_are_too_large_are_refused_as_such(sizes in vec(2049..3000_usize, 2..6), cuts in vec(any::<Index>(), 0..4)) {
        let wire: Vec<u8> = sizes.iter().flat_map(|&n| [format!("{n:x}\r\n").into_bytes(), vec![b'x'; n], b"\r\n".to_vec()].concat()).collect();
        match read(announced("Transfer-Encoding: chunked"), &pieces(&wire, &cuts)) {
            Read::Refused(error) => prop_assert_eq!(error, HttpError::TooLarge(MAX_BODY)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_chunk_that_is_longer_or_shorter_than_its_size_is_refused(
        data in vec(any::<u8>(), 2..100),
        more in any::<u8>().prop_filter("no line end", |&b| b != b'\r'),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let wire = |size: usize, data: &[u8]| [format!("{size:x}\r\n").as_bytes(), data, b"\r\n0\r\n\r\n"].concat();
        let longer = wire(data.len(), &[&data[..], &[more]].concat());
        // One byte short: the line end is taken for data, and what follows is not a line end.
        for wire in [longer, wire(data.len() + 1, &data)] {
            match read(announced("Transfer-Encoding: chunked"), &pieces(&wire, &cuts)) {
                Read::Refused(error) => prop_assert!(matches!(error, HttpError::Malformed(_)), "{:?}", error),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn a_chunks_line_of_more_than_256_bytes_is_refused_however_it_is_split(
        extension in 0..600_usize,
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let wire = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(extension)).into_bytes();
        let read = read(announced("Transfer-Encoding: chunked"), &pieces(&wire, &cuts));
        let refused = matches!(read, Read::Refused(HttpError::Malformed(_)));
        prop_assert_eq!(refused, "1;\r\n".len() + extension > 256, "{:?}", read);
    }

    #[test]
    fn any_bytes_as_a_chunked_body_get_the_same_verdict_however_they_are_split(
        wire in nearly_http(),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let whole = read(announced("Transfer-Encoding: chunked"), std::slice::from_ref(&wire));
        prop_assert_eq!(read(announced("Transfer-Encoding: chunked"), &pieces(&wire, &cuts)), whole);
    }

    #[test]
    fn a_damaged_chunked_body_gets_the_same_verdict_however_it_is_split(
        (wire, _) in chunked(),
        damage in vec((any::<Index>(), select(&b"\r\n;0aF\xff "[..])), 1..4),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let mut wire = wire;
        for (at, byte) in damage {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        let whole = read(announced("Transfer-Encoding: chunked"), std::slice::from_ref(&wire));
        prop_assert_eq!(read(announced("Transfer-Encoding: chunked"), &pieces(&wire, &cuts)), whole);
    }

    #[test]
    fn a_head_is_read_when_it_is_complete_and_not_before(head in head(), next in vec(any::<u8>(), 0..20)) {
        for cut in 0..head.len() {
            prop_assert!(request_head(&head.as_bytes()[..cut], MAX_BODY).unwrap().is_none(), "cut at {}", cut);
        }
        let sent = [head.as_bytes(), &next].concat();
        let (read, length) = request_head(&sent, MAX_BODY).unwrap().unwrap();
        prop_assert_eq!(length, head.len());
        let mut lines = head.trim_end().split("\r\n");
        let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
        prop_assert_eq!((read.method.as_str(), read.target.as_str()), (line[0], line[1]));
        prop_assert_eq!(read.head_only(), line[0] == "HEAD");
        let fields: Vec<(&str, &str)> = lines.map(|line| line.split_once(':').unwrap()).collect();
        for (name, _) in &fields {
            let of_name = fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
            let given: Vec<&[u8]> = of_name.map(|(_, value)| value.trim().as_bytes()).collect();
            let name = name.to_ascii_uppercase();
            prop_assert_eq!(read.values(&name).collect::<Vec<_>>(), given);
        }
        prop_assert_eq!(read.expects, head.contains("100-continue"));
        prop_assert!(read.keep_alive);
    }

    #[test]
    fn a_head_whose_line_ends_with_a_bare_line_feed_or_holds_a_bare_carriage_return_is_refused(
        head in head(),
        line in any::<Index>(),
        lone in select(&["\n", "\r", "\r\r\n", "\n\r\n"][..]),
    ) {
        let ends: Vec<usize> = head.match_indices("\r\n").map(|(at, _)| at).collect();
        let at = ends[line.index(ends.len())];
        let damaged = [&head[..at], lone, &head[at + 2..], "\r\n\r\n"].concat();
        let read = request_head(damaged.as_bytes(), MAX_BODY);
        // Two line ends in a row end the head early, which makes it another head and not a damaged one.
        prop_assert!(!matches!(read, Ok(Some((_, length))) if length > at + 2), "{:?}", read);
    }

    #[test]
    fn a_head_and_what_it_says_do_not_depend_on_the_host_and_scheme_of_its_target(head in head(), host in "[a-z.:0-9]{1,20}") {
        let (origin, _) = request_head(head.as_bytes(), MAX_BODY).unwrap().unwrap();
        for scheme in ["http://", "HTTPS://"] {
            let absolute = head.replacen(" /", &format!(" {scheme}{host}/"), 1);
            let (read, length) = request_head(absolute.as_bytes(), MAX_BODY).unwrap().unwrap();
            prop_assert_eq!((&read.target, &read.body, length), (&origin.target, &origin.body, absolute.len()));
        }
    }

    #[test]
    fn no_bytes_make_the_framing_panic_or_read_past_their_end(bytes in nearly_http()) {
        if let Ok(Some((head, length))) = request_head(&bytes, MAX_BODY) {
            prop_assert!(length <= bytes.len());
            prop_assert!(head.target.starts_with('/') && head.target.is_ascii());
            read(head.body, &[bytes[length..].to_vec()]);
        }
    }
}
