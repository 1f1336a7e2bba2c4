//! Bodies of answers: in one piece, generated (so that a huge one takes no memory), or broken off half-way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// Bytes handed to the connection at a time.
const CHUNK: usize = 64 << 10;

/// The error that cuts an answer off: on a body's error hyper drops the connection, without a close_notify of TLS.
#[derive(Debug, PartialEq)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A body whose length is announced in Content-Length.
#[derive(Debug, Default)]
pub(crate) struct AnswerBody {
    pieces: VecDeque<Piece>,
    announced: u64,
    cut_after: Option<u64>,
    flushed: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// That many letters A.
    Letters(u64),
}

impl AnswerBody {
    /// A body of these bytes.
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        AnswerBody { announced: bytes.len() as u64, pieces: [Piece::Bytes(bytes)].into(), ..AnswerBody::default() }
    }

    /// `before`, then `letters` times the letter A, then `after`.
    pub(crate) fn huge(before: &'static str, letters: u64, after: &'static str) -> Self {
        let pieces = [Piece::Bytes(before.into()), Piece::Letters(letters), Piece::Bytes(after.into())];
        let announced = letters.saturating_add((before.len() + after.len()) as u64);
        AnswerBody { announced, pieces: pieces.into(), ..AnswerBody::default() }
    }

    /// The same body, which announces its whole length but breaks off half-way.
    pub(crate) fn cut(self) -> Self {
        AnswerBody { cut_after: Some(self.announced / 2), ..self }
    }

    /// The next bytes, at most `limit`, which is not 0.
    fn take(&mut self, limit: usize) -> Option<Bytes> {
        loop {
            match self.pieces.front_mut()? {
                Piece::Bytes(bytes) if !bytes.is_empty() => return Some(bytes.split_to(limit.min(bytes.len()))),
                Piece::Letters(left) if *left > 0 => {
                    let now = usize::try_from(*left).map_or(limit, |left| left.min(limit));
                    *left -= now as u64;
                    return Some(Bytes::from(vec![b'A'; now]));
                }
                _ => self.pieces.pop_front(),
            };
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut limit = CHUNK;
        match self.cut_after {
            Some(0) if self.flushed => return Poll::Ready(Some(Err(Cut))),
            Some(0) => {
                // hyper flushes what it has when a body is not ready; on an error it would drop it.
                self.flushed = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(left) => limit = limit.min(usize::try_from(left).unwrap_or(limit)),
            None => {}
        }
        let bytes = self.take(limit);
        if let (Some(left), Some(bytes)) = (&mut self.cut_after, &bytes) {
            *left -= bytes.len() as u64;
        }
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        // Read once, before the first frame, for Content-Length.
        SizeHint::with_exact(self.announced)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// All bytes of a body, and whether it was cut.
    fn read(mut body: AnswerBody) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        loop {
            match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => bytes.extend(frame.into_data().unwrap()),
                Poll::Ready(Some(Err(Cut))) => return (bytes, true),
                Poll::Ready(None) => return (bytes, false),
                Poll::Pending => assert!(body.flushed),
            }
        }
    }

    #[test]
    fn a_huge_answer_has_the_length_that_it_announces() {
        let body = AnswerBody::huge("<", 200_000, ">");
        assert_eq!(body.size_hint().exact(), Some(200_002));
        let (bytes, cut) = read(body);
        assert_eq!((bytes.len(), cut), (200_002, false));
        assert_eq!((bytes[0], bytes[100_000], bytes[200_001]), (b'<', b'A', b'>'));
    }

    #[test]
    fn a_cut_answer_announces_all_and_sends_half() {
        for body in [AnswerBody::whole("0123456789"), AnswerBody::huge("<", 300_000, ">")] {
            let announced = body.size_hint().exact().unwrap();
            let body = body.cut();
            assert_eq!(body.size_hint().exact(), Some(announced));
            let (bytes, cut) = read(body);
            assert_eq!((bytes.len() as u64, cut), (announced / 2, true));
        }
    }

    #[test]
    fn an_empty_answer_ends_at_once() {
        assert_eq!(read(AnswerBody::whole("")), (Vec::new(), false));
    }
}
