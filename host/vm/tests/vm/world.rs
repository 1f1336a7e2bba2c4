//! A parent with everything that an operator has on it, and an enclave beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use teemark_image::arch::Arch;
use teemark_vm::{Bus, Enclave, Image, Parent, Shape, operator, parent::Output, program};

use crate::stage::Stage;
use crate::workshop::Workshop;

/// Longest wait, on a loaded machine, for what usually takes a second or two.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Dropped in this order: the enclave, the parent, then what connects them.
pub(crate) struct World {
    pub(crate) enclave: Enclave,
    pub(crate) parent: Parent,
    pub(crate) bus: Bus,
    /// Where the consoles are written.
    pub(crate) logs: PathBuf,
}

impl World {
    /// Boots both: service, proxy, expose and heartbeat are up on the parent before the enclave starts.
    pub(crate) fn boot(stage: &Stage, workshop: &Workshop, image: &Image, shape: impl Into<Shape>) -> Result<World> {
        World::with(stage, workshop, image, shape, &operator::OF_OPERATOR)
    }

    /// The same with only these certificates on the parent; all that the enclave sends and receives is recorded.
    pub(crate) fn with(
        stage: &Stage,
        workshop: &Workshop,
        image: &Image,
        shape: impl Into<Shape>,
        on_parent: &[&str],
    ) -> Result<World> {
        World::logging_to(logs()?, stage, workshop, image, shape, on_parent)
    }

    /// Another world beside the first.
    pub(crate) fn second(stage: &Stage, workshop: &Workshop, image: &Image, shape: impl Into<Shape>) -> Result<World> {
        let logs = logs()?.join("second");
        std::fs::create_dir_all(&logs)?;
        World::logging_to(logs, stage, workshop, image, shape, &operator::OF_SERVICE)
    }

    fn logging_to(
        logs: PathBuf,
        stage: &Stage,
        workshop: &Workshop,
        image: &Image,
        shape: impl Into<Shape>,
        on_parent: &[&str],
    ) -> Result<World> {
        let (bus, certs) = (Bus::start()?, workshop.certs()?);
        bus.listen_in();
        // The parent is an x86-64 machine in any case.
        let kernel = match image.arch() {
            Arch::X86_64 => image.kernel(),
            Arch::Aarch64 => workshop.ordinary()?.kernel(),
        };
        let parent = stage.step("a parent boots, with socat, curl and jq, and the service behind a proxy", || {
            let parent = Parent::boot(&bus, kernel, &program("watermark-service")?, &logs, false)?;
            stage.watch(&parent.console);
            operator::set_up(&parent, certs, on_parent)?;
            Ok(parent)
        })?;
        let enclave = Enclave::boot(&bus, image, shape, &logs, false)?;
        stage.watch(&enclave.console);
        Ok(World { enclave, parent, bus, logs })
    }

    /// Starts the enclave again, from this image, with a parent that answers the heartbeat so.
    pub(crate) fn reboot(
        &mut self,
        stage: &Stage,
        image: &Image,
        shape: impl Into<Shape>,
        answer: fn(&Parent) -> Result<()>,
    ) -> Result<()> {
        self.enclave.terminate()?;
        // The listener is still there if no enclave has connected to it yet.
        let _ = self.parent.stop("heartbeat");
        answer(&self.parent)?;
        self.enclave = Enclave::boot(&self.bus, image, shape, &self.logs, false)?;
        stage.watch(&self.enclave.console);
        Ok(())
    }

    /// Whether a hostile parent has seen these bytes on the way, in one piece.
    pub(crate) fn was_seen(&self, bytes: &[u8]) -> bool {
        self.bus.heard().iter().any(|stream| holds(stream, bytes))
    }

    /// Waits until the daemon has started.
    pub(crate) fn wait_for_listeners(&self) -> Result<()> {
        self.enclave.console.wait_for("secrets: listening on vsock:7777", teemark_vm::BOOT).map(drop)
    }

    /// What curl in the parent gets; `arguments` are for the shell.
    pub(crate) fn curl(&self, arguments: &str) -> Result<Answer> {
        let curl = format!("curl -sS --max-time 120 -w '%{{stderr}}%{{http_code}}' {arguments}");
        // There is no answer (52, 55, 56) if connecting to the enclave took longer than vsock's two seconds.
        let no_answer = |output: &Output| [52, 55, 56].contains(&output.status);
        let output = tried(|| self.parent.run(&curl), no_answer)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status == 0, "curl {arguments}: exit status {}: {said}", output.status);
        Ok(Answer { status: said.trim().parse().with_context(|| said.to_string())?, body: output.stdout })
    }

    /// A GET request's answer at the public port.
    pub(crate) fn get(&self, path: &str) -> Result<Answer> {
        self.curl(&format!("http://127.0.0.1:3000{path}"))
    }

    /// Has a file of the parent decrypted by the raw route.
    pub(crate) fn decrypt(&self, file: &str, file_id: &str, user_id: &str) -> Result<Answer> {
        let url = format!("http://127.0.0.1:3000/files/{file_id}/decrypt?user_id={user_id}");
        self.curl(&format!("--data-binary @{file} '{url}'"))
    }

    /// Sends bytes to the handshake with socat, waits for the answer and returns it.
    pub(crate) fn handshake(&self, bundle: &[u8]) -> Result<Value> {
        let output = self.relay("socat -t 30 - VSOCK-CONNECT:16:7777", bundle)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("the handshake's answer: {output:?}"))
    }

    /// Runs a script in the parent that connects to the enclave, and again if that took longer than vsock's two seconds.
    pub(crate) fn relay(&self, script: &str, input: &[u8]) -> Result<Output> {
        let timed_out = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("Connection timed out");
        tried(|| self.parent.run_with(script, input), timed_out)
    }

    /// The value of the metric whose line begins with this; 0 if there is none.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = self.curl("http://127.0.0.1:3001/metrics")?.with(200)?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(Ok(0.0), |value| value.parse().context(name.to_owned()))
    }
}

/// Runs it up to three times, until the result cannot be explained by a busy machine.
fn tried(act: impl Fn() -> Result<Output>, again: impl Fn(&Output) -> bool) -> Result<Output> {
    for _ in 0..2 {
        let output = act()?;
        if !again(&output) {
            return Ok(output);
        }
    }
    act()
}

/// Whether `bytes` contains `part`.
pub(crate) fn holds(bytes: &[u8], part: &[u8]) -> bool {
    let first = part[0];
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
    starts.map(|(at, _)| &bytes[at..]).any(|rest| rest.starts_with(part))
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }

    /// Returns the answer, if it has this status.
    pub(crate) fn with(self, status: u16) -> Result<Answer> {
        ensure!(self.status == status, "status {} and not {status}: {}", self.status, self.text());
        Ok(self)
    }
}

/// Where the consoles' logs of the last scenario are kept.
pub(crate) fn logs() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
