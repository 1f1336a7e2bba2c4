//! Only what the allow list names is dialled.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::allow_list::AllowList;
use formats::certificates::{Part, Parts};
use formats::time::Utc;
use teemarkd::mtls::{Calls, Identity, MutualTls};
use teemarkd::net::egress::Route;

use crate::scripted::{Scripted, Step};
use crate::*;

/// A listener that reports whether anybody has connected.
struct Untouched(TcpListener);

impl Untouched {
    fn new() -> Untouched {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Untouched(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn is_untouched(&self) -> bool {
        matches!(self.0.accept(), Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}

/// The daemon's egress, with this list, and this limit of a call's time and of an unused connection's.
fn way_out(list: &str, limit: Duration) -> MutualTls {
    let allowed = Arc::new(AllowList::parse("list", list.as_bytes()).unwrap());
    let files = Part::ALL.map(|part| CERTS.read(part.file()));
    let identity = Identity::check(&Parts(files.each_ref().map(String::as_bytes)), Utc::now()).unwrap();
    identity.connect(allowed, Route::Direct, Calls { timeout: limit, keepalive: limit, at_once: 1 })
}

#[test]
fn an_endpoint_off_the_allow_list_is_never_dialled() {
    let (listed, unlisted) = (Untouched::new(), Untouched::new());
    // The listed one is dialled, and never answers.
    let mtls = way_out(&format!("endpoints:\n  - localhost:{}\n", listed.port()), Duration::from_secs(2));
    let (yes, no) = (listed.port(), unlisted.port());
    for url in [
        format!("https://localhost:{no}/"),
        format!("https://127.0.0.1:{no}/"),
        format!("https://127.0.0.1:{yes}/"),
        format!("https://localhost.:{yes}/"),
        format!("https://localhost:{yes}@127.0.0.1:{no}/"),
        format!("https://[::1]:{yes}/"),
        "https://localhost/".to_owned(),
        format!("http://localhost:{yes}/"),
        format!("http://localhost:{no}/"),
    ] {
        for agent in [&mtls.pooled(Instant::now()), &mtls.fresh] {
            assert!(agent.get(&url).call().is_err(), "{url}");
        }
        assert!(unlisted.is_untouched() && listed.is_untouched(), "{url} was dialled");
    }
    let refused = mtls.pooled(Instant::now()).get(format!("https://localhost:{no}/")).call().unwrap_err();
    assert!(refused.to_string().contains("is not on the allow list"), "{refused}");
    // To show that the listener would notice: a listed host is dialled, in upper or lower case.
    assert!(mtls.pooled(Instant::now()).get(format!("https://LOCALHOST:{yes}/")).call().is_err());
    assert!(!listed.is_untouched());
}

/// As it is called each time that it may be: the service's certificate could have expired since.
#[test]
fn a_connection_is_used_for_ten_minutes_at_most_however_often_it_is() {
    let service = Scripted::start(|_, _| Step::Answer);
    let mtls = way_out(&format!("endpoints:\n  - localhost:{}\n", service.port), Duration::from_secs(600));
    let (begin, url) = (Instant::now(), format!("https://localhost:{}/", service.port));
    for (second, connections) in [(0, 1), (1, 1), (599, 1), (601, 2), (602, 2), (1200, 2), (1202, 3)] {
        let agent = mtls.pooled(begin + Duration::from_secs(second));
        // A small file, as the daemon sends it.
        let answer = agent.post(&url).send("{}").unwrap();
        let _ = answer.into_body().read_to_string().unwrap();
        assert_eq!(service.connections(), connections, "at {second} s");
    }
}

#[test]
fn proxies_in_the_environment_are_left_alone() {
    let (service, proxy) = (Service::start(&CERTS, &[]), Untouched::new());
    let address = format!("http://127.0.0.1:{}", proxy.port());
    let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
    let setup = names.iter().fold(Setup::new(service.port), |setup, name| setup.env(name, &address));
    let daemon = Daemon::ready_with(setup.env("NO_PROXY", ""), service.port, &CERTS);
    assert_works(&daemon);
    daemon.health(|answer| answer.status == 200);
    assert!(proxy.is_untouched());
}
