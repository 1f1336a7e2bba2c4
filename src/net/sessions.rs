//! How long TLS sessions with the watermark service are resumed.
//!
//! A resumed session stands for the certificates of the handshake that began it: neither the service's certificate nor
//! that it has the key is looked at again, and each resumed connection brings tickets for further ones. So sessions
//! belong to a period, and the first connection of the next one shakes hands in full.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::{Resumption, Tls12Resumption};

/// The longest time after a handshake in full in which its session may be resumed.
pub const PERIOD: Duration = Duration::from_secs(600);
/// Sessions kept to be resumed, as many as rustls keeps of one server.
const SESSIONS: usize = 8;

/// The TLS configuration of an identity, with the sessions of the current period.
#[derive(Debug)]
pub struct Sessions(Mutex<Period>);

#[derive(Debug)]
struct Period {
    began: Instant,
    config: Arc<ClientConfig>,
}

impl Sessions {
    /// No session yet. The first period begins `now`.
    pub fn new(config: ClientConfig, now: Instant) -> Sessions {
        Sessions(Mutex::new(Period { began: now, config: Arc::new(without_sessions(config)) }))
    }

    /// The configuration of a connection that begins `now`. Connections of an earlier period keep theirs, and the tickets
    /// that reach them later are of no use to anybody.
    pub fn config(&self, now: Instant) -> Arc<ClientConfig> {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(period.began) >= PERIOD {
            let config = without_sessions(ClientConfig::clone(&period.config));
            *period = Period { began: now, config: Arc::new(config) };
        }
        period.config.clone()
    }
}

/// In TLS 1.2 a session has no forward secrecy, so none is resumed.
fn without_sessions(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::in_memory_sessions(SESSIONS).tls12_resumption(Tls12Resumption::Disabled);
    config
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::HandshakeKind::{self, Full, Resumed};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConnection, RootCertStore, ServerConfig, ServerConnection};

    use super::*;

    /// A client that trusts a server, and the server.
    fn both(now: Instant) -> (Sessions, Arc<ServerConfig>) {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        server.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
        (Sessions::new(client.with_root_certificates(roots).with_no_client_auth(), now), Arc::new(server))
    }

    /// A connection after its handshake, whose server has sent tickets that have not been read.
    fn shake_hands(sessions: &Sessions, server: &Arc<ServerConfig>, now: Instant) -> (ClientConnection, Vec<u8>) {
        let mut client = ClientConnection::new(sessions.config(now), "a".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        let mut tickets = Vec::new();
        while server.is_handshaking() {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            let mut sent = &sent[..];
            while !sent.is_empty() {
                server.read_tls(&mut sent).unwrap();
                server.process_new_packets().unwrap();
            }
            tickets.clear();
            while server.wants_write() {
                server.write_tls(&mut tickets).unwrap();
            }
            if server.is_handshaking() {
                read(&mut client, &tickets).unwrap();
            }
        }
        (client, tickets)
    }

    fn read(client: &mut ClientConnection, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            client.read_tls(&mut bytes)?;
            client.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn kind(sessions: &Sessions, server: &Arc<ServerConfig>, now: Instant) -> Option<HandshakeKind> {
        let (mut client, tickets) = shake_hands(sessions, server, now);
        read(&mut client, &tickets).unwrap();
        client.handshake_kind()
    }

    #[test]
    fn a_session_is_resumed_for_ten_minutes_and_then_begun_anew() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (sessions, server) = both(begin);
        let kinds = [0, 1, 300, 599, 600, 601, 1199, 1200].map(|second| kind(&sessions, &server, at(second)));
        assert_eq!(kinds, [Full, Resumed, Resumed, Resumed, Full, Resumed, Resumed, Full].map(Some));
    }

    #[test]
    fn a_ticket_that_comes_in_the_next_period_resumes_nothing() {
        let begin = Instant::now();
        let (sessions, server) = both(begin);
        let (mut earlier, tickets) = shake_hands(&sessions, &server, begin);
        let next = begin + PERIOD;
        drop(sessions.config(next));
        read(&mut earlier, &tickets).unwrap();
        assert_eq!(kind(&sessions, &server, next), Some(Full));
        // Within its own period it would have been used.
        let (sessions, server) = both(begin);
        let (mut first, tickets) = shake_hands(&sessions, &server, begin);
        read(&mut first, &tickets).unwrap();
        assert_eq!(kind(&sessions, &server, begin), Some(Resumed));
    }
}
