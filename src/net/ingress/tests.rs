use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use event_loop::Handle;
use formats::address::Address;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::Value;
use tempfile::TempDir;

use super::super::request::Progress;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// Longest wait for something that should happen at once, on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

/// Answers with the request's target; `/held` only once the test allows it.
struct Echo {
    begun: Sender<()>,
    allowed: Mutex<Receiver<()>>,
}

impl Service for Echo {
    fn answer(&self, request: &mut Request<'_>) -> Answer {
        if request.head.target == "/held" {
            let _ = self.begun.send(());
            let _ = self.allowed.lock().unwrap().recv();
        }
        let mut body = Vec::new();
        while let Ok(Progress::Content | Progress::Nothing) = request.read(&mut body, 64, SECOND) {}
        Answer::text(&request.head.target)
    }

    fn refuse(&self, error: HttpError, _: &[u8]) -> Answer {
        let status = match error {
            HttpError::Malformed(_) => 400,
            HttpError::TooSlow => 408,
            HttpError::Overloaded => 503,
            _ => 499,
        };
        Answer::json(status, &Value::Null)
    }

    fn answered(&self, _: &'static str, _: u16, _: usize, _: Duration) {}

    fn keeps_connections(&self) -> bool {
        true
    }
}

/// An ingress with this many places, in an event loop that the test may start.
struct Scene {
    ingress: Arc<Ingress>,
    begun: Receiver<()>,
    allow: Sender<()>,
    event_loop: EventLoop,
    listening: Address,
    _folder: TempDir,
}

/// The same with the loop running.
struct Running {
    ingress: Arc<Ingress>,
    begun: Receiver<()>,
    allow: Sender<()>,
    handle: Handle,
    listening: Address,
    _folder: TempDir,
}

impl Scene {
    fn new(limit: usize) -> Scene {
        let folder = TempDir::new().unwrap();
        let listening = Address::Unix(folder.path().join("socket"));
        let ((sender, begun), (allow, receiver)) = (channel(), channel());
        let service = Arc::new(Echo { begun: sender, allowed: Mutex::new(receiver) });
        let mut event_loop = EventLoop::new(|_| {}).unwrap();
        let options = Options {
            limit,
            max_body: 1 << 20,
            idle: 75 * SECOND,
            queued: Arc::default(),
            stopping: Arc::default(),
            by_state: Box::leak(Box::default()),
        };
        let ingress = add(&mut event_loop, Listener::open(&listening).unwrap(), service, options).unwrap();
        Scene { ingress, begun, allow, event_loop, listening, _folder: folder }
    }

    fn start(self) -> Running {
        let Scene { ingress, begun, allow, event_loop, listening, _folder } = self;
        Running { ingress, begun, allow, handle: event_loop.start().unwrap(), listening, _folder }
    }

    /// A connection that has been in this state since a moment, and its client.
    fn waiting(&self, state: State, since: Instant) -> (Waiting, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut waiting = Waiting::new(Arc::new(Stream::Unix(near)), Vec::new(), state, self.ingress.clone());
        waiting.since = since;
        (waiting, far)
    }
}

impl Running {
    fn connect(&self) -> UnixStream {
        let Address::Unix(path) = &self.listening else { unreachable!() };
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn send(&self, bytes: impl AsRef<[u8]>) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).unwrap();
        stream
    }

    fn queued(&self) -> usize {
        self.ingress.queued.load(Ordering::Acquire)
    }
}

