//! Processes by pidfd: a name that the kernel never gives to another (pidfd_open(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_open, pidfd_send_signal, wait, waitid,
};

use crate::os::proc;
use crate::os::reactor::{Handle, SourceId};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It was not ours to reap: nobody told us.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("reaped by its parent"),
        }
    }
}

/// One process, for as long as this lives.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
    pid: u32,
    watched: Option<SourceId>,
}

impl Pidfd {
    /// A child of this process that was not reaped yet: its pid cannot have been reused.
    ///
    /// # Errors
    /// What `pidfd_open(2)` says.
    pub fn of_child(pid: u32) -> io::Result<Self> {
        let fd = pidfd_open(raw(pid)?, PidfdFlags::NONBLOCK).map_err(|error| match error {
            rustix::io::Errno::SRCH => io::ErrorKind::NotFound.into(),
            other => io::Error::from(other),
        })?;
        Ok(Self { fd, pid, watched: None })
    }

    /// Any process, known by its pid and its start time in clock ticks
    /// (field 22 of `/proc/<pid>/stat`). The start time is compared after the pidfd was
    /// opened, so a recycled pid is told from the process that was meant.
    ///
    /// # Errors
    /// `NotFound` where that process is no more; else what `pidfd_open(2)` says.
    pub fn of_process(pid: u32, start_time: u64) -> io::Result<Self> {
        let pidfd = Self::of_child(pid)?;
        match proc::stat(pid) {
            Ok(stat) if stat.start_time == start_time => Ok(pidfd),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            // It may have ended meanwhile, or we have no descriptor left: that says nothing of it.
            Err(_) if pidfd.has_ended() => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        }
    }

    /// A pidfd that came with its pid: from `clone(2)`, or from the parent.
    #[must_use]
    pub fn known(fd: OwnedFd, pid: u32) -> Self {
        Self { fd, pid, watched: None }
    }

    /// The pid, for words; signals go through the descriptor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Has the reactor call `key` when the process has ended.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch<K: Copy>(&mut self, reactor: &mut Handle<K>, key: K) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        self.watched = Some(reactor.register(&mut SourceFd(&fd), key, Interest::READABLE)?);
        Ok(())
    }

    /// Whether the reactor will tell of the end.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    /// Ends that; must come before it is dropped.
    pub fn unwatch<K: Copy>(&mut self, reactor: &mut Handle<K>) {
        if let Some(id) = self.watched.take() {
            reactor.deregister(&mut SourceFd(&self.fd.as_raw_fd()), id);
        }
    }

    /// Sends a signal; to a process that has ended it does nothing.
    ///
    /// # Errors
    /// What `pidfd_send_signal(2)` says, `ESRCH` apart.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the process has ended (a zombie has).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for the end of the process. Blocks: for start-up and tools, not for a reactor.
    #[must_use]
    pub fn ends_within(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Reaps the process if it is our child and has ended.
    ///
    /// # Errors
    /// What `waitid(2)` says, that it is no child of ours apart.
    pub fn reap(&self) -> io::Result<Option<Exit>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.fd.as_fd()), options) {
            Ok(status) => {
                Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown,
                }))
            }
            Err(rustix::io::Errno::CHILD) => Ok(self.has_ended().then_some(Exit::Unknown)),
            // The descriptor is non-blocking: "still running" may come as an error, too.
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// To hand it to a child.
impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reaps one child that has ended, whichever it is: its pid and how it ended.
#[must_use]
pub fn reap_any_child() -> Option<(u32, Exit)> {
    let (pid, status) = wait(WaitOptions::NOHANG).ok()??;
    let exit = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    };
    Some((u32::try_from(pid.as_raw_nonzero().get()).ok()?, exit))
}

fn raw(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{pid} is no pid")))
}
