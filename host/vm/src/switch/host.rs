//! This machine's end of the switch, CID 2: it connects to guests' ports, and a guest connects to the ports that are
//! listened on for it.
//!
//! Each connection is a pair of Unix sockets. The caller gets the near one; two threads carry bytes between the far one
//! and the guest by virtio-vsock's credit: neither side sends more than the other's buffer can still hold.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Switch;
use super::packet::{HOST_CID, NO_MORE_RECEIVED, NO_MORE_SENT, Packet, Place, op};

/// Bytes that a connection may hold on the way to its near end: Linux' own default for a vsock.
const BUFFER: u32 = 256 << 10;
/// Bytes of a packet, at most (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE in linux/virtio_vsock.h).
const PACKET: usize = 64 << 10;
/// First port of the near ends, above privileged ones and those that anybody listens on.
const FIRST_PORT: u32 = 1 << 30;

/// The connections, by the guest's end and the port of this machine's.
#[derive(Default)]
pub(crate) struct Host {
    connections: Mutex<HashMap<(Place, u32), Arc<Connection>>>,
    ports: AtomicU32,
    /// Takes the requests of a guest for a port of this machine.
    listeners: Mutex<HashMap<(u64, u32), Sender<Packet>>>,
}

struct Connection {
    guest: Place,
    port: u32,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// Takes bytes for the near end; none once the guest has sent its last.
    inward: Option<Sender<Vec<u8>>>,
    /// Bytes sent to the guest, how many of them it has taken, and the size of its buffer.
    sent: Wrapping<u32>,
    taken: Wrapping<u32>,
    buffer: u32,
    /// Bytes taken out of this end's buffer, and the last such number that was sent to the guest.
    consumed: Wrapping<u32>,
    told: Wrapping<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asked,
    Open,
    /// The guest takes no more bytes.
    ReceiveClosed,
    Over,
}

impl Host {
    fn connections(&self) -> MutexGuard<'_, HashMap<(Place, u32), Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles a packet from a guest; returns the answer, if there is one.
    pub(crate) fn receive(&self, packet: &Packet) -> Option<Packet> {
        let key = (packet.from, packet.to.port);
        let Some(connection) = self.connections().get(&key).cloned() else {
            let listened_on = packet.op == op::REQUEST && self.ask(packet);
            return (!listened_on && packet.op != op::RST).then(|| packet.refusal());
        };
        let mut state = connection.state();
        (state.taken, state.buffer) = (Wrapping(packet.taken), packet.buffer);
        let mut answer = None;
        match packet.op {
            op::RESPONSE => state.phase = Phase::Open,
            // An error means that the near end has been closed; its thread tells the guest.
            op::RW => drop(state.inward.as_ref().map(|inward| inward.send(packet.data.clone()))),
            op::CREDIT_REQUEST => answer = Some(connection.packet(&mut state, op::CREDIT_UPDATE)),
            op::SHUTDOWN => {
                if packet.flags & NO_MORE_SENT != 0 {
                    state.inward = None;
                }
                if packet.flags & NO_MORE_RECEIVED != 0 {
                    state.phase = Phase::ReceiveClosed;
                }
                if packet.flags & (NO_MORE_SENT | NO_MORE_RECEIVED) == NO_MORE_SENT | NO_MORE_RECEIVED {
                    // Without a reset the guest would keep its end for 8 s.
                    answer = Some(packet.refusal());
                    state.end();
                }
            }
            op::RST => state.end(),
            _ => {}
        }
        if state.phase == Phase::Over {
            self.connections().remove(&key);
        }
        connection.changed.notify_all();
        answer
    }

    /// Hands a guest's request for a connection to the listener of its port, if there is one.
    fn ask(&self, packet: &Packet) -> bool {
        let listeners = self.listeners();
        listeners.get(&(packet.from.cid, packet.to.port)).is_some_and(|asked| asked.send(packet.clone()).is_ok())
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<(u64, u32), Sender<Packet>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every connection to a guest that has ended.
    pub(crate) fn forget(&self, cid: u64) {
        let gone: Vec<_> = self.connections().extract_if(|(guest, _), _| guest.cid == cid).collect();
        for (_, connection) in gone {
            connection.state().end();
            connection.changed.notify_all();
        }
    }

    fn remove(&self, connection: &Connection) {
        self.connections().remove(&(connection.guest, connection.port));
    }
}

impl State {
    fn end(&mut self) {
        self.phase = Phase::Over;
        self.inward = None;
    }

