//! `osps top`: what each process is doing, live in a terminal. It reads shared memory and `/proc`, and asks nobody: it
//! works while servers hang, and goes on looking when the system has ended.
//!
//! [`model`] and [`rows`] know no terminal, [`view`] draws what they tell, and this joins both with the clock,
//! the keys and the signals.

mod controls;
#[cfg(test)]
mod fake;
mod history;
mod keys;
mod model;
mod rows;
mod screen;
mod view;
mod words;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_current_process_group};

use crate::core::moment::Moment;
use crate::exit::{Code, Failure};
use crate::os::clock;
use crate::os::proc;
use crate::os::process;
use crate::os::rundir::Rundir;
use crate::os::signals::Signals;
use crate::status;
use controls::{Asked, Controls};
use keys::Decoder;
use model::{Model, Reading, servers};
use screen::{Screen, keyboard};
use view::Theme;

pub use controls::{LEAST_INTERVAL, MOST_INTERVAL};

/// Signals that end it, those of a job of the shell, and that of a window whose size has changed.
const SIGNALS: [Signal; 7] =
    [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT, Signal::TSTP, Signal::CONT, Signal::WINCH];
/// How long the rest of a key may be under way.
const KEY_WITHIN: Duration = Duration::from_millis(50);

/// How it ended.
enum End {
    /// Whoever looked has seen enough.
    Quit,
    /// As a signal has asked.
    By(Signal),
}

/// Whether there is a terminal to draw on; otherwise one look, as text, is all there can be.
#[must_use]
pub fn has_terminal() -> bool {
    io::stdout().is_terminal() && Theme::is_drawable(std::env::var_os("TERM"))
}

/// Shows the system that runs in that directory until a key or a signal ends it.
///
/// # Errors
/// As [`status::read`] where none runs at the start; what the terminal says.
pub fn run(rundir: &Rundir, interval: Duration) -> Result<Code, Failure> {
    let on_terminal = |error: io::Error| Failure::internal("show this in the terminal", &error);
    let mut model = Model::default();
    model.take(reading(clock::now(), Ok(status::read(rundir)?)));
    let no_keys = |error| Failure::new(Code::Unavailable, format!("no terminal to read keys from: {error}"));
    let keyboard = keyboard().map_err(no_keys)?;
    let signals = Signals::take(&SIGNALS).map_err(|error| Failure::internal("take signals", &error))?;
    let end = {
        let screen = Screen::enter().map_err(on_terminal)?;
        let theme = Theme::of(|name| std::env::var_os(name));
        let next = clock::now() + interval;
        let controls = Controls::new(interval);
        let decoder = Decoder::default();
        Top { rundir, model, controls, theme, screen, keyboard, decoder, signals, next }
            .watch()
            .map_err(on_terminal)?
    };
    if let End::By(signal) = end {
        // Whoever has started it is to know.
        process::obey(signal).map_err(|error| Failure::internal("end by a signal", &error))?;
    }
    Ok(Code::Ok)
}

/// What a look at the system has found, with the state letters of its processes.
fn reading(at: Moment, found: Result<status::Status, Failure>) -> Reading {
    let with_letters = |status: status::Status| {
        let of_servers = servers(&status).filter_map(|server| server.pid);
        let letter = |pid| Some((pid, proc::stat(pid).ok()?.letter));
        let letters: BTreeMap<u32, char> =
            [status.pid].into_iter().chain(of_servers).filter_map(letter).collect();
        (status, letters)
    };
    Reading { at, found: found.map(with_letters).map_err(|failure| failure.message) }
}

/// All that the loop uses.
struct Top<'a> {
    rundir: &'a Rundir,
    model: Model,
    controls: Controls,
    theme: Theme,
    screen: Screen,
    keyboard: OwnedFd,
    decoder: Decoder,
    signals: Signals,
    /// When the next reading is due.
    next: Moment,
}

impl Top<'_> {
    fn watch(mut self) -> io::Result<End> {
        loop {
            self.screen.draw(|buffer| view::draw(buffer, &self.model, &mut self.controls, self.theme))?;
            let (has_keys, has_signals) = self.wait()?;
            if has_signals && let Some(end) = self.obey()? {
                return Ok(end);
            }
            if has_keys && let Some(end) = self.hear()? {
                return Ok(end);
            }
            if !has_keys && self.give_up_on_key()? {
                return Ok(End::Quit);
            }
            self.look();
        }
    }

    /// Waits for keys or signals, or until it is time to look again.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let now = clock::now();
        let due = (!self.controls.paused).then(|| self.next.since(now));
        let undecided = self.decoder.is_undecided().then_some(KEY_WITHIN);
        let timeout = due.into_iter().chain(undecided).min();
        let timeout = timeout.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.keyboard, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            // A signal that is not taken, such as SIGSTOP and what follows it.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
    }

    /// Looks at the system, where it is time to.
    fn look(&mut self) {
        let now = clock::now();
        if self.controls.paused || now < self.next {
            return;
        }
        // Each reading has its own moment: to read takes a while, and rates are to be exact.
        let found = status::read(self.rundir);
        self.model.take(reading(clock::now(), found));
        self.next = now + self.controls.interval;
    }

    /// Takes the keys that were pressed.
    fn hear(&mut self) -> io::Result<Option<End>> {
        let mut bytes = [0; 1024];
        let length = match rustix::io::read(&self.keyboard, &mut bytes) {
            // The terminal is gone; its SIGHUP may come later, or to somebody else.
            Ok(0) | Err(rustix::io::Errno::IO) => return Ok(Some(End::By(Signal::HUP))),
            Ok(length) => length,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        for &byte in &bytes[..length] {
            if let Some(key) = self.decoder.feed(byte)
                && self.press(key)?
            {
                return Ok(Some(End::Quit));
            }
        }
        Ok(None)
    }

    /// Where the rest of a key has not come, it was another key. Returns whether it is to end.
    fn give_up_on_key(&mut self) -> io::Result<bool> {
        self.decoder.give_up().map_or(Ok(false), |key| self.press(key))
    }

    /// Takes a key. Returns whether it is to end.
    fn press(&mut self, key: keys::Key) -> io::Result<bool> {
        let interval = self.controls.interval;
        match self.controls.press(key) {
            Asked::Draw => {}
            Asked::Quit => return Ok(true),
            // The shell stops all of a job; this process stops when it has given the terminal back.
            Asked::Suspend => kill_current_process_group(Signal::TSTP)?,
        }
        if self.controls.interval != interval {
            self.next = self.next.min(clock::now() + self.controls.interval);
        }
        Ok(false)
    }

    /// Takes the signals that have come.
    fn obey(&mut self) -> io::Result<Option<End>> {
        let mut arrived = Vec::new();
        self.signals.read(&mut arrived)?;
        for signal in arrived {
            match signal {
                Signal::TSTP => self.suspend()?,
                // It was stopped in a way that nobody can prevent: who knows what became of the terminal.
                Signal::CONT => self.screen.take()?,
                // The next drawing finds the new size.
                Signal::WINCH => {}
                end => return Ok(Some(End::By(end))),
            }
        }
        Ok(None)
    }

    /// Stops, as a job of the shell, until it is continued.
    fn suspend(&mut self) -> io::Result<()> {
        self.screen.give_back();
        process::obey(Signal::TSTP)?;
        self.screen.take()
    }
}
