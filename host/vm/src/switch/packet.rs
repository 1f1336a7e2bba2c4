//! Packets of virtio-vsock (Virtual I/O Device specification 1.2, section 5.10.6), as the guests' kernels write them.

/// Bytes of a header.
pub(crate) const HEADER: usize = 44;
/// The CID of the machine that the guests run on (VMADDR_CID_HOST in linux/vm_sockets.h).
pub(crate) const HOST_CID: u64 = 2;
/// A connection of bytes (VIRTIO_VSOCK_TYPE_STREAM).
const STREAM: u16 = 1;

/// What a packet does (VIRTIO_VSOCK_OP_… in linux/virtio_vsock.h).
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: the sender will not receive any more, the sender will not send any more.
pub(crate) const NO_MORE_RECEIVED: u32 = 1;
pub(crate) const NO_MORE_SENT: u32 = 2;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) cid: u64,
    pub(crate) port: u32,
}

/// A packet: its header and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// Bytes that the sender's buffer of the connection can hold.
    pub(crate) buffer: u32,
    /// Bytes that the sender has taken out of that buffer since the connection's begin, modulo 2^32.
    pub(crate) taken: u32,
    pub(crate) data: Vec<u8>,
}

impl Packet {
    /// A packet without data.
    pub(crate) fn new(from: Place, to: Place, op: u16) -> Packet {
        Packet { from, to, kind: STREAM, op, flags: 0, buffer: 0, taken: 0, data: Vec::new() }
    }

    /// The answer that resets a connection which does not exist, or no longer does.
    pub(crate) fn refusal(&self) -> Packet {
        Packet { kind: self.kind, ..Packet::new(self.to, self.from, op::RST) }
    }

    /// Reads a header; also returns its length field, the number of bytes of data that follow.
    pub(crate) fn parse(header: &[u8; HEADER]) -> (Packet, u32) {
        let n32 = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let n16 = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let n64 = |at: usize| u64::from(n32(at)) | u64::from(n32(at + 4)) << 32;
        let packet = Packet {
            from: Place { cid: n64(0), port: n32(16) },
            to: Place { cid: n64(8), port: n32(20) },
            kind: n16(28),
            op: n16(30),
            flags: n32(32),
            buffer: n32(36),
            taken: n32(40),
            data: Vec::new(),
        };
        (packet, n32(24))
    }

    /// The header's bytes, with the length of the data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend(self.from.cid.to_le_bytes());
        header.extend(self.to.cid.to_le_bytes());
        header.extend(self.from.port.to_le_bytes());
        header.extend(self.to.port.to_le_bytes());
        header.extend(u32::try_from(self.data.len()).expect("it came with a length of 32 bits").to_le_bytes());
        header.extend(self.kind.to_le_bytes());
        header.extend(self.op.to_le_bytes());
        header.extend(self.flags.to_le_bytes());
        header.extend(self.buffer.to_le_bytes());
        header.extend(self.taken.to_le_bytes());
        header
    }

    /// Takes the first `most` bytes out of the data, as a packet of the same kind.
    pub(crate) fn split_off_front(&mut self, most: usize) -> Packet {
        let rest = self.data.split_off(most);
        let data = std::mem::replace(&mut self.data, rest);
        Packet { data, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        let (from, to) = (Place { cid: 0x1_0000_0003, port: 8101 }, Place { cid: 16, port: 3000 });
        let (buffer, taken, data) = (262_144, 77, b"some data".to_vec());
        Packet { kind: STREAM, op: op::RW, flags: 2, buffer, taken, data, ..Packet::new(from, to, op::RW) }
    }

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let packet = packet();
        let header: [u8; HEADER] = packet.header().try_into().unwrap();
        let (mut read, length) = Packet::parse(&header);
        assert_eq!(length, 9);
        read.data = packet.data.clone();
        assert_eq!(read, packet);
    }

    #[test]
    fn the_fields_are_where_the_specification_has_them() {
        let header = packet().header();
        assert_eq!(header[..8], [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!((header[24], header[28], header[30], header[32]), (9, 1, 5, 2));
        assert_eq!(header[40..], [77, 0, 0, 0]);
    }

    #[test]
    fn a_packet_in_two_is_the_same_bytes() {
        let mut rest = packet();
        let front = rest.split_off_front(4);
        assert_eq!((&front.data[..], &rest.data[..]), (&b"some"[..], &b" data"[..]));
        assert_eq!(Packet { data: Vec::new(), ..front }, Packet { data: Vec::new(), ..rest });
    }
}
