//! A hostile parent: it relays requests and answers, sees all of them, and may change them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use super::*;

/// What the parent does to requests for files and to their answers.
#[derive(Clone, Copy)]
pub(crate) struct Meddling {
    /// Where it sends them, if not to the daemon that gets the rest.
    pub(crate) daemon: Option<SocketAddr>,
    /// To the lines of the request's head.
    pub(crate) request: fn(Vec<String>) -> Vec<String>,
    pub(crate) answer: fn(&mut Answer),
}

pub(crate) const NONE: Meddling = Meddling { daemon: None, request: |head| head, answer: |_| {} };

/// Relays requests to the daemon. Returns the parent's address, and each answer to a request for a file as it was
/// before the parent changed it.
pub(crate) fn parent(scene: &Scene, meddling: Meddling) -> (String, mpsc::Receiver<Answer>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (endpoint, daemon) = (format!("http://{}", listener.local_addr().unwrap()), scene.daemon.public);
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, body) = receive(&mut stream);
            let for_file = head[0].starts_with("POST /files/");
            if for_file {
                head = (meddling.request)(head);
            }
            let daemon = meddling.daemon.filter(|_| for_file).unwrap_or(daemon);
            let mut answer = request(daemon, &format!("{}\r\n\r\n", head.join("\r\n")), &body);
            if for_file {
                let _ =
                    sender.send(Answer { status: answer.status, head: answer.head.clone(), body: answer.body.clone() });
                (meddling.answer)(&mut answer);
            }
            stream.write_all(answer.head.as_bytes()).and_then(|()| stream.write_all(&answer.body)).unwrap();
        }
    });
    (endpoint, seen)
}

/// A request: the lines of its head, and its body.
fn receive(stream: &mut TcpStream) -> (Vec<String>, Vec<u8>) {
    let head = read_head(stream).unwrap();
    let mut body = vec![0; content_length(&head).unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    (head.trim_end().lines().map(str::to_owned).collect(), body)
}
