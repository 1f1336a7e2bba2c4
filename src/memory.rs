//! Admission: how much of the enclave's memory requests may hold together.
//!
//! An enclave has no swap, and a daemon that is killed for want of memory loses its keys. So a request says what it
//! will need before its body is read, and one that does not fit is turned away while there is still memory to say so.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes in all, and what is left of them.
#[derive(Clone, Debug)]
pub struct Budget {
    total: usize,
    left: Arc<AtomicUsize>,
}

/// Bytes taken from a budget; they go back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: usize,
}

/// The budget does not hold that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMemory {
    /// It will, when others have given back theirs.
    Now,
    /// It never will: this is all there is, in bytes.
    Ever(usize),
}

impl Budget {
    pub fn new(bytes: usize) -> Budget {
        Budget { total: bytes, left: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// Takes `bytes`, or nothing.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, NoMemory> {
        let mut reservation = Reservation { budget: self.clone(), bytes: 0 };
        reservation.cover(bytes).map(|()| reservation)
    }

    fn take(&self, bytes: usize) -> Result<(), NoMemory> {
        let less = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).map(drop).map_err(|_| NoMemory::Now)
    }

    /// Bytes in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes that nobody holds.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }
}

impl Reservation {
    /// Makes the reservation at least `bytes` large. Where that fails it stays as it was.
    pub fn cover(&mut self, bytes: usize) -> Result<(), NoMemory> {
        if bytes > self.budget.total {
            return Err(NoMemory::Ever(self.budget.total));
        }
        let more = bytes.saturating_sub(self.bytes);
        self.budget.take(more)?;
        self.bytes += more;
        Ok(())
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.budget.left.fetch_add(less, Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// Why [`read_all`] gave nothing.
#[derive(Debug)]
pub enum ReadError {
    /// There is more than the limit.
    TooLarge,
    NoMemory(NoMemory),
    Io(io::Error),
}

/// Reads to the end, `limit` bytes at most, and has the reservation cover `cost` of the buffer before it grows. A
/// known length spares the growing. Bytes cost at least twice their number, since the old buffer is there too while it
/// grows.
///
/// # Errors
/// See [`ReadError`].
pub fn read_all(
    mut reader: impl Read,
    known: Option<usize>,
    limit: usize,
    reservation: &mut Reservation,
    cost: impl Fn(usize) -> usize,
) -> Result<Vec<u8>, ReadError> {
    const FIRST: usize = 64 << 10;
    if known.is_some_and(|length| length > limit) {
        return Err(ReadError::TooLarge);
    }
    let mut bytes = Vec::new();
    let mut room = known.unwrap_or(FIRST).min(limit) + 1;
    loop {
        reservation.cover(cost(room)).map_err(ReadError::NoMemory)?;
        bytes.reserve_exact(room - bytes.len());
        reader.by_ref().take((room - bytes.len()) as u64).read_to_end(&mut bytes).map_err(ReadError::Io)?;
        match bytes.len() {
            n if n > limit => return Err(ReadError::TooLarge),
            n if n < room => return Ok(bytes),
            n => room = n.saturating_mul(2).min(limit + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_is_bounded_by_the_limit_and_by_the_budget() {
        let data = vec![7; 300_000];
        let read = |budget: usize, limit: usize, known| {
            let mut reservation = Budget::new(budget).reserve(0).unwrap();
            read_all(&data[..], known, limit, &mut reservation, |n| 2 * n).map(|bytes| bytes == data)
        };
        for known in [None, Some(300_000)] {
            assert!(read(1 << 20, 300_000, known).unwrap());
            assert!(matches!(read(1 << 20, 299_999, known), Err(ReadError::TooLarge)));
            assert!(matches!(read(500_000, 1 << 20, known), Err(ReadError::NoMemory(NoMemory::Ever(500_000)))));
        }
        assert!(matches!(read(1 << 20, 1 << 20, Some(10)), Ok(true)), "a length that proves wrong is only a guess");
    }

    #[test]
    fn what_is_taken_comes_back_and_no_more_than_there_is_can_be_taken() {
        let budget = Budget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert_eq!(budget.reserve(41).unwrap_err(), NoMemory::Now);
        assert_eq!(first.cover(101), Err(NoMemory::Ever(100)));
        assert_eq!(first.cover(50), Ok(()));
        assert_eq!((first.cover(100), budget.left()), (Ok(()), 0));
        first.shrink(30);
        assert_eq!(budget.left(), 70);
        drop(first);
        assert_eq!(budget.left(), 100);
    }

    #[test]
    fn a_wish_past_every_bound_is_refused() {
        assert!(Budget::new(100).reserve(usize::MAX).is_err());
    }
}
