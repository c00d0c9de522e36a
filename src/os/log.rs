//! Logs and announcements that can neither block nor end a server.
//!
//! A paused pager, a full pipe, a terminal that was closed: the line is dropped and
//! counted, and the count is told when lines can be written again. The same goes for a file
//! that has reached the limit of its size (RLIMIT_FSIZE). What is said again and again is counted, too
//! ([`crate::core::repeats`]).

mod lines;
mod record;
mod recurrence;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{Display, Write as _};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};

use log::{LevelFilter, Log as _};
use nix::sys::signal::Signal;

use crate::core::moment::Moment;
use crate::core::repeats::{Repeats, Withheld};
use crate::os::{clock, process};
use crate::wire::control::Level;
use crate::wire::logline::{Format, Logging, Speaker, Text};

pub use lines::Lines;
use record::{Notice, line_of};
pub use recurrence::{Recurrence, Recurrences};

/// The target of the record of a job that has ended.
pub const ACCESS: &str = "osps::access";
/// The target of obituaries.
pub const OBITUARY: &str = "osps::obituary";
/// The target of what is said when a process is killed.
pub const KILL: &str = "osps::kill";
/// The target of what commands and workers write to their standard error.
pub const STDERR: &str = "osps::stderr";

/// Messages that do not differ up to there count as the same, in bytes.
const COMPARED: usize = 1024;

/// Where lines go, and what was said lately.
struct Output {
    lines: Lines,
    repeats: Repeats<log::Level>,
}

impl Output {
    fn new() -> Self {
        Self { lines: Lines::stderr(), repeats: Repeats::default() }
    }
}

/// What is installed.
struct Logger {
    /// Knows what `RUST_LOG` lets through, and writes nothing.
    by_environment: env_logger::Logger,
    /// What all log, over what the environment says: a [`LevelFilter`], or [`AS_STARTED`].
    level: AtomicUsize,
    speaker: Speaker,
    output: Mutex<Output>,
    /// When something is to be told that was withheld (monotonic ns).
    due: AtomicU64,
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
        if self.enabled(record.metadata()) && (!is_counted(record) || self.is_to_be_told(record)) {
            let line = line_of(record, &self.speaker, format());
            self.with_output(|output| output.lines.line(line.as_bytes()));
        }
    }

    /// Tells what is withheld: for the end of a process.
    fn flush(&self) {
        let now = clock::now();
        self.with_output(|output| {
            output.repeats.handle_end(now);
            self.tell_withheld(output, now);
        });
    }
}

/// Whether it may be withheld where it repeats. What is told of a job, or of a death, is about that one; commands
/// have an allowance of their own; and who wants to see every step wants to see every step.
fn is_counted(record: &log::Record<'_>) -> bool {
    record.level() <= log::Level::Info && ![ACCESS, OBITUARY, KILL, STDERR].contains(&record.target())
}

impl Logger {
    fn is_to_be_told(&self, record: &log::Record<'_>) -> bool {
        let mut text = Text::with_room(COMPARED);
        let _ = write!(text, "{}", record.args());
        let now = clock::now();
        self.with_output(|output| {
            let is_told = output.repeats.handle(now, record.level(), text.as_str());
            self.tell_withheld(output, now);
            is_told
        })
    }

    fn tell_withheld(&self, output: &mut Output, now: Moment) {
        while let Some(Withheld { level, text, times, within }) = output.repeats.poll(now) {
            let seconds = within.as_secs().max(1);
            let message = &format_args!("{text}: repeated {times} times in {seconds} s");
            let notice = Notice { level, number: Some(("repeated", times)), message };
            output.lines.line(notice.line(&self.speaker, format()).as_bytes());
        }
        let due = output.repeats.poll_timeout().map_or(u64::MAX, Moment::as_nanos);
        self.due.store(due, Ordering::Relaxed);
    }

    /// Nobody ever waits for it: a thread of somebody's handler, or a panic in the midst of this, writes past it.
    fn with_output<T>(&self, what: impl FnOnce(&mut Output) -> T) -> T {
        match self.output.try_lock() {
            Ok(mut output) => what(&mut output),
            Err(TryLockError::Poisoned(output)) => what(&mut output.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let due = self.due.load(Ordering::Relaxed);
                let done = what(&mut Output::new());
                // What the others have withheld is due as before.
                self.due.fetch_min(due, Ordering::Relaxed);
                done
            }
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
        output: Mutex::new(Output::new()),
        due: AtomicU64::new(u64::MAX),
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

/// A turn of the event loop: tells what was withheld for long enough.
pub fn turn(now: Moment) {
    if let Some(logger) = LOGGER.get()
        && logger.due.load(Ordering::Relaxed) <= now.as_nanos()
    {
        logger.with_output(|output| logger.tell_withheld(output, now));
    }
}

/// The process ends: tells all that was withheld.
pub fn finish() {
    if let Some(logger) = LOGGER.get() {
        logger.flush();
    }
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
        Some(logger) => logger.with_output(|output| output.lines.line(line)),
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
