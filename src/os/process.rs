//! Starting servers, and what a process sets up for itself.
//!
//! A server is this same program, executed again with a role argument: `fork(2)`
//! alone would share the parent's epoll instance and signal pipe, so that parent and
//! child would steal each other's wake-ups.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{
    Resource, Rlimit, getpid, getppid, getrlimit, set_child_subreaper, set_parent_process_death_signal,
    setrlimit,
};

use crate::os::pidfd::Pidfd;

/// Signals that a terminal sends to every process at once: the watchdog alone decides.
const TERMINAL_SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// Signals that must not arrive before their handlers stand.
const HELD_SIGNALS: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM];

/// Starts this program again with `arguments`; each descriptor gets the number beside it,
/// all others are closed. `argv[0]` is `osps`, so that `ps` shows `osps secondary 2`.
///
/// The child starts with the signals above held back (see [`release_signals`]), ignores the
/// terminal's, and is killed when this process dies, until it says that SIGTERM will do
/// ([`die_gently_with_parent`]).
///
/// # Errors
/// What `fork(2)`, `execve(2)` or `pidfd_open(2)` say.
pub fn spawn(arguments: &[String], descriptors: Vec<(OwnedFd, RawFd)>) -> io::Result<Pidfd> {
    let parent = getpid();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("osps").args(arguments).stdin(Stdio::null());
    // SAFETY: between fork and exec only system calls are made, each async-signal-safe:
    // close_range, prctl, getppid, sigaction. Nothing is allocated, no lock is taken.
    unsafe {
        command.pre_exec(move || {
            close_others_on_exec();
            // SIGKILL, for SIGTERM is held back and a stopped process would not act on it; see
            // `die_gently_with_parent`.
            set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            if getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            reset_dispositions()
        });
    }
    let mappings =
        descriptors.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let held: SigSet = HELD_SIGNALS.into_iter().collect();
    let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let child = command.spawn();
    before.thread_set_mask()?;
    Pidfd::of_child(child?.id())
}

/// Everything above standard error is closed by `execve(2)`, whoever opened it; the
/// descriptors that the child shall have are mapped after this.
fn close_others_on_exec() {
    // SAFETY: the call only sets close-on-exec flags. A kernel without it (before 5.11)
    // answers with an error, and the descriptors of our own are close-on-exec anyway.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Ignores the terminal's signals and undoes what a parent of ours may have ignored.
/// Only ignored signals survive `execve(2)`; handlers become defaults there.
fn reset_dispositions() -> io::Result<()> {
    for signal in TERMINAL_SIGNALS {
        disposition(signal, SigHandler::SigIgn)?;
    }
    for signal in [Signal::SIGCHLD, Signal::SIGALRM] {
        disposition(signal, SigHandler::SigDfl)?;
    }
    Ok(())
}

/// Ignores what would end a server by default although nobody has a reason to send it:
/// SIGUSR2, which only the watchdog expects, and the signals of timers and I/O.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn ignore_strangers() -> io::Result<()> {
    [Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGVTALRM, Signal::SIGPROF, Signal::SIGIO]
        .into_iter()
        .try_for_each(|signal| disposition(signal, SigHandler::SigIgn))
}

/// Ignores a signal for the rest of this process's life.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn ignore(signal: i32) -> io::Result<()> {
    disposition(Signal::try_from(signal)?, SigHandler::SigIgn)
}

fn disposition(signal: Signal, handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the disposition is "ignore" or "default": no code of ours runs in a handler.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Lets all signals in. Called when the handlers stand, which also undoes whatever
/// mask this process was started with.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn release_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// From now on this process is sent SIGTERM when its parent dies: its handlers stand. Where the
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
    // SAFETY: a role takes each number of its launch sheet once, before it opens anything
    // of its own, so nobody else in this process owns it; whether it is open is checked
    // right here, and given up without closing where it is not.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl_getfd(&fd) {
        Ok(flags) => {
            fcntl_setfd(&fd, flags | FdFlags::CLOEXEC)?;
            Ok(fd)
        }
        Err(error) => {
            let _ = std::os::fd::IntoRawFd::into_raw_fd(fd);
            Err(error.into())
        }
    }
}

/// Sets the name that `ps -o comm` and `top` show; the kernel keeps 15 bytes.
pub fn set_name(name: &CStr) {
    // A missing name is no reason not to serve.
    let _ = rustix::thread::set_name(name);
}

/// Makes orphaned grandchildren children of this process (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What `prctl(2)` says.
pub fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
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
    use std::io::{Seek, Write};
    let mut file = std::fs::File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(contents)?;
    file.rewind()?;
    Ok(file.into())
}

/// Raises the soft limit of open descriptors to the hard one; returns the limit.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    now.current.unwrap_or(u64::MAX)
}
