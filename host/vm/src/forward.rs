//! Forwards ports between this machine and the parent, as if this machine were in the parent's network.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::bus::{Bus, Dialer, PARENT_CID};
use anyhow::{Context, Result};

/// Longest time without a byte before a connection is closed.
const IDLE: Duration = Duration::from_secs(600);

/// Listens on a port of the loopback interface (0 for any free one) until this process ends, and carries each connection
/// to vsock port `to`. Returns the address.
///
/// # Errors
/// The port is taken.
pub fn forward(name: &str, port: u16, dialer: Dialer, to: u32) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("cannot listen on port {port} of this machine; choose another with --{name} PORT"))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        for client in listener.incoming().flatten() {
            let dialer = dialer.clone();
            // Like socat it hangs up if it cannot connect.
            thread::spawn(move || carry(client, dialer.connect(to, IDLE)?));
        }
    })?;
    Ok(address)
}

/// Carries each connection of the parent to vsock port `port` of this machine, CID 2, to `target`.
///
/// # Errors
/// No thread can be started.
pub fn backward(bus: &Bus, port: u32, target: SocketAddr) -> io::Result<()> {
    bus.listen(PARENT_CID, port, move |from_parent| {
        thread::spawn(move || {
            from_parent.set_read_timeout(Some(IDLE))?;
            carry(TcpStream::connect(target)?, from_parent)
        });
    })
}

fn carry(client: TcpStream, server: UnixStream) -> io::Result<()> {
    client.set_read_timeout(Some(IDLE))?;
    let (client_there, server_there) = (client.try_clone()?, server.try_clone()?);
    let there = thread::spawn(move || copy_out(&client_there, &server_there));
    let _ = io::copy(&mut &server, &mut &client);
    let _ = client.shutdown(Shutdown::Write);
    let _ = there.join();
    Ok(())
}

fn copy_out(mut client: &TcpStream, mut server: &UnixStream) {
    let _ = io::copy(&mut client, &mut server);
    // The end of a bundle: the client has sent all of it and waits for the answer.
    let _ = server.shutdown(Shutdown::Write);
}
