//! The parent, which stands in for the EC2 instance that an enclave runs on.
//!
//! It has socat, curl and jq, which the documents' commands use, and the development watermark service in place of the
//! real one. An agent in it runs shell scripts from this machine, so that a test or `run-vm` can do what an operator
//! does on an instance.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use teemark_image::ramdisk::{Entry, newc};

use crate::bus::{Bus, Dialer, PARENT_CID};
use crate::console::Console;
use crate::process::Process;
use crate::qemu::Machine;
use crate::{machine, parent_ramdisk};

/// The vsock port of the agent (parent/init).
const AGENT: u32 = 1024;
/// Memory in MiB; the unpacked programs take about 50.
const MEMORY: u32 = 256;
/// Longest wait for a script; each does little.
const SCRIPT: Duration = Duration::from_secs(180);

/// The running parent.
pub struct Parent {
    /// Its serial line.
    pub console: Console,
    dialer: Dialer,
    _process: Process,
}

/// What a script printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// The shell's exit status: 128 plus the signal's number if a signal ended it.
    pub status: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, without white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Returns the output, if the script succeeded.
    ///
    /// # Errors
    /// The script failed; the error has its status and output.
    pub fn success(self) -> Result<Output> {
        let said = String::from_utf8_lossy(&self.stderr);
        ensure!(self.status == 0, "exit status {} in the parent: {}{}", self.status, said.trim_end(), self.text());
        Ok(self)
    }
}

impl Parent {
    /// Boots the parent with this kernel and waits for its agent. `service` is the watermark service's program. The
    /// console is written to `parent.log` in `logs`, and to standard error if `shown`.
    ///
    /// # Errors
    /// Something is missing on this machine, or the parent does not boot.
    pub fn boot(bus: &Bus, kernel: &[u8], service: &Path, logs: &Path, shown: bool) -> Result<Parent> {
        Parent::boot_with(bus, kernel, "", service, logs, shown)
    }

    /// The same with these words on the kernel's command line too.
    ///
    /// # Errors
    /// The same.
    pub fn boot_with(
        bus: &Bus,
        kernel: &[u8],
        words: &str,
        service: &Path,
        logs: &Path,
        shown: bool,
    ) -> Result<Parent> {
        let (kernel_file, ramdisk) = (bus.folder().join("parent.kernel"), bus.folder().join("parent.ramdisk"));
        fs::write(&kernel_file, kernel)?;
        fs::write(&ramdisk, parent_ramdisk::make(service)?)?;
        // Nobody needs the kernel's own lines here, and a slow machine takes long to print them.
        let command_line = format!("panic=1 console=ttyS0 quiet {words}");
        let machine = Machine::Microvm { kernel: &kernel_file, ramdisk: &ramdisk, command_line: &command_line };
        let log = logs.join("parent.log");
        let (process, console, _) =
            machine::boot("parent", &machine, MEMORY.into(), &bus.device(PARENT_CID), &log, shown)?;
        let parent = Parent { console, dialer: bus.dialer(PARENT_CID), _process: process };
        parent.console.wait_for("[PARENT] up", machine::BOOT)?;
        let end = Instant::now() + machine::BOOT;
        while let Err(e) = parent.run("true") {
            ensure!(Instant::now() < end, "the parent's agent does not answer: {e:#}");
        }
        Ok(parent)
    }

    /// Runs a shell script.
    ///
    /// # Errors
    /// The agent cannot be reached, or did not answer in time. A script that fails is not an error here.
    pub fn run(&self, script: &str) -> Result<Output> {
        self.run_with(script, b"")
    }

    /// Runs a shell script with `input` as its standard input.
    ///
    /// # Errors
    /// As [`Parent::run`].
    pub fn run_with(&self, script: &str, input: &[u8]) -> Result<Output> {
        self.order(script, input).with_context(|| format!("in the parent: {script}"))
    }

