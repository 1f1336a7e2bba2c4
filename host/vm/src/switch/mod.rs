//! Connects the machines: takes each packet from one and delivers it to the other, or to this machine.
//!
//! The obvious program for this is vhost-device-vsock. Its version 0.3.0 delivers a packet from one guest to the other
//! as a whole, and silently loses one that is larger than the guest's buffer, 3,776 bytes in Linux 6.12; an ordinary
//! bundle is larger. So this is done here, with rust-vmm's crates for the rings and for QEMU's side, and a large packet
//! is delivered in parts. Linux' own vhost-vsock does that too, but needs the host's kernel and does not connect guests
//! with each other.
//!
//! Between guests packets move as on Nitro: one leaves a guest's TX ring only when the other guest's RX ring has buffers
//! for it. A guest that receives nothing therefore keeps the other from sending; if both do, nothing moves any more
//! (image/kernel/patches). How long the rings are is up to the guest's driver, which takes as much as the device offers, and
//! QEMU's virtio-mmio offers 1,024 whatever the device behind it asks for. A kernel with image/kernel/test-patches takes
//! less. The switch could not stand in for shorter rings by leaving buffers unused: the driver measures by its own ring how
//! many replies it queues before it stops receiving and when it adds buffers, and never tells how many packets it has taken
//! out.

mod device;
mod host;
mod packet;
mod tap;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Packets between guests so far.
    moved: AtomicU64,
    pub(crate) tap: Tap,
}

/// What the switch knows of a guest.
struct Guest {
    /// The packets on their way to it: those of another guest fit into its buffers, and the credit of its connections
    /// bounds those of this machine.
    packets: VecDeque<Packet>,
    /// The buffers in its RX ring that no packet will take yet; none before its driver has started.
    buffers: Option<usize>,
    /// Bytes of data that one of these buffers holds.
    buffer_size: usize,
    /// Descriptors of that ring, as its driver chose it.
    ring: u16,
    /// Packets in its TX ring, of which the first waits for buffers of another guest.
    held: usize,
    /// Wakes the thread of the guest's device.
    waker: EventNotifier,
}

impl Guest {
    /// The number of buffers that a packet takes.
    fn needs(&self, packet: &Packet) -> usize {
        packet.data.len().div_ceil(self.buffer_size.max(1)).max(1)
    }

    fn wake(&self) {
        // It fails only after 2^64 notifications.
        let _ = self.waker.notify();
    }
}

/// Whether a packet was taken out of its sender's TX ring.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    Yes,
    /// It stays there, since the other guest has no buffers for it.
    NoBuffers,
}

