//! The log's way out: over vsock port 9001 to the relay on the parent, and on to a collector.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::World;

/// Requests whose decisions are to be in the collector's files.
const REQUESTS: usize = 2000;
/// Further ones whose file is given.
const GIVEN: usize = 20;
/// Longest wait for the last of them, on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

pub(crate) fn every_record_comes_out_over_vsock_and_verifies(stage: &Stage, workshop: &Workshop) -> Result<()> {
    let world = World::boot(stage, workshop, workshop.baked()?, 128)?;
    world.enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    let parent = &world.parent;
    stage.step("what the enclave wrote before there was a relay comes out once there is one", || {
        // Here the collector is on the parent too, where it must not be; that is not what this is about.
        parent.sh("teemark keygen --for collector --output /tmp/collector.key >/tmp/collector.pub")?;
        let collect = "teemark log collect --listen tcp:127.0.0.1:9002 --into /tmp/logs --key /tmp/collector.key";
        parent.start("collect", collect, "keeps records in")?;
        parent.start("relay", "teemark log relay --to tcp:127.0.0.1:9002", "leads to")?;
        parent.wait_until("grep -qs 'teemarkd::boot: ready' /tmp/logs/*/*.log", SOON)?;
        // The lines of PID 1 too, which in production no console shows.
        parent.sh("grep -q ' init \\[INIT\\] .*starting /teemarkd' /tmp/logs/*/*.log").map(drop)
    })?;
    stage.step(&format!("each decision of {REQUESTS} requests is in the collector's files"), || {
        parent.put("/tmp/broken", b"x")?;
        let url = format!("http://127.0.0.1:3000/files/f-[1-{REQUESTS}]/decrypt?user_id=alice");
        parent.sh(&format!("curl -sS -o /dev/null --data-binary @/tmp/broken '{url}'"))?;
        // Some more, whose file is given.
        parent.put("/tmp/file.enc", &workshop.encrypt(b"A file that is given.\n")?)?;
        for n in 1..=GIVEN {
            world.decrypt("/tmp/file.enc", &format!("g-{n}"), "alice")?.with(200)?;
        }
        let found = "grep -h ' audit ' /tmp/logs/*/*.log | grep -o '\"file_id\":\"f-[0-9]*\"' | sort -u | wc -l";
        parent.wait_until(&format!("[ $({found}) = {REQUESTS} ]"), SOON)?;
        let given =
            "grep -h '\"event\":\"given\"' /tmp/logs/*/*.log | grep -o '\"file_id\":\"g-[0-9]*\"' | sort -u | wc -l";
        parent.wait_until(&format!("[ $({given}) = {GIVEN} ]"), SOON)?;
        ensure!(world.metric("teemark_log_lines_dropped_total")? == 0.0, "records were dropped");
        Ok(())
    })?;
    stage.step("and all of it verifies under the enclave's identity key, up to its last checkpoint", || {
        let health: Value = serde_json::from_slice(&world.get("/health_check")?.with(200)?.body)?;
        let identity = health["pk"].as_str().context("no pk")?.to_owned();
        let told = parent.sh(&format!("teemark log verify /tmp/logs --identity {identity}"))?;
        ensure!(told.contains("proven up to record") && told.contains("identity known by --identity"), "{told}");
        ensure!(!told.contains("dropped"), "{told}");
        Ok(())
    })?;
    stage.step("a relay that was away for a while loses nothing", || {
        parent.stop("relay")?;
        parent.sh(
            "curl -sS -o /dev/null --data-binary @/tmp/broken 'http://127.0.0.1:3000/files/late/decrypt?user_id=alice'",
        )?;
        parent.start("relay", "teemark log relay --to tcp:127.0.0.1:9002", "leads to")?;
        parent.wait_until("grep -qs '\"file_id\":\"late\"' /tmp/logs/*/*.log", SOON)?;
        let health: Value = serde_json::from_slice(&world.get("/health_check")?.with(200)?.body)?;
        let identity = health["pk"].as_str().context("no pk")?.to_owned();
        parent.sh(&format!("teemark log verify /tmp/logs --identity {identity}")).map(drop)
    })
}
