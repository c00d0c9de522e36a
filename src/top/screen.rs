//! The terminal: taken over, drawn on, and given back as it was.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Stdout, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::panic;

use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::{Hide, MoveTo, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::style::{Attribute, SetAttribute};
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
    is_raw_mode_enabled,
};
use ratatui::layout::Rect;
use rustix::termios::tcgetwinsize;

/// Where a terminal does not know its size.
const USUAL_SIZE: (u16, u16) = (80, 24);
/// One screen fits into it: a terminal is written to once for each, so that it shows no halves.
const SCREEN_BYTES: usize = 1 << 16;

/// A terminal that was taken over; dropping it gives it back.
pub struct Screen {
    backend: CrosstermBackend<BufWriter<Stdout>>,
    /// What it shows.
    shown: Buffer,
}

impl Screen {
    /// Takes the terminal over: keys come one by one and unseen, and what it showed before is kept for later. Where
    /// this program panics from now on, it is given back first, so that the message can be read.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter() -> io::Result<Self> {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            usual(panic);
        }));
        let backend = CrosstermBackend::new(BufWriter::with_capacity(SCREEN_BYTES, stdout()));
        let mut screen = Self { backend, shown: Buffer::empty(Rect::ZERO) };
        screen.take()?;
        Ok(screen)
    }

    /// Takes the terminal over again, after it was given back or another has changed it.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn take(&mut self) -> io::Result<()> {
        // So that what is put back later is what there was before, whoever has changed it since.
        disable_raw_mode()?;
        enable_raw_mode()?;
        execute!(self.backend, EnterAlternateScreen, Hide)?;
        self.forget();
        Ok(())
    }

    /// Gives the terminal back, for now.
    pub fn give_back(&mut self) {
        give_back();
    }

    /// Nothing is known of what the terminal shows.
    fn forget(&mut self) {
        self.shown = Buffer::empty(Rect::ZERO);
    }

    /// Draws what differs from what it shows; all of it where its size has changed.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        let (width, height) = size();
        let area = Rect::new(0, 0, width, height);
        if self.shown.area != area {
            self.backend.clear()?;
            self.shown = Buffer::empty(area);
        }
        let mut next = Buffer::empty(area);
        draw(&mut next);
        self.backend.draw(self.shown.diff(&next).into_iter())?;
        Backend::flush(&mut self.backend)?;
        self.shown = next;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Columns and rows.
fn size() -> (u16, u16) {
    let size = tcgetwinsize(stdout()).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    if size.0 == 0 || size.1 == 0 { USUAL_SIZE } else { size }
}

/// Puts the terminal back as it was; what fails cannot be helped. It is cleared first, for those that have no second
/// screen, and for those that would mix both after a change of size (tmux 3.3).
fn give_back() {
    // Once: what is said afterwards is to stay.
    if !is_raw_mode_enabled().unwrap_or(false) {
        return;
    }
    let mut terminal = stdout();
    let reset = SetAttribute(Attribute::Reset);
    let _ = execute!(terminal, reset, Clear(ClearType::All), MoveTo(0, 0), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// Where keys come from: standard input or, where that is something else, the terminal of this process.
///
/// # Errors
/// What `open(2)` says of `/dev/tty`.
pub fn keyboard() -> io::Result<OwnedFd> {
    if stdin().is_terminal() {
        return stdin().as_fd().try_clone_to_owned();
    }
    Ok(File::open("/dev/tty")?.into())
}
