//! HTTP/1.1 as far as the ingress needs it: a request's head, and the framing of its body (RFC 9112).
//!
//! Whatever two programs could read differently is refused: a line ends with CR LF and with nothing else, a body has
//! one length, and a field that decides something occurs once.

use httparse::{EMPTY_HEADER, Header, Status};

/// Longest head of a request in bytes, and most fields in it.
pub const MAX_HEAD: usize = 16 << 10;
/// Most header fields of a request.
pub const MAX_FIELDS: usize = 64;
/// Longest line that announces a chunk, and longest trailer section, in bytes.
const MAX_CHUNK_LINE: usize = 256;
const MAX_TRAILER: usize = 4 << 10;
/// Bytes that the framing of chunks may take: this many, plus this many times the content.
const FRAMING: u64 = 16 << 10;
const FRAMING_A_BYTE: u64 = 8;

/// Why a request is refused before anything looks at what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// It breaks HTTP's rules: how.
    Malformed(&'static str),
    /// Its head is over [`MAX_HEAD`] bytes or [`MAX_FIELDS`] fields.
    HeadTooLarge,
    /// It must announce the length of its body.
    LengthRequired,
    /// Its body is over this many bytes.
    TooLarge(u64),
    /// It expects something other than 100 (Continue).
    UnknownExpectation,
    /// The request or its body comes too slowly.
    TooSlow,
    /// No thread is free for it.
    Overloaded,
}

const fn malformed(reason: &'static str) -> HttpError {
    HttpError::Malformed(reason)
}

/// A request's head, checked.
#[derive(Debug)]
pub struct RequestHead {
    /// The method, as it came.
    pub method: String,
    /// The target's path and query, as they came.
    pub target: String,
    /// The lines of its fields, each ended by a line feed.
    fields: Vec<u8>,
    /// The body that is still to come.
    pub body: Body,
    /// Whether the connection may carry another request.
    pub keep_alive: bool,
    /// Whether the client waits for 100 (Continue) before it sends the body.
    pub expects: bool,
}

/// The values of a field in the lines of a head, without surrounding blanks. The head may be one that is refused.
pub fn values<'a>(lines: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let lines = lines.split(|&b| b == b'\n').take_while(|line| !line.trim_ascii().is_empty());
    lines.filter_map(move |line| {
        let (found, value) = line.split_at_checked(line.iter().position(|&b| b == b':')?)?;
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value[1..].trim_ascii())
    })
}

impl RequestHead {
    /// The values of a field, without surrounding blanks.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        values(&self.fields, name)
    }

    /// The lines of its fields, for [`values`].
    pub fn lines(&self) -> &[u8] {
        &self.fields
    }

    /// Whether the answer has no body, whatever its length says.
    pub fn head_only(&self) -> bool {
        self.method == "HEAD"
    }
}

/// Parses a request's head at the start of `input`. Returns it with its length once it is complete.
///
/// # Errors
/// It can never become an acceptable request.
pub fn request_head(input: &[u8], max_body: u64) -> Result<Option<(RequestHead, usize)>, HttpError> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(input) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HttpError::HeadTooLarge),
        Err(_) => return Err(malformed("not an HTTP/1.1 request")),
    };
    if !lines_end_with_cr_lf(&input[..length]) {
        return Err(malformed("a line of the head does not end with CR LF"));
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let (authority, target) = split_target(target).ok_or(malformed("the request's target is not a path in ASCII"))?;
    let http_1_1 = request.version == Some(1);
    let fields = &*request.headers;
    match (named(fields, "host").count(), http_1_1) {
        (1, _) | (0, false) => {}
        _ => return Err(malformed("an HTTP/1.1 request must have exactly one Host field")),
    }
    let expects = match value(fields, "expect")? {
        Some(v) if v.eq_ignore_ascii_case(b"100-continue") => http_1_1,
        Some(_) => return Err(HttpError::UnknownExpectation),
        None => false,
    };
    // The host of an absolute-form target counts in place of Host (RFC 9112, 3.2.2).
    let counts = |f: &&Header<'_>| authority.is_none() || !f.name.eq_ignore_ascii_case("host");
    let host = authority.map(|authority| Header { name: "Host", value: authority.as_bytes() });
    let lines = fields.iter().filter(counts).chain(&host).map(|f| [f.name.as_bytes(), b":", f.value, b"\n"].concat());
    let body = body(method, fields, http_1_1, max_body)?;
    let head = RequestHead {
        method: method.to_owned(),
        target: target.to_owned(),
        fields: lines.collect::<Vec<_>>().concat(),
        keep_alive: http_1_1 && body != Body::Unannounced && !named(fields, "connection").any(has_close),
        body,
        expects,
    };
    Ok(Some((head, length)))
}

