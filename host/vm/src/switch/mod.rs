//! What connects the machines: takes each packet from one and gives it to the other, or to this machine.
//!
//! The obvious program for this is vhost-device-vsock. Its version 0.3.0 hands a packet from one guest to the other
//! whole, and one that is larger than the buffer which the guest has laid out, 3,776 bytes in Linux 6.12, is lost
//! without a word: the seed's bundle already. So this is done here, with rust-vmm's crates for the rings and for
//! QEMU's side; a large packet is given in parts. Linux' own vhost-vsock does that too, but needs the host's kernel and
//! knows no second guest.

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

pub use device::Device;
use host::Host;
use packet::{HOST_CID, Packet, Place, op};
pub use tap::Tap;

/// The guests that are there, by CID, and this machine's end.
#[derive(Default)]
pub struct Switch {
    guests: Mutex<HashMap<u64, Guest>>,
    host: Host,
    pub tap: Tap,
}

/// What is on its way to a guest. Its length is bounded by what the connections' receivers can hold.
struct Guest {
    packets: VecDeque<Packet>,
    /// Wakes the guest's device.
    bell: EventNotifier,
}

impl Switch {
    /// Connects from this machine to a port of a guest, within `limit`.
    ///
    /// # Errors
    /// `ConnectionRefused` where the guest or its listener is not there; `TimedOut` where it does not answer.
    pub fn connect(self: &Arc<Switch>, cid: u32, port: u32, limit: Duration) -> io::Result<UnixStream> {
        host::connect(self, Place { cid: cid.into(), port }, limit)
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<u64, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest's machine has started.
    fn attach(&self, cid: u64, bell: EventNotifier) {
        self.guests().insert(cid, Guest { packets: VecDeque::new(), bell });
    }

    /// A guest's machine is gone.
    fn detach(&self, cid: u64) {
        self.guests().remove(&cid);
        self.host.forget(cid);
    }

    /// Brings a packet to where it is addressed. Where nobody is there its sender is told, as a hypervisor does.
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
                // It fails only when the bell has been rung 2^64 times.
                let _ = guest.bell.notify();
            }
            None if packet.op == op::RST => {}
            None => {
                drop(guests);
                self.deliver(packet.refusal());
            }
        }
    }

    /// Whether something waits for a guest.
    fn waits(&self, cid: u64) -> bool {
        self.guests().get(&cid).is_some_and(|guest| !guest.packets.is_empty())
    }

    /// The next packet for a guest with room for so many bytes of data: a larger one comes in parts.
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
        let (consumer, bell) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
        switch.attach(cid, bell);
        consumer
    }

    #[test]
    fn a_packet_that_is_larger_than_the_buffer_arrives_in_parts_and_in_order() {
        let switch = Switch::default();
        let bell = attach(&switch, 16);
        let data: Vec<u8> = (0..10_000).map(|n| n as u8).collect();
        switch.deliver(Packet { data: data.clone(), ..Packet::new(A, B, op::RW) });
        switch.deliver(Packet::new(A, B, op::SHUTDOWN));
        bell.consume().unwrap();
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
    fn who_calls_a_guest_that_is_not_there_is_told_so() {
        let switch = Switch::default();
        let _bell = attach(&switch, 3);
        switch.deliver(Packet::new(A, B, op::REQUEST));
        let answer = switch.take(3, 0).unwrap();
        assert_eq!((answer.op, answer.from, answer.to), (op::RST, B, A));
    }

    #[test]
    fn what_waited_for_a_guest_that_is_gone_does_not_reach_the_next() {
        let switch = Switch::default();
        let _bell = attach(&switch, 16);
        switch.deliver(Packet::new(A, B, op::REQUEST));
        switch.detach(16);
        assert!(!switch.waits(16));
        switch.deliver(Packet::new(A, B, op::REQUEST));
        let _bell = attach(&switch, 16);
        assert!(!switch.waits(16));
    }
}
