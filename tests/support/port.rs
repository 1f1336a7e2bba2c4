//! Ports to listen on.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that was free a moment ago. The system does not assign it in the meantime: the ports that it assigns by
/// itself begin at 32768 (ip_local_port_range).
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const NUMBER: u16 = 20_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Programs that run at the same time begin at different places.
    let start = u16::try_from(process::id() * 61 % u32::from(NUMBER)).unwrap();
    let next = || FIRST + (start + TAKEN.fetch_add(1, Ordering::Relaxed)) % NUMBER;
    std::iter::repeat_with(next).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}
