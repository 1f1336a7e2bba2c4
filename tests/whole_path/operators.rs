//! What probes, operators and Prometheus see.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use teemarkd::metrics::CODES;

use crate::support::*;
use crate::*;

#[test]
fn a_daemon_that_waits_for_its_handshake_lives_and_is_not_ready() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let root = daemon.get("/");
    assert_eq!((root.status, root.text().as_str()), (200, "Pong!"));
    let health = daemon.get("/health");
    assert_eq!((health.status, health.json()), (200, json!({"status": "alive"})));
    let ready = daemon.get("/ready");
    let all = ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"];
    assert_eq!((ready.status, ready.json()), (503, json!({"ready": false, "missing": all})));

    assert_eq!(daemon.handshake(CERTS.bundle(service.port).to_string().as_bytes())["missing"], json!(["FILE_KEYS"]));
    let ready = daemon.get("/ready");
    assert_eq!((ready.status, ready.json()), (503, json!({"ready": false, "missing": ["FILE_KEYS"]})));

    assert_eq!(daemon.handshake(CERTS.full_bundle(service.port).to_string().as_bytes())["missing"], json!([]));
    let ready = daemon.get("/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({"ready": true, "missing": []})));
}

#[test]
fn head_gives_the_head_of_get_and_no_body() {
    let (_service, daemon) = pair(&[]);
    for path in ["/", "/health", "/ready", "/health_check"] {
        let get = daemon.get(path);
        let mut stream = TcpStream::connect(daemon.public).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let varies = |line: &str| line.starts_with("Date: ") || line.starts_with("X-Request-Id: ");
        let same = |head: &str| head.lines().filter(|line| !varies(line)).collect::<Vec<_>>().join("\n");
        assert_eq!(same(&answer), same(&get.head), "{path}");
    }
}

#[test]
fn operators_can_ask_for_the_state_of_the_daemon() {
    let (service, daemon) = pair(&[]);
    let ping = daemon.get_admin("/ping");
    assert_eq!((ping.status, ping.text().as_str()), (200, "pong"));
    let status = daemon.get_admin("/admin/status").json();
    assert_eq!((&status["ready"], &status["missing"]), (&json!(true), &json!([])));
    assert_eq!(status["endpoints"], json!([format!("localhost:{}", service.port)]));
    assert_eq!(status["handshakes"], json!({"accepted": 1, "refused": 0}));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_seconds"].as_u64().is_some() && status["memory_left_bytes"].as_u64() > Some(1 << 20));
    assert_eq!(status["client_certificate"], "valid");
    assert_eq!(status["audit"], "best_effort");
    assert!(["complete_at", "clock_fault", "audit_fault"].iter().all(|name| status[name].is_null()), "{status}");
    let year = status["client_certificate_expires"].as_str().unwrap()[..4].parse::<u32>().unwrap();
    assert!((2025..2100).contains(&year), "{status}");
}

#[test]
fn the_status_tells_the_limits_in_force_and_what_is_left_of_them() {
    let setup = Setup::new(1).env("TEEMARK_MEMORY", "5MiB").env("TEEMARK_MAX_FILE", "3000000");
    let daemon = setup.env("TEEMARK_MAX_CONNECTIONS", "7").env("TEEMARK_TIMEOUT", "11s").start();
    let status = daemon.get_admin("/admin/status").json();
    // (5 MiB - 1 MiB that is kept - 420 KiB) / 1.5 by the raw route. As base64 with 64 KiB of other JSON less, since its
    // buffer is copied, at 2 MiB, while it arrives.
    let [raw, json] = ["raw", "json"].map(|route| status["limits"]["largest_file_bytes"][route].as_u64().unwrap());
    assert!((2_500_000..2_534_100).contains(&raw) && (1_950_000..raw).contains(&json), "{status}");
    let limits = json!({
        "max_file_bytes": 3_000_000, "largest_file_bytes": {"raw": raw, "json": json}, "memory_bytes": 5 << 20,
        "connections": 7, "timeout_seconds": 11,
    });
    assert_eq!((&status["limits"], &status["memory_left_bytes"]), (&limits, &json!(5 << 20)));
    assert!(status["connections_open"].is_u64() && status["client_certificate"].is_null(), "{status}");
    let log = daemon.process.log();
    assert!(log.contains("TEEMARK_MAX_FILE is 3000000 bytes, but TEEMARK_MEMORY, 5242880 bytes"), "{log}");
    assert!(log.contains(&format!("a file of {raw} bytes by the raw route and of {json} bytes as JSON")), "{log}");
}

