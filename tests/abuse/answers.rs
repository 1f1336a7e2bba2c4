//! Clients that do not take their answer as they should, or are gone before it comes.

use super::*;

#[test]
fn a_client_that_half_closes_after_its_request_gets_its_whole_answer_however_slowly_it_reads() {
    let scene = Scene::new(&[], &[]);
    let large = encrypt(&KEY, &vec![b'x'; 4 * MIB]);
    scene.during(|| {
        let mut stream = connect(scene.public());
        stream.write_all(raw_head(large.len()).as_bytes()).and_then(|()| stream.write_all(&large)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut left = read_success(&mut stream);
        assert!(left > 4 * MIB, "{left}");
        while left > 0 {
            // The daemon is the faster of the two, so its last bytes wait for this client.
            thread::sleep(Duration::from_millis(5));
            let piece = left.min(256 << 10);
            let n = std::io::copy(&mut (&stream).take(piece as u64), &mut std::io::sink()).unwrap();
            assert_eq!(n, piece as u64, "the answer broke off within the last {left} bytes");
            left -= piece;
        }
    });
    scene.ends_as_it_began();
}

/// Reads a success answer's head and returns the length of its body.
fn read_success(stream: &mut TcpStream) -> usize {
    let head = read_head(stream).expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    content_length(&head).unwrap()
}

/// Waits until a success answer begins, and leaves it where it is.
fn wait_for_success(stream: &TcpStream) {
    const BEGINNING: &[u8] = b"HTTP/1.1 200";
    let mut begun = [0; BEGINNING.len()];
    while peek(stream, &mut begun).expect("an answer") < begun.len() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(begun, BEGINNING);
}

#[test]
fn clients_that_never_read_their_large_answer_hold_up_nobody() {
    // More than the system buffers at both ends of a connection whose client does not read (tcp(7)).
    let largest = |name: &str| -> usize {
        let limits = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        limits.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    let length = (largest("tcp_wmem") + largest("tcp_rmem")).max(16 * MIB);
    let (max_file, memory) = (length.to_string(), (20 * length).to_string());
    let scene = Scene::new(&[("TEEMARK_MAX_FILE", &max_file), ("TEEMARK_MEMORY", &memory)], &[]);
    let large = encrypt(&KEY, &vec![b'x'; length]);
    scene.during(|| {
        let unread: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut stream = connect(scene.public());
                stream.write_all(raw_head(large.len()).as_bytes()).and_then(|()| stream.write_all(&large)).unwrap();
                wait_for_success(&stream);
                stream
            })
            .collect();
        assert_eq!(scene.daemon.decrypt(&scene.file, "f", "u").status, 200);
        drop(unread);
    });
    scene.ends_as_it_began();
}

#[test]
fn clients_that_go_away_while_their_request_is_under_way_leave_a_bounded_number_of_threads() {
    let scene = Scene::new(&[], &["slow=0.2"]);
    let most = scene.during(|| {
        let mut most = 0;
        for _ in 0..200 {
            let mut stream = connect(scene.public());
            stream
                .write_all(raw_head(scene.file.len()).as_bytes())
                .and_then(|()| stream.write_all(&scene.file))
                .unwrap();
            drop(stream);
            most = most.max(threads(&scene.daemon));
        }
        most
    });
    println!("{most} threads at most, {} before", scene.threads);
    assert!(most <= scene.threads + 256 + 16, "{most} threads");
    scene.ends_as_it_began();
}

/// Makes the connection reset when it is dropped.
fn reset(stream: TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

#[test]
fn a_client_that_is_gone_ends_its_call_of_the_service_and_one_that_half_closes_gets_its_answer() {
    let service = Service::start(&CERTS, &["--fault", "slow=3600"]);
    let setup = Setup::new(service.port).env("TEEMARK_TIMEOUT", "3600s");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    let file = encrypt(&KEY, b"a file like any other\n");
    let send = |daemon: &Daemon| {
        let mut stream = connect(daemon.public);
        stream.write_all(&[raw_head(file.len()).as_bytes(), &file].concat()).unwrap();
        stream
    };
    let held = || daemon.metric("teemark_memory_left_bytes");
    daemon.has_all_its_memory();
    let all = held();
    let gone: Vec<TcpStream> = (0..4).map(|_| send(&daemon)).collect();
    wait_for("the calls", || (service.count("TLS handshake: client") >= 4).then_some(()));
    assert!(held() < all, "the calls go on");
    gone.into_iter().for_each(reset);
    // Long before the service answers or the daemon gives up.
    wait_for("the calls to end", || (held() == all).then_some(()));
    assert_eq!(daemon.metric("teemark_panics_total"), 0.0);

    // By a service that answers, though not before the daemon sees that its client is at its end.
    let service = Service::start(&CERTS, &["--fault", "slow=1"]);
    let daemon = Daemon::ready(&service, &CERTS);
    let mut half_closed = send(&daemon);
    half_closed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_answer(&mut half_closed).expect("an answer").status, 200);
}
