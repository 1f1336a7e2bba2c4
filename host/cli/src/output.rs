//! Writes output files completely or not at all, whatever ends the program: a file is written without a name, and gets
//! its name when it is complete.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::{Builder, NamedTempFile};

use crate::interrupt;
use crate::terminal::say;

const PREFIX: &str = ".teemark-";

/// The users who may read a new file, from its first byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Only its owner (mode 600): it holds a key, or a decrypted file.
    Owner,
    /// Everyone, as far as the umask allows.
    Umask,
    /// Those of the file that it replaces: its mode.
    Mode(u32),
}

/// What to do with a file that exists at the output's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    Keep,
    Replace,
}

/// Where a command's output goes. Nothing appears at its path before [`Output::commit`].
#[derive(Debug)]
pub(crate) enum Output {
    Stdout(io::Stdout),
    /// A pipe or a device, which a rename would replace.
    Special(fs::File),
    File(PendingFile),
}

/// A file in its target's folder that others do not see yet.
#[derive(Debug)]
pub(crate) struct PendingFile {
    target: PathBuf,
    existing: Existing,
    file: Unfinished,
}

#[derive(Debug)]
enum Unfinished {
    /// It has no name (open(2), O_TMPFILE), so it is gone when the process ends, however that happens.
    Nameless(fs::File),
    /// It has a name, since the file system has no others, and is removed on failure and on a signal.
    Named(NamedTempFile),
}

impl Unfinished {
    fn make(folder: &Path, mode: u32) -> io::Result<Unfinished> {
        Unfinished::nameless(folder, mode).or_else(|_| Unfinished::named(folder, mode))
    }

    fn nameless(folder: &Path, mode: u32) -> io::Result<Unfinished> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open(folder, flags, Mode::from_raw_mode(mode))?);
        // It will get its name through /proc.
        fs::metadata(by_descriptor(&file))?;
        Ok(Unfinished::Nameless(file))
    }

    fn named(folder: &Path, mode: u32) -> io::Result<Unfinished> {
        let mut held = interrupt::hold()?;
        let file = Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
        held.push(file.path().to_owned());
        Ok(Unfinished::Named(file))
    }

    fn file(&mut self) -> &mut fs::File {
        match self {
            Unfinished::Nameless(file) => file,
            Unfinished::Named(file) => file.as_file_mut(),
        }
    }

    /// Gives the file its name.
    fn place(self, target: &Path, existing: Existing) -> io::Result<()> {
        // A link does not replace a file but a rename does, so it gets another name first; signals are held back meanwhile.
        let _held = interrupt::hold()?;
        match (self, existing) {
            (Unfinished::Nameless(file), Existing::Keep) => link(&file, target),
            (Unfinished::Nameless(file), Existing::Replace) => {
                let linked = Builder::new().prefix(PREFIX).make_in(folder_of(target), |name| link(&file, name))?;
                linked.persist(target).map(drop).map_err(|e| e.error)
            }
            (Unfinished::Named(file), Existing::Keep) => file.persist_noclobber(target).map(drop).map_err(|e| e.error),
            (Unfinished::Named(file), Existing::Replace) => file.persist(target).map(drop).map_err(|e| e.error),
        }
    }
}

fn link(file: &fs::File, name: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, by_descriptor(file), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

fn by_descriptor(file: &fs::File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// What is at an output's path.
enum Place {
    Special,
    /// A file will be there, with this path.
    File(PathBuf),
}

/// Looks at what is at an output's path.
fn look(path: &Path, existing: Existing, remedy: &str) -> Result<Place> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => bail!("{} is a folder; name a file in it", path.display()),
        Ok(found) if !found.is_file() => Ok(Place::Special),
        Ok(_) if existing == Existing::Keep => bail!(already_there(path, remedy)),
        // If it is a symbolic link, the file that it names is replaced, not the link.
        Ok(_) => fs::canonicalize(path).map(Place::File).with_context(|| format!("cannot write to {}", path.display())),
        Err(_) => Ok(Place::File(path.to_owned())),
    }
}

/// Checks that an output can go there. A pipe or a device is not opened, since its reader would see it end.
///
/// # Errors
/// As [`Output::open`].
pub(crate) fn check(path: &Path, existing: Existing, remedy: &str) -> Result<()> {
    if path == Path::new("-") {
        return Ok(());
    }
    match look(path, existing, remedy)? {
        Place::File(target) => unfinished(folder_of(&target), 0o600).map(drop),
        Place::Special => Ok(()),
    }
}

fn unfinished(folder: &Path, mode: u32) -> Result<Unfinished> {
    Unfinished::make(folder, mode).with_context(|| format!("cannot write in the folder {}", folder.display()))
}

impl Output {
    /// Opens the output; `-` is standard output. `remedy` tells the operator what to do if the file exists.
    ///
    /// # Errors
    /// The file exists and `existing` says to keep it; the folder is missing or cannot be written.
    pub(crate) fn open(path: &Path, existing: Existing, readers: Readers, remedy: &str) -> Result<Output> {
        if path == Path::new("-") {
            return Ok(Output::Stdout(io::stdout()));
        }
        let target = match look(path, existing, remedy)? {
            Place::File(target) => target,
            Place::Special => {
                let file = OpenOptions::new().write(true).open(path);
                return Ok(Output::Special(file.with_context(|| format!("cannot write to {}", path.display()))?));
            }
        };
        let (mode, exactly) = match readers {
            Readers::Owner => (0o600, None),
            Readers::Umask => (0o666, None),
            Readers::Mode(mode) => (0o600, Some(mode)),
        };
        let mut file = unfinished(folder_of(&target), mode)?;
        if let Some(mode) = exactly {
            let set = file.file().set_permissions(Permissions::from_mode(mode));
            set.with_context(|| format!("cannot set the mode of {}", target.display()))?;
        }
        Ok(Output::File(PendingFile { target, existing, file }))
    }

