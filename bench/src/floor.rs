//! What a request cannot cost less than: its cryptography, its base64 and the kernel's copies, each measured alone on the
//! server's core.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey as VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::cell::{KIB, floor_cell};
use crate::material::random;
use crate::process::{SERVER_CORE, pin};
use crate::spread::Spread;

/// The most that a TLS record holds (RFC 8446, 5.1).
const RECORD: usize = 16 * KIB;
const BUFFER: usize = 64 * KIB;
/// How often each operation is measured; the median counts.
const TIMES: usize = 7;
/// How many short operations one measurement covers.
const BATCH: u32 = 100;

/// CPU time in microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Floors {
    /// Of a file of 16 MiB by the raw route, part by part.
    pub(crate) open: f64,
    pub(crate) tls: f64,
    pub(crate) sha256: f64,
    pub(crate) base64: f64,
    pub(crate) json: f64,
    pub(crate) kernel: f64,
    /// One Ed25519 verification by ring.
    pub(crate) verification: f64,
    /// An X25519 key pair, the agreement with another's key, and AES-GCM of 4 KiB.
    pub(crate) sealing: f64,
}

impl Floors {
    /// Of the file of 16 MiB.
    pub(crate) fn file(&self) -> f64 {
        self.open + self.tls + self.sha256 + self.base64 + self.json + self.kernel
    }
}

pub(crate) fn run() -> Result<Floors> {
    thread::spawn(|| {
        pin(SERVER_CORE)?;
        let mut floors = measure()?;
        floors.kernel = echo()?;
        Ok(floors)
    })
    .join()
    .expect("no panic")
}

fn measure() -> Result<Floors> {
    let mut file = random(floor_cell().size)?;
    let base64 = base64_simd::STANDARD.encode_to_string(&file);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &random(32)?)?);
    let nonce = || Nonce::assume_unique_for_key([7; 12]);
    // Sealing costs what opening costs, and leaves something to seal again.
    let mut seal = |bytes: &mut [u8]| {
        use_up(key.seal_in_place_separate_tag(nonce(), Aad::empty(), bytes));
    };

    let open = median(|| seal(&mut file));
    let mut to_service = base64.clone().into_bytes();
    let tls = 2.0 * median(|| to_service.chunks_mut(RECORD).for_each(&mut seal));
    let sha256 = 2.0 * median(|| use_up(digest(&SHA256, &file)));
    let mut encoded = vec![0; base64.len()];
    let encode = median(|| {
        use_up(base64_simd::STANDARD.encode(&file, base64_simd::Out::from_slice(&mut encoded)));
    });
    let mut decoded = vec![0; file.len()];
    let decode = median(|| {
        let out = base64_simd::Out::from_slice(&mut decoded);
        use_up(base64_simd::STANDARD.decode(base64.as_bytes(), out));
    });
    let json = median(|| use_up(memchr::memchr2(b'"', b'\\', base64.as_bytes())));

    let signer = Ed25519KeyPair::from_seed_unchecked(&random(32)?)?;
    let message = random(300)?;
    let signature = signer.sign(&message);
    let public = VerifyingKey::new(&ED25519, signer.public_key().as_ref());
    let verification =
        median(|| (0..BATCH).for_each(|_| public.verify(black_box(&message), signature.as_ref()).expect("signed")));

    let rng = SystemRandom::new();
    let other = EphemeralPrivateKey::generate(&X25519, &rng)?.compute_public_key()?;
    let mut small = random(4 * KIB)?;
    let sealing = median(|| {
        for _ in 0..BATCH {
            let own = EphemeralPrivateKey::generate(&X25519, &rng).expect("random numbers");
            use_up(own.compute_public_key());
            agree_ephemeral(own, &UnparsedPublicKey::new(&X25519, &other), |secret| {
                let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).expect("32 bytes"));
                use_up(key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut small));
            })
            .expect("a public key");
        }
    });
    let batch = f64::from(BATCH);
    Ok(Floors {
        open,
        tls,
        sha256,
        base64: encode + decode,
        json,
        kernel: 0.0,
        verification: verification / batch,
        sealing: sealing / batch,
    })
}

/// The kernel's part: a bare echo. It takes a file in, sends 4/3 of the bytes to a service, takes them back, and gives the
/// file out.
fn echo() -> Result<f64> {
    let file = floor_cell().size;
    let request = file / 3 * 4;
    let (mut client, far_client) = pair()?;
    let (mut service, far_service) = pair()?;
    for (connection, in_turn) in
        [(far_client, [(true, file), (false, file)]), (far_service, [(false, request), (true, request)])]
    {
        thread::spawn(move || {
            pin(crate::process::OTHER_CORE)?;
            other_end(connection, in_turn)
        });
    }
    let mut buffer = vec![0; BUFFER];
    let mut times = Vec::new();
    // The first one warms up.
    for _ in 0..=TIMES {
        let before = thread_time();
        take(&mut client, file, &mut buffer)?;
        give(&mut service, request, &buffer)?;
        take(&mut service, request, &mut buffer)?;
        give(&mut client, file, &buffer)?;
        times.push(micros(thread_time() - before));
    }
    Ok(Spread::of(times.into_iter().skip(1)).expect("several").median)
}

fn other_end(mut connection: TcpStream, in_turn: [(bool, usize); 2]) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        for (gives, n) in in_turn {
            if gives { give(&mut connection, n, &buffer)? } else { take(&mut connection, n, &mut buffer)? }
        }
    }
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

fn take(from: &mut TcpStream, mut n: usize, buffer: &mut [u8]) -> Result<()> {
    while n > 0 {
        let most = n.min(buffer.len());
        let got = from.read(&mut buffer[..most])?;
        anyhow::ensure!(got > 0, "the other end is gone");
        n -= got;
    }
    Ok(())
}

fn give(to: &mut TcpStream, mut n: usize, buffer: &[u8]) -> Result<()> {
    while n > 0 {
        let most = n.min(buffer.len());
        to.write_all(&buffer[..most])?;
        n -= most;
    }
    Ok(())
}

/// The median CPU time in microseconds, after one call that warms up.
fn median(mut operation: impl FnMut()) -> f64 {
    operation();
    let times = (0..TIMES).map(|_| {
        let before = thread_time();
        operation();
        micros(thread_time() - before)
    });
    Spread::of(times).expect("several").median
}

/// Takes a result, so that the compiler cannot leave out what made it.
fn use_up<T>(result: T) {
    let _ = black_box(result);
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
