//! An alarm that is exact: a poll can wait for whole milliseconds only (epoll_wait(2)), a timer of the
//! kernel's tells to the microsecond (timerfd_create(2)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::Interest;
use mio::unix::SourceFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::core::moment::Moment;
use crate::os::reactor::Handle;

/// Makes its source ready at a moment, once.
#[derive(Debug)]
pub struct Alarm {
    fd: OwnedFd,
    at: Option<Moment>,
}

impl Alarm {
    /// An alarm that is not set; the reactor gives `key` when it rings.
    ///
    /// # Errors
    /// What `timerfd_create(2)` and `epoll_ctl(2)` say.
    pub fn new<K: Copy>(reactor: &mut Handle<K>, key: K) -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        reactor.register(&mut SourceFd(&fd.as_raw_fd()), key, Interest::READABLE)?;
        Ok(Self { fd, at: None })
    }

    /// Sets it; one that was set before does not ring any more. A moment that has passed rings at once.
    ///
    /// # Errors
    /// What `timerfd_settime(2)` says.
    pub fn set(&mut self, at: Option<Moment>) -> io::Result<()> {
        if std::mem::replace(&mut self.at, at) == at {
            return Ok(());
        }
        // Zero would be: not set.
        let nanos = at.map_or(0, |at| at.as_nanos().max(1));
        let second = 1_000_000_000;
        let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: part(nanos / second), tv_nsec: part(nanos % second) };
        timerfd_settime(
            &self.fd,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval: never, it_value: value },
        )?;
        Ok(())
    }

    /// It has rung: it is not set any more.
    pub fn rang(&mut self) {
        self.at = None;
    }
}