/// A request with a body, which cannot use the extra places.
fn post(target: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// The next answer's status and body; `None` if the connection ends first.
fn answer(stream: &mut UnixStream) -> Option<(u16, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some((head[9..12].parse().unwrap(), String::from_utf8(body).unwrap()))
}

fn echo(target: &str) -> Option<(u16, String)> {
    Some((200, target.to_owned()))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "still waiting for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn queued_head(text: &str) -> State {
    State::Queued(request_head(text.as_bytes(), 9).unwrap().unwrap().0)
}

#[test]
fn connections_give_way_in_their_order_and_some_never_do() {
    let scene = Scene::new(99);
    let now = Instant::now() + 60 * SECOND;
    let idle = |used| State::Idle { used };
    let states = [
        ("a young head", State::Head, 0),
        ("used before", idle(true), 9),
        ("a head", State::Head, 2),
        ("an older head", State::Head, 3),
        ("never used", idle(false), 1),
        ("longer never used", idle(false), 2),
        ("young and never used", idle(false), 0),
        ("lingering", State::closing(Vec::new()), 0),
        ("back with bytes", State::Unread, 9),
        ("a complete head", queued_head(&post("/")), 4),
    ];
    let waiting: Vec<_> =
        states.into_iter().map(|(name, state, age)| (name, scene.waiting(state, now - age * SECOND))).collect();
    let mut order: Vec<_> = waiting.iter().filter_map(|(name, (w, _))| Some((w.gives_way(now)?, *name))).collect();
    order.sort_unstable();
    let names: Vec<_> = order.into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["lingering", "longer never used", "never used", "an older head", "a head", "used before"]);
}

#[test]
fn when_silent_clients_hold_most_places_the_oldest_gives_way_however_young() {
    let scene = Scene::new(4);
    let now = Instant::now() + 60 * SECOND;
    let mut silent: Vec<_> =
        (1..=3).map(|age| scene.waiting(State::Idle { used: false }, now - Duration::from_millis(age))).collect();
    let oldest = silent.iter().filter_map(|(w, _)| w.gives_way(now)).min();
    assert_eq!(oldest, Some((1, now - Duration::from_millis(3))));
    silent.pop();
    assert!(silent.iter().all(|(w, _)| w.gives_way(now).is_none()), "half of the places are theirs");
}

#[test]
fn a_connection_is_kept_for_the_idle_time_after_its_last_answer() {
    let scene = Scene::new(9);
    let start = Instant::now();
    let (mut idle, _client) = scene.waiting(State::Idle { used: true }, start);
    assert_eq!(idle.deadline(), Some(start + 75 * SECOND));
    assert_eq!(idle.overdue(start + 75 * SECOND), Turn::Over);
}

#[test]
fn a_head_has_ten_seconds_from_its_first_byte_however_many_follow() {
    let scene = Scene::new(9);
    let start = Instant::now();
    let (mut slow, mut client) = scene.waiting(State::Idle { used: false }, start);
    assert_eq!(slow.deadline(), Some(start + 10 * SECOND), "or for the first");
    for (second, byte) in (3..12).zip(post("/slow").as_bytes()) {
        client.write_all(&[*byte]).unwrap();
        assert_eq!(slow.turn([PollFlags::POLLIN; 2], &mut Scratch::new(), start + second * SECOND), Turn::GoOn);
        assert_eq!(slow.deadline(), Some(start + 13 * SECOND));
    }
    assert_eq!(slow.overdue(start + 13 * SECOND), Turn::GoOn);
    assert_eq!(slow.turn([PollFlags::POLLOUT; 2], &mut Scratch::new(), start + 13 * SECOND), Turn::GoOn);
    assert_eq!(answer(&mut client).unwrap().0, 408);
    assert_eq!(slow.deadline(), Some(start + 18 * SECOND), "the time that it has to close");
    assert_eq!(slow.overdue(start + 18 * SECOND), Turn::Over);
}

#[test]
fn a_complete_head_waits_five_seconds_for_a_thread_and_is_refused_at_once_if_too_many_wait() {
    let scene = Scene::new(1);
    let start = Instant::now();
    let come = |text: &str| {
        let (mut waiting, mut client) = scene.waiting(State::Idle { used: false }, start);
        client.write_all(text.as_bytes()).unwrap();
        let turn = waiting.turn([PollFlags::POLLIN; 2], &mut Scratch::new(), start);
        (turn, waiting, client)
    };
    let (turn, first, _client) = come(&post("/held"));
    assert_eq!(turn, Turn::Over, "it has a thread");
    drop(first);
    let (turn, mut second, mut client) = come("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n");
    assert_eq!((turn, second.is_queued(), second.deadline()), (Turn::GoOn, true, Some(start + 5 * SECOND)));
    let (_, third, mut turned_away) = come(&post("/"));
    assert_eq!((third.is_queued(), answer(&mut turned_away).unwrap().0), (false, 503));
    let (turn, ..) = come(&get("/"));
    assert_eq!(turn, Turn::Over, "requests without a body have places of their own");
    assert_eq!(second.overdue(start + 5 * SECOND), Turn::GoOn);
    second.turn([PollFlags::POLLOUT; 2], &mut Scratch::new(), start);
    drop(second);
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("\r\n\r\n"), "no body for HEAD: {said}");
    assert_eq!(scene.ingress.queued.load(Ordering::Acquire), 0);
}