/// httparse also accepts a bare LF as a line's end.
fn lines_end_with_cr_lf(head: &[u8]) -> bool {
    head.iter().enumerate().all(|(i, b)| *b != b'\n' || (i > 0 && head[i - 1] == b'\r'))
}

/// The authority of a target in absolute-form, and the path and query of one in that form or in origin-form (RFC 9112,
/// 3.2).
fn split_target(target: &str) -> Option<(Option<&str>, &str)> {
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let (authority, target) = match scheme.map(|scheme| &target[scheme.len()..]) {
        None => (None, target),
        Some(rest) => match rest.find(['/', '?']) {
            Some(at) => (Some(&rest[..at]), &rest[at..]),
            None => (Some(rest), "/"),
        },
    };
    (target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic())).then_some((authority, target))
}

fn has_close(value: &[u8]) -> bool {
    value.split(|&b| b == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// The values of a field.
fn named<'a>(fields: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value.trim_ascii())
}

/// The value of a field that may occur once.
fn value<'a>(fields: &'a [Header<'a>], name: &'static str) -> Result<Option<&'a [u8]>, HttpError> {
    let mut values = named(fields, name);
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(malformed("a header field that may occur only once is repeated")),
        (value, None) => Ok(value),
    }
}

fn body(method: &str, fields: &[Header<'_>], http_1_1: bool, max_body: u64) -> Result<Body, HttpError> {
    match (value(fields, "content-length")?, value(fields, "transfer-encoding")?) {
        (Some(_), Some(_)) => Err(malformed("both Content-Length and Transfer-Encoding")),
        (None, Some(coding)) if http_1_1 && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Body::Chunked(Chunks { at: ChunkPart::Size, content: 0, framing: 0, max_body }))
        }
        (None, Some(_)) => Err(malformed("a Transfer-Encoding other than chunked")),
        (Some(length), None) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            match str::from_utf8(length).ok().and_then(|digits| digits.parse().ok()) {
                Some(length) if length <= max_body => Ok(Body::Length(length)),
                _ => Err(HttpError::TooLarge(max_body)),
            }
        }
        (Some(_), None) => Err(malformed("Content-Length is not a number")),
        (None, None) if matches!(method, "POST" | "PUT" | "PATCH") => Ok(Body::Unannounced),
        (None, None) => Ok(Body::Length(0)),
    }
}

/// What is still to come of a request's body.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes.
    Length(u64),
    /// None, of a method that has one as a rule: without a length or a coding it is empty (RFC 9112, 6.3). A proxy that
    /// lost its framing may still send one, so nothing that follows on the connection is taken for a request.
    Unannounced,
    /// Chunks.
    Chunked(Chunks),
}

/// The state of a chunked body (RFC 9112, 7.1).
#[derive(Debug, PartialEq, Eq)]
pub struct Chunks {
    at: ChunkPart,
    /// Bytes of content that chunks have announced, and bytes of framing.
    content: u64,
    framing: u64,
    /// Most content of all chunks together, in bytes.
    max_body: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum ChunkPart {
    Size,
    Data(u64),
    End,
    Trailer(usize),
    Done,
}

impl Body {
    /// Whether the whole body has come.
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Unannounced | Body::Chunked(Chunks { at: ChunkPart::Done, .. }))
    }

    /// Takes the body's bytes from the start of `input`, appends their content to `out`, `room` bytes of it at most,
    /// and returns how many bytes of `input` were taken.
    ///
    /// Its framing is wrong, or it is too large.
    pub fn take(&mut self, input: &[u8], room: usize, out: &mut Vec<u8>) -> Result<usize, HttpError> {
        match self {
            Body::Length(left) => Ok(take_some(left, input, room, out)),
            Body::Unannounced => Ok(0),
            Body::Chunked(chunks) => chunks.take(input, room, out),
        }
    }
}

fn take_some(left: &mut u64, input: &[u8], room: usize, out: &mut Vec<u8>) -> usize {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len()).min(room);
    out.extend_from_slice(&input[..n]);
    *left -= n as u64;
    n
}

