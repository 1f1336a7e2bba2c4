//! Admission: how much of the enclave's memory requests may hold together, and which of them gives way when it is
//! short.
//!
//! An enclave has no swap, and a daemon that is killed for lack of memory loses its keys. So a request reserves memory
//! before it uses it, as its bytes arrive and not as they are announced. A request that finds no memory waits and is
//! not read meanwhile; after [`PATIENCE`] it is refused, while there is still memory to say so. Three rules keep
//! requests from blocking each other:
//!
//! - The oldest request of all waits without a limit, and once it has waited for [`PATIENCE`] no other takes memory
//!   before it. So half-received requests never lock each other out.
//! - A request whose body is still to come and that has sent nothing for [`SILENCE`] gives way if others wait.
//! - If requests have owners, one owner holds at most half of the memory, and half of the threads, while others wait
//!   for either. Alone it may have all.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::allocator::LARGEST;

/// Most bytes of a JSON document besides its file, for which nothing is reserved.
pub const JSON_SLACK: usize = 64 << 10;

/// Peak memory of reading a JSON document of this many bytes that has more besides its file: a member's name may be
/// copied into a buffer that doubles, and each level of nesting is noted in one.
pub fn crowded(document: usize) -> usize {
    document.saturating_mul(3)
}

/// What a request holds besides its file: its connections' buffers, a thread's stack (384 KiB), and an attestation
/// document of at most 12 KiB, once as bytes and twice as long in hex; in bytes.
pub const FIXED_COST: usize = 420 << 10;
/// How long a request waits for memory.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// A request that has sent nothing for this long gives way to others.
pub const SILENCE: Duration = Duration::from_secs(2);

/// A number of bytes, and the requests that hold them.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    /// Most requests in flight.
    requests: usize,
    /// Requests that wait for a thread.
    queued: Arc<AtomicUsize>,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

/// The owner of a request: a digest of the user's name. Requests without an owner have no share.
pub type Owner = u64;

/// The order in which requests began.
type Age = u64;

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// Bytes of the total that are for no request.
    kept: usize,
    next: Age,
    requests: BTreeMap<Age, Held>,
    /// The requests that wait for memory.
    waiting: BTreeMap<Age, Waiting>,
}

/// A waiting request: since when, and for how many bytes.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    more: usize,
}

/// What one request holds.
#[derive(Debug)]
struct Held {
    bytes: usize,
    owner: Option<Owner>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its body is still to come; content last came at this moment.
    Receiving(Instant),
    /// Its file is being opened, or is with the watermark service.
    Working,
    /// It has all the memory that it will need.
    Answering,
}

/// Bytes reserved from a budget for one request; dropping it returns them.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    age: Age,
    bytes: usize,
}

/// The budget does not hold that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMemory {
    /// Not now; try again when others have ended.
    Now,
    /// Never: the whole budget has only this many bytes.
    Ever(usize),
}

impl Budget {
    /// A budget of this many bytes, for this many requests at once.
    pub fn new(bytes: usize, requests: usize) -> Budget {
        Budget::with_patience(bytes, requests, PATIENCE)
    }

    fn with_patience(total: usize, requests: usize, patience: Duration) -> Budget {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Budget(Arc::new(Shared { total, requests, queued: Arc::default(), patience, state, changed }))
    }

    /// Begins an empty reservation.
    pub fn open(&self) -> Reservation {
        let mut state = self.state();
        let age = state.next;
        state.next += 1;
        state.requests.insert(age, Held { bytes: 0, owner: None, stage: Stage::Working });
        Reservation { budget: self.clone(), age, bytes: 0 }
    }

    /// Bytes for all requests together.
    pub fn total(&self) -> usize {
        self.state().total(&self.0)
    }

    /// Bytes that no request holds.
    pub fn left(&self) -> usize {
        let state = self.state();
        state.total(&self.0).saturating_sub(state.held)
    }

