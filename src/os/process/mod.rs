//! Starting servers and commands, and what a process sets up for itself.
//!
//! A server is this same program, executed again with a role argument: `fork(2)`
//! alone would share the parent's epoll instance and signalfd, so that parent and
//! child would steal each other's wake-ups.
#![allow(unsafe_code)]

mod birth;
mod command;
mod cradle;
mod dispositions;

use std::ffi::{CStr, CString, OsString, c_char};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, getpid, getppid, getrlimit, set_child_subreaper,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::gettid;

pub use birth::spawn;
pub use command::{Command, Identity, NotStarted, Plan};
pub use cradle::tidy_up;

/// Signals that a terminal sends to every process at once: the watchdog alone decides.
const TERMINAL_SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// Signals that nobody here uses, beside the real-time ones: of timers, I/O and power. SIGUSR1 and SIGUSR2 are among them until
/// a loop takes them over.
const STRANGE_SIGNALS: [Signal; 8] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
];
/// Dispositions that a child takes over. Nobody can change the first two; Rust's runtime
/// ignores SIGPIPE in every program; whether a terminal may stop a background job was
/// decided by whoever started the watchdog.
const KEPT_SIGNALS: [Signal; 6] =
    [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGPIPE, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// What a service manager says to the process that it starts, and to nobody else (sd_notify(3),
/// sd_watchdog_enabled(3), sd_listen_fds(3)): a command that finds it would speak for us.
const VARIABLES_OF_SERVICE_MANAGER: [&str; 8] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDS_FIRST_FD",
    "LISTEN_FDNAMES",
];

/// Strings as `execve(2)` wants them.
#[derive(Debug)]
struct Strings {
    pointers: Vec<*const c_char>,
    /// What the pointers point to: on the heap, where it stays when this is moved.
    _strings: Vec<CString>,
}

impl Strings {
    fn new<T: Into<OsString>>(strings: impl Iterator<Item = T>) -> io::Result<Self> {
        let strings = strings
            .map(|string| CString::new(string.into().into_vec()).map_err(io::Error::from))
            .collect::<io::Result<Vec<_>>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self { pointers, _strings: strings })
    }

    /// These, then others: valid as long as both.
    fn followed_by(&self, others: &Self) -> Vec<*const c_char> {
        let own = self.pointers.len() - 1;
        self.pointers[..own].iter().chain(&others.pointers).copied().collect()
    }
}

/// What Rust's runtime does for a program whose `main` it calls: standard descriptors that are closed become
/// `/dev/null`, for nothing else shall get their numbers; and to write where nobody reads any more is an error, not the end
/// (SIGPIPE).
///
/// # Errors
/// What `open(2)` and `sigaction(2)` say.
pub fn begin() -> io::Result<()> {
    for number in libc::STDIN_FILENO..=libc::STDERR_FILENO {
        // SAFETY: it is only asked whether it is open.
        if fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_err() {
            // The lowest number that is free is this one (open(2)).
            let _ = open("/dev/null", OFlags::RDWR, Mode::empty())?.into_raw_fd();
        }
    }
    Ok(disposition(Signal::SIGPIPE, SigHandler::SigIgn)?)
}

/// Ignores what would end a process by default although nobody has a reason to send it. To be called
/// before a loop takes its signals over.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn ignore_strangers() -> io::Result<()> {
    for signal in STRANGE_SIGNALS {
        disposition(signal, SigHandler::SigIgn)?;
    }
    Ok(())
}

/// The same for the real-time signals. For the watchdog: its servers inherit that ([`spawn`]).
pub fn ignore_real_time() {
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: the disposition is "ignore": no code of ours runs in a handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Ignores a signal for the rest of this process's life.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn ignore(signal: i32) -> io::Result<()> {
    Ok(disposition(Signal::try_from(signal)?, SigHandler::SigIgn)?)
}

fn disposition(signal: Signal, handler: SigHandler) -> Result<(), Errno> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the disposition is "ignore" or "default": no code of ours runs in a handler.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// The thread whose loop reads the signals.
static LOOP: AtomicI32 = AtomicI32::new(0);

