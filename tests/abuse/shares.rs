//! Requests that hold what others need: memory and threads.

use serde_json::json;
use support::issuer::*;

use super::*;

#[test]
fn a_request_for_which_no_thread_is_free_for_five_seconds_gets_503_with_retry_after() {
    let (scene, mut busy, refused) = unspoilt("all threads to be busy for five seconds", all_threads_busy);
    assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"));
    assert!(refused.head.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{}", refused.head);
    assert_eq!(scene.daemon.get("/health").status, 200, "what has no body has an extra place");
    busy.iter_mut().for_each(|stream| assert_eq!(read_answer(stream).expect("an answer").status, 200));
    assert_eq!(scene.daemon.get("/").status, 200);
    drop(busy);
    scene.ends_as_it_began();
}

/// A daemon of four threads, a client for each of them, and the answer to a fifth. `None` if a thread was free by then:
/// the service answers the four after twelve seconds.
fn all_threads_busy() -> Option<(Scene, Vec<TcpStream>, Answer)> {
    let scene = Scene::new(&[("TEEMARK_MAX_CONNECTIONS", "4")], &["slow=12"]);
    let send = || {
        let mut stream = connect(scene.public());
        stream.write_all(raw_head(scene.file.len()).as_bytes()).and_then(|()| stream.write_all(&scene.file)).unwrap();
        stream
    };
    let called = scene.service.count("TLS handshake: client");
    let begun = Instant::now();
    let busy: Vec<TcpStream> = (0..4).map(|_| send()).collect();
    // One pooled connection to the service exists; the other requests open theirs when they are in flight.
    wait_for("four requests under way", || (scene.service.count("TLS handshake: client") >= called + 3).then_some(()));
    let answer = scene.daemon.decrypt(&scene.file, "f", "u");
    let spoilt = answer.status == 200 && begun.elapsed() >= Duration::from_secs(12);
    (!spoilt).then_some((scene, busy, answer))
}

/// A daemon that requires grants, its service, and a file.
pub(crate) struct Granted {
    pub(crate) daemon: Daemon,
    _service: Service,
    issuer: Issuer,
    file: Vec<u8>,
}

impl Granted {
    pub(crate) fn new(env: &[(&str, &str)], faults: &[&str], plain: usize) -> Granted {
        let arguments: Vec<&str> = faults.iter().flat_map(|fault| ["--fault", fault]).collect();
        let (service, issuer) = (Service::start(&CERTS, &arguments), Issuer::new());
        let setup = Setup::new(service.port).env("TEEMARK_GRANTS", "required").env("TEEMARK_FLEET", "fleet");
        let setup = setup.envs(env);
        let daemon = setup.start();
        let mut bundle = CERTS.full_bundle(service.port);
        bundle["GRANT_KEYS"] = issuer.jwks();
        assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!([]));
        Granted { daemon, _service: service, issuer, file: encrypt(&KEY, &vec![b'x'; plain]) }
    }

    /// The head of a user's request for the file `f`, with a body of this many bytes.
    pub(crate) fn head(&self, user: &str, grant: &str, length: usize) -> String {
        let mut claims = claims(grant);
        claims["sub"] = json!(user);
        let token = self.issuer.token(&claims);
        format!(
            "POST /files/f/decrypt?user_id={user} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    }

    /// A request that has begun, with this much of its body.
    pub(crate) fn begin(&self, user: &str, grant: &str, length: usize, sent: usize) -> TcpStream {
        let mut stream = connect(self.daemon.public);
        stream.write_all(&[self.head(user, grant, length).as_bytes(), &vec![b'x'; sent]].concat()).unwrap();
        stream
    }

    pub(crate) fn ask(&self, user: &str, grant: &str) -> Answer {
        request(self.daemon.public, &self.head(user, grant, self.file.len()), &self.file)
    }

    /// Each of these was refused and told to try again, or was cut for its own slowness. Returns how many were refused.
    fn gave_way(&self, streams: &mut [TcpStream], user: &str) -> usize {
        let mut refused = 0;
        for (i, stream) in streams.iter_mut().enumerate() {
            let answer = read_answer(stream).expect("an answer");
            if answer.status == 408 {
                continue;
            }
            assert_eq!((answer.status, answer.field("Retry-After").is_some()), (503, true), "{answer:?}");
            assert_eq!(self.ask(user, &format!("{user}{i}")).status, 200, "its grant is as good as it was");
            refused += 1;
        }
        refused
    }
}

#[test]
fn a_user_who_announces_all_of_the_memory_and_sends_nothing_keeps_nobody_out() {
    let granted = Granted::new(&[("TEEMARK_MEMORY", "64MiB")], &[], 24_000);
    let announced = (64 * MIB - (256 << 10)) / 4;
    let _silent: Vec<TcpStream> =
        (0..8).map(|i| granted.begin("mallory", &format!("mallory{i}"), announced, 0)).collect();
    for i in 0..20 {
        assert_eq!(granted.ask("alice", &format!("alice{i}")).status, 200);
    }
}

#[test]
fn one_user_whose_files_stop_half_way_gives_way_to_others_and_keeps_the_grants() {
    let granted = Granted::new(&[("TEEMARK_MEMORY", "16MiB")], &[], 2 * MIB);
    let begun = Instant::now();
    let mut half: Vec<TcpStream> =
        (0..4).map(|i| granted.begin("mallory", &format!("mallory{i}"), 3 * MIB, 5 * MIB / 4)).collect();
    wait_for("the memory to be taken", || {
        (granted.daemon.metric("teemark_memory_left_bytes") < as_metric(6 * MIB)).then_some(())
    });
    assert_eq!(granted.ask("alice", "alice").status, 200);
    let in_time = begun.elapsed() < LIMIT;
    let refused = granted.gave_way(&mut half, "mallory");
    assert!(refused > 0 || !in_time, "alice's file got no memory");
}

#[test]
fn one_user_whose_requests_hold_all_threads_gives_some_to_others() {
    let granted = Granted::new(&[("TEEMARK_MAX_CONNECTIONS", "4")], &[], 24_000);
    let begun = Instant::now();
    let mut silent: Vec<TcpStream> =
        (0..4).map(|i| granted.begin("mallory", &format!("mallory{i}"), 24_000, 100)).collect();
    wait_for("the threads to be taken", || (threads(&granted.daemon) >= 3 + 4).then_some(()));
    for i in 0..3 {
        assert_eq!(granted.ask("alice", &format!("alice{i}")).status, 200);
    }
    let in_time = begun.elapsed() < LIMIT;
    let refused = granted.gave_way(&mut silent, "mallory");
    assert!(refused > 0 || !in_time, "alice got no thread");
}

#[test]
fn a_grant_whose_file_the_service_refuses_is_used_up_at_the_third_time_and_not_by_what_passes() {
    for (fault, status, used_up) in [("fail=413", 413, true), ("fail=415", 422, true), ("fail=503", 503, false)] {
        let granted = Granted::new(&[], &[fault], 100);
        for _ in 0..3 {
            assert_eq!(granted.ask("alice", "1").status, status, "{fault}");
        }
        let fourth = granted.ask("alice", "1");
        let expected = if used_up { (403, "grant_used") } else { (status, "watermark_busy") };
        assert_eq!((fourth.status, fourth.code().as_str()), expected, "{fault}");
        assert_ne!(granted.ask("alice", "2").status, 403, "another is not");
    }
}
