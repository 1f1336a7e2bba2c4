use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::mtls::cryptography;

type Service = StreamOwned<ServerConnection, UnixStream>;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A connection after its handshake, and the service at its other end.
fn connection() -> (TlsTransport, Service) {
    connection_to(false)
}

/// The same. If the service wants a client certificate, it gets none, and has sent its alert.
fn connection_to(wants_certificate: bool) -> (TlsTransport, Service) {
    let provider = Arc::new(cryptography::provider());
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let clients = match wants_certificate {
        true => WebPkiClientVerifier::builder_with_provider(roots.clone().into(), provider.clone()).build().unwrap(),
        false => WebPkiClientVerifier::no_client_auth(),
    };
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();

    let (near, far) = UnixStream::pair().unwrap();
    let service = thread::spawn(move || {
        let mut service = StreamOwned::new(ServerConnection::new(Arc::new(server)).unwrap(), far);
        assert_eq!(service.conn.complete_io(&mut service.sock).is_err(), wants_certificate);
        service
    });
    let mut tls = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut near = Stream::Unix(near);
    while tls.is_handshaking() {
        tls.complete_io(&mut near).unwrap();
    }
    near.set_nonblocking(true).unwrap();
    (TlsTransport::new(tls, near), service.join().unwrap())
}

impl TlsTransport {
    fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffers.output()[..bytes.len()].copy_from_slice(bytes);
        self.transmit(bytes.len(), Some(Instant::now() + Duration::from_secs(60)))
    }

    /// Sends a head without waiting for the first piece of its body.
    fn send_head(&mut self) -> io::Result<()> {
        self.send_bytes(b"head")?;
        self.send(false, Some(Instant::now() + Duration::from_secs(60)))
    }

    /// One request and its answer, as ureq sends them.
    fn serve_once(&mut self, service: &mut Service) {
        self.send_head().unwrap();
        service.read_exact(&mut [0; 4]).unwrap();
        service.write_all(ANSWER).unwrap();
        self.receive(None).unwrap();
        let length = self.buffers.input().len();
        self.buffers.input_consume(length);
        assert!(self.is_open());
    }
}

fn is_stale(result: io::Result<()>) -> bool {
    result.unwrap_err().get_ref().is_some_and(|inner| inner.is::<Stale>())
}

#[test]
fn an_end_before_the_head_or_between_head_and_body_makes_a_used_connection_stale() {
    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    drop(service);
    assert!(is_stale(client.send_bytes(b"head")));

    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    client.send_head().unwrap();
    drop(service);
    assert!(is_stale(client.send_bytes(b"body")));

    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    client.send_bytes(b"head").unwrap();
    drop(service);
    assert!(is_stale(client.send_bytes(b"body")), "and with both in one piece");
}

#[test]
fn an_end_in_good_order_makes_it_stale_too() {
    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    service.conn.send_close_notify();
    service.flush().unwrap();
    assert!(is_stale(client.send_bytes(b"head")));
}

#[test]
fn an_end_after_the_first_byte_of_the_body_or_of_a_new_connection_does_not() {
    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    client.send_bytes(b"head").unwrap();
    client.send_bytes(b"body").unwrap();
    drop(service);
    assert!(!is_stale(client.send_bytes(b"more of the body")));

    let (mut client, service) = connection();
    client.send_head().unwrap();
    drop(service);
    assert!(!is_stale(client.send_bytes(b"body")));
}

#[test]
fn bytes_that_are_there_before_the_head_is_sent_close_the_connection() {
    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    service.write_all(ANSWER).unwrap();
    assert!(is_stale(client.send_bytes(b"head")), "while a request begins");

    let (mut client, mut service) = connection();
    client.serve_once(&mut service);
    service.write_all(ANSWER).unwrap();
    assert!(!client.is_open(), "in the pool");
}

