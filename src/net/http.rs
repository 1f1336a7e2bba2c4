//! Where an HTTP/1.1 message begins and ends (RFC 9112), no more.
//!
//! tiny_http reads what it is given and trusts it. So each request is framed here first, strictly: what two programs
//! could read differently, such as two lengths, is refused (RFC 9112, 11.2), and the head is written anew.

use httparse::{EMPTY_HEADER, Header, Status};

/// Largest request head, in bytes, and most header fields in it.
pub const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 64;
/// Longest line that announces a chunk, and longest trailer section, in bytes.
const MAX_CHUNK_LINE: usize = 256;
const MAX_TRAILER: usize = 4 << 10;

/// Fields that concern one connection only (RFC 9110, 7.6.1), and the transfer coding, which is undone here.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "upgrade", "te", "trailer", "transfer-encoding"];

/// An answer that is given without asking tiny_http.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: &'static str,
}

const fn bad(message: &'static str) -> Refusal {
    Refusal { status: 400, code: "invalid_request", message }
}

pub const TOO_LARGE: Refusal = Refusal { status: 413, code: "file_too_large", message: "the body is too large" };

/// A request's head, checked.
#[derive(Debug)]
pub struct RequestHead {
    /// The head for tiny_http.
    ///
    /// `Connection: upgrade` makes tiny_http hand out the reader of a body as it is. Otherwise dropping a request
    /// whose body was not read allocates as many bytes as are left of what the client announced.
    pub bytes: Vec<u8>,
    pub body: Body,
    /// The client's connection may carry another request.
    pub keep_alive: bool,
    /// The client waits for 100 (Continue) before it sends the body.
    pub expects: bool,
    /// The answer has no body, whatever its length says.
    pub head_only: bool,
}

/// What is still to come of a request's body.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks, which together may be so many bytes.
    Chunked(Chunks),
}

/// The state of a chunked body (RFC 9112, 7.1).
#[derive(Debug, PartialEq, Eq)]
pub struct Chunks {
    at: ChunkPart,
    allowance: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum ChunkPart {
    Size,
    Data(u64),
    End,
    Trailer(usize),
    Done,
}

/// Reads a request's head from the start of `input`. Gives it with its length once it is complete.
///
/// # Errors
/// The refusal to answer with.
pub fn request_head(input: &[u8], max_body: u64) -> Result<Option<(RequestHead, usize)>, Refusal> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(input) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err(Refusal { status: 431, code: "invalid_request", message: "the head is over 16 KiB" }),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal { status: 431, code: "invalid_request", message: "more than 64 header fields" });
        }
        Err(_) => return Err(bad("not an HTTP/1.1 request")),
    };
    if !input[..length].is_ascii() {
        return Err(bad("the head is not ASCII: percent-encode other characters"));
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if !target.starts_with('/') {
        return Err(bad("the request's target is not a path"));
    }
    let http_1_1 = request.version == Some(1);
    let fields = &*request.headers;
    let expects = match value(fields, "expect")? {
        Some(v) if v.eq_ignore_ascii_case("100-continue") => http_1_1,
        Some(_) => {
            return Err(Refusal { status: 417, code: "invalid_request", message: "only 100-continue is expected" });
        }
        None => false,
    };
    let head = RequestHead {
        bytes: rewrite(method, target, fields, expects),
        body: body(method, fields, http_1_1, max_body)?,
        keep_alive: http_1_1 && !named(fields, "connection").any(|v| v.to_ascii_lowercase().contains("close")),
        expects,
        head_only: method == "HEAD",
    };
    Ok(Some((head, length)))
}

/// The values of a field.
fn named<'a>(fields: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    let same = move |f: &&Header<'a>| f.name.eq_ignore_ascii_case(name);
    fields.iter().filter(same).map(|f| std::str::from_utf8(f.value).unwrap_or_default().trim())
}

/// The value of a field that may stand once.
fn value<'a>(fields: &'a [Header<'a>], name: &'static str) -> Result<Option<&'a str>, Refusal> {
    let mut values = named(fields, name);
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(bad("a header field that may stand once is repeated")),
        (value, None) => Ok(value),
    }
}

