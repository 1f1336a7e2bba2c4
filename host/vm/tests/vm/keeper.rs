//! Two enclaves, each with a parent, and a keeper that is on none of the four machines.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use teemark_vm::{operator, run};

use crate::outside::{Keeper, Outside, Sources, User};
use crate::sealed::nothing_was_seen;
use crate::stage::Stage;
use crate::workshop::{KEY_ID, Workshop};
use crate::world::World;

/// Memory of each enclave, in MiB.
const MEMORY: u32 = 128;

pub(crate) fn two_enclaves_have_their_secrets_back_with_nobody_whatever_their_parents_do(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let image = workshop.sealed()?;
    let mut first = World::with(stage, workshop, image, MEMORY, &operator::OF_SERVICE)?;
    let mut second = World::second(stage, workshop, image, MEMORY)?;
    let [one, two] = [&first, &second].map(|world| {
        operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
        Outside::new(workshop, world, image, 3000)
    });
    let (one, two) = (one?, two?);

    let sources = Sources::new(workshop)?;
    let keeper = stage.step("a keeper gives both their secrets, over the public ports of their parents", || {
        let keeper = Keeper::start(&sources, &[&one, &two])?;
        are_ready(&[&first, &second])?;
        Ok(keeper)
    })?;
    let user = User::new(workshop)?;
    fs::write(one.encrypted(), workshop.encrypt(&text())?)?;
    stage.step("one is killed under load: it has its secrets back, and the other has served all the while", || {
        under_load(stage, &two, &user, 1, || {
            first.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
            are_ready(&[&first])
        })?;
        serves(&one, &user, "one", None)
    })?;
    stage.step("both are killed: both have their secrets back, each by one bundle", || {
        first.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
        second.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
        are_ready(&[&first, &second])?;
        for (enclave, boots) in [(&one, 3), (&two, 2)] {
            let [boot, sent] = ["boot", "sent"].map(|event| keeper.told(enclave, event).map(|lines| lines.len()));
            ensure!((boot?, sent?) == (boots, boots), "not one bundle a boot");
            ensure!(keeper.told(enclave, "not_confirmed")?.is_empty(), "a bundle did not come into force");
        }
        Ok(())
    })?;
    stage.step(
        "a certificate is renewed and keys come, each round one, while 32 clients work: none is refused",
        || {
            under_load(stage, &two, &user, 32, || {
                operator::make_certs(&sources.folder, &["--client-only", "--force"])?;
                for n in 0..3 {
                    let (id, keys) = (format!("creator-{n}"), sources.folder.join("keys.json"));
                    run(two.teemark("keygen").args(["--add", "--id", &id, "--output"]).arg(keys))?;
                    for world in [&first, &second] {
                        wait_for(&format!("{id} to be in force"), || Ok(world.get("/state")?.text().contains(&id)))?;
                    }
                }
                Ok(())
            })?;
            let certificate = String::from_utf8(run(Command::new("openssl")
                .args(["x509", "-noout", "-serial", "-in"])
                .arg(sources.folder.join("client.crt")))?)?;
            let serial = certificate.trim().trim_start_matches("serial=").to_lowercase();
            let log = second.parent.sh("cat /tmp/service.log")?.to_lowercase();
            ensure!(log.contains(&serial), "no call with the renewed certificate, {serial}");
            Ok(())
        },
    )?;
    stage.step(
        "a parent that sends an enclave what it recorded of earlier boots, or of the other, changes nothing",
        || {
            let before = one.state()?;
            let bundles = [recorded(&first), recorded(&second)].concat();
            ensure!(bundles.len() >= 5, "{} bundles were recorded", bundles.len());
            // In the order that they came in, and backwards.
            for bundle in bundles.iter().chain(bundles.iter().rev()) {
                let answer = first.handshake(bundle)?;
                ensure!(answer["ok"] == false, "{answer}");
            }
            ensure!(one.state()? == before, "the state has changed");
            Ok(())
        },
    )?;
    drop(keeper);
    let keeper = stage.step(
        "the keeper is killed at each of its steps, an enclave restarts, and the next keeper goes on",
        || {
            for step in ["boot", "sent", "confirmed"] {
                first.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
                first.wait_for_listeners()?;
                let killed = Keeper::start(&sources, &[&one, &two])?;
                killed.tells(&one, step)?;
                drop(killed);
                let next = Keeper::start(&sources, &[&one, &two])?;
                are_ready(&[&first, &second])?;
                ensure!(next.told(&two, "sent")?.is_empty(), "the other had everything");
            }
            let keeper = Keeper::start(&sources, &[&one, &two])?;
            keeper.tells(&one, "current")?;
            Ok(keeper)
        },
    )?;
    drop(keeper);
    stage.step("a parent that withholds bundles and answers in the enclave's name is found out", || {
        let liar = one.by(liar(&one.endpoint)?);
        first.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
        first.wait_for_listeners()?;
        let keeper = Keeper::start(&sources, &[&liar])?;
        let told = keeper.tells(&liar, "not_confirmed")?;
        ensure!(told["reason"].as_str().is_some_and(|reason| reason.contains("does not attest it")), "{told}");
        // The image itself has the endpoint.
        let state = first.get("/state")?.text();
        ensure!(!state.contains("FILE_KEYS") && !state.contains("MTLS_CLIENT_CERT_JSON"), "it has something: {state}");
        Ok(())
    })?;
    let keeper = Keeper::start(&sources, &[&one, &two])?;
    are_ready(&[&first, &second])?;
    stage.step("a parent that boots another image is given nothing for it, and the keeper says why", || {
        let before = recorded(&first).len();
        first.reboot(stage, workshop.ordinary()?, MEMORY, operator::answer_heartbeat)?;
        first.wait_for_listeners()?;
        keeper.tells(&one, "not_attested")?;
        ensure!(recorded(&first).len() == before, "it was given a bundle");
        ensure!(first.get("/ready")?.status == 503, "it is ready");
        Ok(())
    })?;
    stage.step("where two of three operators have to sign, one signature is too few and two are enough", || {
        threshold(stage, workshop, &mut first)
    })?;
    stage.step("all that passed is searched: no private key, no file key, no bundle", || {
        nothing_was_seen(workshop, &first, &one)?;
        nothing_was_seen(workshop, &second, &two)
    })
}

