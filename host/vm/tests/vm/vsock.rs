//! The deadlock that image/kernel/patches is for: storms of connections and of resets, from both sides at once.
//!
//! The switch moves packets as Nitro does. `make vm-test UNPATCHED=1` runs this with a kernel that lacks the patches, on
//! both sides, and has to fail; UNPATCHED=parent takes it for the parent only, as on an instance, and has to pass.
//!
//! QEMU offers rings of 1,024 descriptors. `make vm-test RINGS=128`, or another power of two up to 1,024, runs this with a
//! kernel whose driver takes rings of that length on both sides (image/kernel/test-patches), also with UNPATCHED.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use teemark_vm::bus::Traffic;
use teemark_vm::{Bus, Console, Enclave, Entry, Image, Parent, operator, program, run, with_libraries};

use crate::debug::launcher_with;
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{World, logs};

/// Connections of a storm on each side, some twelve times the length of QEMU's rings.
const CONNECTIONS: u32 = 12_000;
/// Descriptors of a ring: what QEMU's virtio-mmio offers, and what RINGS may be.
const OFFERED: u16 = 1024;
const LENGTHS: RangeInclusive<u16> = 128..=OFFERED;
/// How many storms there are. Without the patch one of the first three is the last.
const ROUNDS: u32 = 5;
/// Where the program is in both machines.
const STORM: &str = "/usr/bin/vsock-storm";
/// Vsock is dead if both sides have failed to connect this often and no packet has moved in the meantime. Counted by the
/// machines, so it does not matter how slow they are.
const TRIES: usize = 15;
/// So many failures of the parent in one round are too many in any case.
const TOO_MANY: usize = 200;

/// The enclave is a debug image, whose run.sh starts the storm beside the daemon.
pub(crate) fn thousands_of_connections_at_once_from_both_sides_leave_the_vsock_alive(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let image = workshop.debug()?;
    let [of_parent, of_enclave] = kernels()?;
    let (parents, enclaves) = stage.step(&format!("the kernels: {of_parent}; {of_enclave}"), || {
        Ok((of_parent.bytes(image)?, of_enclave.bytes(image)?))
    })?;
    let storm = program("vsock-storm")?;
    let mut files = with_libraries(&storm, STORM)?;
    // The enclave asks for a port that nobody listens on: each connection is reset by the parent.
    let begin = format!("{STORM} 3 {CONNECTIONS} {ROUNDS} 9 >/dev/console 2>&1 &");
    files.push(launcher_with(&begin)?);
    let image = image.with_files(&files)?.with_kernel(enclaves);
    let image = image.with_command_line(&format!("{} {}", image.command_line(), of_enclave.words()));

    let (bus, logs) = (Bus::start()?, logs()?);
    let parent = stage.step("a parent boots, with the service behind a proxy", || {
        let parent =
            Parent::boot_with(&bus, &parents, &of_parent.words(), &program("watermark-service")?, &logs, false)?;
        stage.watch(&parent.console);
        operator::set_up(&parent, workshop.certs()?, &operator::OF_OPERATOR)?;
        parent.unpack(&[Entry::directory("/usr", 0o755), Entry::directory("/usr/bin", 0o755)])?;
        parent.put(STORM, &fs::read(&storm)?)?;
        parent.sh(&format!("chmod 755 {STORM}")).map(drop)?;
        Ok(parent)
    })?;
    let enclave = Enclave::boot(&bus, &image, 256, &logs, false)?;
    stage.watch(&enclave.console);
    let world = World { enclave, parent, bus, logs };
    world.enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    let (rings, length) = (world.bus.traffic().rings, of_parent.rings.unwrap_or(OFFERED));
    ensure!(rings.len() == 2 && rings.values().all(|ring| *ring == length), "not {length} descriptors: {rings:?}");
    // The parent asks in turn for a port that nobody listens on, and for the daemon, and hangs up on its answers.
    world.parent.sh(&format!("setsid {STORM} 16 {CONNECTIONS} {ROUNDS} 9 3000 </dev/null >/dev/console 2>&1 &"))?;
    for round in 1..=ROUNDS {
        let (connections, round) = (2 * CONNECTIONS, format!("round {round}: alive"));
        stage.step(
            &format!("{round} after {connections} connections at once, and a client is served meanwhile and then"),
            || {
                [&world.parent.console, &world.enclave.console]
                    .iter()
                    .try_for_each(|console| wait(&world, console, &round))
            },
        )?;
    }
    stage.figure(&format!("{} packets were moved between the two", world.bus.traffic().moved));
    stage.step("a file is served through expose.sh, as before", || {
        world.parent.put("/tmp/file.enc", &workshop.encrypt(b"After the storm.\n")?)?;
        world.decrypt("/tmp/file.enc", "storm-1", "alice")?.with(200).map(drop)
    })
}