#[test]
fn a_client_that_keeps_sending_after_its_last_answer_is_read_one_buffer_at_a_time() {
    let scene = Scene::new(1);
    let now = Instant::now();
    let (mut closing, mut client) = scene.waiting(State::closing(Vec::new()), now);
    client.write_all(&[b'x'; 4096]).unwrap();
    let mut scratch = Scratch::new();
    scratch.bytes = [0; 1024].into();
    assert_eq!(closing.turn([PollFlags::POLLIN; 2], &mut scratch, now), Turn::GoOn);
    let mut left = [0; 8192];
    assert_eq!((&*closing.stream).read(&mut left).unwrap(), 4096 - 1024);
}

#[test]
fn a_request_that_waits_for_a_thread_has_it_as_soon_as_one_is_free() {
    let scene = Scene::new(1).start();
    let (mut first, mut second) = (scene.connect(), scene.connect());
    for round in 0..300 {
        first.write_all(post("/held").as_bytes()).unwrap();
        scene.begun.recv().unwrap();
        second.write_all(post("/second").as_bytes()).unwrap();
        until("the second to wait", || scene.queued() == 1);
        scene.allow.send(()).unwrap();
        assert_eq!(answer(&mut first), echo("/held"), "round {round}");
        assert_eq!(answer(&mut second), echo("/second"), "round {round}: it was not told that a thread was free");
    }
    scene.handle.stop();
}

