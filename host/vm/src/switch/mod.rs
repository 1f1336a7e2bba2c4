//! Connects the machines: takes each packet from one and delivers it to the other, or to this machine.
//!
//! The obvious program for this is vhost-device-vsock. Its version 0.3.0 delivers a packet from one guest to the other
//! as a whole, and silently loses one that is larger than the guest's buffer, 3,776 bytes in Linux 6.12; an ordinary
//! bundle is larger. So this is done here, with rust-vmm's crates for the rings and for QEMU's side, and a large packet
//! is delivered in parts. Linux' own vhost-vsock does that too, but needs the host's kernel and does not connect guests
//! with each other.

mod device;
mod host;
mod packet;
mod tap;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::event::EventNotifier;

pub(crate) use device::Device;
use host::Host;
use packet::{HOST_CID, Packet, Place, op};
pub(crate) use tap::Tap;

/// The running guests by CID, and this machine's end.
#[derive(Default)]
pub(crate) struct Switch {
    guests: Mutex<HashMap<u64, Guest>>,
    host: Host,
    pub(crate) tap: Tap,
}

/// The packets on their way to a guest. The credit of its connections bounds how many there are.
struct Guest {
    packets: VecDeque<Packet>,
    /// Wakes the thread of the guest's device.
    waker: EventNotifier,
}

impl Switch {
    /// Connects from this machine to a port of a guest, within `limit`.
    ///
    /// # Errors
    /// `ConnectionRefused` if the guest or its listener is not there; `TimedOut` if it does not answer.
    pub(crate) fn connect(self: &Arc<Switch>, cid: u32, port: u32, limit: Duration) -> io::Result<UnixStream> {
        host::connect(self, Place { cid: cid.into(), port }, limit)
    }

    /// Takes a guest's connections to a port of this machine, one after the other, until the switch ends.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn listen(
        self: &Arc<Switch>,
        cid: u32,
        port: u32,
        take: impl Fn(UnixStream) + Send + 'static,
    ) -> io::Result<()> {
        host::listen(self, cid, port, take)
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<u64, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest's machine has started.
    fn attach(&self, cid: u64, waker: EventNotifier) {
        self.guests().insert(cid, Guest { packets: VecDeque::new(), waker });
    }

    /// A guest's machine has ended.
    fn detach(&self, cid: u64) {
        self.guests().remove(&cid);
        self.host.forget(cid);
    }

    /// Delivers a packet to its destination. If that is not there, the sender gets a reset, as from a hypervisor.
    fn deliver(&self, packet: Packet) {
        self.tap.hear(&packet);
        if packet.to.cid == HOST_CID {
            if let Some(answer) = self.host.receive(&packet) {
                self.deliver(answer);
            }
            return;
        }
        let mut guests = self.guests();
        match guests.get_mut(&packet.to.cid) {
            Some(guest) => {
                guest.packets.push_back(packet);
                // It fails only after 2^64 notifications.
                let _ = guest.waker.notify();
            }
            None if packet.op == op::RST => {}
            None => {
                drop(guests);
                self.deliver(packet.refusal());
            }
        }
    }

    /// Whether packets wait for a guest.
    fn waits(&self, cid: u64) -> bool {
        self.guests().get(&cid).is_some_and(|guest| !guest.packets.is_empty())
    }

    /// The next packet for a guest that has room for `room` bytes of data; a larger packet comes in parts.
    fn take(&self, cid: u64, room: usize) -> Option<Packet> {
        let mut guests = self.guests();
        let packets = &mut guests.get_mut(&cid)?.packets;
        match packets.front_mut() {
            Some(packet) if packet.data.len() > room => Some(packet.split_off_front(room)),
            _ => packets.pop_front(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::event::{EventConsumer, EventFlag, new_event_consumer_and_notifier};

    const A: Place = Place { cid: 3, port: 1000 };
    const B: Place = Place { cid: 16, port: 3000 };

    fn attach(switch: &Switch, cid: u64) -> EventConsumer {
        let (consumer, waker) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
        switch.attach(cid, waker);
        consumer
    }

    #[test]
    fn a_packet_that_is_larger_than_the_buffer_arrives_in_parts_and_in_order() {
        let switch = Switch::default();
        let waker = attach(&switch, 16);
        let data: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        switch.deliver(Packet { data: data.clone(), ..Packet::new(A, B, op::RW) });
        switch.deliver(Packet::new(A, B, op::SHUTDOWN));
        waker.consume().unwrap();
        let mut arrived = Vec::new();
        for length in [4000, 4000, 2000] {
            let part = switch.take(16, 4000).unwrap();
            assert_eq!((part.op, part.data.len()), (op::RW, length));
            arrived.extend(part.data);
        }
        assert_eq!(arrived, data);
        assert_eq!(switch.take(16, 4000).unwrap().op, op::SHUTDOWN);
        assert!(!switch.waits(16) && switch.take(16, 4000).is_none());
    }

    #[test]
    fn a_connection_to_a_guest_that_is_not_there_is_reset() {
        let switch = Switch::default();
        let _waker = attach(&switch, 3);
        switch.deliver(Packet::new(A, B, op::REQUEST));
        let answer = switch.take(3, 0).unwrap();
        assert_eq!((answer.op, answer.from, answer.to), (op::RST, B, A));
    }

    #[test]
    fn packets_for_a_guest_that_has_ended_do_not_reach_the_next() {
        let switch = Switch::default();
        let _waker = attach(&switch, 16);
        switch.deliver(Packet::new(A, B, op::REQUEST));
        switch.detach(16);
        assert!(!switch.waits(16));
        switch.deliver(Packet::new(A, B, op::REQUEST));
        let _waker = attach(&switch, 16);
        assert!(!switch.waits(16));
    }
}
