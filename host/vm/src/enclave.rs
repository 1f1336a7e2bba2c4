//! The enclave, booted from its image.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use teemark_image::arch::Arch;

use crate::bus::{Bus, Dialer, ENCLAVE_CID};
use crate::console::Console;
use crate::image::Image;
use crate::machine;
use crate::process::Process;
use crate::qemu::{self, Machine};
use crate::shape::Shape;

/// The running enclave.
pub struct Enclave {
    /// Its serial line.
    pub console: Console,
    dialer: Dialer,
    process: Process,
    keyboard: ChildStdin,
}

impl Enclave {
    /// Boots the image on a machine of this shape; a number alone is MiB of memory. An image for aarch64 boots on `virt`,
    /// taken apart. An unchanged EIF for x86-64 boots on the machine `nitro-enclave`, if QEMU_NITRO names a QEMU that has
    /// it; otherwise its kernel, command line and ramdisks boot on `microvm`. The console is written to `enclave.log` in
    /// `logs`, and to standard error if `shown`.
    ///
    /// # Errors
    /// The image cannot be read, or QEMU cannot be run.
    pub fn boot(bus: &Bus, image: &Image, shape: impl Into<Shape>, logs: &Path, shown: bool) -> Result<Enclave> {
        let (kernel, ramdisk) = (bus.folder().join("enclave.kernel"), bus.folder().join("enclave.ramdisk"));
        let qemu = qemu::nitro();
        fs::write(&kernel, image.kernel())?;
        fs::write(&ramdisk, image.ramdisks())?;
        let (kernel, ramdisk, command_line) = (&kernel, &ramdisk, image.command_line());
        let machine = match (image.arch(), &qemu, image.path()) {
            (Arch::Aarch64, ..) => Machine::Virt { kernel, ramdisk, command_line },
            (Arch::X86_64, Some(qemu), Some(eif)) => Machine::Nitro { qemu, eif },
            (Arch::X86_64, ..) => Machine::Microvm { kernel, ramdisk, command_line },
        };
        let log = logs.join("enclave.log");
        let device = bus.device(ENCLAVE_CID);
        let (process, console, keyboard) = machine::boot("enclave", &machine, shape.into(), &device, &log, shown)?;
        Ok(Enclave { console, dialer: bus.dialer(ENCLAVE_CID), process, keyboard })
    }

    /// Types a line on the console. Only a debug image, which has a shell there, reads it.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.keyboard, "{line}").context("the enclave's console")
    }

    /// Ends the machine from outside, as `nitro-cli terminate-enclave` does.
    ///
    /// # Errors
    /// It does not end.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.kill();
        self.console.wait_for_end(machine::BOOT)
    }

    /// The exit status of the machine, if it has ended or ends within `limit`.
    pub fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.ended(limit)
    }

    /// Sends a GET request from this machine, not through the parent, and returns status and body. This is for what is
    /// measured in milliseconds; starting curl in the parent takes longer.
    ///
    /// # Errors
    /// Nothing listens on that port, or the answer is not HTTP.
    pub fn get(&self, port: u32, path: &str) -> Result<(u16, String)> {
        let mut stream = self.dialer.connect(port, machine::BOOT)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        // Not until the end of the connection, which stays open for another request.
        let mut answer = Vec::new();
        loop {
            let mut part = [0; 4096];
            let length = stream.read(&mut part)?;
            ensure!(length > 0, "the answer to GET {path} ends early: {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..length]);
            if let Some(complete) = parse(&answer)? {
                return Ok(complete);
            }
        }
    }
}

/// Status and body, once the answer is complete.
fn parse(answer: &[u8]) -> Result<Option<(u16, String)>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(start) = head.parse(answer)? else { return Ok(None) };
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length: usize = match length {
        Some(field) => std::str::from_utf8(field.value)?.parse()?,
        None => 0,
    };
    let body = answer[start..].get(..length).map(|body| String::from_utf8_lossy(body).into_owned());
    Ok(body.map(|body| (head.code.unwrap_or_default(), body)))
}
