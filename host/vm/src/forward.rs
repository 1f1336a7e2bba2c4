//! Brings ports of this machine to vsock ports of the parent, as if this machine were in the parent's network.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::bus::Door;
use anyhow::{Context, Result};

/// Longest pause of a connection.
const IDLE: Duration = Duration::from_secs(600);

/// Listens on a port of the loopback interface (0: any) until this process ends, and carries each connection to that
/// vsock port. Gives the address.
///
/// # Errors
/// The port is taken.
pub fn forward(name: &str, port: u16, door: Door, to: u32) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("port {port} of this machine, for {name}; another one: --{name} PORT"))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        for client in listener.incoming().flatten() {
            let door = door.clone();
            // Who cannot be served is hung up on, as socat does.
            thread::spawn(move || carry(client, &door, to));
        }
    })?;
    Ok(address)
}

fn carry(client: TcpStream, door: &Door, to: u32) -> io::Result<()> {
    let server = door.connect(to, IDLE)?;
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
    // The handshake's end: the client has sent all, and waits for the answer.
    let _ = server.shutdown(Shutdown::Write);
}