#[test]
fn metrics_are_on_the_admin_listener_and_on_the_public_one_only_where_that_is_set() {
    let daemon = Setup::new(1).start();
    assert!(daemon.get_admin("/metrics").text().contains("teemark_memory_left_bytes"));
    let (metrics, nothing) = (daemon.get("/metrics"), daemon.get("/nothing"));
    assert_error(&metrics, 404, "not_found");
    assert_eq!(metrics.text(), nothing.text(), "as any other path");
    let daemon = Setup::new(1).env("TEEMARK_PUBLIC_METRICS", "on").start();
    for answer in [daemon.get_admin("/metrics"), daemon.get("/metrics")] {
        assert!(answer.status == 200 && answer.text().contains("teemark_memory_left_bytes"), "{answer:?}");
    }
}

#[test]
fn secrets_can_be_updated_on_the_admin_side() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let update = |body: &str| {
        let length = body.len();
        let head =
            format!("POST /admin/update-secrets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        request(daemon.admin, &head, body.as_bytes())
    };
    let refused = update(r#"{"FILE_KEYS":{"k":"AA=="}}"#);
    assert_eq!((refused.status, refused.code().as_str()), (400, "invalid_request"), "{refused:?}");
    assert_eq!((&refused.json()["ok"], &refused.json()["field"]), (&json!(false), &json!("FILE_KEYS.k")));
    let accepted = update(&CERTS.full_bundle(service.port).to_string());
    assert_eq!((accepted.status, &accepted.json()["ok"]), (200, &json!(true)), "{accepted:?}");
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u").status, 200);
    assert_eq!(daemon.get_admin("/admin/status").json()["handshakes"], json!({"accepted": 1, "refused": 1}));
}

#[test]
fn the_metrics_move_as_they_should() {
    let (_service, daemon) = pair(&[]);
    let file = encrypt(&KEY, b"a text");
    let before = samples(&daemon.get_admin("/metrics").text());
    let codes = before.iter().filter(|(name, _)| name.starts_with("teemark_refusals_total{"));
    assert!(codes.clone().count() == CODES.len() && codes.into_iter().all(|(_, n)| *n == 0.0), "{before:?}");
    let marked = daemon.decrypt(&file, "f", "u");
    assert_eq!(daemon.decrypt(&file[1..], "f", "u").status, 422);
    assert_eq!(decrypt_json(&daemon, &file).status, 200);
    assert_eq!(daemon.get("/nothing").status, 404);
    assert_eq!(daemon.handshake(b"{}")["ok"], false);
    let after = samples(&daemon.get_admin("/metrics").text());
    for (name, by) in [
        ("teemark_requests_total{route=\"decrypt_raw\",code=\"200\"}", 1.0),
        ("teemark_requests_total{route=\"decrypt_raw\",code=\"422\"}", 1.0),
        ("teemark_requests_total{route=\"decrypt\",code=\"200\"}", 1.0),
        ("teemark_requests_total{route=\"unknown\",code=\"404\"}", 1.0),
        ("teemark_refusals_total{code=\"decrypt_failed\"}", 1.0),
        ("teemark_refusals_total{code=\"not_found\"}", 1.0),
        ("teemark_file_bytes_in_total", as_metric(3 * file.len() - 1)),
        ("teemark_file_bytes_out_total", as_metric(2 * marked.body.len())),
        ("teemark_decrypt_seconds_count", 3.0),
        ("teemark_watermark_seconds_count", 2.0),
        ("teemark_watermark_retries_total", 0.0),
        ("teemark_connections_total", 5.0),
        ("teemark_connections_refused_total", 0.0),
        ("teemark_handshakes_accepted_total", 0.0),
        ("teemark_handshakes_refused_total", 1.0),
        ("teemark_tls_handshakes_total", 1.0),
        ("teemark_panics_total", 0.0),
    ] {
        let moved = after.get(name).unwrap_or_else(|| panic!("no {name}")) - before.get(name).unwrap_or(&0.0);
        assert_eq!(moved, by, "{name}");
    }
    assert!(after["teemark_watermark_seconds_sum"] > 0.0 && after["teemark_connections_open"] >= 1.0);
    assert_eq!((after["teemark_handshakes_accepted_total"], before["teemark_watermark_seconds_count"]), (1.0, 0.0));
    // What is left is beside its limit.
    for (left, limit) in [
        ("teemark_memory_left_bytes", "teemark_memory_limit_bytes"),
        ("teemark_connections_open", "teemark_connections_limit"),
        ("teemark_grants_remembered", "teemark_grants_remembered_limit"),
    ] {
        assert!(after[left] <= after[limit] && after[limit] > 0.0, "{left}");
    }
    assert_eq!((after["teemark_ready"], after["teemark_draining"], after["teemark_bundle_in_force"]), (1.0, 0.0, 0.0));
    assert_eq!(after["teemark_keys_in_force{item=\"FILE_KEYS\"}"], 1.0);
    let version = concat!("teemark_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!((after[version], after["teemark_file_limit_bytes"]), (1.0, as_metric(64 << 20)));
    let year = 365.0 * 86_400.0;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - after["teemark_start_time_seconds"];
    assert!((-1.0..=3600.0).contains(&age), "{age}");
    let left = after["teemark_client_certificate_not_after_timestamp_seconds"] - now;
    assert!((year - 3600.0..=year).contains(&left), "{left}");
}

#[test]
fn the_metrics_tell_how_long_each_route_took() {
    let (_service, daemon) = pair(&[]);
    let file = encrypt(&KEY, b"a text");
    for _ in 0..3 {
        assert_eq!(daemon.decrypt(&file, "f", "u").status, 200);
    }
    assert_eq!(daemon.get("/nothing").status, 404);
    // An answer counts once it has been sent, so its client may be here before.
    let count =
        |route: &str| daemon.metric_if_any(&format!("teemark_request_duration_seconds_count{{route=\"{route}\"}}"));
    wait_for("the requests to be counted", || {
        (count("decrypt_raw") == Some(3.0) && count("unknown") == Some(1.0)).then_some(())
    });
    assert!(daemon.metric("teemark_request_duration_seconds_sum{route=\"decrypt_raw\"}") > 0.0);
    assert_eq!(count("drain"), None, "it was not asked for");
}

#[test]
fn the_metrics_tell_what_state_each_connection_is_in_and_that_the_enclave_is_drained() {
    let (_service, daemon) = pair(&[]);
    let state =
        |state: &str| daemon.metric(&format!("teemark_listener_connections{{listener=\"public\",state=\"{state}\"}}"));
    // Each is over after some seconds, so on a busy machine it is tried again.
    let mut open = Vec::new();
    for (name, sent) in [
        ("idle", ""),
        ("head", "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\n"),
        ("in_flight", "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"),
        ("closing", "nonsense\r\n\r\n"),
    ] {
        wait_for(name, || {
            let mut stream = TcpStream::connect(daemon.public).unwrap();
            stream.write_all(sent.as_bytes()).unwrap();
            open.push(stream);
            (state(name) >= 1.0).then_some(())
        });
    }
    assert_eq!(state("queued"), 0.0);
    drop(open);
    for name in ["idle", "head", "in_flight", "closing"] {
        wait_for(name, || (state(name) == 0.0).then_some(()));
    }
    let asking = "teemark_listener_connections{listener=\"admin\",state=\"in_flight\"}";
    wait_for("nobody but the one that asks", || (daemon.metric(asking) == 1.0).then_some(()));
    let drain =
        "POST /admin/drain?seconds=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(request(daemon.admin, drain, b"").status, 200);
    assert_eq!((daemon.metric("teemark_ready"), daemon.metric("teemark_draining")), (0.0, 1.0));
}

#[test]
fn the_metrics_are_prometheus_text() {
    let (_service, daemon) = pair(&[]);
    let empty = Setup::new(1).start();
    daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u");
    for daemon in [&daemon, &empty] {
        let answer = daemon.get_admin("/metrics");
        assert!(field(&answer, "Content-Type").unwrap().starts_with("text/plain"), "{}", answer.head);
        let text = answer.text();
        let samples = samples(&text);
        for name in ["teemark_decrypt_seconds", "teemark_watermark_seconds"] {
            let buckets: Vec<f64> =
                text.lines().filter(|l| l.starts_with(&format!("{name}_bucket"))).map(|l| value(l).1).collect();
            assert!(buckets.len() > 5 && buckets.is_sorted(), "{name}: {buckets:?}");
            let all = samples[&format!("{name}_bucket{{le=\"+Inf\"}}")];
            assert_eq!((buckets.last(), samples[&format!("{name}_count")]), (Some(&all), all));
        }
    }
}

fn value(line: &str) -> (String, f64) {
    let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
    (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?}")))
}

/// Every sample of a page, by name with labels. Also checks the format: each family has its HELP and TYPE once,
/// directly before its samples, and no sample is repeated.
fn samples(page: &str) -> BTreeMap<String, f64> {
    assert!(page.ends_with('\n'));
    let mut samples = BTreeMap::new();
    let (mut helps, mut families, mut kind) = (Vec::new(), Vec::new(), String::new());
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helps.push(help.split_once(' ').expect("a help text").0.to_owned());
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (family, k) = declared.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&k), "{line}");
            assert!(helps.last().is_some_and(|h| h == family) && !families.contains(&family.to_owned()), "{line}");
            families.push(family.to_owned());
            kind = k.to_owned();
        } else {
            let (sample, number) = value(line);
            let name = sample.split('{').next().unwrap();
            let suffixes = if kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            let family = families.last().unwrap_or_else(|| panic!("no TYPE before {line:?}"));
            assert!(suffixes.iter().any(|s| format!("{family}{s}") == name), "{line:?} under {family}");
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line:?}");
            assert!(samples.insert(sample, number).is_none(), "{line:?} is repeated");
        }
    }
    assert_eq!(helps, families);
    samples
}