#[test]
fn bytes_behind_an_answer_close_the_connection_wherever_they_wait() {
    let (mut client, mut service) = connection();
    client.send_head().unwrap();
    service.read_exact(&mut [0; 4]).unwrap();
    service.write_all(&[ANSWER, ANSWER].concat()).unwrap();
    client.receive(None).unwrap();
    client.buffers.input_consume(ANSWER.len());
    assert!(!client.is_open(), "in ureq's buffer");

    // More than that buffer holds: the rest is decrypted, and waits in rustls.
    let (mut client, mut service) = connection();
    client.send_head().unwrap();
    service.read_exact(&mut [0; 4]).unwrap();
    service.write_all(&vec![b'x'; MAX_ANSWER_HEAD + 1000]).unwrap();
    while client.buffers.input().len() <= MAX_ANSWER_HEAD {
        client.receive(None).unwrap();
    }
    let length = client.buffers.input().len();
    client.buffers.input_consume(length);
    assert!(client.incoming.is_empty() && is_silent(&client.stream));
    assert!(!client.is_open(), "in rustls");

    let (mut client, mut service) = connection();
    client.send_head().unwrap();
    service.read_exact(&mut [0; 4]).unwrap();
    service.write_all(ANSWER).unwrap();
    service.conn.send_close_notify();
    service.flush().unwrap();
    client.receive(None).unwrap();
    client.buffers.input_consume(ANSWER.len());
    assert!(!client.is_open(), "the end, which came with the answer");
}

#[test]
fn an_answer_before_the_last_byte_of_the_request_is_an_early_one() {
    let (mut client, mut service) = connection();
    client.send_head().unwrap();
    service.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nretry-after: 7\r\n\r\n").unwrap();
    let error = client.send_bytes(b"body").unwrap_err();
    let early = error.get_ref().and_then(|inner| inner.downcast_ref::<EarlyAnswer>());
    assert_eq!(early, Some(&EarlyAnswer { status: 503, retry_after: Some(7) }));
}

#[test]
fn a_head_of_an_early_answer_is_bounded() {
    let too_many = format!("HTTP/1.1 413 Large\r\n{}\r\n", "A: b\r\n".repeat(MAX_ANSWER_FIELDS + 1));
    let too_long = format!("HTTP/1.1 413 Large\r\nA: {}", "a".repeat(MAX_ANSWER_HEAD));
    for head in [too_many, too_long] {
        assert!(answer_head(head.as_bytes()).unwrap_err().get_ref().unwrap().is::<HeadTooLarge>());
    }
    let most = format!("HTTP/1.1 413 Large\r\n{}\r\n", "A: b\r\n".repeat(MAX_ANSWER_FIELDS));
    assert_eq!(answer_head(most.as_bytes()).unwrap().unwrap().0.status, 413);
}

/// The alert, or the answer of a service that has no room for another connection, comes before the first head.
#[test]
fn what_a_new_connection_is_told_before_its_first_request_is_not_lost() {
    let (mut client, _service) = connection_to(true);
    let error = client.send_bytes(b"head").unwrap_err();
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert_eq!(told, Some(&rustls::Error::AlertReceived(AlertDescription::CertificateRequired)), "{error:?}");

    let (mut client, mut service) = connection();
    service.write_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n").unwrap();
    let error = client.send_bytes(b"head").unwrap_err();
    let early = error.get_ref().and_then(|inner| inner.downcast_ref::<EarlyAnswer>());
    assert_eq!(early, Some(&EarlyAnswer { status: 503, retry_after: Some(7) }), "{error:?}");
}

#[test]
fn a_service_that_reads_no_further_or_stops_in_an_early_answer_is_waited_for_until_the_deadline() {
    let soon = || Some(Instant::now() + Duration::from_millis(200));
    let (mut client, _service) = connection();
    client.send_bytes(b"head").unwrap();
    // Far more than the socket's buffers take.
    let error = (0..1000).find_map(|_| {
        client.buffers.output().fill(b'x');
        client.transmit(16 << 10, soon()).err()
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::TimedOut);

    let (mut client, mut service) = connection();
    client.send_bytes(b"head").unwrap();
    service.write_all(b"HTTP/1.1 4").unwrap();
    client.buffers.output().fill(b'x');
    assert_eq!(client.transmit(1, soon()).unwrap_err().kind(), ErrorKind::TimedOut);
}
