//! An enclave of the size that host/deploy starts.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use teemark_vm::{Bus, Enclave};

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::logs;

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
