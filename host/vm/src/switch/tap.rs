//! Records what a hostile parent can: each byte that goes into the enclave or comes out of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::packet::{Packet, Place, op};

/// Records a guest's connections, once it is told which guest.
#[derive(Default)]
pub(crate) struct Tap(Mutex<Option<Heard>>);

struct Heard {
    cid: u64,
    /// The bytes of each direction of a connection, by its ends. A port that is used again continues its stream.
    streams: HashMap<(Place, Place), Vec<u8>>,
}

impl Tap {
    /// Keeps all that this guest sends and is sent from now on.
    pub(crate) fn listen(&self, cid: u32) {
        *self.heard() = Some(Heard { cid: cid.into(), streams: HashMap::new() });
    }

    /// What was kept, a direction of a connection each.
    pub(crate) fn streams(&self) -> Vec<Vec<u8>> {
        self.heard().iter().flat_map(|heard| heard.streams.values().cloned()).collect()
    }

    pub(super) fn hear(&self, packet: &Packet) {
        if packet.op != op::RW {
            return;
        }
        if let Some(heard) = &mut *self.heard()
            && [packet.from.cid, packet.to.cid].contains(&heard.cid)
        {
            heard.streams.entry((packet.from, packet.to)).or_default().extend_from_slice(&packet.data);
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Option<Heard>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_is_kept_whole_and_other_guests_are_not() {
        let place = |cid, port| Place { cid, port };
        let says = |from, to, data: &[u8]| Packet { data: data.to_vec(), ..Packet::new(from, to, op::RW) };
        let (parent, enclave) = (place(3, 1000), place(16, 3000));
        let tap = Tap::default();
        tap.hear(&says(parent, enclave, b"before"));
        tap.listen(16);
        tap.hear(&says(parent, enclave, b"ques"));
        tap.hear(&says(enclave, parent, b"answer"));
        tap.hear(&says(parent, enclave, b"tion"));
        tap.hear(&says(place(2, 1), parent, b"elsewhere"));
        let mut streams = tap.streams();
        streams.sort();
        assert_eq!(streams, [b"answer".to_vec(), b"question".to_vec()]);
    }
}
