//! A guest's vsock device, as QEMU sees it: the backend of a `vhost-user-vsock-device`.

use std::io::{self, Read, Write};
use std::num::Wrapping;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, anyhow};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::packet::{HEADER, Packet};
use super::{Moved, Switch};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// VIRTIO_F_VERSION_1: the layout of the specification, not the one from before it.
const VERSION_1: u64 = 1 << 32;
/// The queues, in the specification's order: to the guest, from the guest, events.
const QUEUES: usize = 3;
const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
/// Descriptors of a queue, at most: what QEMU's virtio-mmio asks for (VIRTQUEUE_MAX_SIZE).
const QUEUE_LENGTH: usize = 1024;
/// The number of the switch's waker among the events: the first that vhost-user-backend leaves free.
const WAKER: u64 = QUEUES as u64 + 1;

/// The device, which serves one QEMU after another on a Unix socket.
pub(crate) struct Device {
    socket: PathBuf,
    ended: Arc<AtomicBool>,
}

impl Device {
    /// Listens on `socket` for the QEMU of the guest with this CID.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn listen(switch: &Arc<Switch>, cid: u32, socket: &Path) -> Result<Device> {
        let mut listener = Listener::new(socket, false).with_context(|| socket.display().to_string())?;
        let ended = Arc::new(AtomicBool::new(false));
        thread::Builder::new().name(format!("vsock-{cid}")).spawn({
            let (switch, ended) = (switch.clone(), ended.clone());
            move || {
                while !ended.load(Ordering::Acquire) {
                    // The fault shows in the guest, and whoever looks for it reads the guest's console.
                    if let Err(e) = serve(&switch, cid.into(), &mut listener) {
                        eprintln!("vsock device of the guest {cid}: {e}");
                        return;
                    }
                    switch.detach(cid.into());
                }
            }
        })?;
        Ok(Device { socket: socket.to_owned(), ended })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // The thread waits for its next QEMU. This connection wakes it up, so that it sees the end.
        drop(UnixStream::connect(&self.socket));
    }
}

/// Serves one QEMU until it hangs up.
fn serve(switch: &Arc<Switch>, cid: u64, listener: &mut Listener) -> Result<()> {
    let named = |what: &'static str| move |e: vhost_user_backend::Error| anyhow!("{what}: {e}");
    let memory = Memory::new(GuestMemoryMmap::new());
    let (consumer, waker) = new_event_consumer_and_notifier(EventFlag::NONBLOCK)?;
    let listened = consumer.as_raw_fd();
    let backend =
        Arc::new(Mutex::new(Backend { switch: switch.clone(), cid, memory: memory.clone(), waker: consumer }));
    let mut daemon = VhostUserDaemon::new(format!("vsock-{cid}"), backend, memory).map_err(named("starting"))?;
    for handler in daemon.get_epoll_handlers() {
        handler.register_listener(listened, EventSet::IN, WAKER)?;
    }
    daemon.start(listener).map_err(named("accepting QEMU"))?;
    switch.attach(cid, waker);
    // Its error does not matter: QEMU is killed more often than not.
    let _ = daemon.wait();
    Ok(())
}

struct Backend {
    switch: Arc<Switch>,
    cid: u64,
    memory: Memory,
    waker: EventConsumer,
}

impl Backend {
    /// Takes the packets that the guest has sent, and gives them to the switch, as far as that takes them: it wakes us
    /// when it takes more.
    fn receive(&self, vring: &VringRwLock) -> io::Result<()> {
        let mut ring = vring.get_mut();
        if !ring.get_queue().ready() {
            return Ok(());
        }
        let memory = self.memory.memory();
        let mut any = false;
        loop {
            let held = waiting(ring.get_queue(), &memory)?;
            let Some(chain) = ring.get_queue_mut().pop_descriptor_chain(memory.clone()) else { break };
            let head = chain.head_index();
            let mut reader = chain.reader(&memory).map_err(io::Error::other)?;
            let mut header = [0; HEADER];
            reader.read_exact(&mut header)?;
            let (mut packet, length) = Packet::parse(&header);
            packet.data = vec![0; reader.available_bytes().min(length as usize)];
            reader.read_exact(&mut packet.data)?;
            // The guest's driver sends as CID 0 until it knows its own; nobody could answer that.
            if packet.from.cid == self.cid && self.switch.move_on(packet, held) == Moved::NoBuffers {
                let queue = ring.get_queue_mut();
                queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                break;
            }
            ring.add_used(head, 0).map_err(io::Error::other)?;
            any = true;
        }
        if any { ring.signal_used_queue() } else { Ok(()) }
    }

    /// Gives the guest the packets that wait for it, as far as it has buffers, and tells the switch how many are left.
    /// The guest notifies us when it has more.
    fn send(&self, vring: &VringRwLock) -> io::Result<()> {
        let mut ring = vring.get_mut();
        if !ring.get_queue().ready() {
            return Ok(());
        }
        self.switch.has_ring(self.cid, ring.get_queue().size());
        let memory = self.memory.memory();
        let (mut any, mut size) = (false, None);
        while self.switch.waits(self.cid) {
            let Some(chain) = ring.get_queue_mut().pop_descriptor_chain(memory.clone()) else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(&memory).map_err(io::Error::other)?;
            let room = writer.available_bytes().saturating_sub(HEADER);
            let Some(packet) = self.switch.take(self.cid, room) else { break };
            writer.write_all(&packet.header())?;
            writer.write_all(&packet.data)?;
            let length = u32::try_from(HEADER + packet.data.len()).map_err(io::Error::other)?;
            ring.add_used(head, length).map_err(io::Error::other)?;
            (any, size) = (true, Some(room));
        }
        self.switch.has_buffers(self.cid, waiting(ring.get_queue(), &memory)?, size);
        if any { ring.signal_used_queue() } else { Ok(()) }
    }
}

/// The number of descriptor chains that the guest has made available in a queue and nobody has taken.
fn waiting(queue: &Queue, memory: &GuestMemoryMmap) -> io::Result<usize> {
    let available = queue.avail_idx(memory, Ordering::Acquire).map_err(io::Error::other)?;
    Ok((available - Wrapping(queue.next_avail())).0.into())
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_LENGTH
    }

    fn features(&self) -> u64 {
        VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG
    }

    /// Not offered, so never enabled.
    fn set_event_idx(&mut self, _enabled: bool) {}

    /// struct virtio_vsock_config, which is the CID.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (start, end) = (offset as usize, offset.saturating_add(size) as usize);
        self.cid.to_le_bytes().get(start..end).unwrap_or_default().to_vec()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&mut self, event: u16, _: EventSet, vrings: &[VringRwLock], _: usize) -> io::Result<()> {
        if u64::from(event) == WAKER {
            // One read takes several notifications.
            let _ = self.waker.consume();
        }
        self.send(&vrings[usize::from(TO_GUEST)])?;
        self.receive(&vrings[usize::from(FROM_GUEST)])
    }
}
