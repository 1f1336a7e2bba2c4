//! The server: accepts connections, does the TLS handshake with each, and serves HTTP/1.1 on it until told to stop.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::api::Api;
use crate::fault::{self, Fault, Faults};
use crate::log::log;
use crate::tls::{self, Client};
use crate::twice::{Again, Twice};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a connection may stay without a request before it is closed.
const IDLE: Duration = Duration::from_secs(120);

/// How long requests in flight may take to finish after a signal to stop.
const STOP: Duration = Duration::from_secs(5);

/// The options of `serve`.
#[derive(Args)]
pub(crate) struct Options {
    /// Address and port; port 0 lets the system choose
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
    /// The service's certificate, then its chain, in PEM
    #[arg(long, value_name = "FILE", default_value = "certs/server.crt")]
    cert: PathBuf,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", default_value = "certs/server.key")]
    key: PathBuf,
    /// The CA, or several CAs, that may issue client certificates, in PEM
    #[arg(long, value_name = "FILE", default_value = "certs/ca.crt")]
    client_ca: PathBuf,
    /// Speak this TLS version only
    #[arg(long, value_name = "VERSION")]
    tls: Option<tls::Version>,
    /// Largest request body, in bytes or with KiB, MiB, GiB
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = size)]
    max_body: usize,
    #[arg(long = "fault", value_name = "FAULT", help = fault::HELP, verbatim_doc_comment)]
    faults: Vec<Fault>,
}

/// A number of bytes: plain, or with KiB, MiB or GiB right behind it.
fn size(text: &str) -> Result<usize, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (digits, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<usize>().ok()).flatten();
    number
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| "write a size like 1000000, 512KiB or 128MiB".to_owned())
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A file cannot be used, or the port is taken.
pub(crate) fn run(options: Options) -> Result<()> {
    let faults = Faults::combine(&options.faults).map_err(|message| anyhow!(message))?;
    let config = tls::server_config(&options.cert, &options.key, &options.client_ca, options.tls)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let api = Arc::new(Api::new(faults, options.max_body));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let done = runtime.block_on(serve(&options.listen, acceptor, api));
    // Does not wait for work on a request whose client is gone.
    runtime.shutdown_background();
    done
}

async fn serve(listen: &str, acceptor: TlsAcceptor, api: Arc<Api>) -> Result<()> {
    // Before the line that says it listens: whoever reads that may send a signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(listen).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!(
                "--listen {listen}: the port is in use; stop what listens there, or choose another (0 for any free one)"
            )
        }
        _ => anyhow!("--listen {listen}: cannot listen there: {error}"),
    })?;
    writeln!(io::stdout(), "watermark-service: listening on https://{}", listener.local_addr()?)?;
    io::stdout().flush()?;

    let connections = GracefulShutdown::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    tokio::spawn(connection(socket, peer, acceptor.clone(), api.clone(), connections.watcher()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: closing connections will free some.
                    log(&format!("cannot accept a connection: {error}"));
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    log("watermark-service: stopping");
    if timeout(STOP, connections.shutdown()).await.is_err() {
        log("watermark-service: requests in flight did not finish in time and were dropped");
    }
    Ok(())
}

async fn connection(socket: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, api: Arc<Api>, watcher: Watcher) {
    let _ = socket.set_nodelay(true);
    let tls = match timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return log(&format!("TLS handshake failed: {peer}: {error}")),
        Err(_) => return log(&format!("TLS handshake failed: {peer}: not complete after {} s", HANDSHAKE.as_secs())),
    };
    let Some(client) = Client::of(tls.get_ref().1) else {
        return log(&format!("TLS handshake failed: {peer}: the client certificate cannot be read"));
    };
    log(&format!("TLS handshake: {client}"));
    let serial: Arc<str> = client.serial.into();
    let again = Again::default();
    let service = service_fn(|request| api.clone().answer(request, serial.clone(), again.clone()));
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(Twice::new(tls, again.clone())), service);
    // It fails when a client disconnects and for the faults that were asked for; the request's log line shows both.
    let _ = watcher.watch(http).await;
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_plain_or_with_a_binary_unit() {
        assert_eq!(size("1000"), Ok(1000));
        assert_eq!(size("128MiB"), Ok(128 << 20));
        for text in ["", "MiB", "1MB", "1 MiB", "-1", "+1", "1.5GiB", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
