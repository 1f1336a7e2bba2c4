//! Makes the parent's ramdisk from programs of this machine: busybox, socat, curl, jq, teemark, the development watermark
//! service, and the libraries that they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use teemark_image::ramdisk::{Entry, newc};

use crate::process::run;
use crate::workspace::program;

/// Programs of this machine that the parent gets, for the commands of the documents and the tests.
const PROGRAMS: [&str; 3] = ["socat", "curl", "jq"];
/// Debian's statically linked busybox (package busybox-static): the parent's shell and small commands.
const BUSYBOX: &str = "/bin/busybox";
/// The service's name in `allowed_endpoints.yaml`; in the parent it is on the loopback interface.
const HOSTS: &str = "127.0.0.1 localhost watermark.internal.staging.zing.you\n";

/// Makes the ramdisk, an uncompressed newc archive. `service` is the watermark service's program.
///
/// # Errors
/// A program is missing on this machine, or cannot be read.
pub(crate) fn make(service: &Path) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.put(Entry::file("/init", 0o755, include_bytes!("../parent/init")));
    tree.put(Entry::file("/agent", 0o755, include_bytes!("../parent/agent")));
    tree.put(Entry::file("/etc/hosts", 0o644, HOSTS));
    for folder in ["/dev", "/proc", "/sys", "/tmp", "/root"] {
        tree.folder(folder);
    }

    tree.program(Path::new(BUSYBOX), "/bin/busybox").context("the parent's shell, of Debian's busybox-static")?;
    for applet in output(Command::new(BUSYBOX).arg("--list"))?.lines().filter(|&applet| applet != "busybox") {
        tree.put(Entry::link(&format!("/bin/{applet}"), "busybox"));
    }
    // Without its symbols, which would take a tenth of the parent's memory.
    let folder = tempfile::tempdir()?;
    let teemark = folder.path().join("teemark");
    run(Command::new("strip").arg(program("teemark")?).arg("-o").arg(&teemark))?;
    let mut programs = vec![(service.to_owned(), "watermark-service"), (teemark, "teemark")];
    for name in PROGRAMS {
        let path = find(name).with_context(|| format!("no {name} here; host/install-tools.sh vm installs it"))?;
        programs.push((path, name));
    }
    let mut libraries = BTreeSet::new();
    for (path, name) in &programs {
        tree.program(path, &format!("/usr/bin/{name}"))?;
        libraries.extend(libraries_of(path)?);
    }
    for library in libraries {
        // Under the name that the program asks for, even if that is a link here.
        tree.program(Path::new(&library), &library)?;
    }
    tree.archive().context("the parent's ramdisk")
}

/// A program of this machine, at `path` in another, and the libraries and folders that it needs there.
///
/// # Errors
/// The program or a library is missing, or cannot be read.
pub fn with_libraries(program: &Path, path: &str) -> Result<Vec<Entry>> {
    let mut tree = Tree::default();
    tree.program(program, path)?;
    for library in libraries_of(program)? {
        tree.program(Path::new(&library), &library)?;
    }
    Ok(tree.0.into_values().collect())
}

fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(run(command)?)?)
}

/// A program on PATH.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The files that ld.so(8) loads for a program, according to ldd(1).
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let text = output(Command::new("ldd").arg(program))?;
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    // Lines are `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, and the
    // vDSO, which is not a file.
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}

/// The ramdisk's entries by path; missing folders are added.
#[derive(Default)]
struct Tree(BTreeMap<String, Entry>);

impl Tree {
    fn put(&mut self, entry: Entry) {
        for (end, _) in entry.path.match_indices('/').skip(1) {
            self.folder(&entry.path[..end]);
        }
        self.0.insert(entry.path.clone(), entry);
    }

    fn folder(&mut self, path: &str) {
        self.0.entry(path.to_owned()).or_insert_with(|| Entry::directory(path, 0o755));
    }

    /// Adds a file of this machine, at `path` in the parent.
    fn program(&mut self, from: &Path, path: &str) -> Result<()> {
        let contents = fs::read(from).with_context(|| from.display().to_string())?;
        self.put(Entry::file(path, 0o755, contents));
        Ok(())
    }

    fn archive(self) -> Result<Vec<u8>> {
        let entries: Vec<Entry> = self.0.into_values().collect();
        Ok(newc(&entries)?)
    }
}
