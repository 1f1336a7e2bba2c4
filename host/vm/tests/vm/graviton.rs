//! The image for Graviton, booted on QEMU's machine `virt`. docs/IMAGE.md tells in what that differs from an instance.

use std::time::Duration;

use anyhow::{Result, ensure};
use teemark_vm::{Bus, Enclave, Shape, operator};

use crate::failures::fails;
use crate::handshake::heartbeat;
use crate::matrix;
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
    operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
    matrix::serves(stage, workshop, &world, &image, shape)?;
    stage.step("its clock is that of the PL031", || {
        let set = "rtc-pl031 9010000.pl031: setting system clock to 2";
        world.enclave.console.wait_for(set, Duration::ZERO).map(drop)
    })
}
