//! Properties of HTTP framing: however a message arrives, it is read alike.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use teemarkd::net::http::{Body, Refusal, answer_head, request_head};

use super::config;

const MAX_BODY: u64 = 4096;

/// What comes of a body: its content and what stands after it, or that it is unfinished, or a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Done { content: Vec<u8>, rest: Vec<u8> },
    Unfinished { content: Vec<u8> },
    Refused(Refusal),
}

/// Cuts a message into pieces.
fn pieces(wire: &[u8], cuts: &[Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    places.extend([0, wire.len()]);
    places.sort_unstable();
    places.windows(2).map(|w| wire[w[0]..w[1]].to_vec()).collect()
}

/// Reads a body from pieces, as a connection does: what was not taken waits for the next piece.
fn read(mut body: Body, pieces: &[Vec<u8>]) -> Read {
    let (mut buffer, mut content) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if body.is_done() {
            continue;
        }
        let before = content.len();
        match body.take(&buffer, &mut content) {
            Ok(taken) => {
                assert!(taken <= buffer.len(), "took {taken} of {} bytes", buffer.len());
                assert!(content.len() - before <= taken, "gave more than it took");
                assert!(content.len() as u64 <= MAX_BODY, "gave more than is allowed");
                buffer.drain(..taken);
            }
            Err(refusal) => return Read::Refused(refusal),
        }
    }
    if body.is_done() { Read::Done { content, rest: buffer } } else { Read::Unfinished { content } }
}

/// The body that a request with this field announces.
fn announced(field: &str) -> Body {
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n");
    request_head(head.as_bytes(), MAX_BODY).unwrap().unwrap().0.body
}

/// A chunked body (RFC 9112, 7.1) in all its freedom: sizes in either case with leading zeros, extensions, trailers.
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

/// Request heads that are good, with fields that have no bearing on the framing.
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

/// Bytes that are more often than not a piece of HTTP.
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
    ) {
        let sent = [wire, next.clone()].concat();
        let expected = Read::Done { content, rest: next };
        prop_assert_eq!(&read(announced("Transfer-Encoding: chunked"), &pieces(&sent, &cuts)), &expected);
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
            Read::Refused(refusal) => prop_assert_eq!((refusal.status, refusal.code), (413, "file_too_large")),
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
        // One byte short, the line's end is taken for data and what follows it is none.
        for wire in [longer, wire(data.len() + 1, &data)] {
            match read(announced("Transfer-Encoding: chunked"), &pieces(&wire, &cuts)) {
                Read::Refused(refusal) => prop_assert_eq!(refusal.status, 400),
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
        let refused = matches!(read, Read::Refused(Refusal { status: 400, .. }));
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
        let (line, _) = head.split_once("\r\n").unwrap();
        let first = [line.as_bytes(), b"\r\n"].concat();
        prop_assert!(read.bytes.starts_with(&first) && read.bytes.ends_with(b"\r\n\r\n"));
        prop_assert_eq!(read.head_only, line.starts_with("HEAD "));
        prop_assert_eq!(read.expects, head.contains("100-continue"));
        prop_assert!(read.keep_alive);
    }

    #[test]
    fn what_is_passed_on_is_itself_one_request_that_is_read_alike(head in head()) {
        let (first, _) = request_head(head.as_bytes(), MAX_BODY).unwrap().unwrap();
        // The ingress gives tiny_http a body with a length, so a transfer coding is gone.
        let passed = String::from_utf8(first.bytes.clone()).unwrap();
        prop_assert!(!passed.to_ascii_lowercase().contains("\r\ntransfer-encoding:"));
        if !head.contains("chunked") {
            let (second, length) = request_head(&first.bytes, MAX_BODY).unwrap().unwrap();
            prop_assert_eq!((length, second.body, second.bytes), (first.bytes.len(), first.body, first.bytes));
        }
    }

    #[test]
    fn no_bytes_make_the_framing_panic_or_read_past_their_end(bytes in nearly_http(), head_only in any::<bool>()) {
        if let Ok(Some((head, length))) = request_head(&bytes, MAX_BODY) {
            prop_assert!(length <= bytes.len());
            prop_assert!(head.bytes.is_ascii());
            read(head.body, &[bytes[length..].to_vec()]);
        }
        if let Ok(Some(head)) = answer_head(&bytes, head_only) {
            prop_assert!(head.length <= bytes.len());
        }
    }

    #[test]
    fn an_answer_is_read_when_its_head_is_complete_and_not_before(
        status in 200..600_u16,
        length in any::<u32>(),
        fields in vec("X-[a-z]{1,9}: [ -~]{0,20}\r\n", 0..6),
    ) {
        let head = format!("HTTP/1.1 {status} Reason\r\n{}Content-Length: {length}\r\n\r\n", fields.concat());
        for cut in 0..head.len() {
            prop_assert!(matches!(answer_head(&head.as_bytes()[..cut], false), Ok(None)), "cut at {}", cut);
        }
        let read = answer_head(head.as_bytes(), false).unwrap().unwrap();
        prop_assert_eq!((read.length, read.body, read.interim), (head.len(), u64::from(length), false));
        prop_assert_eq!(answer_head(head.as_bytes(), true).unwrap().unwrap().body, 0);
    }
}
