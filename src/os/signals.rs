//! The signals of a loop, read from a descriptor (signalfd(2)).
//!
//! In the loop's thread no handler ever runs: the signals stay blocked, and wait in the kernel until the loop reads
//! them. A handler would interrupt the wait, write into a pipe of its own and return through the kernel,
//! and the loop would wait again to find that pipe: four calls and a detour more for each signal, twice for
//! each probe (`docs/performance.md`). One is installed all the same, for threads that should not be there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Signal;

use crate::os::process;

/// The size of a `signalfd_siginfo`; its first word is the signal's number (signalfd(2)).
const REPORT: usize = size_of::<nix::sys::signalfd::siginfo>();
/// Reports that are read at once. Standard signals do not queue: at most two of each wait, one for the process and
/// one for its thread, and no loop takes more than eight.
const REPORTS: usize = 16;

/// Signals that this process takes as events. They are this thread's: where the process has others, which a server has
/// not, a signal that one of those is given is passed on.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Takes these signals over; all others are let in. A signal that waits already is the first event.
    ///
    /// # Errors
    /// What `signalfd(2)`, `pthread_sigmask(3)` and `sigaction(2)` say.
    pub fn take(signals: &[Signal]) -> io::Result<Self> {
        let mut taken = SigSet::empty();
        for signal in signals {
            taken.add(signal.as_raw().try_into()?);
        }
        let fd = SignalFd::with_flags(&taken, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // Whatever mask this process was started with ends here.
        taken.thread_set_mask()?;
        process::pass_to_this_thread(signals)?;
        Ok(Self { fd: fd.into() })
    }

    /// The signals that have come, each once.
    ///
    /// # Errors
    /// What `read(2)` says.
    pub fn read(&mut self, arrived: &mut Vec<Signal>) -> io::Result<()> {
        let mut reports = [0; REPORT * REPORTS];
        let length = match rustix::io::read(&self.fd, &mut reports) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        for report in reports[..length].chunks_exact(REPORT) {
            let number = report.first_chunk().map_or(0, |word| i32::from_ne_bytes(*word));
            let signal = Signal::from_named_raw(number).filter(|signal| !arrived.contains(signal));
            arrived.extend(signal);
        }
        Ok(())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Source for Signals {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).deregister(registry)
    }
}
