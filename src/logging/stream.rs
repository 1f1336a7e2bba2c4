//! The stream to a collector, TEEMARK_LOG_TO: records go out, and acknowledgements come back.
//!
//! The other end is not trusted. What it sends is bounded, and an acknowledgement counts only if it names a record that
//! was sent, by the record's hash. If nothing moves for [`STALLED`], the stream begins anew: what carries it does not
//! always report that the collector's machine is gone, and another may be there by now. A new stream begins after the last
//! acknowledged record, since what was sent on the last one may be lost.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use event_loop::Outbox;
use event_loop::socket::Stream;
use event_loop::target::Target;
use formats::address::Address;
use formats::attestation::BootNonce;
use formats::log::{Ack, Dropped, MAX_ACK, hello};
use nix::poll::PollFlags;

use super::lock;
use super::ring::Ring;
use crate::metrics::METRICS;

/// Time limit to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A stream that takes no bytes for this long, although there are some to send, is given up. So is one on which no
/// acknowledgement comes for this long, although records wait for one.
const STALLED: Duration = Duration::from_secs(30);
/// Most gaps that are told again, if what told of them was dropped too.
const MOST_GAPS: usize = 64;
/// Pauses before the next attempt to connect: each is twice as long as the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How many bytes of lines are taken from the ring at a time.
const ENOUGH: usize = 64 << 10;

/// The stream, or the wait for the next one.
pub(super) struct Outgoing {
    to: Address,
    target: Option<Target>,
    state: State,
    pause: Duration,
    /// The last record that was acknowledged.
    acked: u64,
    /// The last record that was reported as gone.
    told: u64,
    /// Up to here it is settled which records were dropped, while the stream goes on.
    counted: u64,
    /// How many of the records after the last acknowledged one were counted as dropped.
    dropped: u64,
    /// The last gaps that a stream had.
    gaps: VecDeque<Gap>,
}

/// Records that were gone before they could be sent.
struct Gap {
    gone: Dropped,
    /// The record that says so, as long as it is there or was sent.
    told: Option<u64>,
}

enum State {
    Waiting(Instant),
    /// The stream, the target's address to try after this one, and when this attempt began.
    Connecting(Stream, usize, Instant),
    Connected(Connected),
}

struct Connected {
    stream: Stream,
    outbox: Outbox,
    /// The next record to be sent.
    next: u64,
    inbox: Vec<u8>,
    /// When bytes were last sent, or there were none to send.
    moved: Instant,
    /// Since when records wait for an acknowledgement of which none came, if that is expected.
    unacknowledged: Option<Instant>,
    /// The last record that an answer named, also one that was gone by then.
    heard: u64,
}

/// What an acknowledgement is checked against.
pub(super) struct Judge<'a> {
    pub(super) ring: &'a Mutex<Ring>,
    pub(super) boot: BootNonce,
    /// Whether its signature is by one of the measured keys; always so if there are none.
    pub(super) signed: &'a dyn Fn(&Ack) -> bool,
}

impl Outgoing {
    pub(super) fn new(to: Address, now: Instant) -> Outgoing {
        let (target, state, gaps) = (None, State::Waiting(now), VecDeque::new());
        Outgoing { to, target, state, pause: FIRST_PAUSE, acked: 0, told: 0, counted: 0, dropped: 0, gaps }
    }

