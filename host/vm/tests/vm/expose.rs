//! The parent's way in: `teemark expose`, and a socat process for each connection where teemark is not installed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use teemark_vm::operator;

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::World;

/// Bytes of each file.
const FILE: usize = 1 << 20;
/// Files through each of the two, one connection each.
const FILES: usize = 8;

pub(crate) fn clients_are_served_through_teemark_expose_and_through_socat(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let mut world = World::boot(stage, workshop, workshop.baked()?, 128)?;
    world.enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    world.parent.put("/tmp/file.enc", &workshop.encrypt(&vec![b'x'; FILE])?)?;
    let by_teemark = stage.step(&format!("{FILES} files of 1 MiB are served through teemark expose"), || {
        let cpu = served(&world, workshop, "teemark")?;
        let threads = world.parent.sh("ls /proc/$(pidof teemark)/task | wc -l")?;
        // The loop's, and the one that waits for a signal.
        ensure!(threads == "2", "{threads} threads");
        Ok(cpu)
    })?;
    stage.step("a client that has ended its sending side gets its answer", || {
        let asked = r"printf 'GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'";
        let answer = world.parent.sh(&format!("{asked} | socat -t 60 - TCP:127.0.0.1:3000"))?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(())
    })?;
    let by_socat = stage.step("the same files are served through socat where teemark is not installed", || {
        world.parent.stop("expose")?;
        world.parent.wait_until("! pidof teemark", Duration::from_secs(60))?;
        world.parent.sh("mv /usr/bin/teemark /usr/bin/teemark.away")?;
        operator::expose(&world.parent)?;
        served(&world, workshop, "socat")
    })?;
    stage.figure(&format!("CPU of the parent's forwarder: teemark expose {by_teemark} ms, socat {by_socat} ms"));
    stage.step("with the enclave gone, a client is hung up on, and the next one too", || {
        world.parent.stop("expose")?;
        world.parent.sh("mv /usr/bin/teemark.away /usr/bin/teemark")?;
        world.parent.wait_until("! netstat -lnt | grep -q ':3000 '", Duration::from_secs(60))?;
        operator::expose(&world.parent)?;
        world.enclave.terminate()?;
        for _ in 0..2 {
            let output = world.parent.run("curl -sS --max-time 60 http://127.0.0.1:3000/ready")?;
            // 52: an empty answer; 56: a reset.
            ensure!([52, 56].contains(&output.status), "curl ended with {}", output.status);
        }
        world.parent.sh("grep 'vsock:16:3000 cannot be reached' /tmp/expose.log").map(drop)
    })
}

/// Sends the files, and returns the CPU time of the forwarder's processes in ms.
fn served(world: &World, workshop: &Workshop, forwarder: &str) -> Result<u64> {
    let before = cpu(world, forwarder)?;
    for i in 0..FILES {
        let id = format!("{forwarder}-{i}");
        let marked = world.decrypt("/tmp/file.enc", &id, "alice")?.with(200)?.body;
        ensure!(workshop.mark(&marked)?.0 == id, "another mark");
    }
    Ok(cpu(world, forwarder)? - before)
}

/// User and system time of expose.sh's processes of this name, with that of their children that have ended
/// (proc_pid_stat(5)): sid, and utime to cstime, of 10 ms each.
fn cpu(world: &World, name: &str) -> Result<u64> {
    let fields = r#"{ t += $14 + $15 + $16 + $17 } END { print t * 10 }"#;
    let script =
        format!("sid=$(cat /tmp/expose.pid); awk '$6 == '$sid' && $2 == \"({name})\" {fields}' /proc/[0-9]*/stat");
    world.parent.sh(&script)?.parse().context(script)
}