#[test]
fn pipelined_bytes_are_read_even_if_nothing_else_happens() {
    let scene = Scene::new(1).start();
    let mut malformed = scene.send(get("/a") + "nonsense\r\n\r\n");
    assert_eq!(answer(&mut malformed), echo("/a"));
    assert_eq!(answer(&mut malformed).expect("its refusal").0, 400);
    let mut half = scene.send(get("/b") + "GET /c HTT");
    assert_eq!(answer(&mut half), echo("/b"));
    half.write_all(b"P/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(answer(&mut half), echo("/c"));
    // One that finds another waiting gives its thread up with its next request unread.
    let mut pipelined = scene.send(post("/held") + &post("/e"));
    scene.begun.recv().unwrap();
    let mut waits = scene.send(post("/f"));
    until("it to wait", || scene.queued() == 1);
    scene.allow.send(()).unwrap();
    assert_eq!((answer(&mut pipelined), answer(&mut waits)), (echo("/held"), echo("/f")));
    assert_eq!(answer(&mut pipelined), echo("/e"));
    scene.handle.stop();
}

#[test]
fn a_head_may_come_a_byte_at_a_time_before_and_after_another_request() {
    let scene = Scene::new(2).start();
    let mut client = scene.connect();
    for target in ["/1", "/2", "/3"] {
        for byte in post(target).as_bytes().chunks(1) {
            client.write_all(byte).unwrap();
            thread::yield_now();
        }
        assert_eq!(answer(&mut client), echo(target));
    }
    scene.handle.stop();
}

/// Counts how often the loop asks it what it waits for.
struct Rounds(Arc<AtomicUsize>);

impl Session for Rounds {
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        self.0.fetch_add(1, Ordering::AcqRel);
        [None, None]
    }

    fn turn(&mut self, _: [PollFlags; 2], _: &mut Scratch, _: Instant) -> Turn {
        Turn::GoOn
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn overdue(&mut self, _: Instant) -> Turn {
        Turn::GoOn
    }

    fn finish(&mut self) -> Turn {
        Turn::Over
    }
}

#[test]
fn the_loop_sleeps_whatever_its_connections_wait_for() {
    let scene = Scene::new(8).start();
    let mut held: Vec<UnixStream> = (0..8).map(|_| scene.send(post("/held"))).collect();
    held.iter().for_each(|_| scene.begun.recv().unwrap());
    let queued: Vec<UnixStream> = (0..4).map(|_| scene.send(post("/queued"))).collect();
    until("them to wait", || scene.queued() == 4);
    assert_eq!(scene.ingress.by_state.at(ConnectionState::Queued).get(), 4);
    // A client that has ended only its sending side must still be answered.
    queued[0].shutdown(Shutdown::Write).unwrap();
    let mut used = scene.send(get("/used"));
    assert_eq!(answer(&mut used), echo("/used"));
    let mut lingering = scene.send("nonsense\r\n\r\n");
    assert_eq!(answer(&mut lingering).unwrap().0, 400);
    let _others = (scene.connect(), scene.send("G"));
    let rounds = Arc::new(AtomicUsize::new(0));
    scene.ingress.waker.add(scene.ingress.acceptor, Box::new(Rounds(rounds.clone())));
    until("the count to begin", || rounds.load(Ordering::Acquire) > 0);
    thread::sleep(Duration::from_millis(20)); // what has just been sent arrives
    let before = rounds.load(Ordering::Acquire);
    thread::sleep(Duration::from_millis(300));
    let after = rounds.load(Ordering::Acquire);
    assert!(after - before <= 3, "{} rounds while nothing happened", after - before);
    (0..8).for_each(|_| scene.allow.send(()).unwrap());
    held.iter_mut().for_each(|client| assert_eq!(answer(client), echo("/held")));
    for mut client in queued {
        assert_eq!(answer(&mut client), echo("/queued"));
    }
    drop(lingering);
    scene.handle.stop();
}

#[test]
fn at_the_stop_requests_that_wait_or_run_are_answered_and_lingering_clients_keep_their_answer() {
    // A client may linger for five seconds, in which this machine may not get as far as that.
    let stopped = std::iter::repeat_with(at_the_stop).take(5).any(|in_time| in_time);
    assert!(stopped, "five times it took the whole time of the client that lingers");
}

/// Returns whether the client that lingers had the time that this takes.
fn at_the_stop() -> bool {
    let scene = Scene::new(4).start();
    let mut idle = scene.send(get("/idle"));
    assert_eq!(answer(&mut idle), echo("/idle"));
    let mut in_flight = [(); 4].map(|()| scene.send(post("/held")));
    in_flight.iter().for_each(|_| scene.begun.recv().unwrap());
    let mut queued = scene.send(post("/queued"));
    until("one to wait", || scene.queued() == 1);
    let since = Instant::now();
    let mut lingering = scene.send("nonsense\r\n\r\n");
    until("the answer", || {
        let peeked = recv(lingering.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        peeked.is_ok()
    });
    scene.ingress.stopping.store(true, Ordering::Release);
    let handle = scene.handle;
    let stopped = thread::spawn(move || handle.stop());
    assert_eq!(answer(&mut idle), None, "it is closed");
    let before = lingering.write_all(&[b'x'; 4096]);
    in_flight.iter().for_each(|_| scene.allow.send(()).unwrap());
    in_flight.iter_mut().for_each(|client| assert_eq!(answer(client), echo("/held")));
    let waited = answer(&mut queued);
    let after = lingering.write_all(b"x");
    let kept = answer(&mut lingering).map(|(status, _)| status);
    let still_sends = !stopped.is_finished();
    if since.elapsed() < LINGER {
        assert_eq!((waited, kept), (echo("/queued"), Some(400)));
        assert!(before.and(after).is_ok() && still_sends, "one is still sending");
    }
    drop((in_flight, queued, lingering));
    stopped.join().unwrap();
    since.elapsed() < LINGER
}