    /// Goes on as far as it can without waiting. Returns the last record that was acknowledged now, if any was.
    pub(super) fn step(&mut self, judge: &Judge<'_>, now: Instant) -> Option<u64> {
        let mut acked = None;
        self.count_dropped(judge.ring);
        if let Err(e) = self.try_step(judge, now, &mut acked) {
            log::debug!("log: no stream to {}: {e}", self.to);
            self.state = State::Waiting(now + self.pause);
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
        acked
    }

    /// Counts records that can no longer be sent, whatever the stream does. What was sent on one that has ended may be
    /// lost: of those records only the acknowledged ones count as taken.
    fn count_dropped(&mut self, ring: &Mutex<Ring>) {
        let gone = lock(ring).gone().number;
        let new = match &self.state {
            State::Connected(connected) => gone.saturating_sub(self.counted.max(connected.next - 1)),
            State::Waiting(_) | State::Connecting(..) => gone.saturating_sub(self.acked + self.dropped),
        };
        self.counted = self.counted.max(gone);
        self.dropped += new;
        METRICS.log_lines_dropped.add(new);
    }

    /// The gaps of which no record tells that is still there, or was sent. Their records are to be made now.
    pub(super) fn untold(&mut self) -> impl Iterator<Item = (&Dropped, &mut Option<u64>)> {
        self.gaps.iter_mut().filter(|gap| gap.told.is_none()).map(|Gap { gone, told }| (&*gone, told))
    }

    fn try_step(&mut self, judge: &Judge<'_>, now: Instant, newly: &mut Option<u64>) -> io::Result<()> {
        match &mut self.state {
            State::Waiting(until) if now < *until => return Ok(()),
            State::Waiting(_) => {
                // A name is looked up once.
                if self.target.is_none() {
                    self.target = Some(Target::find(&self.to)?);
                }
                let (Some(target), mut next) = (&self.target, 0) else { return Ok(()) };
                let stream = target.begin(&mut next)?;
                self.state = State::Connecting(stream, next, now);
            }
            State::Connecting(stream, next, since) => {
                if !is_writable(stream) {
                    let late = now.saturating_duration_since(*since) >= CONNECT_LIMIT;
                    return if late { Err(ErrorKind::TimedOut.into()) } else { Ok(()) };
                }
                match (stream.take_error()?, &self.target) {
                    (None, _) => {}
                    (Some(_), Some(target)) if target.has(*next) => {
                        *stream = target.begin(next)?;
                        return Ok(());
                    }
                    (Some(e), _) => return Err(e),
                }
                let State::Connecting(stream, ..) = std::mem::replace(&mut self.state, State::Waiting(now)) else {
                    return Ok(());
                };
                let outbox = Outbox::new(hello(judge.boot).into_bytes());
                self.state = State::Connected(Connected {
                    stream,
                    outbox,
                    next: self.acked + 1,
                    inbox: Vec::new(),
                    moved: now,
                    unacknowledged: None,
                    heard: 0,
                });
                log::info!("log: the stream to {} is open", self.to);
                return self.try_step(judge, now, newly);
            }
            State::Connected(connected) => {
                if let Some(acked) = connected.read(judge, self.acked)? {
                    self.acked = acked;
                    self.dropped = self.dropped.min(self.counted.saturating_sub(acked));
                    self.pause = FIRST_PAUSE;
                    *newly = Some(acked);
                }
                connected.send(judge.ring, &mut self.told, &mut self.gaps, now)?;
                return connected.expect_acknowledgement(self.acked, self.told, now);
            }
        }
        Ok(())
    }

    /// Whether there is a stream now.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected(_))
    }

    /// The descriptor and the events that it waits for.
    pub(super) fn watch(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Waiting(_) => None,
            State::Connecting(stream, ..) => Some((stream.as_fd(), PollFlags::POLLOUT)),
            State::Connected(connected) => {
                let mut flags = PollFlags::POLLIN;
                flags.set(PollFlags::POLLOUT, !connected.outbox.is_empty());
                Some((connected.stream.as_fd(), flags))
            }
        }
    }

    /// When [`Outgoing::step`] has to be called even if none of these events has come.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting(until) => Some(*until),
            State::Connecting(_, _, since) => Some(*since + CONNECT_LIMIT),
            State::Connected(connected) => {
                let moved = (!connected.outbox.is_empty()).then_some(connected.moved);
                Some(moved.into_iter().chain(connected.unacknowledged).min()? + STALLED)
            }
        }
    }

    /// Whether a collector may yet take, or acknowledge, a record. What was sent and not acknowledged may be lost with the
    /// process.
    pub(super) fn is_behind(&self, ring: &Ring) -> bool {
        match &self.state {
            State::Waiting(_) => false,
            State::Connecting(..) => true,
            State::Connected(_) => self.acked < ring.last(),
        }
    }
}

fn is_writable(stream: &Stream) -> bool {
    use nix::poll::{PollFd, PollTimeout, poll};
    poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO).unwrap_or(0) > 0
}

