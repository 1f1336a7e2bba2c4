//! Enclaves of several sizes: each boots, takes its secrets, and has a file marked. One more, for Graviton, with two
//! processors and 512 MiB, is the scenario `graviton`.

use std::fs;

use anyhow::{Context, Result, ensure};
use teemark_vm::{Image, Shape, operator, run};

use crate::outside::{Outside, User};
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, World};

const MIB: u64 = 1 << 20;

pub(crate) fn small_signed_and_large_enclaves_take_their_secrets_and_serve(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let (image, signed) = (workshop.sealed()?, workshop.signed()?);
    let shape = |processors, memory: u32| Shape { processors, ..memory.into() };
    let mut world = World::with(stage, workshop, image, shape(1, 64), &operator::OF_SERVICE)?;
    operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
    serves(stage, workshop, &world, image, shape(1, 64))?;
    for (image, shape) in [(&signed, shape(2, 512)), (image, shape(8, 4096))] {
        world.reboot(stage, image, shape, operator::answer_heartbeat)?;
        serves(stage, workshop, &world, image, shape)?;
    }
    Ok(())
}

/// An enclave of this shape, which is still booting, takes its secrets and serves. The parent's vsock port 3000 leads to it.
pub(crate) fn serves(stage: &Stage, workshop: &Workshop, world: &World, image: &Image, shape: Shape) -> Result<()> {
    let Shape { processors, memory, .. } = shape;
    let plural = if processors == 1 { "" } else { "s" };
    stage.step(&format!("with {memory} MiB and {processors} processor{plural}: all of it is found"), || {
        world.wait_for_listeners()?;
        world.enclave.console.wait_for(&format!("Brought up 1 node, {processors} CPU{plural}"), SOON)?;
        budget(stage, world, memory)
    })?;
    let outside = Outside::new(workshop, world, image, 3000)?;
    stage.step("the operator's sealed bundle is relayed, and the enclave is ready", || {
        let answer = world.handshake(&outside.seal(1)?)?;
        ensure!(answer["ok"] == true, "{answer}");
        world.get("/ready")?.with(200).map(drop)
    })?;
    stage.step("a user gets the marked file, sealed to their key and signed by the enclave", || {
        let text = fs::read(teemark_vm::repository().join("LICENSE"))?;
        fs::write(outside.encrypted(), workshop.encrypt(&text)?)?;
        let (user, marked) = (User::new(workshop)?, workshop.path("matrix.marked"));
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

/// The daemon's default for TEEMARK_MEMORY is what it makes of the memory that is left beside kernel, ramdisks and itself.
fn budget(stage: &Stage, world: &World, memory: u32) -> Result<()> {
    let status = world.curl("http://127.0.0.1:3001/admin/status")?.with(200)?.json()?;
    let given = status["limits"]["memory_bytes"].as_u64().with_context(|| format!("no memory in {status}"))?;
    // NOT_AVAILABLE in src/api/limits.rs, and at most a sixteenth for what grows with the memory: the kernel's account of
    // its pages, a 64th; its reserves; and from 4 GiB on its 64 MiB of bounce buffers (swiotlb).
    let memory = u64::from(memory) * MIB;
    let left = memory.saturating_sub(48 * MIB + memory / 16);
    // memory_for_requests in src/settings.rs.
    let of = |available: u64| available.saturating_sub(16 * MIB).max(available / 2) / 5 * 4;
    stage.figure(&format!("TEEMARK_MEMORY's default: {given} bytes, {} MiB", given / MIB));
    ensure!((of(left)..of(memory)).contains(&given), "not between {} and {}", of(left), of(memory));
    Ok(())
}