/// One of the two machines' kernel.
struct Kernel {
    name: &'static str,
    patched: bool,
    /// The descriptors that its driver takes for a ring; none if as many as the device offers.
    rings: Option<u16>,
}

/// The kernels of parent and enclave, as UNPATCHED and RINGS have them.
fn kernels() -> Result<[Kernel; 2]> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let unpatched = variable("UNPATCHED");
    let [parent, enclave] = match unpatched.as_str() {
        "" => [true, true],
        "1" => [false, false],
        "parent" => [false, true],
        other => bail!("UNPATCHED={other}: neither 1 nor parent"),
    };
    let rings = match variable("RINGS").as_str() {
        "" => None,
        given => {
            let length = given.parse().ok().filter(|length: &u16| length.is_power_of_two() && LENGTHS.contains(length));
            Some(length.with_context(|| format!("RINGS={given}: not a power of two from 128 to 1024"))?)
        }
    };
    let kernel = |name, patched| Kernel { name, patched, rings };
    Ok([kernel("the parent's", parent), kernel("the enclave's", enclave)])
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kernel { name, patched, rings } = self;
        let with = if *patched { "with" } else { "without" };
        write!(f, "{name} {with} the patches, rings of {}", rings.unwrap_or(OFFERED))
    }
}

impl Kernel {
    /// What its command line has in addition.
    fn words(&self) -> String {
        self.rings.map(|rings| format!("virtio_mmio.max_ring={rings}")).unwrap_or_default()
    }

    /// The image's own kernel if that will do; otherwise another one is built.
    fn bytes(&self, image: &Image) -> Result<Vec<u8>> {
        let mut options = Vec::new();
        if !self.patched {
            options.push("--unpatched");
        }
        if self.rings.is_some() {
            options.push("--shorter-rings");
        }
        if options.is_empty() { Ok(image.kernel().to_owned()) } else { built(&options) }
    }
}

fn built(options: &[&str]) -> Result<Vec<u8>> {
    let build = teemark_vm::repository().join("image/kernel/build.sh");
    let folder = run(Command::new(build).args(options))?;
    let folder = String::from_utf8(folder)?;
    let file = Path::new(OsStr::new(folder.trim())).join("bzImage");
    fs::read(&file).with_context(|| file.display().to_string())
}

/// How often each machine has failed to reach the other, and what has moved meanwhile.
struct Seen {
    failures: [usize; 2],
    traffic: Traffic,
}

fn look(world: &World) -> Seen {
    let failures =
        |console: &Console| console.lines().iter().filter(|line| line.text.contains("[STORM] waiting")).count();
    let failures = [&world.parent.console, &world.enclave.console].map(failures);
    Seen { failures, traffic: world.bus.traffic() }
}

/// Waits for a line for as long as packets move.
fn wait(world: &World, console: &Console, text: &str) -> Result<()> {
    let begin = look(world);
    let mut before = look(world);
    while console.wait_for(text, Duration::from_millis(200)).is_err() {
        ensure!(console.wait_for_end(Duration::ZERO).is_err(), "the {} has ended", console.name());
        let now = look(world);
        ensure!(now.failures[0] < begin.failures[0] + TOO_MANY, "packets move, but nobody is served");
        if now.traffic.moved != before.traffic.moved {
            before = now;
        } else if (0..2).all(|side| now.failures[side] >= before.failures[side] + TRIES) {
            bail!(
                "vsock is dead: each side has failed {TRIES} times to connect, and no packet has moved. Packets that wait \
                 in the TX ring for the other's RX ring, by CID: {:?}",
                now.traffic.held
            );
        }
    }
    Ok(())
}