    /// Whether this many bytes may be set aside for what outlives requests.
    ///
    /// # Errors
    /// It would be more than half of the whole budget, which is this many bytes.
    pub fn may_keep(&self, bytes: usize) -> Result<(), usize> {
        let most = self.0.total / 2;
        if bytes > most { Err(most) } else { Ok(()) }
    }

    /// Sets aside this many bytes, and no others, for what outlives requests: half of the whole budget at most. Requests
    /// that are running keep what they hold.
    pub fn keep(&self, bytes: usize) {
        let mut state = self.state();
        state.kept = bytes.min(self.0.total / 2);
        self.0.wake_waiting(&state);
    }

    /// Counts the requests that wait for a thread; the code that hands out threads updates it.
    pub fn queued(&self) -> Arc<AtomicUsize> {
        self.0.queued.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Wakes the requests that wait. If there are none, that would be a needless system call.
    fn wake_waiting(&self, state: &State) {
        if !state.waiting.is_empty() {
            self.changed.notify_all();
        }
    }
}

impl State {
    /// Bytes for all requests together.
    fn total(&self, shared: &Shared) -> usize {
        shared.total - self.kept
    }

    /// Whether a request may take this many more bytes now.
    fn may_take(&self, age: Age, more: usize, shared: &Shared, now: Instant) -> bool {
        let fits = more <= self.total(shared).saturating_sub(self.held);
        let others_wait = || self.waiting.keys().any(|waiting| self.owner(*waiting) != self.owner(age));
        fits && (more == 0
            || !(self.is_behind_a_starved_one(age, shared, now)
                || (self.is_past_its_share(age, more, shared) && others_wait())))
    }

    /// Whether an older request has waited out its patience, so that freed memory is for that one. A request that waits
    /// only because its owner holds too much does not count.
    fn is_behind_a_starved_one(&self, age: Age, shared: &Shared, now: Instant) -> bool {
        self.waiting.range(..age).any(|(older, waiting)| {
            now.duration_since(waiting.since) >= shared.patience
                && !self.is_past_its_share(*older, waiting.more, shared)
        })
    }

    /// Whether this many more bytes would put the request's owner over half of the memory. The oldest request of all is
    /// exempt.
    fn is_past_its_share(&self, age: Age, more: usize, shared: &Shared) -> bool {
        let held = self.owner(age).map_or(0, |owner| self.bytes_of(owner) + more);
        held > self.total(shared) / 2 && !self.is_oldest(age)
    }

    fn owner(&self, age: Age) -> Option<Owner> {
        self.requests.get(&age).and_then(|held| held.owner)
    }

    fn bytes_of(&self, owner: Owner) -> usize {
        self.requests.values().filter(|held| held.owner == Some(owner)).map(|held| held.bytes).sum()
    }

    /// Whether no older request may still need memory.
    fn is_oldest(&self, age: Age) -> bool {
        !self.requests.range(..age).any(|(_, held)| held.stage != Stage::Answering)
    }

    /// Whether a request whose body is still to come gives way.
    fn gives_way(&self, age: Age, queued: usize, shared: &Shared, now: Instant) -> bool {
        let Some(Held { owner, stage: Stage::Receiving(last), .. }) = self.requests.get(&age) else { return false };
        let memory_is_wanted = self.waiting.keys().any(|waiting| *waiting != age);
        if !memory_is_wanted && queued == 0 {
            return false;
        }
        // Requests that wait for memory are not read, so they cannot be silent, and their wait ends by itself.
        let receiving = || {
            self.requests.iter().filter_map(|(age, held)| match held.stage {
                Stage::Receiving(last) if !self.waiting.contains_key(age) => Some((*age, last, held.owner)),
                _ => None,
            })
        };
        let silent_for_longest = || receiving().all(|(_, other, _)| other >= *last);
        let youngest = || receiving().all(|(other, ..)| other <= age);
        (now.duration_since(*last) >= SILENCE && silent_for_longest())
            || owner.is_some_and(|owner| {
                let of_owner = self.requests.values().filter(|held| held.owner == Some(owner)).count();
                let over = (memory_is_wanted && self.bytes_of(owner) > self.total(shared) / 2)
                    || (queued > 0 && of_owner > shared.requests.div_ceil(2));
                over && receiving().all(|(other, _, of)| of != Some(owner) || other <= age)
            })
            || (youngest() && self.is_behind_a_starved_one(age, shared, now))
    }
}

impl Reservation {
    /// Bytes that the whole budget has.
    pub fn total(&self) -> usize {
        self.budget.total()
    }

