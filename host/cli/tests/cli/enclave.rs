//! An enclave as seen from outside: it attests itself, opens bundles, and seals and signs answers. A script says what it
//! answers to each request. tests/trust tests the same with the daemon itself.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::{BootNonce, BundleId, UserData};
use formats::digest::{Sha256, sha256};
use formats::hpke::{PrivateKey, PublicKey};
use formats::refusal::Refusal;
use formats::reply::{self, About, Statement};
use formats::sealed_bundle::SealedBundle;
use formats::signature::VerifyingKey;
use formats::time::now_ms;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;

use super::*;

/// A request that was received: its lines, and its body.
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The value of a header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find_map(|(field, value)| field.eq_ignore_ascii_case(name).then_some(value))
    }

    /// The first line, without its end.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    /// The nonce of the document that is to come with the answer to a request for a file, if one is.
    pub(crate) fn attest(&self) -> Option<Vec<u8>> {
        self.field("Teemark-Attest").map(|nonce| hex::decode(nonce).unwrap())
    }

    /// The nonce of a request for an attestation document.
    pub(crate) fn nonce(&self) -> Vec<u8> {
        let asked = self.line().strip_prefix("GET /get_attestation?nonce=").unwrap().strip_suffix(" HTTP/1.1");
        hex::decode(asked.unwrap()).unwrap()
    }
}

/// How the server answers one request.
pub(crate) enum Reply {
    /// Reads the whole request, then sends this.
    After(String),
    /// Reads only the head, then sends this.
    AtOnce(String),
    /// Reads the whole request, then sends what this makes of it.
    Made(Answerer),
}

type Answerer = Box<dyn FnOnce(&Request) -> Vec<u8> + Send>;

pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

/// Serves one connection for each reply; returns the address and the requests.
pub(crate) fn daemon(replies: Vec<Reply>) -> (String, mpsc::Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for reply in replies {
            let mut stream = listener.accept().unwrap().0;
            let request = serve(&mut stream, reply);
            sender.send(request).unwrap();
        }
    });
    (address, receiver)
}