impl Connected {
    /// Reads what has arrived, and returns the last record that it acknowledges.
    fn read(&mut self, judge: &Judge<'_>, before: u64) -> io::Result<Option<u64>> {
        let mut acked = None;
        let mut bytes = [0; 4 * MAX_ACK];
        match (&self.stream).read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.inbox.extend_from_slice(&bytes[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(None),
            Err(e) => return Err(e),
        }
        let wrong = || io::Error::new(ErrorKind::InvalidData, "it answers with something other than acknowledgements");
        while let Some(end) = self.inbox.iter().position(|&b| b == b'\n') {
            let ack = Ack::parse(&self.inbox[..end]).ok_or_else(wrong)?;
            self.inbox.drain(..=end);
            let number = ack.head.number;
            // If the record was acknowledged before, or is gone, the signature need not be verified.
            let hash = lock(judge.ring).hash(number);
            if self.heard < number && number < self.next {
                self.heard = number;
                // Slow, and alive.
                self.unacknowledged = None;
            }
            if number <= acked.unwrap_or(before) || number >= self.next || hash.is_none() {
                continue;
            }
            if hash != Some(ack.head.hash) || !(judge.signed)(&ack) {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "it acknowledges what it was not sent, or in another's name",
                ));
            }
            acked = Some(number);
        }
        if self.inbox.len() > MAX_ACK { Err(wrong()) } else { Ok(acked) }
    }

    fn send(&mut self, ring: &Mutex<Ring>, told: &mut u64, gaps: &mut VecDeque<Gap>, now: Instant) -> io::Result<()> {
        loop {
            if self.outbox.is_empty() {
                self.moved = now;
                let ring = lock(ring);
                let gone = ring.gone();
                if self.next <= gone.number {
                    // An earlier stream may have delivered them all the same.
                    let from = self.next.max(*told + 1);
                    if from <= gone.number {
                        gaps.push_back(Gap { gone: Dropped::Records { from: self.next, last: gone }, told: None });
                        *told = gone.number;
                        if gaps.len() > MOST_GAPS {
                            gaps.pop_front();
                        }
                    }
                    // What told of an earlier gap may be among them.
                    let lost = self.next..=gone.number;
                    gaps.iter_mut().for_each(|gap| gap.told = gap.told.filter(|told| !lost.contains(told)));
                    self.next = gone.number + 1;
                }
                let mut lines = Vec::new();
                self.next = ring.copy(self.next, ENOUGH, &mut lines);
                drop(ring);
                if lines.is_empty() {
                    return Ok(());
                }
                self.outbox = Outbox::new(lines);
            }
            if self.outbox.flush(&mut &self.stream)? > 0 {
                self.moved = now;
            }
            if !self.outbox.is_empty() {
                let stalled = now.saturating_duration_since(self.moved) >= STALLED;
                return if stalled { Err(ErrorKind::TimedOut.into()) } else { Ok(()) };
            }
        }
    }

    /// Fails if acknowledgements have stopped. What has never acknowledged a record may be something that only reads; and a
    /// collector that lacks records, since they were gone before they could be sent, acknowledges none after them.
    fn expect_acknowledgement(&mut self, acked: u64, gone: u64, now: Instant) -> io::Result<()> {
        if acked == 0 || acked < gone || self.next == acked + 1 {
            self.unacknowledged = None;
            return Ok(());
        }
        let since = *self.unacknowledged.get_or_insert(now);
        let stalled = now.saturating_duration_since(since) >= STALLED;
        if stalled { Err(io::Error::new(ErrorKind::TimedOut, "it acknowledges nothing more")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use formats::log::{Head, Kind, Record};

    use super::*;

    /// A stream to a port of this machine, at times that the test says.
    struct Scene {
        collector: TcpListener,
        ring: Mutex<Ring>,
        head: Head,
        outgoing: Outgoing,
        start: Instant,
    }

    impl Scene {
        fn new() -> Scene {
            let collector = TcpListener::bind("127.0.0.1:0").unwrap();
            let to = format!("tcp:{}", collector.local_addr().unwrap()).parse().unwrap();
            let start = Instant::now();
            Scene {
                collector,
                ring: Mutex::default(),
                head: Head::default(),
                outgoing: Outgoing::new(to, start),
                start,
            }
        }

        fn record(&mut self) -> Head {
            let mut line = Vec::new();
            self.head.write(Kind::Log, b"x", &mut line);
            lock(&self.ring).push(&line, self.head.hash, false);
            self.head
        }

        /// Goes on at this second.
        fn step(&mut self, second: u64) -> Option<u64> {
            let judge = Judge { ring: &self.ring, boot: BootNonce::from_bytes([7; 32]), signed: &|_| true };
            self.outgoing.step(&judge, self.start + Duration::from_secs(second))
        }

        fn connect(&mut self, second: u64) -> BufReader<TcpStream> {
            while !self.outgoing.is_connected() {
                self.step(second);
                std::thread::yield_now();
            }
            let mut taken = BufReader::new(self.collector.accept().unwrap().0);
            let mut hello = String::new();
            taken.read_line(&mut hello).unwrap();
            assert!(hello.starts_with("teemark-log 1 "), "{hello}");
            taken
        }

        fn acknowledge(&mut self, taken: &mut BufReader<TcpStream>, head: Head, second: u64) {
            taken.get_mut().write_all(Ack { head, signature: None }.to_string().as_bytes()).unwrap();
            while self.step(second) != Some(head.number) {
                std::thread::yield_now();
            }
        }

        /// The second at which it has to go on, if nothing comes.
        fn deadline(&self) -> Option<u64> {
            self.outgoing.deadline().map(|at| (at - self.start).as_secs())
        }
    }

    fn next_number(taken: &mut BufReader<TcpStream>) -> u64 {
        let mut line = String::new();
        taken.read_line(&mut line).unwrap();
        Record::parse(line.trim_end().as_bytes()).unwrap().head.number
    }

    #[test]
    fn a_stream_on_which_acknowledgements_stop_is_given_up_and_another_begins_after_the_last_one() {
        let mut scene = Scene::new();
        let one = scene.record();
        let mut first = scene.connect(0);
        scene.acknowledge(&mut first, one, 1);
        // All is acknowledged, so nothing is expected.
        scene.step(1000);
        assert_eq!((scene.outgoing.is_connected(), scene.deadline()), (true, None));
        // Each acknowledgement gives the rest as much time again.
        let (two, _three) = (scene.record(), scene.record());
        scene.step(1001);
        assert_eq!(scene.deadline(), Some(1031));
        scene.acknowledge(&mut first, two, 1030);
        assert_eq!(scene.deadline(), Some(1060));
        // New records do not.
        scene.record();
        scene.step(1059);
        assert_eq!((scene.outgoing.is_connected(), scene.deadline()), (true, Some(1060)));
        scene.step(1060);
        assert!(!scene.outgoing.is_connected());

        let mut second = scene.connect(1061);
        assert_eq!([(); 2].map(|()| next_number(&mut second)), [3, 4]);
        // Also one that has not brought an acknowledgement yet.
        scene.step(1090);
        assert!(scene.outgoing.is_connected());
        scene.step(1091);
        assert!(!scene.outgoing.is_connected());
    }

    #[test]
    fn a_stream_that_has_never_brought_an_acknowledgement_goes_on() {
        let mut scene = Scene::new();
        scene.record();
        let mut taken = scene.connect(0);
        for second in [0, 29, 31, 100_000] {
            scene.record();
            scene.step(second);
            assert_eq!((scene.outgoing.is_connected(), scene.deadline()), (true, None));
        }
        assert_eq!([(); 5].map(|()| next_number(&mut taken)), [1, 2, 3, 4, 5]);
    }

    /// The records that were lost, if they are to be told now; then they are.
    fn told(scene: &mut Scene) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        while let Some((Dropped::Records { from, last }, told)) = scene.outgoing.untold().next() {
            all.push((*from, last.number));
            *told = Some(scene.head.number + 1);
        }
        for _ in &all {
            scene.record();
        }
        all
    }

    #[test]
    fn what_told_of_lost_records_and_was_lost_itself_is_told_again() {
        let mut scene = Scene::new();
        // Has all records dropped that there are now.
        let lose = |scene: &mut Scene| {
            let last = scene.head.number;
            while lock(&scene.ring).gone().number <= last {
                scene.record();
            }
            lock(&scene.ring).gone().number
        };
        scene.record();
        let first = lose(&mut scene);
        let taken = scene.connect(0);
        scene.step(0);
        assert_eq!(told(&mut scene), [(1, first)]);
        assert_eq!(told(&mut scene), []);
        drop(taken);
        while scene.outgoing.is_connected() {
            scene.step(1);
        }
        // Also the record that told of it.
        let second = lose(&mut scene);
        let _taken = scene.connect(100);
        scene.step(100);
        assert_eq!(told(&mut scene), [(1, first), (1, second)]);
        assert_eq!(told(&mut scene), []);
    }

    #[test]
    fn a_stream_after_records_were_lost_goes_on_though_nothing_more_is_acknowledged() {
        let mut scene = Scene::new();
        let one = scene.record();
        let mut first = scene.connect(0);
        scene.acknowledge(&mut first, one, 1);
        drop(first);
        while scene.outgoing.is_connected() {
            scene.step(2);
            std::thread::yield_now();
        }
        while lock(&scene.ring).gone().number < 10 {
            scene.record();
        }
        let mut second = scene.connect(100);
        std::thread::spawn(move || std::io::copy(&mut second, &mut std::io::sink()));
        let last = lock(&scene.ring).last();
        while !matches!(&scene.outgoing.state, State::Connected(sent) if sent.outbox.is_empty() && sent.next > last) {
            scene.step(101);
        }
        for after in [131, 100_000] {
            scene.step(after);
            assert_eq!((scene.outgoing.is_connected(), scene.deadline()), (true, None));
        }
    }
}