    /// Bytes that the guest's buffer can still hold.
    fn credit(&self) -> usize {
        self.buffer.saturating_sub((self.sent - self.taken).0) as usize
    }
}

impl Connection {
    fn asked(guest: Place, port: u32, inward: Sender<Vec<u8>>) -> Connection {
        let [sent, taken, consumed, told] = [Wrapping(0); 4];
        let state = State { phase: Phase::Asked, inward: Some(inward), sent, taken, buffer: 0, consumed, told };
        Connection { guest, port, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet to the guest. Each says how much this end has consumed.
    fn packet(&self, state: &mut State, op: u16) -> Packet {
        state.told = state.consumed;
        let packet = Packet::new(Place { cid: HOST_CID, port: self.port }, self.guest, op);
        Packet { buffer: BUFFER, taken: state.consumed.0, ..packet }
    }

    /// Waits for room in the guest's buffer and returns how much there is; none if the guest takes no more bytes.
    fn wait_for_credit(&self) -> Option<usize> {
        let waiting = |state: &mut State| state.phase == Phase::Open && state.credit() == 0;
        let state = self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner);
        (state.phase == Phase::Open).then(|| state.credit())
    }
}

/// See [`Switch::connect`].
pub(crate) fn connect(switch: &Arc<Switch>, guest: Place, limit: Duration) -> io::Result<UnixStream> {
    let (inward, arriving) = mpsc::channel();
    let port = FIRST_PORT + switch.host.ports.fetch_add(1, Ordering::Relaxed);
    let connection = Arc::new(Connection::asked(guest, port, inward));
    switch.host.connections().insert((guest, port), connection.clone());
    wait_for_answer(switch, &connection, limit)?;
    carry(switch, connection, arriving)
}

/// See [`Switch::listen`].
pub(crate) fn listen(
    switch: &Arc<Switch>,
    cid: u32,
    port: u32,
    take: impl Fn(UnixStream) + Send + 'static,
) -> io::Result<()> {
    let (asked, requests) = mpsc::channel();
    switch.host.listeners().insert((cid.into(), port), asked);
    // The switch's end is the listener's too.
    let switch = Arc::downgrade(switch);
    let accept_all = move || {
        for request in requests {
            let Some(switch) = switch.upgrade() else { break };
            // A guest whose connection cannot be carried finds it closed.
            if let Ok(near) = accept(&switch, &request) {
                take(near);
            }
        }
    };
    thread::Builder::new().name(format!("vsock-2:{port}")).spawn(accept_all).map(drop)
}

/// Accepts the connection that a guest asks for.
fn accept(switch: &Arc<Switch>, request: &Packet) -> io::Result<UnixStream> {
    let (inward, arriving) = mpsc::channel();
    let (guest, port) = (request.from, request.to.port);
    let connection = Arc::new(Connection::asked(guest, port, inward));
    switch.host.connections().insert((guest, port), connection.clone());
    let response = {
        let mut state = connection.state();
        (state.phase, state.buffer) = (Phase::Open, request.buffer);
        connection.packet(&mut state, op::RESPONSE)
    };
    let near = carry(switch, connection, arriving)?;
    switch.deliver(response);
    Ok(near)
}

/// Starts the two threads of a connection, and returns its near end.
fn carry(switch: &Arc<Switch>, connection: Arc<Connection>, arriving: Receiver<Vec<u8>>) -> io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    let guest = connection.guest;
    let name = format!("vsock-{}:{}", guest.cid, guest.port);
    let (switch_out, connection_out, far_out) = (switch.clone(), connection.clone(), far.try_clone()?);
    let carry_out = move || carry_out(&switch_out, &connection_out, far_out);
    thread::Builder::new().name(name.clone()).spawn(carry_out)?;
    let switch = switch.clone();
    thread::Builder::new().name(name).spawn(move || carry_in(&switch, &connection, &arriving, far))?;
    Ok(near)
}

/// Asks the guest for the connection and waits until it accepts.
fn wait_for_answer(switch: &Switch, connection: &Connection, limit: Duration) -> io::Result<()> {
    let packet = |op| connection.packet(&mut connection.state(), op);
    switch.deliver(packet(op::REQUEST));
    let asked = |state: &mut State| state.phase == Phase::Asked;
    let waited = connection.changed.wait_timeout_while(connection.state(), limit, asked);
    let (phase, buffer) = {
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        (state.phase, state.buffer)
    };
    let (kind, what) = match phase {
        Phase::Asked => {
            switch.host.remove(connection);
            switch.deliver(packet(op::RST));
            (ErrorKind::TimedOut, "does not answer")
        }
        // One that was open may be over already; then the size of the guest's buffer is known.
        Phase::Over if buffer == 0 => (ErrorKind::ConnectionRefused, "is not listened on"),
        Phase::Open | Phase::ReceiveClosed | Phase::Over => return Ok(()),
    };
    Err(io::Error::new(kind, format!("vsock {}:{} {what}", connection.guest.cid, connection.guest.port)))
}

/// Carries the near end's bytes to the guest until either closes this direction.
fn carry_out(switch: &Switch, connection: &Connection, mut far: UnixStream) {
    let mut bytes = vec![0; PACKET];
    while let Some(credit) = connection.wait_for_credit() {
        let most = credit.min(PACKET);
        let length = far.read(&mut bytes[..most]).unwrap_or(0);
        let mut state = connection.state();
        if state.phase != Phase::Open {
            break;
        }
        let mut packet = connection.packet(&mut state, op::RW);
        if length == 0 {
            (packet.op, packet.flags) = (op::SHUTDOWN, NO_MORE_SENT);
        } else {
            packet.data = bytes[..length].to_vec();
            state.sent += u32::try_from(length).expect("at most PACKET");
        }
        drop(state);
        switch.deliver(packet);
        if length == 0 {
            return;
        }
    }
    // The near end will notice when it writes.
    let _ = far.shutdown(Shutdown::Read);
}

/// Carries the guest's bytes to the near end until the guest has sent its last, or the near end is closed.
fn carry_in(switch: &Switch, connection: &Connection, arriving: &Receiver<Vec<u8>>, mut far: UnixStream) {
    while let Ok(data) = arriving.recv() {
        let written = far.write_all(&data);
        let mut state = connection.state();
        state.consumed += u32::try_from(data.len()).expect("a packet's length has 32 bits");
        if written.is_err() {
            state.end();
            connection.changed.notify_all();
            let reset = connection.packet(&mut state, op::RST);
            drop(state);
            switch.host.remove(connection);
            return switch.deliver(reset);
        }
        if (state.consumed - state.told).0 >= BUFFER / 4 {
            let update = connection.packet(&mut state, op::CREDIT_UPDATE);
            drop(state);
            switch.deliver(update);
        }
    }
    let _ = far.shutdown(Shutdown::Write);
    if connection.state().phase == Phase::Over {
        let _ = far.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::event::{EventFlag, new_event_consumer_and_notifier};

    const SOON: Duration = Duration::from_secs(120);
    const GUEST: Place = Place { cid: 16, port: 3000 };

    /// A switch with a guest that is played by the test.
    fn switch() -> Arc<Switch> {
        let switch = Arc::<Switch>::default();
        let (_, waker) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
        switch.attach(GUEST.cid, waker);
        switch
    }

    fn next(switch: &Switch) -> Packet {
        for _ in 0..3000 {
            if let Some(packet) = switch.take(GUEST.cid, PACKET) {
                return packet;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("no packet");
    }

    /// The guest's answer to a packet, with the size of its buffer and what it has taken.
    fn answer(to: &Packet, op: u16, buffer: u32, taken: u32) -> Packet {
        Packet { buffer, taken, ..Packet::new(to.to, to.from, op) }
    }

    /// A connection that the guest has accepted, and the request for it.
    fn connected(switch: &Arc<Switch>, buffer: u32) -> (UnixStream, Packet) {
        let connecting = thread::spawn({
            let switch = switch.clone();
            move || switch.connect(16, 3000, SOON).unwrap()
        });
        let request = next(switch);
        assert_eq!((request.op, request.to), (op::REQUEST, GUEST));
        switch.deliver(answer(&request, op::RESPONSE, buffer, 0));
        let near = connecting.join().unwrap();
        near.set_read_timeout(Some(SOON)).unwrap();
        (near, request)
    }

    #[test]
    fn a_port_that_nobody_listens_on_refuses() {
        let switch = switch();
        let connecting = thread::spawn({
            let switch = switch.clone();
            move || switch.connect(16, 3000, SOON)
        });
        let request = next(&switch);
        switch.deliver(request.refusal());
        assert_eq!(connecting.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(switch.connect(17, 3000, SOON).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn connecting_to_a_silent_guest_ends_at_the_limit() {
        let switch = switch();
        let error = switch.connect(16, 3000, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!((next(&switch).op, next(&switch).op), (op::REQUEST, op::RST));
    }

    #[test]
    fn bytes_go_both_ways_and_each_direction_ends_on_its_own() {
        let switch = switch();
        let (mut near, request) = connected(&switch, 1 << 20);
        near.write_all(b"question").unwrap();
        assert_eq!(next(&switch).data, b"question");
        near.shutdown(Shutdown::Write).unwrap();
        let end = next(&switch);
        assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_MORE_SENT));
        switch.deliver(Packet { data: b"answer".to_vec(), ..answer(&request, op::RW, 1 << 20, 8) });
        let flags = NO_MORE_SENT | NO_MORE_RECEIVED;
        switch.deliver(Packet { flags, ..answer(&request, op::SHUTDOWN, 1 << 20, 8) });
        let mut read = String::new();
        near.read_to_string(&mut read).unwrap();
        assert_eq!((read.as_str(), next(&switch).op), ("answer", op::RST));
    }

    #[test]
    fn no_more_is_sent_than_the_guests_buffer_can_hold() {
        let switch = switch();
        let (mut near, request) = connected(&switch, 100);
        near.write_all(&[7; 250]).unwrap();
        assert_eq!(next(&switch).data.len(), 100);
        thread::sleep(Duration::from_millis(50));
        assert!(!switch.waits(16));
        switch.deliver(answer(&request, op::CREDIT_UPDATE, 100, 60));
        assert_eq!(next(&switch).data.len(), 60);
        switch.deliver(answer(&request, op::CREDIT_UPDATE, 100, 160));
        assert_eq!(next(&switch).data.len(), 90);
    }

    #[test]
    fn a_guest_is_told_how_many_of_its_bytes_were_taken() {
        let switch = switch();
        let (mut near, request) = connected(&switch, 100);
        let reading = thread::spawn(move || {
            let mut bytes = vec![0; 128 << 10];
            near.read_exact(&mut bytes).unwrap();
            near
        });
        for _ in 0..2 {
            switch.deliver(Packet { data: vec![1; PACKET], ..answer(&request, op::RW, 100, 0) });
        }
        let update = next(&switch);
        assert_eq!((update.op, update.buffer, update.taken), (op::CREDIT_UPDATE, BUFFER, 64 << 10));
        reading.join().unwrap();
    }

    #[test]
    fn connections_to_a_guest_that_has_ended_end() {
        let switch = switch();
        let (mut near, _) = connected(&switch, 100);
        switch.detach(16);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_guest_connects_only_to_what_is_listened_on_for_it() {
        let switch = switch();
        let host = Place { cid: HOST_CID, port: 1 };
        let ask = || switch.deliver(Packet { buffer: 100, ..Packet::new(GUEST, host, op::REQUEST) });
        ask();
        assert_eq!(next(&switch).op, op::RST);
        let (give, taken) = mpsc::channel();
        for cid in [3, 16] {
            let give = give.clone();
            listen(&switch, cid, 1, move |near| give.send((cid, near)).unwrap()).unwrap();
        }
        ask();
        let accepted = next(&switch);
        assert_eq!((accepted.op, accepted.from, accepted.to), (op::RESPONSE, host, GUEST));
        let (cid, mut near) = taken.recv_timeout(SOON).unwrap();
        assert_eq!(cid, 16);
        near.set_read_timeout(Some(SOON)).unwrap();
        switch.deliver(Packet { data: b"question".to_vec(), buffer: 100, ..Packet::new(GUEST, host, op::RW) });
        near.write_all(b"answer").unwrap();
        assert_eq!(next(&switch).data, b"answer");
        let mut read = [0; 8];
        near.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"question");
    }
}
