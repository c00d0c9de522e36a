//! Whole lines to an output that may be unable to take them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fstat};
use rustix::net::SendFlags;

use crate::wire::logline::LONGEST_LINE;

/// Where lines go.
enum Output {
    /// A pipe or terminal: a description of our own, opened non-blocking, for the
    /// descriptor we inherited is shared with other programs, whose writes must stay
    /// blocking.
    Own(File),
    /// A socket, which cannot be opened again but has a flag for each write.
    Socket(BorrowedFd<'static>),
    /// Anything else, such as a file: it does not block, and its offset must stay shared with
    /// the others who write to it. Asked before each write all the same.
    Shared(BorrowedFd<'static>),
}

/// Writes whole lines, or drops and counts them.
pub struct Lines {
    output: Output,
    dropped: u64,
    /// How to tell that so many lines were dropped.
    notice: fn(u64) -> Vec<u8>,
    /// The rest of a line that a terminal took only in part.
    rest: Vec<u8>,
}

impl Lines {
    /// Lines to standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self::on(rustix::stdio::stderr(), "/proc/self/fd/2", super::dropped)
    }

    /// Lines to standard output, for people.
    #[must_use]
    pub fn stdout() -> Self {
        Self::on(rustix::stdio::stdout(), "/proc/self/fd/1", dropped)
    }

    fn on(fd: BorrowedFd<'static>, path: &str, notice: fn(u64) -> Vec<u8>) -> Self {
        let kind = fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let output = match kind {
            Ok(FileType::Socket) => Output::Socket(fd),
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
                OpenOptions::new()
                    .append(true)
                    .custom_flags(i32::try_from(flags).unwrap_or(0))
                    .open(path)
                    .map_or(Output::Shared(fd), Output::Own)
            }
            Ok(_) | Err(_) => Output::Shared(fd),
        };
        Self { output, dropped: 0, notice, rest: Vec::new() }
    }

    /// Writes one line, which ends with a newline, or drops it.
    pub fn line(&mut self, line: &[u8]) {
        if !self.write_rest() {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let notice = (self.notice)(self.dropped);
            if !self.write(&notice) {
                self.dropped += 1;
                return;
            }
            // One more may be told only when the notice is out.
            self.dropped = u64::from(!self.rest.is_empty());
            if self.dropped > 0 {
                return;
            }
        }
        let kept = if line.len() > LONGEST_LINE {
            let mut cut = line[..LONGEST_LINE - 4].to_vec();
            cut.extend_from_slice(b"...\n");
            self.write(&cut)
        } else {
            self.write(line)
        };
        self.dropped += u64::from(!kept);
    }

    /// Whether the line before this one is out, or was given up.
    fn write_rest(&mut self) -> bool {
        if self.rest.is_empty() {
            return true;
        }
        let rest = std::mem::take(&mut self.rest);
        if self.write(&rest) {
            return true;
        }
        self.rest = rest;
        false
    }

    /// Whether at least a part was taken; what is left of it comes first next time.
    fn write(&mut self, bytes: &[u8]) -> bool {
        let written = match &mut self.output {
            Output::Own(file) => file.write(bytes),
            Output::Socket(fd) => {
                rustix::net::send(*fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(Into::into)
            }
            Output::Shared(fd) => write_if_ready(*fd, bytes),
        };
        match written {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.rest.extend_from_slice(&bytes[length.min(bytes.len())..]);
                true
            }
        }
    }
}

fn write_if_ready(fd: BorrowedFd<'static>, bytes: &[u8]) -> io::Result<usize> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT)];
    if poll(&mut fds, Some(&now))? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(rustix::io::write(fd, bytes)?)
}

/// That so many lines were dropped, for people.
pub fn dropped(lines: u64) -> Vec<u8> {
    format!("osps: {lines} lines could not be written and were dropped\n").into_bytes()
}
