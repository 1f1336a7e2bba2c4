//! TEEMARK_LOG: off, clear and sealed.

use formats::base64;
use formats::hpke::PrivateKey;
use formats::log::{Checkpoint, Head, Kind};

use super::support::{Certs, Process, Service, Setup, wait_for};
use super::{Taker, check_chain, identity, open, record, start_silently};

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_last_records_and_a_live_checkpoint_are_to_be_had_from_the_daemon() {
    let daemon = Setup::new(1).start();
    let identity = identity(&daemon);
    let given = lines(&daemon.get_admin("/admin/log?lines=10000").text());
    let head = check_chain(&given, Head::default(), Some(&identity));
    let kinds: Vec<Kind> = given.iter().map(|line| record(line).kind).collect();
    for kind in [Kind::Boot, Kind::Document, Kind::Checkpoint] {
        assert_eq!(kinds.iter().filter(|k| **k == kind).count(), 1, "{kind:?}");
    }
    let last = lines(&daemon.get_admin("/admin/log?lines=3").text());
    assert_eq!(last.len(), 3);
    assert_eq!(daemon.get_admin("/admin/log?lines=0").status, 400);
    assert_eq!(daemon.get("/admin/log").status, 404, "not for users");

    let live: Checkpoint = serde_json::from_slice(&daemon.get("/log/checkpoint").body).unwrap();
    assert!(live.is_by(&identity) && live.head.number >= head.number);
    let all = lines(&daemon.get_admin("/admin/log?lines=10000").text());
    let at = all.iter().map(|line| record(line).head).find(|head| head.number == live.head.number);
    assert_eq!(at, Some(live.head), "it names a record of the log by its hash");

    // On standard error they are lines as people read them.
    let log = daemon.process.log();
    assert!(log.lines().all(|line| line.contains(" teemarkd::") || line.contains(" teemarkd: ")), "{log}");
}

#[test]
fn a_bundle_in_force_has_the_log_signed() {
    let certs = Certs::make();
    let service = Service::start(&certs, &[]);
    let daemon = super::Daemon::ready(&service, &certs);
    let given = || lines(&daemon.get_admin("/admin/log?lines=10000").text());
    let after = |lines: &[String]| {
        let accepted = lines.iter().position(|line| line.contains("handshake accepted"))?;
        lines[accepted..].iter().any(|line| record(line).kind == Kind::Checkpoint).then_some(())
    };
    wait_for("a checkpoint after the bundle", || after(&given()));
    check_chain(&given(), Head::default(), Some(&identity(&daemon)));
}

#[test]
fn a_sealed_log_shows_nothing_but_the_checklists_line_and_opens_with_its_key() {
    let [key, second] = [5, 6].map(|byte| PrivateKey::new(Box::new([byte; 32])));
    let keys = format!("{},{}", base64::encode(key.public()), base64::encode(second.public()));
    let certs = Certs::make();
    let service = Service::start(&certs, &[]);
    let taker = Taker::new();
    let setup = Setup::new(service.port).env("TEEMARK_LOG_KEYS", &keys).env("TEEMARK_LOG_TO", &taker.address());
    let daemon = start_silently(setup);
    assert_eq!(daemon.handshake(certs.full_bundle(service.port).to_string().as_bytes())["ok"], true);
    // More than a segment's records.
    (0..150).for_each(|i| assert_eq!(daemon.decrypt(b"x", &format!("file-{i}"), "somebody").status, 422));

    let mut taken = taker.accept();
    let said = "decrypt_raw 422";
    let mut streamed = taken.lines_until(|record| record.kind == Kind::Checkpoint);
    let identity = identity(&daemon);
    let mut seen = 0;
    while seen < 150 {
        streamed.push(taken.line());
        seen = open(&streamed, &key).iter().filter(|(_, body)| body.contains(said)).count();
    }
    check_chain(&streamed, Head::default(), Some(&identity));
    assert!(streamed.iter().filter(|line| record(line).kind == Kind::Key).count() > 2);
    assert_eq!(open(&streamed, &second), open(&streamed, &key), "each key opens all of it");

    wait_for("the last line on standard error", || {
        let last = streamed.last().unwrap();
        daemon.process.log().contains(last.as_str()).then_some(())
    });
    let clear: Vec<String> = {
        let log = daemon.process.log();
        let is_record = |line: &str| formats::log::Record::parse(line.as_bytes()).is_some();
        lines(&log).into_iter().filter(|line| !is_record(line)).collect()
    };
    assert!(clear.len() == 1 && clear[0].contains("[RUN_SH] mTLS client certificates written to "), "{clear:?}");
    for few in [1, 3, 70] {
        let last = lines(&daemon.get_admin(&format!("/admin/log?lines={few}")).text());
        assert!(last.len() >= few && !open(&last, &key).is_empty(), "{few}");
    }
    let tail = daemon.get_admin("/admin/log?lines=10000").text();
    for (place, text) in
        [("the stream", streamed.join("\n")), ("the ring", tail), ("standard error", daemon.process.log())]
    {
        let in_clear = lines(&text).into_iter().filter(|line| line.contains("[RUN_SH]")).count();
        assert_eq!(in_clear, 1, "{place}");
        for word in ["decrypt_raw", "file-1", "somebody", "listening", "handshake", "INFO  teemarkd: "] {
            assert!(!text.contains(word), "{word} in {place}");
        }
    }
}

#[test]
fn a_log_that_is_off_says_the_checklists_line_and_nothing_else() {
    let certs = Certs::make();
    let service = Service::start(&certs, &[]);
    let daemon = start_silently(Setup::new(service.port).env("TEEMARK_LOG", "off"));
    assert_eq!(daemon.handshake(certs.full_bundle(service.port).to_string().as_bytes())["ok"], true);
    assert!(daemon.process.has_logged("[RUN_SH] mTLS"));
    assert_eq!(daemon.process.log().lines().count(), 1);
    let kept = lines(&daemon.get_admin("/admin/log?lines=10000").text());
    assert!(kept.len() == 1 && kept[0].contains("[RUN_SH] mTLS"), "{kept:?}");
}

#[test]
fn settings_of_the_log_that_contradict_each_other_stop_the_start_and_are_named() {
    let key = base64::encode(PrivateKey::new(Box::new([5; 32])).public());
    for (settings, words) in [
        (&[("TEEMARK_LOG", "sealed")][..], "TEEMARK_LOG: \"sealed\" needs keys to seal to"),
        (&[("TEEMARK_LOG", "clear"), ("TEEMARK_LOG_KEYS", &*key)], "TEEMARK_LOG: \"clear\" seals nothing"),
        (&[("TEEMARK_LOG_TO", "vsock:9001")], "TEEMARK_LOG_TO: \"vsock:9001\" names no machine"),
    ] {
        let setup = Setup::new(1).envs(settings);
        let mut process = Process::spawn(&mut setup.command(), setup.folder.path().join("log"));
        let status = wait_for("the daemon's end", || process.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
        assert!(process.log().contains(words), "{}", process.log());
    }
}
