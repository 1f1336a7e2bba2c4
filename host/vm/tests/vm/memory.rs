//! The smallest enclave: 64 MiB for everything, kernel and ramdisks included.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use teemark_vm::Enclave;

use crate::debug::{type_in, with_shell};
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::World;

/// Bytes of each file.
const FILE: usize = 1 << 20;
/// How many files are sent one after the other, and then at once.
const IN_TURN: usize = 4;
const AT_ONCE: usize = 8;

/// Uses the debug image, so that /proc can be read. It needs 2 MiB more than the ordinary one, for its shell.
pub(crate) fn with_64_mib_of_memory_files_of_1_mib_are_served(stage: &Stage, workshop: &Workshop) -> Result<()> {
    let mut world = World::boot(stage, workshop, &with_shell(workshop.debug()?)?, 64)?;
    world.enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    let line = "Every line of this text is like the one before it, and all of them make up one mebibyte.\n";
    let text: Vec<u8> = line.bytes().cycle().take(FILE).collect();
    world.parent.put("/tmp/file.enc", &workshop.encrypt(&text)?)?;
    let idle = figures(&mut world.enclave)?;

    stage.step(&format!("{IN_TURN} files of 1 MiB are served one after the other"), || {
        for i in 0..IN_TURN {
            let marked = world.decrypt("/tmp/file.enc", &format!("turn-{i}"), "alice")?.with(200)?.body;
            ensure!(workshop.mark(&marked)?.0 == format!("turn-{i}"), "another mark");
        }
        Ok(())
    })?;
    stage.step(&format!("{AT_ONCE} at once are served, those turned away at first when they try again"), || {
        at_once(stage, workshop, &world)
    })?;
    stage.step("nobody was killed for want of memory", || {
        let used = figures(&mut world.enclave)?;
        let killed = world.enclave.console.find("Out of memory");
        ensure!(killed.is_none(), "{killed:?}");
        stage.figure(&format!("idle:       {}", idle.tell()));
        stage.figure(&format!("afterwards: {}", used.tell()));
        let admission = world.metric("teemark_memory_left_bytes")? / f64::from(1 << 20);
        stage.figure(&format!("the daemon's requests may hold {admission:.1} MiB together (TEEMARK_MEMORY's default)"));
        Ok(())
    })
}

/// curl's own --retry waits as long as Retry-After says.
fn at_once(stage: &Stage, workshop: &Workshop, world: &World) -> Result<()> {
    let start = Instant::now();
    let curl = "curl -sf --retry 30 --retry-all-errors --max-time 60 --data-binary @/tmp/file.enc -o /tmp/once-$i";
    let url = "http://127.0.0.1:3000/files/once-$i/decrypt?user_id=alice";
    let all = format!("for i in $(seq {AT_ONCE}); do {curl} \"{url}\" & done; wait");
    world.parent.sh(&all)?;
    for i in 1..=AT_ONCE {
        let marked = world.parent.get(&format!("/tmp/once-{i}"))?;
        ensure!(workshop.mark(&marked)?.0 == format!("once-{i}"), "another mark");
    }
    let refused = world.metric("teemark_requests_total{route=\"decrypt_raw\",code=\"503\"}")?;
    stage.figure(&format!("in {:.1} s, with {refused} answers 503 in between", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Memory according to /proc, in KiB.
struct Figures {
    total: u64,
    available: u64,
    resident: u64,
    most_resident: u64,
}

fn figures(enclave: &mut Enclave) -> Result<Figures> {
    let status = "/proc/$(ps | sed -n 's|^ *\\([0-9]*\\) .* /teemarkd$|\\1|p')/status";
    let lines =
        type_in(enclave, &format!("grep -h -E '^(MemTotal|MemAvailable|VmRSS|VmHWM):' /proc/meminfo {status}"))?;
    let figure = |name: &str| -> Result<u64> {
        let line = lines.iter().find_map(|line| line.text.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
        number.with_context(|| format!("no {name} in {lines:?}"))
    };
    Ok(Figures {
        total: figure("MemTotal")?,
        available: figure("MemAvailable")?,
        resident: figure("VmRSS")?,
        most_resident: figure("VmHWM")?,
    })
}

impl Figures {
    fn tell(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "it is printed with one decimal")]
        let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
        let (total, available) = (mib(self.total), mib(self.available));
        let (resident, most) = (mib(self.resident), mib(self.most_resident));
        format!("{available} of {total} available; teemarkd holds {resident}, at most {most} so far")
    }
}
