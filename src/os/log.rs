//! Logs and announcements that can neither block nor end a server.
//!
//! A paused pager, a full pipe, a terminal that was closed: the line is dropped and
//! counted, and the count is told when lines can be written again. The same goes for a file
//! that has reached the limit of its size (RLIMIT_FSIZE).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::LevelFilter;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fstat};
use rustix::net::SendFlags;

use crate::core::moment::Moment;
use crate::os::process;
use crate::wire::control::Level;

/// One write is atomic up to this length on a pipe (pipe(7)): longer lines are cut.
const LONGEST_LINE: usize = 4096;

/// Longer than the longest back-off between two tries.
const QUIET: Duration = Duration::from_secs(30);

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
    /// The rest of a line that a terminal took only in part.
    rest: Vec<u8>,
}

impl Lines {
    /// Lines to standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self::on(rustix::stdio::stderr(), "/proc/self/fd/2")
    }

    /// Lines to standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self::on(rustix::stdio::stdout(), "/proc/self/fd/1")
    }

    fn on(fd: BorrowedFd<'static>, path: &str) -> Self {
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
        Self { output, dropped: 0, rest: Vec::new() }
    }

    /// Writes one line, which ends with a newline, or drops it.
    pub fn line(&mut self, line: &[u8]) {
        if !self.write_rest() {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let notice = format!("osps: {} lines could not be written and were dropped\n", self.dropped);
            if !self.write(notice.as_bytes()) {
                self.dropped += 1;
                return;
            }
            self.dropped = 0;
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

/// A failure that comes again and again while something is short: told once, not at each try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recurrence {
    last: Option<Moment>,
}

impl Recurrence {
    /// It has failed. Whether that is news: the first time, or the first after a quiet while.
    pub fn is_news(&mut self, now: Moment) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.since(last) > QUIET)
    }
}

/// Failures of several kinds, each told as a [`Recurrence`].
#[derive(Clone, Debug, Default)]
pub struct Recurrences(Vec<(String, Recurrence)>);

impl Recurrences {
    /// Kinds that are remembered.
    const MAX_KINDS: usize = 16;

    /// It has failed so. Whether that is news.
    pub fn is_news(&mut self, now: Moment, what: &str) -> bool {
        if let Some((_, recurrence)) = self.0.iter_mut().find(|(kind, _)| kind == what) {
            return recurrence.is_news(now);
        }
        if self.0.len() == Self::MAX_KINDS {
            let quietest = self.0.iter().enumerate().min_by_key(|(_, (_, recurrence))| recurrence.last);
            let quietest = quietest.map_or(0, |(index, _)| index);
            self.0.swap_remove(quietest);
        }
        self.0.push((what.to_owned(), Recurrence { last: Some(now) }));
        true
    }
}

/// What env_logger writes to: it hands over one formatted record at a time.
struct Records(Lines);

impl Write for Records {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.0.line(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is installed.
struct Logger {
    /// Knows what `RUST_LOG` lets through, and writes nothing.
    by_environment: env_logger::Logger,
    /// Writes whatever it is given.
    writes: env_logger::Logger,
    /// What all log, over what the environment says: a [`LevelFilter`], or [`AS_STARTED`].
    level: AtomicUsize,
}

/// What is of the event loop's library helps nobody who looks for a fault of his own.
fn is_ours(target: &str) -> bool {
    !target.starts_with("mio")
}

const AS_STARTED: usize = usize::MAX;
static LOGGER: OnceLock<Logger> = OnceLock::new();

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        match self.level.load(Ordering::Relaxed) {
            AS_STARTED => self.by_environment.enabled(metadata),
            level => metadata.level() as usize <= level && is_ours(metadata.target()),
        }
    }

    fn log(&self, record: &log::Record<'_>) {
        let wanted = match self.level.load(Ordering::Relaxed) {
            AS_STARTED => self.by_environment.matches(record),
            level => record.level() as usize <= level && is_ours(record.target()),
        };
        if wanted {
            self.writes.log(record);
        }
    }

    fn flush(&self) {}
}

/// Installs the logger: `RUST_LOG` decides what is logged (default `info`), each line
/// begins with the time and `who` speaks.
pub fn init(who: &str) {
    // Its default is to end the process that writes beyond RLIMIT_FSIZE (setrlimit(2)); ignored,
    // it leaves the write to fail with EFBIG, which drops the line.
    let _ = process::ignore(Signal::SIGXFSZ as i32);
    let who = format!("{who}[{}]", std::process::id());
    let environment = env_logger::Env::default().default_filter_or("info");
    let writes = env_logger::Builder::new()
        .filter_level(LevelFilter::Trace)
        .target(env_logger::Target::Pipe(Box::new(Records(Lines::stderr()))))
        .write_style(env_logger::WriteStyle::Never)
        .format(move |buffer, record| {
            let time = buffer.timestamp_millis();
            writeln!(buffer, "{time} {:<5} {who}: {}", record.level(), record.args())
        })
        .build();
    let by_environment = env_logger::Builder::from_env(environment).build();
    let logger =
        LOGGER.get_or_init(|| Logger { by_environment, writes, level: AtomicUsize::new(AS_STARTED) });
    if log::set_logger(logger).is_ok() {
        set_level(None);
    }
}

/// What is logged from now on; `None`: what `RUST_LOG` says.
pub fn set_level(level: Option<Level>) {
    let level = level.map(|level| match level {
        Level::Off => LevelFilter::Off,
        Level::Error => LevelFilter::Error,
        Level::Warn => LevelFilter::Warn,
        Level::Info => LevelFilter::Info,
        Level::Debug => LevelFilter::Debug,
        Level::Trace => LevelFilter::Trace,
    });
    if let Some(logger) = LOGGER.get() {
        let most = level.unwrap_or_else(|| logger.by_environment.filter());
        logger.level.store(level.map_or(AS_STARTED, |level| level as usize), Ordering::Relaxed);
        log::set_max_level(most);
    }
}