    /// Grows the reservation to at least `bytes`, and returns how long it had to wait. On an error it stays as it was.
    ///
    /// # Errors
    /// There is no memory for it, now or ever.
    pub fn cover(&mut self, bytes: usize) -> Result<Duration, NoMemory> {
        self.cover_by(bytes, true)
    }

    /// The same, but it waits for [`PATIENCE`] at most, also if it is the oldest of all: for whoever holds something that
    /// others wait for.
    ///
    /// # Errors
    /// The same.
    pub fn cover_soon(&mut self, bytes: usize) -> Result<Duration, NoMemory> {
        self.cover_by(bytes, false)
    }

    fn cover_by(&mut self, bytes: usize, oldest_waits: bool) -> Result<Duration, NoMemory> {
        let shared = &*self.budget.0;
        let more = bytes.saturating_sub(self.bytes);
        let fits_never = |state: &State| more > 0 && bytes > state.total(shared);
        let start = Instant::now();
        let mut state = self.budget.state();
        let mut result = Ok(Duration::ZERO);
        while !fits_never(&state) && !state.may_take(self.age, more, shared, Instant::now()) {
            state.waiting.insert(self.age, Waiting { since: start, more });
            let waited = start.elapsed();
            let left = shared.patience.saturating_sub(waited);
            if left.is_zero() && !(oldest_waits && state.is_oldest(self.age)) {
                result = Err(NoMemory::Now);
                break;
            }
            // The oldest request waits on. It checks again now and then, since nothing wakes it when it becomes the
            // oldest.
            let wait = left.max(Duration::from_millis(100));
            state = shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            result = Ok(start.elapsed());
        }
        if state.waiting.remove(&self.age).is_some() {
            shared.wake_waiting(&state);
        }
        if fits_never(&state) {
            result = Err(NoMemory::Ever(state.total(shared)));
        }
        if result.is_ok() {
            state.held += more;
            self.bytes += more;
            state.requests.entry(self.age).and_modify(|held| held.bytes += more);
        }
        result
    }

    /// Returns what exceeds `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 {
            self.bytes -= less;
            let mut state = self.budget.state();
            state.held -= less;
            state.requests.entry(self.age).and_modify(|held| held.bytes -= less);
            self.budget.0.wake_waiting(&state);
        }
    }

    /// Sets the owner of the request.
    ///
    /// # Errors
    /// Others wait for threads, and the owner's requests already hold half of them.
    pub fn belongs_to(&mut self, owner: Owner) -> Result<(), NoMemory> {
        let shared = &*self.budget.0;
        let mut state = self.budget.state();
        let others = state.requests.values().filter(|held| held.owner == Some(owner)).count();
        if shared.queued.load(Ordering::Acquire) > 0 && others >= shared.requests.div_ceil(2) {
            return Err(NoMemory::Now);
        }
        state.requests.entry(self.age).and_modify(|held| held.owner = Some(owner));
        Ok(())
    }

    /// The body is still to come, and content last came at this moment.
    pub fn receiving(&mut self, now: Instant) {
        self.enter(Stage::Receiving(now));
    }

    /// The body is complete.
    pub fn received(&mut self) {
        self.enter(Stage::Working);
    }

    /// The request has all that it needs; `bytes` of it are held until the answer is sent.
    pub fn answering(&mut self, bytes: usize) {
        self.enter(Stage::Answering);
        self.shrink(bytes);
    }

    fn enter(&mut self, stage: Stage) {
        self.budget.state().requests.entry(self.age).and_modify(|held| held.stage = stage);
    }

    /// Whether the request, whose body is still to come, has to give way to others.
    pub fn gives_way(&self, now: Instant) -> bool {
        let shared = &*self.budget.0;
        self.budget.state().gives_way(self.age, shared.queued.load(Ordering::Acquire), shared, now)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.held -= self.bytes;
        state.requests.remove(&self.age);
        state.waiting.remove(&self.age);
        self.budget.0.wake_waiting(&state);
    }
}