impl Chunks {
    fn take(&mut self, input: &[u8], room: usize, out: &mut Vec<u8>) -> Result<usize, HttpError> {
        let (mut taken, end) = (0, out.len().saturating_add(room));
        while let Some(n) = self.step(&input[taken..], end - out.len(), out)? {
            taken += n;
        }
        Ok(taken)
    }

    /// Takes the next part, if it is complete; returns its length.
    fn step(&mut self, rest: &[u8], room: usize, out: &mut Vec<u8>) -> Result<Option<usize>, HttpError> {
        match &mut self.at {
            ChunkPart::Size => {
                match line(rest, MAX_CHUNK_LINE).map_err(|()| malformed("a chunk's line is too long"))? {
                    None => Ok(None),
                    Some(line) => {
                        let size = chunk_size(line).ok_or(malformed("a chunk's size or extension is wrong"))?;
                        self.announced(size, line.len() as u64 + 4)?;
                        self.at = if size > 0 { ChunkPart::Data(size) } else { ChunkPart::Trailer(0) };
                        Ok(Some(line.len() + 2))
                    }
                }
            }
            ChunkPart::Data(left) => {
                let n = take_some(left, rest, room, out);
                if *left == 0 {
                    self.at = ChunkPart::End;
                }
                Ok((n > 0).then_some(n))
            }
            ChunkPart::End => match rest {
                [b'\r', b'\n', ..] => {
                    self.at = ChunkPart::Size;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(malformed("a chunk is longer than its size")),
            },
            ChunkPart::Trailer(seen) => {
                let left = MAX_TRAILER.saturating_sub(*seen);
                match line(rest, left).map_err(|()| malformed("the trailer is over 4 KiB"))? {
                    None => Ok(None),
                    Some(b"") => {
                        self.at = ChunkPart::Done;
                        Ok(Some(2))
                    }
                    Some(line) if is_field(line) => {
                        *seen += line.len() + 2;
                        Ok(Some(line.len() + 2))
                    }
                    Some(_) => Err(malformed("a line of the trailer is not a field")),
                }
            }
            ChunkPart::Done => Ok(None),
        }
    }

    fn announced(&mut self, size: u64, framing: u64) -> Result<(), HttpError> {
        self.framing += framing;
        self.content = self
            .content
            .checked_add(size)
            .filter(|content| *content <= self.max_body)
            .ok_or(HttpError::TooLarge(self.max_body))?;
        match self.framing <= FRAMING + self.content.saturating_mul(FRAMING_A_BYTE) {
            true => Ok(()),
            false => Err(malformed("the chunks' extensions are too long for their content")),
        }
    }
}

/// The line that `input` begins with, without its CR LF; `None` if it is not complete.
///
/// # Errors
/// It is longer than `most` bytes, with its CR LF.
fn line(input: &[u8], most: usize) -> Result<Option<&[u8]>, ()> {
    match input[..input.len().min(most)].windows(2).position(|w| w == b"\r\n") {
        Some(end) => Ok(Some(&input[..end])),
        None if input.len() >= most => Err(()),
        None => Ok(None),
    }
}

/// The size that a chunk's line announces: hex digits, and extensions, which are ignored.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|&b| b == b';').unwrap_or(line.len());
    let (digits, extensions) = line.split_at(end);
    let digits = str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let size = u64::from_str_radix(digits, 16).ok()?;
    are_extensions(extensions).then_some(size)
}

/// `;name`, `;name=token` or `;name="quoted"`, any number of them (RFC 9112, 7.1.1), without blanks between.
fn are_extensions(mut rest: &[u8]) -> bool {
    while let [b';', after @ ..] = rest {
        let name = token_length(after);
        rest = &after[name..];
        if name == 0 {
            return false;
        }
        if let [b'=', value @ ..] = rest {
            let length = match value {
                [b'"', text @ ..] => quoted_length(text).map(|n| n + 1),
                _ => Some(token_length(value)).filter(|n| *n > 0),
            };
            let Some(length) = length else { return false };
            rest = &value[length..];
        }
    }
    rest.is_empty()
}

fn token_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| is_tchar(**b)).count()
}

