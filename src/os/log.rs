//! Logs and announcements that can neither block nor end a server.
//!
//! A paused pager, a full pipe, a terminal that was closed: the line is dropped and
//! counted, and the count is told when lines can be written again. The same goes for a file
//! that has reached the limit of its size (RLIMIT_FSIZE).

mod lines;
mod record;
mod recurrence;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};

use log::LevelFilter;
use nix::sys::signal::Signal;

use crate::os::process;
use crate::wire::control::Level;
use crate::wire::logline::{Format, Logging, Speaker};

pub use lines::Lines;
use record::{Notice, line_of};
pub use recurrence::{Recurrence, Recurrences};

/// The target of the record of a job that has ended.
pub const ACCESS: &str = "osps::access";
/// The target of obituaries.
pub const OBITUARY: &str = "osps::obituary";
/// What is installed.
struct Logger {
    /// Knows what `RUST_LOG` lets through, and writes nothing.
    by_environment: env_logger::Logger,
    /// What all log, over what the environment says: a [`LevelFilter`], or [`AS_STARTED`].
    level: AtomicUsize,
    speaker: Speaker,
    lines: Mutex<Lines>,
}

/// What is of the event loop's library helps nobody who looks for a fault of his own.
fn is_ours(target: &str) -> bool {
    !target.starts_with("mio")
}

const AS_STARTED: usize = usize::MAX;
static LOGGER: OnceLock<Logger> = OnceLock::new();
/// Lines are for programs. Apart from the logger: who fails before there is one has a last word, too.
static IS_JSON: AtomicBool = AtomicBool::new(false);
/// Records of jobs are wanted.
static TELLS_ACCESS: AtomicBool = AtomicBool::new(false);

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        if metadata.target() == ACCESS && !TELLS_ACCESS.load(Ordering::Relaxed) {
            return false;
        }
        match self.level.load(Ordering::Relaxed) {
            AS_STARTED => self.by_environment.enabled(metadata),
            level => metadata.level() as usize <= level && is_ours(metadata.target()),
        }
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line_of(record, &self.speaker, format());
            self.with_lines(|lines| lines.line(line.as_bytes()));
        }
    }

    fn flush(&self) {}
}

impl Logger {
    /// Nobody ever waits for it: a thread of somebody's handler, or a panic in the midst of this, writes past it.
    fn with_lines<T>(&self, what: impl FnOnce(&mut Lines) -> T) -> T {
        match self.lines.try_lock() {
            Ok(mut lines) => what(&mut lines),
            Err(TryLockError::Poisoned(lines)) => what(&mut lines.into_inner()),
            Err(TryLockError::WouldBlock) => what(&mut Lines::stderr()),
        }
    }
}

/// Installs the logger: `RUST_LOG` decides what is logged (default `info`); each line tells the time and who
/// speaks.
pub fn init(speaker: Speaker, logging: Logging) {
    // Its default is to end the process that writes beyond RLIMIT_FSIZE (setrlimit(2)); ignored,
    // it leaves the write to fail with EFBIG, which drops the line.
    let _ = process::ignore(Signal::SIGXFSZ as i32);
    set_logging(logging);
    let environment = env_logger::Env::default().default_filter_or("info");
    let logger = LOGGER.get_or_init(|| Logger {
        by_environment: env_logger::Builder::from_env(environment).build(),
        level: AtomicUsize::new(AS_STARTED),
        speaker,
        lines: Mutex::new(Lines::stderr()),
    });
    if log::set_logger(logger).is_ok() {
        set_level(None);
        std::panic::set_hook(Box::new(on_panic));
    }
}

/// For whom lines are written from now on, and whether there are records of jobs.
pub fn set_logging(Logging { format, access }: Logging) {
    IS_JSON.store(format == Format::Json, Ordering::Relaxed);
    TELLS_ACCESS.store(access, Ordering::Relaxed);
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

/// Whether the record of a job would be written: else nothing need be found out for it.
#[must_use]
pub fn tells_access() -> bool {
    log::log_enabled!(target: ACCESS, log::Level::Info)
}

/// Why a program ends that cannot go on, whatever is logged.
pub fn last_words(program: &str, why: &dyn Display) {
    match format() {
        Format::Human => write(format!("{program}: {why}\n").as_bytes()),
        Format::Json => say(log::Level::Error, why),
    }
}

/// A panic would be written by the standard library in lines of its own, and would wait for whoever reads them.
fn on_panic(panic: &PanicHookInfo<'_>) {
    let say = |message: &dyn Display| say(log::Level::Error, message);
    let what = panic.payload_as_str().unwrap_or("with something that is no text");
    match panic.location() {
        Some(at) => say(&format_args!("panicked at {at}: {what}")),
        None => say(&format_args!("panicked: {what}")),
    }
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(|line| say(&line));
    }
}

/// Says something, whatever is logged.
fn say(level: log::Level, message: &dyn Display) {
    write(Notice { level, number: None, message }.line(&speaker(), format()).as_bytes());
}

fn write(line: &[u8]) {
    match LOGGER.get() {
        Some(logger) => logger.with_lines(|lines| lines.line(line)),
        None => Lines::stderr().line(line),
    }
}

fn format() -> Format {
    if IS_JSON.load(Ordering::Relaxed) { Format::Json } else { Format::Human }
}

/// Who fails before it is known who it is was to become the watchdog.
fn speaker() -> Speaker {
    LOGGER.get().map_or(Speaker { name: None, pid: std::process::id() }, |logger| logger.speaker)
}

/// That so many lines were dropped.
fn dropped(lines: u64) -> Vec<u8> {
    if format() == Format::Human {
        return lines::dropped(lines);
    }
    let message = &format_args!("{lines} lines could not be written and were dropped");
    let notice = Notice { level: log::Level::Warn, number: Some(("dropped", lines)), message };
    notice.line(&speaker(), Format::Json).as_bytes().to_vec()
}
