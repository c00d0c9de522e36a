//! Standard error of a command or a worker: a pipe whose lines go to the log.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use mio::Interest;
use mio::unix::SourceFd;

use crate::core::allowance::Allowance;
use crate::core::moment::Moment;
use crate::os::log::STDERR;
use crate::os::reactor::{Handle, Progress, SourceId};
use crate::role::secondary::Key;
use crate::wire::lines::Lines;

/// As much is read in one turn.
const READ_PER_TURN: usize = 16 * 1024;
/// Longer lines are cut.
const LONGEST_LINE: usize = 1024;

/// Our end of the pipe.
pub struct Errors {
    pipe: File,
    id: Option<SourceId>,
    lines: Lines<LONGEST_LINE>,
    allowance: Allowance,
}

impl Errors {
    /// Of a pipe that does not block.
    pub fn new(pipe: OwnedFd) -> Self {
        Self { pipe: File::from(pipe), id: None, lines: Lines::default(), allowance: Allowance::default() }
    }

    /// Has the reactor tell when there is something.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch(&mut self, reactor: &mut Handle<Key>, key: Key) -> io::Result<()> {
        let fd = self.pipe.as_raw_fd();
        self.id = Some(reactor.register(&mut SourceFd(&fd), key, Interest::READABLE)?);
        Ok(())
    }

    /// Ends that; must come before it is dropped.
    pub fn unwatch(&mut self, reactor: &mut Handle<Key>) {
        if let Some(id) = self.id.take() {
            reactor.deregister(&mut SourceFd(&self.pipe.as_raw_fd()), id);
        }
    }

    /// Logs what is there, under that name, as far as it may fill the log.
    pub fn read(&mut self, now: Moment, whose: &dyn std::fmt::Display) -> Progress {
        let Self { pipe, lines, allowance, .. } = self;
        let mut buffer = [0; 4096];
        for _ in 0..READ_PER_TURN / buffer.len() {
            match pipe.read(&mut buffer) {
                Ok(0) => return Progress::Drained,
                Ok(length) => lines.feed(&buffer[..length], |line| log(allowance, now, whose, line)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Drained,
            }
        }
        Progress::Again
    }

    /// Nothing more will come: logs the line that has no end, and how many were left out.
    pub fn finish(&mut self, now: Moment, whose: &dyn std::fmt::Display) {
        let Self { lines, allowance, .. } = self;
        lines.finish(|line| log(allowance, now, whose, line));
        tell_withheld(allowance, whose);
    }
}

fn log(allowance: &mut Allowance, now: Moment, whose: &dyn std::fmt::Display, line: &[u8]) {
    if allowance.take(now) {
        tell_withheld(allowance, whose);
        log::info!(target: STDERR, "{whose}: {}", line.escape_ascii());
    }
}

fn tell_withheld(allowance: &mut Allowance, whose: &dyn std::fmt::Display) {
    let withheld = allowance.take_withheld();
    if withheld > 0 {
        log::warn!(target: STDERR, "{whose}: {withheld} lines of standard error are left out: too many in a short time");
    }
}