/// The length of a quoted string after its opening quote, with its closing quote.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (i, &b) in text.iter().enumerate() {
        match b {
            _ if !matches!(b, b'\t' | b' '..=b'~') => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// RFC 9110, 5.6.2.
fn is_tchar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// A field's line (RFC 9110, 5.1 and 5.5).
fn is_field(line: &[u8]) -> bool {
    let name = token_length(line);
    let value = line.get(name..).and_then(|rest| rest.strip_prefix(b":"));
    name > 0 && value.is_some_and(|value| value.iter().all(|&b| matches!(b, b'\t' | b' '..=b'~' | 0x80..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &[u8]) -> Result<Option<(RequestHead, usize)>, HttpError> {
        request_head(text, 1000)
    }

    #[test]
    fn a_plain_request_is_read_with_its_fields() {
        let text = b"POST /a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 3\r\nCity:  S\xc3\xa3o \r\n\r\nabc";
        let (head, length) = head(text).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/a?b"));
        assert_eq!(head.values("CITY").collect::<Vec<_>>(), ["São".as_bytes()]);
        assert_eq!(head.values("Cit").count(), 0);
        assert_eq!((head.body, head.keep_alive, length), (Body::Length(3), true, text.len() - 3));
    }

    #[test]
    fn half_a_head_is_waited_for_and_an_endless_one_is_not() {
        assert!(head(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap().is_none());
        let long = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(MAX_HEAD));
        assert_eq!(head(long.as_bytes()).unwrap_err(), HttpError::HeadTooLarge);
        assert_eq!(head(format!("{long}\r\n\r\n").as_bytes()).unwrap_err(), HttpError::HeadTooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(head(many.as_bytes()).unwrap_err(), HttpError::HeadTooLarge);
    }

    #[test]
    fn the_absolute_form_of_a_target_is_taken_and_nothing_but_a_path_in_ascii() {
        let target = |target: &str| {
            let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            head(text.as_bytes()).ok().flatten().map(|(head, _)| head.target)
        };
        assert_eq!(target("http://x:80/health?a=http://y").as_deref(), Some("/health?a=http://y"));
        assert_eq!(target("HTTPS://x").as_deref(), Some("/"));
        for bad in ["x", "*", "ftp://x/", "http://x?a/b", "/ä", "x:443"] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_counts_in_place_of_the_field() {
        for (start, host) in [
            ("GET /a HTTP/1.1\r\nHost: field", "field"),
            ("GET http://target:80/a HTTP/1.1\r\nhost: field", "target:80"),
            ("GET https://target HTTP/1.0\r\nA: b", "target"),
            ("GET http:///a HTTP/1.1\r\nHost: field", ""),
        ] {
            let (head, _) = head(format!("{start}\r\nLast: x\r\n\r\n").as_bytes()).unwrap().unwrap();
            assert_eq!(head.values("Host").collect::<Vec<_>>(), [host.as_bytes()], "{start}");
            assert_eq!(head.values("Last").count(), 1);
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let is_malformed = |error: HttpError| matches!(error, HttpError::Malformed(_));
        for fields in [
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "A b: c\r\n",
            "Content-Length: 0\r\nHost: y\r\n",
            "Content-Length: 0\r\nA: b\nB: c\r\n",
            "Content-Length: 0\nA: b\r\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            assert!(is_malformed(head(text.as_bytes()).unwrap_err()), "{fields}");
        }
        for text in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", "\x16\x03\x01"] {
            assert!(is_malformed(head(text.as_bytes()).unwrap_err()), "{text}");
        }
        for (fields, error) in [
            ("Content-Length: 99999999999999999999999\r\n", HttpError::TooLarge(1000)),
            ("Content-Length: 1001\r\n", HttpError::TooLarge(1000)),
            ("Expect: miracles\r\nContent-Length: 0\r\n", HttpError::UnknownExpectation),
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            assert_eq!(head(text.as_bytes()).unwrap_err(), error, "{fields}");
        }
    }

    #[test]
    fn a_body_that_is_not_announced_is_empty_and_its_request_the_last_of_its_connection() {
        for (method, body, keeps) in [
            ("POST", Body::Unannounced, false),
            ("PUT", Body::Unannounced, false),
            ("PATCH", Body::Unannounced, false),
            ("GET", Body::Length(0), true),
            ("DELETE", Body::Length(0), true),
            ("OPTIONS", Body::Length(0), true),
        ] {
            let text = format!("{method} / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
            let (head, _) = head(text.as_bytes()).unwrap().unwrap();
            assert!(head.body.is_done());
            assert_eq!((head.body, head.keep_alive), (body, keeps), "{method}");
        }
        let mut out = Vec::new();
        assert_eq!(Body::Unannounced.take(b"GET /", 99, &mut out), Ok(0));
        assert!(out.is_empty());
    }

    #[test]
    fn an_old_client_and_one_that_says_close_get_one_answer_a_connection() {
        let keeps = |text: &str| head(text.as_bytes()).unwrap().unwrap().0.keep_alive;
        assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
        assert!(!keeps("GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, Close\r\n\r\n"));
        assert!(keeps("GET / HTTP/1.1\r\nHost: x\r\nConnection: closed\r\n\r\n"));
    }

    fn chunked() -> Body {
        Body::Chunked(Chunks { at: ChunkPart::Size, content: 0, framing: 0, max_body: 10 })
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        let wire = b"3;x=y;z;q=\"a \\\" b\"\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\nGET /";
        for cut in 0..wire.len() {
            let (mut body, mut out, mut input) = (chunked(), Vec::new(), wire[..cut].to_vec());
            let taken = body.take(&input, usize::MAX, &mut out).unwrap();
            input.drain(..taken);
            input.extend_from_slice(&wire[cut..]);
            let taken = body.take(&input, usize::MAX, &mut out).unwrap();
            assert!(body.is_done());
            assert_eq!((&out[..], &input[taken..]), (&b"abcde"[..], &b"GET /"[..]), "cut at {cut}");
        }
    }

    #[test]
    fn where_there_is_no_more_room_for_content_its_framing_is_still_taken() {
        let (mut body, mut out) = (chunked(), Vec::new());
        let wire = b"5\r\nabcde\r\n0\r\n\r\n";
        let taken = body.take(wire, 3, &mut out).unwrap();
        assert_eq!((&out[..], &wire[taken..]), (&b"abc"[..], &b"de\r\n0\r\n\r\n"[..]));
        let taken = taken + body.take(&wire[taken..], 2, &mut out).unwrap();
        assert_eq!((&out[..], taken, body.is_done()), (&b"abcde"[..], wire.len(), true));
    }

    #[test]
    fn bad_chunks_are_refused() {
        for wire in [
            "x\r\n",
            "-1\r\n",
            "1\r\nab",
            "\r\n",
            "1 \r\n",
            "+1\r\n",
            "1;\r\n",
            "1;a=\r\n",
            "1;a=\"b\r\n",
            "1;\u{e4}=b\r\n",
            "1;a\n0\r\n",
            "0\r\n\n\r\n",
            "0\r\nGET /ready HTTP/1.1\rHost: b\r\n\r\n",
            "0\r\nA b: c\r\n\r\n",
            "0\r\nno field\r\n\r\n",
        ] {
            let error = chunked().take(wire.as_bytes(), 99, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, HttpError::Malformed(_)), "{wire:?}: {error:?}");
        }
        for wire in
            ["1".repeat(300), format!("0\r\nA: {}", "x".repeat(5000)), "0\r\n".to_owned() + &"A: b\r\n".repeat(700)]
        {
            assert!(
                matches!(chunked().take(wire.as_bytes(), 99, &mut Vec::new()), Err(HttpError::Malformed(_))),
                "{wire}"
            );
        }
        for wire in ["b\r\n", "ffffffffffffffff\r\n", "10000000000000000\r\n"] {
            let error = chunked().take(wire.as_bytes(), 99, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, HttpError::TooLarge(10) | HttpError::Malformed(_)), "{wire}");
        }
    }

    #[test]
    fn extensions_may_not_be_many_times_what_they_are_about() {
        let chunk = format!("1;e={}\r\nx\r\n", "e".repeat(240));
        let mut body = Body::Chunked(Chunks { at: ChunkPart::Size, content: 0, framing: 0, max_body: 1 << 20 });
        let taken = (0..1000).try_for_each(|_| body.take(chunk.as_bytes(), 9, &mut Vec::new()).map(drop));
        assert!(matches!(taken, Err(HttpError::Malformed(_))));
        let small = "1\r\nx\r\n".repeat(10_000);
        let mut body = Body::Chunked(Chunks { at: ChunkPart::Size, content: 0, framing: 0, max_body: 1 << 20 });
        assert!(body.take(small.as_bytes(), 1 << 20, &mut Vec::new()).is_ok(), "chunks of one byte are fine");
    }
}