    /// Syncs what was written to disk, and gives it its name.
    ///
    /// # Errors
    /// The disk is full, or another program made the file meanwhile; then nothing at the output's path has changed.
    pub(crate) fn commit(mut self, remedy: &str) -> Result<()> {
        self.flush().context("cannot write the output")?;
        let Output::File(PendingFile { target, existing, mut file }) = self else { return Ok(()) };
        let cannot = || format!("cannot write {}", target.display());
        file.file().sync_all().with_context(cannot)?;
        match file.place(&target, existing) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => bail!(already_there(&target, remedy)),
            placed => placed.with_context(cannot),
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn already_there(path: &Path, remedy: &str) -> String {
    format!("{} is there already and was left alone; {remedy}", path.display())
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(out) => out.write(buf),
            Output::Special(file) => file.write(buf),
            Output::File(pending) => pending.file.file().write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::Special(file) => file.flush(),
            Output::File(pending) => pending.file.file().flush(),
        }
    }
}

/// Writes a whole small output.
///
/// # Errors
/// As [`Output::open`] and [`Output::commit`].
pub(crate) fn write(path: &Path, bytes: &[u8], existing: Existing, readers: Readers, remedy: &str) -> Result<()> {
    let mut output = Output::open(path, existing, readers, remedy)?;
    output.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    output.commit(remedy)
}

/// Writes to standard output; unlike `print!` it does not panic when the reader is gone.
pub(crate) fn to_stdout(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Opens an input, and returns its length if it is a file; `-` is standard input.
///
/// # Errors
/// It is missing, cannot be read, or is a folder.
pub(crate) fn open_input(path: &Path) -> Result<(Box<dyn Read>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    if found.is_dir() {
        bail!("{} is a folder; name a file", path.display());
    }
    let length = found.is_file().then_some(found.len());
    Ok((Box::new(file), length))
}

/// A text without the byte order mark that some editors put in front.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Opens a file that holds a key, and warns on stderr if others can read it too.
///
/// # Errors
/// It is missing, or cannot be read.
pub(crate) fn open_key(path: &Path) -> Result<fs::File> {
    let key_file = || format!("the key file {}", path.display());
    let file = fs::File::open(path).with_context(|| format!("cannot open {}; teemark keygen makes one", key_file()))?;
    let mode = file.metadata().with_context(key_file)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        say(format_args!("warning: {} is open to other users (mode {mode:o}); run chmod 600 on it", key_file()));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const HALF: usize = 64 << 10;

    /// Half of an output, which has no name yet.
    fn half(target: &Path, existing: Existing, make: fn(&Path, u32) -> io::Result<Unfinished>) -> Output {
        let file = make(folder_of(target), 0o600).unwrap();
        let mut output = Output::File(PendingFile { target: target.to_owned(), existing, file });
        output.write_all(&[b'h'; HALF]).unwrap();
        output
    }

    #[test]
    fn nothing_is_there_before_the_commit_and_nothing_is_left_without_one() {
        for make in [Unfinished::make, Unfinished::named] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("out");
            let output = half(&path, Existing::Keep, make);
            assert!(!path.exists());
            drop(output);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn with_a_name_or_without_it_is_there_after_the_commit_alone_and_with_its_mode() {
        for make in [Unfinished::make, Unfinished::named] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("out");
            for existing in [Existing::Keep, Existing::Replace] {
                half(&path, existing, make).commit("").unwrap();
                assert_eq!(fs::read(&path).unwrap().len(), HALF);
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
                fs::write(&path, "old").unwrap();
            }
            let error = half(&path, Existing::Keep, make).commit("").unwrap_err();
            assert!(error.to_string().contains("is there already"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), b"old");
        }
    }

    /// A process that has written half of an output to a file with a name, as on a file system that has no others. It is
    /// this program, run again with [`writes_until_it_is_ended`] alone, by a shell that runs `before` first.
    fn writing(folder: &Path, before: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("{before} exec \"$@\""), "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "output::tests::writes_until_it_is_ended", "--ignored", "--nocapture"])
            .env("TEEMARK_TEST_FOLDER", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("half is written")));
        let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(names.len() == 1 && names[0].metadata().unwrap().len() == HALF as u64, "{names:?}");
        child
    }

    fn send(signal: i32, child: &Child) {
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    #[test]
    fn a_signal_removes_the_file_that_has_a_name() {
        for signal in [1, 2, 15] {
            let folder = tempfile::tempdir().unwrap();
            let mut child = writing(folder.path(), "");
            send(signal, &child);
            assert_eq!(child.wait().unwrap().signal(), Some(signal));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_signal_that_nohup_has_ignored_stays_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = writing(folder.path(), "trap '' HUP;");
        send(1, &child);
        send(15, &child);
        assert_eq!(child.wait().unwrap().signal(), Some(15), "the first was ignored, the second not");
    }

    #[test]
    #[ignore = "tests beside it run it as a program of its own"]
    fn writes_until_it_is_ended() {
        let Some(folder) = std::env::var_os("TEEMARK_TEST_FOLDER") else { return };
        let _output = half(&Path::new(&folder).join("out"), Existing::Keep, Unfinished::named);
        println!("half is written");
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let output = Output::open(&path, Existing::Keep, Readers::Umask, "").unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(output.commit("use --force").unwrap_err().to_string().contains("use --force"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn a_device_is_written_to_and_a_link_followed_rather_than_replaced() {
        use std::os::unix::fs::FileTypeExt;
        write(Path::new("/dev/null"), b"x", Existing::Replace, Readers::Umask, "").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new", Existing::Replace, Readers::Umask, "").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }
}
