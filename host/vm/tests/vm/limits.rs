//! An enclave of the size that host/deploy starts.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use teemark_vm::{Bus, Enclave, Parent, Service, forward, operator, program, run};

use crate::outside::{Outside, User};
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, World, logs};

/// ENCLAVE_MEMORY's default, in MiB.
fn memory() -> Result<u32> {
    let script = include_str!("../../../deploy/run-enclave.sh");
    let (_, rest) = script.split_once("${ENCLAVE_MEMORY:-").context("no ENCLAVE_MEMORY in run-enclave.sh")?;
    Ok(rest.split_once('}').context("no end of it")?.0.parse()?)
}

/// Alone, so that only the memory of an enclave without requests is in use. src/api/limits.rs has the sum that this checks.
pub(crate) fn an_enclave_of_the_shipped_size_has_room_for_a_file_of_the_largest_size(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let (bus, memory) = (Bus::start()?, memory()?);
    let enclave = Enclave::boot(&bus, workshop.ordinary()?, memory, &logs()?, false)?;
    stage.watch(&enclave.console);
    stage.step(&format!("with {memory} MiB a file of TEEMARK_MAX_FILE fits by both routes"), || {
        enclave.console.wait_for("secrets: listening on vsock:7777", teemark_vm::BOOT)?;
        let (status, body) = enclave.get(3001, "/admin/status")?;
        ensure!(status == 200, "/admin/status: {status} {body}");
        let limits = serde_json::from_str::<Value>(&body)?["limits"].take();
        let bytes = |limit: &Value| limit.as_u64().with_context(|| format!("no number in {limits}"));
        let requests = bytes(&limits["memory_bytes"])?;
        #[expect(clippy::cast_precision_loss, reason = "it is printed with one decimal")]
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        // TEEMARK_MEMORY's default is four fifths of what is available but for 16 MiB.
        let available = requests / 4 * 5 + (16 << 20);
        stage.figure(&format!("{:.1} MiB available at the start, {:.1} for requests", mib(available), mib(requests)));
        for route in ["raw", "json"] {
            let largest = bytes(&limits["largest_file_bytes"][route])?;
            ensure!(
                largest == bytes(&limits["max_file_bytes"])?,
                "by the route {route} only {largest} bytes: {limits}"
            );
        }
        let taken = f64::from(memory) - mib(available);
        ensure!(taken <= 48.0, "{taken:.1} MiB are taken, more than src/api/limits.rs supposes (NOT_AVAILABLE)");
        Ok(())
    })
}

/// Settings other than the shipped ones. Under TCG the call takes longer than an operator would want to wait.
const SETTINGS: &str = "TEEMARK_MAX_FILE=200MiB\nTEEMARK_TIMEOUT=1200s\n";
/// Bytes of the file: all that these settings allow.
const LARGE: usize = 200 << 20;

/// All of the way is real but for the service's place: the user's request through the parent, the enclave's call through
/// the parent's proxy, and the answer sealed to the user. The watermark service runs on this machine, since it takes
/// several times the file in memory.
pub(crate) fn a_file_of_200_mib_goes_through_an_enclave_of_the_shipped_size(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let (memory, image) = (memory()?, workshop.sealed_with("large", SETTINGS)?);
    let (bus, logs, certs) = (Bus::start()?, logs()?, workshop.certs()?);
    // JSON with each line's end as two characters, and the marks.
    let service = Service::start(certs, "256MiB", &logs)?;
    let parent = stage.step("a parent boots, with a proxy to the service on this machine", || {
        let parent = Parent::boot(&bus, image.kernel(), &program("watermark-service")?, &logs, false)?;
        stage.watch(&parent.console);
        operator::answer_heartbeat(&parent)?;
        forward::backward(&bus, 8080, service.address)?;
        operator::start_proxy_to(&parent, "VSOCK-CONNECT:2:8080")?;
        operator::install_deployment(&parent)?;
        operator::expose(&parent)?;
        operator::forward(&parent, 3000, "VSOCK-CONNECT:16:3000")?;
        Ok(parent)
    })?;
    let enclave = Enclave::boot(&bus, &image, memory, &logs, false)?;
    stage.watch(&enclave.console);
    let world = World { enclave, parent, bus, logs };
    world.wait_for_listeners()?;
    let (outside, user) = (Outside::new(workshop, &world, &image, 3000)?, User::new(workshop)?);
    stage.step("the operator's sealed bundle makes the enclave ready", || {
        let answer = world.handshake(&outside.seal(1)?)?;
        ensure!(answer["ok"] == true, "{answer}");
        world.get("/ready")?.with(200).map(drop)
    })?;
    stage.step(&format!("with {memory} MiB it has room for 200 MiB by both routes, and refuses more"), || {
        let limits = world.curl("http://127.0.0.1:3001/admin/status")?.with(200)?.json()?["limits"].take();
        ensure!(limits["largest_file_bytes"] == json!({"raw": LARGE, "json": LARGE}), "{limits}");
        for path in ["/files/large-1/decrypt?user_id=alice", "/files/decrypt"] {
            let announced = "-X POST -H 'Content-Length: 400000000'";
            let answer = world.curl(&format!("{announced} 'http://127.0.0.1:3000{path}'"))?.with(413)?.text();
            ensure!(answer.contains(&format!("{LARGE} bytes (TEEMARK_MAX_FILE)")), "{answer}");
        }
        Ok(())
    })?;

    let text = text();
    let grant = stage.step("a text of 200 MiB is encrypted, and its user gets a grant", || {
        fs::write(outside.encrypted(), workshop.encrypt(&text)?)?;
        outside.grant("large-1", "alice", &user.reply_key)
    })?;
    let marked = workshop.path("large.marked");
    stage.step("the user gets the marked file, sealed to their key and signed by the attested enclave", || {
        let mut decrypt = outside.decrypt("large-1", "alice", &grant, &marked);
        run(decrypt.args(["--timeout", "1200"]).arg("--reply-key").arg(&user.key)).map(drop)
    })?;
    stage.step("it is the text with the user's mark, and else as it was", || {
        let marked = fs::read(&marked)?;
        let mark = workshop.mark(&marked)?;
        ensure!(mark == ("large-1".into(), "alice".into()), "the mark says {mark:?}");
        // The text is ASCII, and marks are not.
        let unmarked: Vec<u8> = marked.iter().copied().filter(u8::is_ascii).collect();
        ensure!(marked.len() > LARGE && unmarked == text, "another text: {} bytes", marked.len());
        Ok(())
    })?;
    stage.step("nobody was killed for want of memory, and all of it is free again", || {
        let killed = world.enclave.console.find("Out of memory");
        ensure!(killed.is_none(), "{killed:?}");
        // An answer's memory comes back a moment after its last byte.
        let end = Instant::now() + SOON;
        loop {
            let status = world.curl("http://127.0.0.1:3001/admin/status")?.with(200)?.json()?;
            if status["memory_left_bytes"] == status["limits"]["memory_bytes"] {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{status}");
        }
    })
}

/// A text of the largest size, in lines of 64 characters that all differ.
fn text() -> Vec<u8> {
    (0..LARGE / 64).flat_map(|i| format!("{i:063}\n").into_bytes()).collect()
}
