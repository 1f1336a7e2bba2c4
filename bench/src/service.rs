//! A watermark service that costs next to nothing: mutual TLS, and the file comes back with its first four characters
//! replaced. A thread a connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use memchr::{memchr, memmem};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::material::MARK;

/// Bytes that are read or kept for writing at once.
const BUFFER: usize = 256 << 10;
/// A buffer above this is not kept for the connection's next request.
const KEEP: usize = 4 << 20;

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// Starts the service on a free port of this host, which it gives.
pub(crate) fn start(certs: &Path) -> Result<u16> {
    let config = Arc::new(config(certs)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let config = config.clone();
            // A client that goes away ends its thread; whoever waits for the answer notices.
            thread::spawn(move || serve(tcp, config));
        }
    });
    Ok(port)
}

fn config(certs: &Path) -> Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.join("ca.crt"))?)?;
    let provider = Arc::new(default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
    let chain = vec![CertificateDer::from_pem_file(certs.join("server.crt"))?];
    let key = PrivateKeyDer::from_pem_file(certs.join("server.key"))?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?)
}

fn serve(tcp: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    tcp.set_nodelay(true)?;
    let mut connection = ServerConnection::new(config)?;
    connection.set_buffer_limit(Some(BUFFER));
    let mut tls = StreamOwned::new(connection, tcp);
    let mut read = Vec::new();
    while let Some(head) = head(&mut tls, &mut read)? {
        let end = head + content_length(&read[..head])?;
        while read.len() < end {
            more(&mut tls, &mut read)?;
        }
        answer(&mut tls, &read[head..end])?;
        read.drain(..end);
        if read.capacity() > KEEP {
            read = Vec::new();
        }
    }
    Ok(())
}

/// Reads until a request's head is there, and gives its length; `None` where the client is done.
fn head(tls: &mut Tls, read: &mut Vec<u8>) -> Result<Option<usize>> {
    loop {
        if let Some(end) = memmem::find(read, b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        if more(tls, read).is_err() {
            return Ok(None);
        }
    }
}

/// Reads what comes next; the end is an error.
fn more(tls: &mut Tls, read: &mut Vec<u8>) -> io::Result<()> {
    let had = read.len();
    read.resize(had + BUFFER, 0);
    let n = tls.read(&mut read[had..]);
    read.truncate(had + *n.as_ref().unwrap_or(&0));
    if n? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("no Content-Length")?;
    Ok(value.trim().parse()?)
}

fn answer(tls: &mut Tls, request: &[u8]) -> Result<()> {
    const NAME: &[u8] = b"\"data\":\"";
    const ENCODING: &[u8] = b"\"encoding\":\"base64\"";
    let start = memmem::find(request, NAME).context("no data")? + NAME.len();
    let end = start + string_end(&request[start..]).context("data does not end")?;
    let data = request[start + MARK.len()..end].as_ref();
    let is_base64 = [&request[..start], &request[end..]].iter().any(|rest| memmem::find(rest, ENCODING).is_some());

    let before = [&br#"{"status":"success","watermarked_data":""#[..], MARK].concat();
    let after: &[u8] = if is_base64 { br#"","encoding":"base64"}"# } else { br#""}"# };
    let length = before.len() + data.len() + after.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    // What is small goes out in one record.
    let first = data.len().min(BUFFER / 2);
    tls.write_all(&[head.as_bytes(), &before, &data[..first], if first == data.len() { after } else { b"" }].concat())?;
    if first < data.len() {
        tls.write_all(&data[first..])?;
        tls.write_all(after)?;
    }
    Ok(tls.flush()?)
}

/// Where a JSON string ends: at the first quotation mark after an even number of backslashes.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let quote = from + memchr(b'"', &text[from..])?;
        if text[..quote].iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 0 {
            return Some(quote);
        }
        from = quote + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::string_end;

    #[test]
    fn a_string_ends_at_the_first_quotation_mark_that_is_not_escaped() {
        assert_eq!(string_end(br#"a\"b\\","#), Some(6));
        assert_eq!(string_end(br#"a\""#), None);
    }
}