fn serve(stream: &mut TcpStream, reply: Reply) -> Request {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let mut request = Request { head, body: Vec::new() };
    if let Reply::AtOnce(text) = &reply {
        stream.write_all(text.as_bytes()).unwrap();
        return request;
    }
    if request.field("Expect") == Some("100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    }
    request.body = vec![0; request.field("Content-Length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut request.body).unwrap();
    let bytes = match reply {
        Reply::After(text) | Reply::AtOnce(text) => text.into_bytes(),
        Reply::Made(make) => make(&request),
    };
    // A client that has read enough may have closed the connection.
    let _ = stream.write_all(&bytes);
    request
}

/// The options to trust an [`Enclave`]: it runs in debug mode, so its PCRs are zeros.
pub(crate) const TRUST: [&str; 5] = ["--pcrs", "image.pcrs", "--root", "root.der", "--debug-mode"];

#[derive(Clone)]
pub(crate) struct Enclave(Arc<Inside>);

/// The state of an enclave.
struct Inside {
    nsm: nsm::Nsm,
    identity: Ed25519KeyPair,
    sealing: PrivateKey,
    boot_nonce: BootNonce,
    in_force: Mutex<BundleId>,
}

/// An answer before it is sent, for a test to alter.
pub(crate) struct Signed {
    /// The enclave whose document it brings, if the request asks for one.
    pub(crate) attester: Option<Enclave>,
    /// The nonce of that document, if not the request's.
    pub(crate) nonce: Option<Vec<u8>>,
    /// When that document was made.
    pub(crate) made_ms: u64,
    pub(crate) identity: String,
    pub(crate) watermarked: bool,
    pub(crate) sealed: bool,
    pub(crate) timestamp: String,
    pub(crate) signature: String,
    pub(crate) body: Vec<u8>,
}

impl Enclave {
    pub(crate) fn new() -> Enclave {
        Enclave::on(nsm::Nsm::new())
    }

    /// Another enclave, whose documents the same root vouches for.
    pub(crate) fn beside(&self) -> Enclave {
        Enclave::on(self.0.nsm.clone())
    }

    fn on(nsm: nsm::Nsm) -> Enclave {
        let random = || {
            let mut bytes = [0; 32];
            SystemRandom::new().fill(&mut bytes).unwrap();
            bytes
        };
        Enclave(Arc::new(Inside {
            nsm,
            identity: Ed25519KeyPair::from_seed_unchecked(&random()).unwrap(),
            sealing: PrivateKey::random().unwrap(),
            boot_nonce: BootNonce::from_bytes(random()),
            in_force: Mutex::default(),
        }))
    }

    /// A folder with the files that [`TRUST`] names.
    pub(crate) fn place(&self) -> Place {
        let place = Place::new();
        place.write("image.pcrs", nsm::pcrs_file());
        place.write("root.der", &self.0.nsm.cabundle[0]);
        place
    }

    /// Answers a request for a document.
    pub(crate) fn attests(&self) -> Reply {
        let enclave = self.clone();
        Reply::Made(Box::new(move |request| {
            let document = enclave.document(Some(&request.nonce()));
            answer("200 OK", "", &json!({"attestation": hex::encode(document)}).to_string()).into_bytes()
        }))
    }

    /// Answers what is asked before a bundle is sealed: a document, and four more, since there could be several enclaves.
    pub(crate) fn is_alone(&self) -> Vec<Reply> {
        (0..5).map(|_| self.attests()).collect()
    }

    /// Answers a request for a document with one for another nonce, or for none.
    pub(crate) fn replays(&self, nonce: Option<&[u8]>) -> Reply {
        let document = hex::encode(self.document(nonce));
        Reply::After(answer("200 OK", "", &json!({"attestation": document}).to_string()))
    }

    /// Answers a request for the document without a nonce, which is this old.
    pub(crate) fn stands(&self, age_ms: u64) -> Reply {
        let enclave = self.clone();
        Reply::Made(Box::new(move |request| {
            assert_eq!(request.line(), "GET /attestation HTTP/1.1");
            let document = enclave.document_at(None, now_ms() - age_ms);
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", document.len());
            [head.as_bytes(), &document].concat()
        }))
    }

    /// The enclave's identity key in hex.
    pub(crate) fn identity(&self) -> String {
        hex::encode(self.0.identity.public_key())
    }

    pub(crate) fn document(&self, nonce: Option<&[u8]>) -> Vec<u8> {
        self.document_at(nonce, now_ms())
    }

    /// The document that was made then.
    pub(crate) fn document_at(&self, nonce: Option<&[u8]>, made_ms: u64) -> Vec<u8> {
        let Inside { nsm, identity, sealing, boot_nonce, in_force } = &*self.0;
        let mut user_data = UserData::new(
            sealing.public(),
            Sha256::default(),
            *boot_nonce,
            *in_force.lock().unwrap(),
            Sha256::default(),
        );
        // An enclave of a release that takes bundles of version 1 only.
        user_data.state_sha256 = None;
        let mut payload = nsm.payload(nonce.unwrap_or_default());
        if nonce.is_none() {
            nsm::set(&mut payload, "nonce", ciborium::Value::Null);
        }
        let zeros = (0..16).map(|index| (index.into(), nsm::bytes(&[0; 48]))).collect();
        nsm::set(&mut payload, "pcrs", ciborium::Value::Map(zeros));
        nsm::set(&mut payload, "timestamp", made_ms.into());
        nsm::set(&mut payload, "public_key", nsm::bytes(identity.public_key().as_ref()));
        nsm::set(&mut payload, "user_data", nsm::bytes(user_data.to_json().as_bytes()));
        nsm.sign(payload)
    }

    /// Puts this bundle in force.
    pub(crate) fn put_in_force(&self, bundle: BundleId) {
        *self.0.in_force.lock().unwrap() = bundle;
    }

    /// Opens a bundle that this operator sealed for this boot.
    pub(crate) fn opens(&self, sealed: &[u8], operator: VerifyingKey) -> Result<(Vec<u8>, BundleId), Refusal> {
        let sealed = SealedBundle::parse(sealed)?;
        sealed.check_signature(&[operator])?;
        assert_eq!(sealed.boot_nonce, self.0.boot_nonce);
        let id = sealed.id();
        Ok((sealed.open(&self.0.sealing)?, id))
    }

    /// Answers a request with a file, sealed if that is asked for, signed now, and then changed by `alter`.
    pub(crate) fn gives(
        &self,
        file: &[u8],
        about: About<'static>,
        alter: impl FnOnce(&mut Signed) + Send + 'static,
    ) -> Reply {
        let (enclave, file) = (self.clone(), file.to_vec());
        Reply::Made(Box::new(move |request| {
            let reply_key = request.field("Teemark-Reply-Key").map(|key| PublicKey::from_base64(key).unwrap());
            let body = match &reply_key {
                None => file,
                Some(key) => reply::seal(file, about, key).unwrap(),
            };
            let statement = Statement {
                about,
                content_sha256: sha256(&request.body),
                watermarked: true,
                sealed: reply_key.is_some(),
                timestamp_ms: now_ms(),
            };
            let mut signed = enclave.sign(body, statement);
            alter(&mut signed);
            signed.answer(request)
        }))
    }

    pub(crate) fn sign(&self, body: Vec<u8>, statement: Statement<'_>) -> Signed {
        let signature = STANDARD.encode(self.0.identity.sign(&statement.to_bcs(&body)));
        let Statement { watermarked, sealed, timestamp_ms, .. } = statement;
        let (attester, identity, timestamp) = (Some(self.clone()), self.identity(), timestamp_ms.to_string());
        Signed { attester, nonce: None, made_ms: now_ms(), identity, watermarked, sealed, timestamp, signature, body }
    }
}

impl Signed {
    /// Answers any request with this.
    pub(crate) fn reply(self) -> Reply {
        Reply::Made(Box::new(move |request| self.answer(request)))
    }

    fn answer(self, request: &Request) -> Vec<u8> {
        let Signed { attester, nonce, made_ms, identity, watermarked, sealed, timestamp, signature, body } = self;
        let document = attester.zip(request.attest()).map(|(attester, asked)| {
            let nonce = nonce.unwrap_or(asked);
            attester.document_at(Some(&nonce), made_ms)
        });
        let length = document
            .as_ref()
            .map_or(String::new(), |document| format!("Teemark-Attestation-Length: {}\r\n", document.len()));
        let body = [document.unwrap_or_default(), body].concat();
        let head = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\nTeemark-Sealed: {sealed}\r\n\
             Teemark-Watermarked: {watermarked}\r\nTeemark-Timestamp: {timestamp}\r\nTeemark-Signature: {signature}\r\n\
             Teemark-Identity: {identity}\r\n{length}\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }
}