/// Stands on the way to an enclave: each request is passed on, but for bundles, which are withheld and answered as if they
/// were in force. Returns its address.
fn liar(enclave: &str) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, enclave) = (listener.local_addr()?, enclave.trim_start_matches("http://").to_owned());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let enclave = enclave.clone();
            thread::spawn(move || lie(&client, &enclave));
        }
    });
    Ok(address)
}

fn lie(client: &TcpStream, enclave: &str) -> io::Result<()> {
    let (mut from_client, mut client, mut head) = (BufReader::new(client), client, String::new());
    while !head.ends_with("\r\n\r\n") && from_client.read_line(&mut head)? > 0 {}
    if head.starts_with("POST /sealed-bundle") {
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        io::copy(&mut from_client.take(length.unwrap_or(0)), &mut io::sink())?;
        let answer = r#"{"ok":true,"updated":[],"ignored":[],"warnings":[],"missing":[]}"#;
        let length = answer.len();
        return write!(
            client,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
        );
    }
    let mut upstream = TcpStream::connect(enclave)?;
    upstream.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    io::copy(&mut upstream, &mut client).map(drop)
}

/// An image that wants two signatures of three operators.
fn threshold(stage: &Stage, workshop: &Workshop, world: &mut World) -> Result<()> {
    let others =
        ["second", "third"].map(|name| workshop.key_pair(&format!("{name}.key"), "operator", &format!("{name}.pub")));
    let [second, third] = others;
    let others = [second?, third?];
    let more: Vec<PathBuf> = others.iter().flat_map(|key| ["--operator".into(), key.with_extension("pub")]).collect();
    let image = workshop.sealed_by("threshold", "TEEMARK_OPERATOR_THRESHOLD=2\n", &more)?;
    world.reboot(stage, &image, MEMORY, operator::answer_heartbeat)?;
    world.wait_for_listeners()?;
    let outside = Outside::new(workshop, world, &image, 3000)?;
    let bundle = outside.seal(1)?;
    let answer = world.handshake(&bundle)?;
    ensure!(answer["field"] == "sealed_bundle_v2.signatures", "{answer}");
    let file = workshop.path("signed.bundle");
    fs::write(&file, &bundle)?;
    let mut sign = outside.teemark("sign");
    sign.arg("--bundle").arg(&file).args(["--attested", &outside.endpoint]).args(&outside.trust);
    let said = String::from_utf8(run(sign.arg("--operator-key").arg(&others[0]))?)?;
    ensure!(said.contains(operator::ENDPOINT), "the second operator does not see the endpoint: {said}");
    let answer = world.handshake(&fs::read(&file)?)?;
    ensure!(answer["ok"] == true, "{answer}");
    are_ready(&[world])
}