fn body(method: &str, fields: &[Header<'_>], http_1_1: bool, max_body: u64) -> Result<Body, Refusal> {
    match (value(fields, "content-length")?, value(fields, "transfer-encoding")?) {
        (Some(_), Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
        (None, Some(coding)) if http_1_1 && coding.eq_ignore_ascii_case("chunked") => {
            Ok(Body::Chunked(Chunks { at: ChunkPart::Size, allowance: max_body }))
        }
        (None, Some(_)) => Err(bad("a Transfer-Encoding other than chunked")),
        (Some(length), None) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            match length.parse() {
                Ok(length) if length <= max_body => Ok(Body::Length(length)),
                _ => Err(TOO_LARGE),
            }
        }
        (Some(_), None) => Err(bad("Content-Length is not a number")),
        (None, None) if matches!(method, "POST" | "PUT" | "PATCH") => {
            Err(Refusal { status: 411, code: "length_required", message: "send Content-Length, or chunks" })
        }
        (None, None) => Ok(Body::Length(0)),
    }
}

fn rewrite(method: &str, target: &str, fields: &[Header<'_>], expects: bool) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    let kept = |f: &&Header<'_>| {
        !HOP_BY_HOP.iter().any(|h| f.name.eq_ignore_ascii_case(h))
            && (expects || !f.name.eq_ignore_ascii_case("expect"))
    };
    for field in fields.iter().filter(kept) {
        bytes.extend_from_slice(field.name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(field.value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"Connection: upgrade\r\n\r\n");
    bytes
}

impl Body {
    /// Whether all of it has come.
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked(Chunks { at: ChunkPart::Done, .. }))
    }

    /// Takes what belongs to the body from the start of `input`, gives content to `out`, and says how many bytes of
    /// `input` were taken.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        match self {
            Body::Length(left) => Ok(take_some(left, input, out)),
            Body::Chunked(chunks) => chunks.take(input, out),
        }
    }
}

fn take_some(left: &mut u64, input: &[u8], out: &mut Vec<u8>) -> usize {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    out.extend_from_slice(&input[..n]);
    *left -= n as u64;
    n
}

impl Chunks {
    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let n = match &mut self.at {
                ChunkPart::Size => match httparse::parse_chunk_size(rest) {
                    // httparse takes a line without a digit for 0, and a bare LF in an extension.
                    Ok(Status::Complete((n, size)))
                        if n <= MAX_CHUNK_LINE
                            && rest[0].is_ascii_hexdigit()
                            && rest[..n - 2].iter().all(|&b| b != b'\n') =>
                    {
                        self.allowance = self.allowance.checked_sub(size).ok_or(TOO_LARGE)?;
                        self.at = if size > 0 { ChunkPart::Data(size) } else { ChunkPart::Trailer(0) };
                        n
                    }
                    Ok(Status::Partial) if rest.len() < MAX_CHUNK_LINE => return Ok(taken),
                    _ => return Err(bad("a chunk's size is wrong")),
                },
                ChunkPart::Data(left) => {
                    let n = take_some(left, rest, out);
                    if *left > 0 {
                        return Ok(taken + n);
                    }
                    self.at = ChunkPart::End;
                    n
                }
                ChunkPart::End => match rest {
                    [b'\r', b'\n', ..] => {
                        self.at = ChunkPart::Size;
                        2
                    }
                    [] | [b'\r'] => return Ok(taken),
                    _ => return Err(bad("a chunk is longer than its size")),
                },
                ChunkPart::Trailer(seen) => match rest.iter().position(|&b| b == b'\n') {
                    Some(end) => {
                        *seen += end + 1;
                        if *seen > MAX_TRAILER {
                            return Err(bad("the trailer is over 4 KiB"));
                        }
                        match &rest[..end] {
                            b"\r" => self.at = ChunkPart::Done,
                            line if line.ends_with(b"\r") => {}
                            _ => return Err(bad("a line of the trailer ends without CR")),
                        }
                        end + 1
                    }
                    None if rest.len() < MAX_TRAILER => return Ok(taken),
                    None => return Err(bad("the trailer is over 4 KiB")),
                },
                ChunkPart::Done => return Ok(taken),
            };
            taken += n;
        }
    }
}

/// The head of an answer: its length, and the length of its body; an interim answer (1xx) has neither body nor end.
pub struct AnswerHead {
    pub length: usize,
    pub interim: bool,
    pub body: u64,
}

