//! A watermark service that marks any file, whatever it is: the first four characters of the base64 are replaced.
//!
//! Each answer is sent in one piece, so what the daemon does to read it depends on the daemon alone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::material::MARK;
use crate::support::{Certs, content_length, read_head};

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// Starts it, and gives its port. Its threads end with this program.
pub(crate) fn start(certs: &Certs) -> u16 {
    let config = certs.tls_server();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let config = config.clone();
            thread::spawn(move || {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut connection = ServerConnection::new(config).unwrap();
                connection.set_buffer_limit(None);
                serve(&mut StreamOwned::new(connection, stream));
            });
        }
    });
    port
}

/// Answers until the daemon closes the connection.
fn serve(tls: &mut Tls) {
    while let Some(body) = read_request(tls) {
        let request: Value = serde_json::from_slice(&body).unwrap();
        let data = request["data"].as_str().unwrap();
        let marked = format!("{MARK}{}", &data[MARK.len()..]);
        let body = json!({"status": "success", "watermarked_data": marked, "encoding": "base64"}).to_string();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        if tls.write_all(answer.as_bytes()).and_then(|()| tls.flush()).is_err() {
            return;
        }
    }
}

fn read_request(tls: &mut Tls) -> Option<Vec<u8>> {
    let mut body = vec![0; content_length(&read_head(tls)?).expect("a length")];
    tls.read_exact(&mut body).ok()?;
    Some(body)
}