/// How far two guests are from talking to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Packets between guests so far.
    pub moved: u64,
    /// For each guest by CID whose driver has started, the descriptors of its RX ring.
    pub rings: BTreeMap<u64, u16>,
    /// For each guest by CID, the packets in its TX ring if the first of them waits for another guest's buffers; else 0.
    pub held: BTreeMap<u64, usize>,
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
        let guest = Guest { packets: VecDeque::new(), buffers: None, buffer_size: 0, ring: 0, held: 0, waker };
        self.guests().insert(cid, guest);
    }

    /// A guest's machine has ended.
    fn detach(&self, cid: u64) {
        let mut guests = self.guests();
        guests.remove(&cid);
        // What waits for its buffers is refused now.
        guests.values().for_each(Guest::wake);
        drop(guests);
        self.host.forget(cid);
    }

    /// Takes a packet out of a guest's TX ring, unless it is for a guest that has no buffers for it; `held` packets are
    /// in the ring, this one included.
    fn move_on(&self, packet: Packet, held: usize) -> Moved {
        let mut guests = self.guests();
        let from = packet.from.cid;
        let wait = match guests.get_mut(&packet.to.cid) {
            Some(Guest { buffers: Some(buffers), .. }) if *buffers == 0 => true,
            Some(guest) if guest.buffers.is_some() => {
                // A packet that needs more buffers than there are comes in parts, and the rest waits here.
                let needed = guest.needs(&packet);
                guest.buffers = guest.buffers.map(|buffers| buffers.saturating_sub(needed));
                self.moved.fetch_add(1, Ordering::Relaxed);
                false
            }
            _ => false,
        };
        if let Some(sender) = guests.get_mut(&from) {
            sender.held = if wait { held } else { 0 };
        }
        drop(guests);
        match wait {
            true => Moved::NoBuffers,
            false => {
                self.deliver(packet);
                Moved::Yes
            }
        }
    }

    /// A guest's RX ring has this many free buffers of this size, apart from those for the packets that are on their way.
    fn has_buffers(&self, cid: u64, free: usize, size: Option<usize>) {
        let mut guests = self.guests();
        let Some(guest) = guests.get_mut(&cid) else { return };
        guest.buffer_size = size.unwrap_or(guest.buffer_size);
        let promised: usize = guest.packets.iter().map(|packet| guest.needs(packet)).sum();
        guest.buffers = Some(free.saturating_sub(promised));
        if free > promised {
            guests.values().filter(|other| other.held > 0).for_each(Guest::wake);
        }
    }

    /// A guest's driver has started, with an RX ring of so many descriptors.
    fn has_ring(&self, cid: u64, descriptors: u16) {
        if let Some(guest) = self.guests().get_mut(&cid) {
            guest.ring = descriptors;
        }
    }

    /// How far the guests are from talking to each other.
    pub(crate) fn traffic(&self) -> Traffic {
        let guests = self.guests();
        let rings = guests.iter().filter(|(_, guest)| guest.ring > 0).map(|(cid, guest)| (*cid, guest.ring)).collect();
        let held = guests.iter().map(|(cid, guest)| (*cid, guest.held)).collect();
        Traffic { moved: self.moved.load(Ordering::Relaxed), rings, held }
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
            // A guest has no listeners before its driver has started.
            Some(guest) if guest.buffers.is_some() || packet.from.cid == HOST_CID => {
                guest.packets.push_back(packet);
                guest.wake();
            }
            _ if packet.op == op::RST => {}
            _ => {
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
        switch.has_buffers(cid, 100, Some(4000));
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

    #[test]
    fn a_guest_whose_driver_has_not_started_refuses() {
        let switch = Switch::default();
        let _waker = attach(&switch, 3);
        let (_consumer, waker) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
        switch.attach(16, waker);
        assert_eq!(switch.move_on(Packet::new(A, B, op::REQUEST), 1), Moved::Yes);
        assert_eq!(switch.take(3, 0).unwrap().op, op::RST);
        assert!(!switch.waits(16));
    }

    #[test]
    fn a_packet_stays_in_its_senders_ring_until_the_other_guest_has_a_buffer() {
        let switch = Switch::default();
        let (sender, _receiver) = (attach(&switch, 3), attach(&switch, 16));
        switch.has_buffers(16, 2, None);
        switch.has_ring(16, 128);
        let packet = || Packet::new(A, B, op::REQUEST);
        assert_eq!((switch.move_on(packet(), 9), switch.move_on(packet(), 8)), (Moved::Yes, Moved::Yes));
        assert_eq!(switch.move_on(packet(), 7), Moved::NoBuffers);
        assert_eq!(
            switch.traffic(),
            Traffic { moved: 2, rings: BTreeMap::from([(16, 128)]), held: BTreeMap::from([(3, 7), (16, 0)]) }
        );

        // The two that are on their way take its next two buffers.
        switch.has_buffers(16, 2, None);
        assert_eq!(switch.move_on(packet(), 7), Moved::NoBuffers);
        assert!(sender.consume().is_err());
        switch.has_buffers(16, 3, None);
        sender.consume().unwrap();
        assert_eq!((switch.move_on(packet(), 7), switch.move_on(packet(), 6)), (Moved::Yes, Moved::NoBuffers));
    }

    #[test]
    fn a_packet_takes_as_many_buffers_as_its_data_needs() {
        let switch = Switch::default();
        let (_sender, _receiver) = (attach(&switch, 3), attach(&switch, 16));
        switch.has_buffers(16, 3, Some(4000));
        let packet = |length| Packet { data: vec![0; length], ..Packet::new(A, B, op::RW) };
        assert_eq!((switch.move_on(packet(4001), 2), switch.move_on(packet(9000), 1)), (Moved::Yes, Moved::Yes));
        assert_eq!(switch.move_on(packet(0), 1), Moved::NoBuffers);
    }

    #[test]
    fn what_waits_for_a_guest_that_ends_is_refused() {
        let switch = Switch::default();
        let (sender, _receiver) = (attach(&switch, 3), attach(&switch, 16));
        switch.has_buffers(16, 0, None);
        assert_eq!(switch.move_on(Packet::new(A, B, op::REQUEST), 1), Moved::NoBuffers);
        switch.detach(16);
        sender.consume().unwrap();
        assert_eq!(switch.move_on(Packet::new(A, B, op::REQUEST), 1), Moved::Yes);
        assert_eq!(switch.take(3, 0).unwrap().op, op::RST);
    }
}
