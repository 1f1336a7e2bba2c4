//! Connections that wait: silent ones, heads that never end, and more of either than there are places.

use super::*;

#[test]
fn two_hundred_connections_that_say_nothing_are_closed_after_ten_seconds() {
    let scene = Scene::new(&[], &[]);
    scene.during(|| {
        let start = Instant::now();
        let mut silent: Vec<TcpStream> = (0..200).map(|_| connect(scene.public())).collect();
        assert_eq!(until_closed(&mut silent[0]), "");
        assert!(start.elapsed() >= LIMIT, "closed early, after {:?}", start.elapsed());
        silent.iter_mut().for_each(|stream| assert_eq!(until_closed(stream), ""));
    });
    scene.ends_as_it_began();
}

#[test]
fn a_kept_alive_connection_is_closed_after_teemark_idle() {
    let scene = Scene::new(&[("TEEMARK_IDLE", "4s")], &[]);
    let mut stream = connect(scene.public());
    let start = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream).expect("an answer").body, b"Pong!");
    assert_eq!(until_closed(&mut stream), "");
    assert!(start.elapsed() >= Duration::from_secs(4), "closed early, after {:?}", start.elapsed());
}

#[test]
fn the_oldest_of_300_silent_connections_give_way_to_later_ones() {
    let scene = Scene::new(&[("TEEMARK_MAX_CONNECTIONS", "256")], &[]);
    scene.during(|| {
        let start = Instant::now();
        let mut silent: Vec<TcpStream> = (0..300).map(|_| connect(scene.public())).collect();
        let mut newest = connect(scene.public());
        newest.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut newest).expect("the newest is served").body, b"Pong!");
        let gave_way = scene.daemon.metric("teemark_connections_refused_total");
        // On a machine that is slower than that, the first have run out of time and made room.
        let in_time = start.elapsed() < LIMIT;
        assert!(gave_way >= 45.0 || !in_time, "{gave_way} gave way");
        silent[..44].iter_mut().for_each(|stream| assert_eq!(until_closed(stream), ""));
    });
    scene.ends_as_it_began();
}

#[test]
fn a_head_of_a_byte_a_second_is_cut_after_ten_seconds_with_408() {
    let scene = Scene::new(&[], &[]);
    scene.during(|| {
        let slow = || {
            let mut stream = connect(scene.public());
            let start = Instant::now();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            for byte in b"GET / HTTP/1.1\r\nX-Slow: yes\r\n\r\n".chunks(1) {
                stream.write_all(byte).unwrap();
                if stream.peek(&mut [0]).is_ok() {
                    break;
                }
            }
            let took = start.elapsed();
            stream.set_read_timeout(Some(SOON)).unwrap();
            assert_eq!(read_answer(&mut stream).expect("an answer").status, 408);
            assert!(took >= LIMIT - Duration::from_secs(1), "cut after {took:?}");
        };
        thread::scope(|scope| (0..20).for_each(|_| drop(scope.spawn(slow))));
    });
    scene.ends_as_it_began();
}

/// Holds this many connections that have sent one byte each, and replaces each one that is closed at once.
fn flood(to: SocketAddr, connections: usize, over: &AtomicBool) {
    let begin = || {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nonblocking(true)?;
        stream.write_all(b"G").map(|()| stream)
    };
    let mut held: Vec<Option<TcpStream>> = (0..connections).map(|_| begin().ok()).collect();
    while !over.load(Ordering::Acquire) {
        for place in &mut held {
            let is_open =
                |stream: &mut TcpStream| stream.read(&mut [0; 4096]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
            if !place.as_mut().is_some_and(is_open) {
                *place = begin().ok();
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asks whether the daemon is healthy, sending this late; `None` if this machine made it later still.
fn probe(to: SocketAddr, path: &str, late: Duration) -> Option<Option<u16>> {
    let mut stream = connect(to);
    let connected = Instant::now();
    thread::sleep(late);
    let sent = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let in_time = connected.elapsed() < Duration::from_millis(500);
    let answer = sent.ok().and_then(|()| read_answer(&mut stream));
    in_time.then(|| answer.map(|answer| answer.status))
}

fn are_answered_during_a_flood_of(connections: usize) {
    let scene = Scene::new(&[("TEEMARK_MAX_CONNECTIONS", "256")], &[]);
    let (over, to) = (AtomicBool::new(false), scene.public());
    thread::scope(|scope| {
        scope.spawn(|| flood(to, connections, &over));
        let _stop = Stop(&over);
        wait_for("the places to be taken", || (scene.daemon.metric("teemark_connections_open") >= 256.0).then_some(()));
        let (at_once, late) = (Duration::ZERO, Duration::from_millis(100));
        let probes = [("/health", at_once), ("/ready", at_once), ("/health", late), ("/ready", late)];
        let probes = probes.map(|(path, late)| {
            scope.spawn(move || {
                let answers = std::iter::repeat_with(|| probe(to, path, late)).take(40).flatten().take(5);
                (path, late, answers.collect::<Vec<_>>())
            })
        });
        for (path, late, answers) in probes.map(|probe| probe.join().unwrap()) {
            assert!(answers.iter().all(|status| *status == Some(200)), "{path}, {late:?} late: {answers:?}");
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn health_and_ready_are_answered_during_280_connections_of_one_byte_each() {
    are_answered_during_a_flood_of(280);
}

#[test]
fn health_and_ready_are_answered_during_330_connections_that_come_back_at_once() {
    are_answered_during_a_flood_of(330);
}

#[test]
fn none_of_300_requests_at_once_for_eight_places_is_lost() {
    let scene = Scene::new(&[("TEEMARK_MAX_CONNECTIONS", "8")], &[]);
    let begin = || {
        let mut client = connect(scene.public());
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        client
    };
    let mut clients: Vec<TcpStream> = std::iter::repeat_with(begin).take(300).collect();
    // As many as may be in flight, and as many again may wait; the others are told to try again.
    let answers = clients.iter_mut().map(|client| read_answer(client).expect("an answer"));
    let (served, others): (Vec<_>, Vec<_>) = answers.partition(|answer| answer.status == 200);
    assert!(served.len() >= 16, "{} served", served.len());
    others.iter().for_each(|a| assert_eq!((a.status, a.field("Retry-After")), (503, Some("1"))));
    scene.ends_as_it_began();
}
