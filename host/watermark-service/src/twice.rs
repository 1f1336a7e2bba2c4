//! A connection's stream that can write an answer twice, the second time without a request for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The length of the body of an answer to write twice, set before hyper gets the answer; 0 otherwise.
pub(crate) type Again = Arc<AtomicU64>;

/// A stream that passes everything on, and writes an answer twice if [`Again`] is set.
pub(crate) struct Twice<S> {
    stream: S,
    again: Again,
    /// The bytes written since `again` was set.
    written: Vec<u8>,
    /// How many of them were written again.
    repeated: usize,
}

impl<S> Twice<S> {
    pub(crate) fn new(stream: S, again: Again) -> Self {
        Twice { stream, again, written: Vec::new(), repeated: 0 }
    }

    /// Whether the answer has been written to its end.
    fn is_whole(&self) -> bool {
        let head = self.written.windows(4).position(|end| end == b"\r\n\r\n");
        head.is_some_and(|head| (self.written.len() - head - 4) as u64 >= self.again.load(Ordering::Relaxed))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Twice<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Twice<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        if self.again.load(Ordering::Relaxed) > 0 {
            self.written.extend_from_slice(&bytes[..n]);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.again.load(Ordering::Relaxed) == 0 {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        }
        let first = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_whole() {
            while this.repeated < this.written.len() {
                let n = ready!(Pin::new(&mut this.stream).poll_write(cx, &this.written[this.repeated..]))?;
                this.repeated += n;
            }
            this.again.store(0, Ordering::Relaxed);
            this.written.clear();
            this.repeated = 0;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
