//! The image for Graviton, booted on QEMU's machine `virt`. docs/IMAGE.md tells in what that differs from an instance.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use teemark_vm::{Bus, Enclave, Shape, operator, run};

use crate::failures::fails;
use crate::handshake::heartbeat;
use crate::outside::{Outside, User};
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{World, logs};

pub(crate) fn an_image_for_graviton_boots_and_serves(stage: &Stage, workshop: &Workshop) -> Result<()> {
    let shipped = workshop.graviton()?;
    stage.step("the shipped image boots, says that it has no /dev/nsm, and attests nothing", || {
        let bus = Bus::start()?;
        let enclave = Enclave::boot(&bus, &shipped, 64, &logs()?, false)?;
        stage.watch(&enclave.console);
        enclave.console.wait_for("secrets: listening on vsock:7777", teemark_vm::BOOT)?;
        enclave.console.wait_for("no /dev/nsm: this daemon cannot attest itself", Duration::ZERO)?;
        let (status, body) = enclave.get(3000, "/get_attestation")?;
        ensure!(status == 503 && body.contains("attestation_unavailable"), "/get_attestation: {status} {body}");
        Ok(())
    })?;
    stage.step("one whose target is not there says so, and ends the machine by PSCI", || {
        let image = shipped.with_command_line(&shipped.command_line().replace("=/teemarkd", "=/nowhere"));
        fails(stage, &image, &["[INIT] FATAL: starting /nowhere:", "is not in the image", "restarting"])
    })?;
    let image = workshop.graviton_with_test_nsm()?;
    let shape = Shape { processors: 2, ..512.into() };
    let world = World::with(stage, workshop, &image, shape, &operator::OF_SERVICE)?;
    stage.step("the heartbeat arrives at the parent's port 9000 and is answered", || heartbeat(&world))?;
    world.wait_for_listeners()?;
    stage.step("both processors run, and the clock is that of the PL031", || {
        let said = |text: &str| world.enclave.console.wait_for(text, Duration::ZERO);
        said("Brought up 1 node, 2 CPUs")?;
        said("rtc-pl031 9010000.pl031: setting system clock to 2").map(drop)
    })?;
    operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
    let outside = Outside::new(workshop, &world, &image, 3000)?;
    stage.step("the operator's sealed bundle is relayed, and the enclave is ready", || {
        let answer = world.handshake(&outside.seal(1)?)?;
        ensure!(answer["ok"] == true, "{answer}");
        world.get("/ready")?.with(200).map(drop)
    })?;
    stage.step("a user gets the marked file, sealed to their key and signed by the enclave", || {
        let text = fs::read(teemark_vm::repository().join("LICENSE"))?;
        fs::write(outside.encrypted(), workshop.encrypt(&text)?)?;
        let (user, marked) = (User::new(workshop)?, workshop.path("graviton.marked"));
        let grant = outside.grant("text-1", "alice", &user.reply_key)?;
        run(outside.decrypt("text-1", "alice", &grant, &marked).arg("--reply-key").arg(&user.key))?;
        let bytes = fs::read(&marked)?;
        ensure!(bytes.len() > text.len(), "{} bytes of {}", bytes.len(), text.len());
        let mark = workshop.mark(&bytes)?;
        ensure!(mark == ("text-1".into(), "alice".into()), "the mark says {mark:?}");
        Ok(())
    })?;
    let bad = world.enclave.console.find("WARNING:").or(world.enclave.console.find("BUG:"));
    ensure!(bad.is_none(), "{bad:?}");
    world.parent.sh("grep 'TLS handshake: client CN=tee-client' /tmp/service.log").context("no mTLS").map(drop)
}
