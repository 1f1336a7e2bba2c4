//! One client that asks again and again over one connection.

use std::io::Write;
use std::net::TcpStream;

use crate::material::Sample;
use crate::support::{Daemon, SOON, read_answer};

/// Gets this many answers, and ends the daemon.
pub(crate) fn ask(daemon: &mut Daemon, sample: &Sample, requests: usize) {
    let mut stream = TcpStream::connect(daemon.public).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    for _ in 0..requests {
        stream.write_all(&sample.request).unwrap();
        let answer = read_answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, 200, "{sample}: {}\n{}", answer.text(), daemon.process.log());
        sample.check(&answer.body);
    }
    daemon.process.signal("TERM");
    let ended = daemon.process.child.wait().unwrap();
    assert!(ended.success(), "{sample}: {ended}\n{}", daemon.process.log());
}
