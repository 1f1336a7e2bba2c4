//! Two enclaves, each with a parent, and a keeper that is on none of the four machines.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use teemark_vm::{operator, run};

use crate::outside::{Keeper, Outside, User};
use crate::sealed::nothing_was_seen;
use crate::stage::Stage;
use crate::workshop::Workshop;
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

    let keeper = stage.step("a keeper gives both their secrets, over the public ports of their parents", || {
        let keeper = Keeper::start(workshop, &[&one, &two])?;
        are_ready(&[&first, &second])?;
        Ok(keeper)
    })?;
    let users = User::new(workshop)?;
    fs::write(one.encrypted(), workshop.encrypt(&text())?)?;
    stage.step("one is killed under load: it has its secrets back, and the other has served all the while", || {
        let load = Load { user: &users, to: &two, done: AtomicBool::new(false), served: AtomicUsize::new(0) };
        thread::scope(|scope| {
            let client = scope.spawn(|| load.run());
            let killed = first.reboot(stage, image, MEMORY, operator::answer_heartbeat);
            let ready = killed.and_then(|()| are_ready(&[&first]));
            load.done.store(true, Ordering::Release);
            client.join().expect("a client panicked")?;
            ready
        })?;
        let served = load.served.load(Ordering::Acquire);
        stage.figure(&format!("{served} files meanwhile"));
        ensure!(served > 0, "the other served nothing");
        serves(&one, &users)
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
        "a parent that sends an enclave what it has recorded of earlier boots, or of the other, changes nothing",
        || {
            let before = one.state()?;
            let bundles = [recorded(&first), recorded(&second)].concat();
            ensure!(bundles.len() >= 5, "{} bundles were recorded", bundles.len());
            for bundle in &bundles {
                let answer = first.handshake(bundle)?;
                ensure!(answer["ok"] == false, "{answer}");
            }
            ensure!(one.state()? == before, "the state has changed");
            Ok(())
        },
    )?;
    drop(keeper);
    let keeper = stage.step("the keeper is killed, an enclave restarts, and another keeper goes on", || {
        first.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
        first.wait_for_listeners()?;
        ensure!(first.get("/ready")?.status == 503, "nobody was there to give it its secrets");
        let keeper = Keeper::start(workshop, &[&one, &two])?;
        are_ready(&[&first, &second])?;
        ensure!(keeper.told(&two, "sent")?.is_empty(), "the other had everything");
        Ok(keeper)
    })?;
    stage.step("a parent that boots another image is given nothing for it, and the keeper says why", || {
        let before = recorded(&first).len();
        first.reboot(stage, workshop.ordinary()?, MEMORY, operator::answer_heartbeat)?;
        first.wait_for_listeners()?;
        let start = Instant::now();
        while keeper.told(&one, "not_attested")?.is_empty() {
            ensure!(start.elapsed() < teemark_vm::BOOT, "the keeper says nothing");
        }
        ensure!(recorded(&first).len() == before, "it was given a bundle");
        ensure!(first.get("/ready")?.status == 503, "it is ready");
        first.reboot(stage, image, MEMORY, operator::answer_heartbeat)?;
        are_ready(&[&first])
    })?;
    stage.step("all that passed is searched: no private key, no file key, no bundle", || {
        nothing_was_seen(workshop, &first, &one)?;
        nothing_was_seen(workshop, &second, &two)
    })
}

/// The file's text, which the search for what was seen knows.
fn text() -> Vec<u8> {
    b"A line of a file that only its user may read.\n".repeat(40)
}

/// Waits until these enclaves have their secrets.
fn are_ready(worlds: &[&World]) -> Result<()> {
    for world in worlds {
        world.wait_for_listeners()?;
        let start = Instant::now();
        while world.get("/ready")?.status != 200 {
            ensure!(start.elapsed() < teemark_vm::BOOT, "it is not ready: {}", world.get("/ready")?.text());
        }
    }
    Ok(())
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

/// A user gets the marked file, sealed and signed.
fn serves(enclave: &Outside, user: &User) -> Result<()> {
    let marked = enclave.encrypted().with_extension("marked");
    let grant = enclave.grant("text-1", "alice", &user.reply_key)?;
    run(enclave.decrypt("text-1", "alice", &grant, &marked).arg("--reply-key").arg(&user.key))?;
    ensure!(fs::read(&marked)?.len() > text().len(), "the file is not marked");
    Ok(())
}

/// A user who asks for one file after the other, until it is over.
struct Load<'a> {
    user: &'a User,
    to: &'a Outside<'a>,
    done: AtomicBool,
    served: AtomicUsize,
}

impl Load<'_> {
    /// Fails where a file is not served.
    fn run(&self) -> Result<()> {
        while !self.done.load(Ordering::Acquire) {
            serves(self.to, self.user).context("under load")?;
            self.served.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
}