/// What becomes of signals that this thread blocks where the kernel gives them to another one: they are passed
/// on. A server has one thread; but what a program of one's own, or a library that is loaded into it, does with threads shall
/// neither end it (the default of most signals) nor lose a signal. It also undoes what a parent of ours may have set
/// up: a SIGCHLD that is ignored reaps children behind our back.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn pass_to_this_thread(signals: &[rustix::process::Signal]) -> io::Result<()> {
    LOOP.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    let handler = SigHandler::Handler(pass_on);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::all());
    for signal in signals {
        let signal: Signal = signal.as_raw().try_into()?;
        // SAFETY: the handler makes system calls only, which `signal-safety(7)` allows.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Does what a signal does by default to a process that takes it as an event: ends this one, or stops it until it is
/// continued. Then it is an event again.
///
/// # Errors
/// What `sigaction(2)`, `raise(3)` and `pthread_sigmask(3)` say.
pub fn obey(signal: rustix::process::Signal) -> io::Result<()> {
    let blocked: Signal = signal.as_raw().try_into()?;
    disposition(blocked, SigHandler::SigDfl)?;
    // It waits until it is let in.
    raise(blocked)?;
    let mask = SigSet::from(blocked);
    mask.thread_unblock()?;
    mask.thread_block()?;
    pass_to_this_thread(&[signal])
}

extern "C" fn pass_on(signal: libc::c_int) {
    let errno = Errno::last_raw();
    // SAFETY: tgkill takes numbers, and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), LOOP.load(Ordering::Relaxed), signal) };
    Errno::set_raw(errno);
}

/// From now on this process is sent SIGTERM when its parent dies: its loop will read it. Where the
/// parent has died before, nothing would come any more: the caller looks at [`parent_pid`].
///
/// # Errors
/// What `prctl(2)` says.
pub fn die_gently_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?)
}

/// Takes a descriptor that this process was started with, and keeps it from children.
///
/// # Errors
/// What `fcntl(2)` says: `EBADF` where nothing is open under that number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a role takes each number of its launch sheet once, and the watchdog each that a
    // service manager has passed, before it opens anything of its own, so nobody else in this
    // process owns it; whether it is open is checked right here, and given up without closing
    // where it is not.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl_getfd(&fd) {
        Ok(flags) => {
            fcntl_setfd(&fd, flags | FdFlags::CLOEXEC)?;
            Ok(fd)
        }
        Err(error) => {
            let _ = fd.into_raw_fd();
            Err(error.into())
        }
    }
}

/// Gives each descriptor the number beside it, under which this process was started with another.
///
/// # Errors
/// What `dup3(2)` says.
pub fn place(descriptors: Vec<OwnedFd>, numbers: &[RawFd]) -> io::Result<()> {
    for (fd, &number) in descriptors.iter().zip(numbers) {
        // SAFETY: what is there was kept free for this by the parent, and nobody in this process has taken it.
        Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) })?;
    }
    Ok(())
}

/// Sets the name that `ps -o comm` and `top` show; the kernel keeps 15 bytes.
pub fn set_name(name: &CStr) {
    // A missing name is no reason not to serve.
    let _ = rustix::thread::set_name(name);
}

/// Lets another process of this user take descriptors of this one (pidfd_getfd(2)): the next principal. By default the
/// kernel does not, where the program may be executed but not read (PR_SET_DUMPABLE(2const)).
pub fn let_successors_in() {
    // Where that fails a new principal says what it cannot do.
    let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
}

/// Makes orphaned grandchildren children of this process (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What `prctl(2)` says.
pub fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Whether a connection comes from our own user, or from root (unix(7), SO_PEERCRED).
#[must_use]
pub fn is_of_us(stream: impl AsFd) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid())
}

/// The pid of the parent now.
#[must_use]
pub fn parent_pid() -> u32 {
    getppid().map_or(0, |pid| u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0))
}

/// An anonymous file that holds `contents`, to hand to a child.
///
/// # Errors
/// What `memfd_create(2)` or `write(2)` say.
pub fn file_of(name: &str, contents: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Seek;
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(contents)?;
    file.rewind()?;
    Ok(file.into())
}

/// The soft limit of open descriptors.
#[must_use]
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The hard limit of open descriptors.
#[must_use]
pub fn most_descriptors() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises the soft limit of open descriptors to the hard one; returns the limit.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    now.current.unwrap_or(u64::MAX)
}