/// Why [`read_all`] failed.
#[derive(Debug)]
pub enum ReadError {
    /// There is more than the limit.
    TooLarge,
    /// There is no memory for it.
    NoMemory(NoMemory),
    /// Reading failed.
    Io(io::Error),
}

/// The next capacity of a buffer whose bytes arrive, at most `most`: twice as much as long as growing means copying, and
/// some MiB more where it does not (see [`while_growing`]).
pub fn grown(from: usize, most: usize) -> usize {
    const FIRST: usize = 64 << 10;
    let more = if from < LARGEST / 2 { from.max(FIRST - from.min(FIRST)) } else { LARGEST };
    from.saturating_add(more).min(most)
}

/// Bytes of memory that a buffer takes at most until it holds this many, if it grows by [`grown`].
pub fn while_arriving(bytes: usize) -> usize {
    bytes.saturating_add(bytes.min(LARGEST / 2))
}

/// Bytes of memory that a buffer takes while it grows. A small one is copied, so that there are two for a moment; a
/// larger one is a mapping of its own, which grows as it is (see [`crate::allocator`]).
pub fn while_growing(from: usize, to: usize) -> usize {
    if from > LARGEST { to } else { from.saturating_add(to) }
}

/// Reads to the end, `limit` bytes at most, and makes the reservation cover `cost` of what the buffer takes before it
/// does. A known length takes a buffer that need not grow.
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
    if known.is_some_and(|length| length > limit) {
        return Err(ReadError::TooLarge);
    }
    let mut bytes = Vec::new();
    let most = limit.saturating_add(1);
    let mut room = known.map_or(grown(0, most), |length| length + 1);
    loop {
        reservation.cover(cost(while_growing(bytes.capacity(), room))).map_err(ReadError::NoMemory)?;
        bytes.reserve_exact(room - bytes.len());
        reader.by_ref().take((room - bytes.len()) as u64).read_to_end(&mut bytes).map_err(ReadError::Io)?;
        match bytes.len() {
            n if n > limit => return Err(ReadError::TooLarge),
            n if n < room => return Ok(bytes),
            n => room = grown(n, most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A budget whose requests never wait.
    fn impatient(bytes: usize, requests: usize) -> Budget {
        Budget::with_patience(bytes, requests, Duration::ZERO)
    }

    /// A younger request, of this owner if any, that holds this many bytes.
    fn request(budget: &Budget, owner: Option<Owner>, bytes: usize) -> Reservation {
        let mut request = budget.open();
        owner.into_iter().for_each(|owner| request.belongs_to(owner).unwrap());
        request.cover(bytes).unwrap();
        request
    }

    /// Records that a request has been waiting since a moment, as `cover` does.
    fn waits(request: &Reservation, since: Instant) {
        request.budget.state().waiting.insert(request.age, Waiting { since, more: 1 });
    }

    #[test]
    fn what_is_kept_is_for_no_request_and_at_most_half() {
        let budget = impatient(1000, 9);
        assert_eq!((budget.may_keep(501), budget.may_keep(500)), (Err(500), Ok(())));
        let running = request(&budget, None, 800);
        budget.keep(400);
        assert_eq!((budget.total(), budget.left()), (600, 0));
        let mut next = budget.open();
        assert_eq!(next.cover(601), Err(NoMemory::Ever(600)));
        assert_eq!(next.cover(1), Err(NoMemory::Now));
        drop(running);
        next.cover(600).unwrap();
        budget.keep(0);
        assert_eq!(budget.left(), 400);
    }

    #[test]
    fn who_covers_soon_gives_up_though_it_is_the_oldest() {
        let budget = impatient(1000, 9);
        let mut oldest = budget.open();
        let _younger = request(&budget, None, 800);
        assert_eq!(oldest.cover_soon(300), Err(NoMemory::Now));
        oldest.cover_soon(200).unwrap();
    }

    #[test]
    fn a_request_that_waits_for_what_is_then_kept_is_told_so() {
        let budget = Budget::new(1000, 9);
        let running = request(&budget, None, 800);
        thread::scope(|scope| {
            let waits = scope.spawn(|| budget.open().cover(700));
            while budget.state().waiting.is_empty() {
                thread::yield_now();
            }
            budget.keep(400);
            assert_eq!(waits.join().unwrap(), Err(NoMemory::Ever(600)));
        });
        drop(running);
    }

    #[test]
    fn what_is_taken_comes_back_and_no_more_than_there_is_can_be_taken() {
        let budget = impatient(100, 9);
        let mut first = request(&budget, None, 60);
        let mut second = budget.open();
        assert_eq!(second.cover(41), Err(NoMemory::Now));
        assert_eq!(first.cover(101), Err(NoMemory::Ever(100)));
        assert_eq!(second.cover(usize::MAX), Err(NoMemory::Ever(100)));
        assert!(first.cover(50).is_ok());
        assert!(first.cover(100).is_ok());
        assert_eq!(budget.left(), 0);
        first.shrink(30);
        assert_eq!(budget.left(), 70);
        drop(first);
        assert_eq!(budget.left(), 100);
        assert!(second.cover(41).is_ok());
    }

    #[test]
    fn one_that_waits_gets_what_another_gives_back() {
        let budget = Budget::with_patience(100, 9, Duration::from_secs(600));
        let mut first = request(&budget, None, 60);
        thread::scope(|scope| {
            let mut second = budget.open();
            let waits = scope.spawn(move || second.cover(80));
            while budget.state().waiting.is_empty() {
                thread::yield_now();
            }
            first.shrink(20);
            assert!(waits.join().unwrap().unwrap() > Duration::ZERO);
        });
    }

    #[test]
    fn the_oldest_waits_for_as_long_as_it_takes() {
        let budget = impatient(100, 9);
        let mut oldest = budget.open();
        let younger = request(&budget, None, 60);
        thread::scope(|scope| {
            let waits = scope.spawn(move || oldest.cover(100));
            while budget.state().waiting.is_empty() {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
            drop(younger);
            assert!(waits.join().unwrap().is_ok());
        });
    }

    #[test]
    fn reading_is_bounded_by_the_limit_and_by_the_budget() {
        let data = vec![7; 300_000];
        let read = |budget: usize, limit: usize, known| {
            read_all(&data[..], known, limit, &mut impatient(budget, 1).open(), |n| n).map(|bytes| bytes == data)
        };
        for known in [None, Some(300_000)] {
            assert!(read(1 << 20, 300_000, known).unwrap());
            assert!(matches!(read(1 << 20, 299_999, known), Err(ReadError::TooLarge)));
            assert!(matches!(read(250_000, 1 << 20, known), Err(ReadError::NoMemory(NoMemory::Ever(250_000)))));
        }
        assert!(matches!(read(1 << 21, 1 << 20, Some(10)), Ok(true)), "a length that proves wrong is only a guess");
    }

    #[test]
    fn no_request_takes_memory_that_an_older_one_waits_for() {
        let budget = impatient(100, 9);
        let (older, mut younger) = (budget.open(), request(&budget, None, 10));
        assert!(younger.cover(20).is_ok());
        waits(&older, Instant::now());
        assert_eq!(younger.cover(30), Err(NoMemory::Now));
        assert!(younger.cover(20).is_ok(), "what it has it keeps");
    }

    #[test]
    fn the_longest_silent_gives_way_where_others_need_the_memory_and_only_while_its_body_is_to_come() {
        let budget = impatient(100, 9);
        let now = Instant::now() + Duration::from_secs(60);
        let mut requests = [10, 11, 12].map(|bytes| request(&budget, None, bytes));
        for (request, silent) in requests.iter_mut().zip([3, 5, 1]) {
            request.receiving(now - Duration::from_secs(silent));
        }
        let give_way = |requests: &[Reservation]| requests.iter().map(|r| r.gives_way(now)).collect::<Vec<_>>();
        assert_eq!(give_way(&requests), [false; 3], "nobody waits");
        let other = budget.open();
        waits(&other, now);
        assert_eq!(give_way(&requests), [false, true, false]);
        requests[1].received();
        assert_eq!(give_way(&requests), [true, false, false]);
        requests[0].receiving(now);
        assert_eq!(give_way(&requests), [false; 3], "one second is not silence");
        drop(other);
        budget.queued().store(1, Ordering::Release);
        requests[0].receiving(now - SILENCE);
        assert_eq!(give_way(&requests), [true, false, false], "for a thread likewise");
    }

    #[test]
    fn a_request_that_waits_for_memory_is_not_read_and_so_neither_silent_nor_in_the_way() {
        let budget = impatient(100, 9);
        let now = Instant::now() + Duration::from_secs(60);
        let mut requests = [10, 11].map(|bytes| request(&budget, None, bytes));
        for (request, silent) in requests.iter_mut().zip([5, 3]) {
            request.receiving(now - Duration::from_secs(silent));
        }
        waits(&requests[0], now);
        assert!(requests[1].gives_way(now), "it is the longest silent of those that are read");
    }

    #[test]
    fn one_owner_holds_half_of_the_memory_while_another_waits_and_alone_all() {
        let budget = impatient(100, 9);
        let now = Instant::now();
        let first = request(&budget, Some(7), 10);
        let mut greedy = [40, 20].map(|bytes| request(&budget, Some(7), bytes));
        greedy.iter_mut().for_each(|request| request.receiving(now));
        assert!(!greedy[1].gives_way(now));
        let other = budget.open();
        waits(&other, now);
        assert_eq!(greedy[1].cover(21), Err(NoMemory::Now), "past the share it does not grow");
        assert!(greedy[1].gives_way(now) && !greedy[0].gives_way(now), "the youngest of its requests gives way");
        drop(first);
        greedy[1].shrink(10);
        assert!(!greedy[1].gives_way(now), "half is its own");
        drop(other);
        assert!(greedy[1].cover(60).is_ok());
    }

    #[test]
    fn one_owner_holds_half_of_the_threads_while_others_wait_for_one() {
        let budget = impatient(100, 4);
        let now = Instant::now();
        let mut requests = [(); 3].map(|()| request(&budget, Some(7), 1));
        requests.iter_mut().for_each(|request| request.receiving(now));
        assert!(!requests[2].gives_way(now));
        budget.queued().store(1, Ordering::Release);
        assert_eq!(requests.iter().map(|r| r.gives_way(now)).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(budget.open().belongs_to(7), Err(NoMemory::Now));
        assert_eq!(budget.open().belongs_to(8), Ok(()));
    }

    #[test]
    fn the_youngest_gives_way_to_an_older_one_that_has_waited_out_its_patience() {
        let budget = Budget::with_patience(100, 9, PATIENCE);
        let now = Instant::now() + Duration::from_secs(60);
        let oldest = budget.open();
        let mut younger = [1, 2].map(|bytes| request(&budget, None, bytes));
        younger.iter_mut().for_each(|request| request.receiving(now));
        waits(&oldest, now - Duration::from_secs(1));
        assert!(younger.iter().all(|request| !request.gives_way(now)));
        waits(&oldest, now - PATIENCE);
        assert_eq!(younger.iter().map(|request| request.gives_way(now)).collect::<Vec<_>>(), [false, true]);
    }
}
