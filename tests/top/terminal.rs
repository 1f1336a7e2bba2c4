//! A pseudo-terminal with `teemark` in it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use super::support::{program, run, wait_for};

/// What a terminal is told to show the alternate screen and to hide the cursor, and to undo that (xterm's control sequences).
const ENTERS: [&str; 2] = ["\x1b[?1049h", "\x1b[?25l"];
const LEAVES: [&str; 2] = ["\x1b[?1049l", "\x1b[?25h"];

pub(crate) struct Terminal {
    /// Its two sides: the one that a terminal's window has, and the one that its programs have.
    window: Option<File>,
    programs: OwnedFd,
    child: Child,
    before: Termios,
    written: Arc<Mutex<Vec<u8>>>,
    reads: Option<JoinHandle<()>>,
    closes: Arc<AtomicBool>,
}

impl Terminal {
    /// A terminal of this width and height, in which teemark is started.
    pub(crate) fn new(size: (u16, u16), arguments: &[&str]) -> Terminal {
        Terminal::by(&[], size, arguments)
    }

    /// The same, where another program starts it.
    pub(crate) fn by(wrapper: &[&str], size: (u16, u16), arguments: &[&str]) -> Terminal {
        let window = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&window).unwrap();
        unlockpt(&window).unwrap();
        let name = ptsname(&window, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let programs = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        resize(&programs, size);
        let before = tcgetattr(&programs).unwrap();
        // setsid makes it the session's terminal, without which no program learns of its size, and then becomes teemark.
        let mut command = Command::new("setsid");
        command.arg("--ctty").args(wrapper).arg(program("teemark")).args(arguments).env("TERM", "xterm");
        let side = || programs.try_clone().unwrap();
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn();
        let child = child.unwrap_or_else(|e| panic!("setsid (of util-linux): {e}"));
        let written = Arc::new(Mutex::new(Vec::new()));
        let closes = Arc::new(AtomicBool::new(false));
        let (window, to, until) = (File::from(window), Arc::clone(&written), Arc::clone(&closes));
        let side = window.try_clone().unwrap();
        let reads = thread::spawn(move || read(side, &to, &until));
        Terminal { window: Some(window), programs, child, before, written, reads: Some(reads), closes }
    }

    /// Everything that was written to it.
    pub(crate) fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits until this text is written. A space that is on the screen already is not written again, so each word is
    /// waited for, in order.
    pub(crate) fn shows(&mut self, text: &str) {
        let end = wait_for(&format!("{text:?} in {:?}", self.child.id()), || {
            let ended = self.child.try_wait().unwrap();
            let written = self.written();
            assert!(ended.is_none(), "it has ended without {text:?}: {written}");
            text.split(' ').try_fold(0, |from, word| Some(from + written.get(from..)?.find(word)? + word.len()))
        });
        assert!(end > 0);
    }

    pub(crate) fn types(&mut self, keys: &[u8]) {
        self.window.as_mut().unwrap().write_all(keys).unwrap();
    }

    pub(crate) fn resizes(&mut self, size: (u16, u16)) {
        self.written.lock().unwrap().clear();
        resize(&self.programs, size);
    }

    pub(crate) fn signal(&mut self, name: &str) {
        run(Command::new("kill").args(["-s", name, &self.child.id().to_string()]));
    }

    /// Closes the window.
    pub(crate) fn hangs_up(&mut self) {
        self.closes.store(true, Ordering::Release);
        self.reads.take().unwrap().join().unwrap();
        self.window = None;
    }

    /// Waits for its end: the exit status, or the signal.
    pub(crate) fn ended(&mut self) -> (Option<i32>, Option<i32>) {
        let status = wait_for("teemark to end", || self.child.try_wait().unwrap());
        (status.code(), status.signal())
    }

    /// Whether a program has taken the whole screen, and every key.
    pub(crate) fn is_drawn_on(&self) -> bool {
        let now = tcgetattr(&self.programs).unwrap();
        let written = self.written();
        ENTERS.iter().all(|code| written.contains(code)) && !now.local_modes.contains(LocalModes::ICANON)
    }

    /// Whether its modes are those of the beginning, and the last that was said of screen and cursor is that they are.
    pub(crate) fn is_as_it_was(&self) -> bool {
        let now = tcgetattr(&self.programs).unwrap();
        let modes =
            |termios: &Termios| (termios.input_modes, termios.output_modes, termios.control_modes, termios.local_modes);
        // What it wrote last may still be on its way through the terminal.
        wait_for("the last of its output", || {
            let written = self.written();
            let undone = |(enters, leaves): (&&str, &&str)| written.rfind(*leaves) > written.rfind(*enters);
            ENTERS.iter().zip(&LEAVES).all(undone).then_some(())
        });
        modes(&now) == modes(&self.before)
    }
}

/// Keeps what is written to the terminal, until it is closed.
fn read(mut window: File, written: &Mutex<Vec<u8>>, closes: &AtomicBool) {
    let mut bytes = [0; 4096];
    while !closes.load(Ordering::Acquire) {
        let mut ready = [PollFd::new(window.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, 50_u8).unwrap() == 0 {
            continue;
        }
        let Ok(n @ 1..) = window.read(&mut bytes) else { return };
        written.lock().unwrap().extend_from_slice(&bytes[..n]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &OwnedFd, (columns, rows): (u16, u16)) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
