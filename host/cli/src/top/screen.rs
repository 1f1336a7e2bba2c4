//! The terminal: it is drawn on while enclaves are asked, and left as it was, however this ends.

use std::io::{self, Stdout, stdin, stdout};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{panic, process, thread};

use anyhow::{Context, Result, bail};
use formats::hpke::PrivateKey;
use formats::time::Utc;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::ask::Asker;
use super::enclaves::{Asked, Enclave};
use super::view::{Asks, View};
use crate::interrupt;

/// Longest wait for a key, after which it is looked whether an enclave has answered or a signal has come.
const WAIT: Duration = Duration::from_millis(100);
/// How long a signal waits for the drawing to end.
const DRAWING: Duration = Duration::from_millis(500);

/// Whether the terminal is drawn on. It is restored once: doing so again would move the cursor up, over what was printed since.
static DRAWN_ON: AtomicBool = AtomicBool::new(false);

fn take() -> io::Result<()> {
    DRAWN_ON.store(true, Relaxed);
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen)
}

fn restore() {
    if DRAWN_ON.swap(false, Relaxed) {
        // A terminal that is gone does not have to be restored.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// A terminal that is drawn on. It is restored when this is dropped, and before any thread tells of a panic.
struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    fn new() -> Result<Screen> {
        let tells = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            restore();
            tells(panicked);
        }));
        let terminal = take().and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        let terminal = terminal.inspect_err(|_| restore());
        Ok(Screen(terminal.context("the terminal cannot be drawn on; --once prints the same as text")?))
    }

    /// Stops the process as Ctrl-Z does, and draws anew once it goes on.
    fn stop(&mut self) -> io::Result<()> {
        restore();
        emulate_default_handler(SIGTSTP)?;
        take()?;
        self.0.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Shows the enclaves until a key or a signal ends it; a signal, and Ctrl-C, end the process as usual.
///
/// # Errors
/// The terminal cannot be used, or there is no room for a thread.
pub(super) fn run(
    mut enclaves: Vec<Enclave>,
    askers: Vec<Asker>,
    interval: Duration,
    key: Option<&PrivateKey>,
) -> Result<()> {
    let came = Arc::new(AtomicI32::new(0));
    watch(Arc::clone(&came))?;
    let (sender, receiver) = mpsc::channel::<(usize, Asked)>();
    let askers = askers.into_iter().enumerate();
    let threads =
        askers.map(|(number, asker)| asker.start(number, interval, sender.clone())).collect::<Result<Vec<_>>>()?;

    let mut screen = Screen::new()?;
    let (mut view, mut drawn) = (View::default(), None);
    let signal = loop {
        let mut changed = false;
        for (number, asked) in receiver.try_iter() {
            enclaves[number].take(asked, key);
            changed = true;
        }
        // They end by a panic only, which has been told by then.
        if threads.iter().any(|thread| thread.is_finished()) {
            bail!("a thread that asks has ended; please report what it printed");
        }
        let now = Utc::now();
        if changed || drawn != Some(now) {
            let result = screen.0.draw(|frame| view.draw(frame, &enclaves, now, interval)).map(drop);
            if result.is_err() && waits_until_hung_up(Duration::ZERO) {
                break SIGHUP;
            }
            result?;
            drawn = Some(now);
        }
        match next(&mut view, enclaves.len())? {
            Asks::Nothing => {}
            Asks::Drawing => drawn = None,
            Asks::Ending => return Ok(()),
            Asks::Interrupting => break SIGINT,
            Asks::HangingUp => break SIGHUP,
            Asks::Stopping => {
                screen.stop()?;
                drawn = None;
            }
        }
        match came.load(Relaxed) {
            0 => {}
            signal => break signal,
        }
    };
    // Not by dropping it: ratatui would print that a terminal which is gone cannot be restored, and panic.
    restore();
    end_by(signal)
}

/// Starts a thread that tells of a signal by `came`, and ends the program if nobody else does. crossterm reads a terminal that
/// has hung up again and again, and never returns.
fn watch(came: Arc<AtomicI32>) -> Result<()> {
    let mut signals = Signals::new(interrupt::signals())?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        came.store(signal, Relaxed);
        thread::sleep(DRAWING);
        restore();
        end_by(signal)
    })?;
    Ok(())
}

/// Ends the program as the signal itself would.
fn end_by(signal: i32) -> ! {
    let _ = emulate_default_handler(signal);
    process::exit(128 + signal)
}

/// What the next event asks for, if one comes soon.
fn next(view: &mut View, enclaves: usize) -> io::Result<Asks> {
    if waits_until_hung_up(WAIT) {
        return Ok(Asks::HangingUp);
    }
    if !event::poll(Duration::ZERO)? {
        return Ok(Asks::Nothing);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => view.press(key, enclaves),
        Event::Resize(..) => Asks::Drawing,
        _ => Asks::Nothing,
    })
}

/// Waits for a key, and tells whether the terminal is gone. That comes without a signal too, to a program that ignores it; and
/// crossterm must not wait when it comes.
fn waits_until_hung_up(most: Duration) -> bool {
    let input = stdin();
    let mut input = [PollFd::new(&input, PollFlags::IN)];
    let most = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
    // A signal ends the wait.
    poll(&mut input, Some(&most)).is_ok() && input[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