    /// Runs a script that must succeed, and returns its standard output without white space at its end.
    ///
    /// # Errors
    /// As [`Parent::run`], and a status other than 0.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(script)?.success().with_context(|| script.to_owned())?;
        Ok(output.text())
    }

    /// Talks to the agent, by the protocol that parent/agent describes.
    fn order(&self, script: &str, input: &[u8]) -> Result<Output> {
        let mut stream = self.dialer.connect(AGENT, SCRIPT)?;
        stream.write_all(format!("{} {}\n", script.len(), input.len()).as_bytes())?;
        stream.write_all(script.as_bytes())?;
        stream.write_all(input)?;
        let mut answer = BufReader::new(stream);
        let mut head = String::new();
        answer.read_line(&mut head)?;
        let numbers: Vec<usize> = head.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [status, out, err] = numbers[..] else { bail!("the agent answered {head:?}") };
        let (mut stdout, mut stderr) = (vec![0; out], vec![0; err]);
        answer.read_exact(&mut stdout)?;
        answer.read_exact(&mut stderr)?;
        Ok(Output { status: i32::try_from(status)?, stdout, stderr })
    }

    /// Writes a file in the parent, and makes its folder if that is missing.
    ///
    /// # Errors
    /// As [`Parent::sh`].
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.run_with(&format!("mkdir -p \"$(dirname '{path}')\" && cat >'{path}'"), bytes)?.success()?;
        Ok(())
    }

    /// Puts files into the parent; their folders have to be among the entries.
    ///
    /// # Errors
    /// As [`Parent::sh`]; no archive can be made of the entries.
    pub fn unpack(&self, entries: &[Entry]) -> Result<()> {
        self.run_with("cd / && cpio -idu 2>&1", &newc(entries)?)?.success()?;
        Ok(())
    }

    /// Reads a file of the parent.
    ///
    /// # Errors
    /// As [`Parent::sh`].
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.run(&format!("cat '{path}'"))?.success()?.stdout)
    }

    /// Starts a command that keeps running, under a name of its own, and waits until it has printed a line that matches
    /// `sign`. Its output goes to /tmp/NAME.log.
    ///
    /// # Errors
    /// As [`Parent::sh`]; it did not print that within a minute.
    pub fn start(&self, name: &str, command: &str, sign: &str) -> Result<()> {
        // A session, and so a process group, of its own: what it forks is stopped with it.
        let run = format!("setsid sh /tmp/{name}.sh >/tmp/{name}.log 2>&1 </dev/null & echo $! >/tmp/{name}.pid");
        let wait = until(&format!("grep -q '{sign}' /tmp/{name}.log"), Duration::from_secs(60));
        let script = format!("cat >/tmp/{name}.sh\n{run}\n{wait} || {{ cat /tmp/{name}.log >&2; exit 1; }}");
        self.run_with(&script, format!("exec {command}\n").as_bytes())?.success().context(command.to_owned())?;
        Ok(())
    }

    /// Waits until a script succeeds.
    ///
    /// # Errors
    /// It did not within `limit`; as [`Parent::run`].
    pub fn wait_until(&self, script: &str, limit: Duration) -> Result<()> {
        let script = until(script, limit);
        self.run(&script)?.success().map(drop).context(script)
    }

    /// Ends a command that [`Parent::start`] started, and every process that it forked.
    ///
    /// # Errors
    /// As [`Parent::sh`]; the command does not run.
    pub fn stop(&self, name: &str) -> Result<()> {
        self.sh(&format!("kill -- -$(cat /tmp/{name}.pid)"))?;
        Ok(())
    }

    /// Connects from this machine to the parent's vsock ports.
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }
}

/// A script that waits until the given one succeeds, and fails if it does not within `limit`.
fn until(script: &str, limit: Duration) -> String {
    let tries = limit.as_millis() / 100;
    format!("n=0; until {script}; do n=$((n+1)); [ $n -lt {tries} ] || break; sleep 0.1; done; [ $n -lt {tries} ]")
}