/// What came is no answer, or one without a length, which the daemon never gives.
#[derive(Debug)]
pub struct NoAnswer;

/// Reads the head of tiny_http's answer from the start of `input`, once it is complete.
///
/// # Errors
/// It will never be one.
pub fn answer_head(input: &[u8], head_only: bool) -> Result<Option<AnswerHead>, NoAnswer> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    let Status::Complete(length) = answer.parse(input).map_err(|_| NoAnswer)? else { return Ok(None) };
    let status = answer.code.ok_or(NoAnswer)?;
    let interim = (100..200).contains(&status);
    let body = match named(answer.headers, "content-length").next() {
        _ if interim || head_only => 0,
        Some(value) => value.parse().map_err(|_| NoAnswer)?,
        None => return Err(NoAnswer),
    };
    Ok(Some(AnswerHead { length, interim, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<(RequestHead, usize)>, u16> {
        request_head(text.as_bytes(), 1000).map_err(|r| r.status)
    }

    #[test]
    fn a_plain_request_is_passed_on_with_its_fields_and_without_those_of_the_connection() {
        let text =
            "POST /a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 3\r\nTE: chunked\r\n\r\nabc";
        let (head, length) = head(text).unwrap().unwrap();
        let expected = "POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(String::from_utf8(head.bytes).unwrap(), expected);
        assert_eq!((head.body, head.keep_alive, length), (Body::Length(3), true, text.len() - 3));
    }

    #[test]
    fn half_a_head_is_waited_for_and_an_endless_one_is_not() {
        assert!(head("GET / HTTP/1.1\r\nHost: x\r\n").unwrap().is_none());
        let long = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(MAX_HEAD));
        assert_eq!(head(&long).unwrap_err(), 431);
        assert_eq!(head(&format!("{long}\r\n\r\n")).unwrap_err(), 431);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(head(&many).unwrap_err(), 431);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (fields, status) in [
            ("Content-Length: 3\r\nContent-Length: 3\r\n", 400),
            ("Content-Length: -1\r\n", 400),
            ("Content-Length: +1\r\n", 400),
            ("Content-Length: 1, 1\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 400),
            ("Content-Length: 99999999999999999999999\r\n", 413),
            ("Content-Length: 1001\r\n", 413),
            ("Expect: miracles\r\nContent-Length: 0\r\n", 417),
            ("", 411),
            ("A: \u{e4}\r\nContent-Length: 0\r\n", 400),
            ("A b: c\r\n", 400),
        ] {
            assert_eq!(head(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).unwrap_err(), status, "{fields}");
        }
        assert_eq!(head("GET http://x/ HTTP/1.1\r\n\r\n").unwrap_err(), 400);
        assert_eq!(head("\x16\x03\x01").unwrap_err(), 400);
    }

    #[test]
    fn an_old_client_gets_one_answer_a_connection() {
        assert!(!head("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().0.keep_alive);
        assert!(!head("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").unwrap().unwrap().0.keep_alive);
    }

    fn chunked() -> Body {
        Body::Chunked(Chunks { at: ChunkPart::Size, allowance: 10 })
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        let wire = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\nGET /";
        for cut in 0..wire.len() {
            let (mut body, mut out, mut input) = (chunked(), Vec::new(), wire[..cut].to_vec());
            let taken = body.take(&input, &mut out).unwrap();
            input.drain(..taken);
            input.extend_from_slice(&wire[cut..]);
            let taken = body.take(&input, &mut out).unwrap();
            assert!(body.is_done());
            assert_eq!((&out[..], &input[taken..]), (&b"abcde"[..], &b"GET /"[..]), "cut at {cut}");
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for (wire, status) in [
            ("x\r\n".to_owned(), 400),
            ("-1\r\n".to_owned(), 400),
            ("b\r\n".to_owned(), 413),
            ("ffffffffffffffff\r\n".to_owned(), 413),
            ("1\r\nab".to_owned(), 400),
            ("1".repeat(300), 400),
            ("\r\n".to_owned(), 400),
            ("1;a\n0\r\n".to_owned(), 400),
            ("0\r\n\n".to_owned(), 400),
            (format!("0\r\nA: {}", "x".repeat(5000)), 400),
        ] {
            assert_eq!(chunked().take(wire.as_bytes(), &mut Vec::new()).unwrap_err().status, status, "{wire}");
        }
    }
}