/// Waits until it is so.
fn wait_for(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < teemark_vm::BOOT, "still waiting for {what}");
    }
    Ok(())
}

/// Does this while clients ask this enclave for files, each for one after the other. No request may fail.
fn under_load(
    stage: &Stage,
    to: &Outside,
    user: &User,
    clients: usize,
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    // The module makes ten documents a second, so clients check answers by one that was made before.
    let document = to.encrypted().with_extension("document");
    let mut attest = to.teemark("attest");
    run(attest.args(["--endpoint", &to.endpoint, "--output"]).arg(&document).args(&to.trust))?;
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|n| {
                let (done, served, document) = (&done, &served, &document);
                scope.spawn(move || {
                    while !done.load(Ordering::Acquire) {
                        serves(to, user, &format!("client-{n}"), Some(document)).context("under load")?;
                        served.fetch_add(1, Ordering::AcqRel);
                    }
                    Ok(())
                })
            })
            .collect();
        let result = act();
        done.store(true, Ordering::Release);
        let of_clients = threads.into_iter().map(|thread| thread.join().expect("a client panicked"));
        of_clients.collect::<Result<()>>().and(result)
    })?;
    let served = served.load(Ordering::Acquire);
    stage.figure(&format!("{served} files meanwhile, for {clients} at once"));
    ensure!(served >= clients, "only {served} files were served");
    Ok(())
}

/// The file's text, which the search for what was seen knows.
fn text() -> Vec<u8> {
    b"A line of a file that only its user may read.\n".repeat(40)
}

/// Waits until these enclaves have their secrets.
fn are_ready(worlds: &[&World]) -> Result<()> {
    worlds.iter().try_for_each(|world| {
        world.wait_for_listeners()?;
        wait_for("the enclave to be ready", || Ok(world.get("/ready")?.status == 200))
    })
}

/// The sealed bundles that passed this parent.
fn recorded(world: &World) -> Vec<Vec<u8>> {
    let start = b"{\"sealed_bundle_v2\":";
    let of_stream = |stream: &Vec<u8>| {
        let at = stream.windows(start.len()).position(|part| part == start)?;
        Some(stream[at..].to_vec())
    };
    world.bus.heard().iter().filter_map(of_stream).collect()
}

/// A user gets the marked file, sealed and signed, into a file of this name. A connection that these machines take too long
/// to make is made again, as in [`World::curl`]; an answer of the enclave other than the file is an error.
fn serves(enclave: &Outside, user: &User, name: &str, document: Option<&Path>) -> Result<()> {
    let marked = enclave.encrypted().with_extension(name);
    let attempt = || {
        let grant = enclave.grant_in(name, "text-1", "alice", &user.reply_key)?;
        let mut decrypt = enclave.decrypt("text-1", "alice", &grant, &marked);
        if let Some(document) = document {
            decrypt.arg("--attested").arg(document).args(["--max-age", "3600"]);
        }
        run(decrypt.args(["--key-id", KEY_ID, "--reply-key"]).arg(&user.key))
    };
    let no_answer = |result: &Result<Vec<u8>>| {
        result.as_ref().is_err_and(|e| {
            ["gave no answer", "did not arrive whole"].iter().any(|words| format!("{e:#}").contains(words))
        })
    };
    let mut result = attempt();
    for _ in 0..50 {
        if !no_answer(&result) {
            break;
        }
        result = attempt();
    }
    result?;
    ensure!(fs::read(&marked)?.len() > text().len(), "the file is not marked");
    Ok(())
}
