//! The birth of a server: this same program, or a newer one, executed with a role argument.
//!
//! [`spawn`] does not wait until the child has executed the program, as
//! `std::process::Command` does: a child that is stopped before that would hang its parent,
//! and the watchdog is a parent too.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, getpid, getppid, set_parent_process_death_signal};

use crate::exit::Code;
use crate::os::pidfd::Pidfd;
use crate::os::process::{HELD_SIGNALS, Strings, VARIABLES_OF_SERVICE_MANAGER, reset_dispositions};

/// Starts this program again with `arguments`, or the one that is open as `program`; each descriptor gets
/// the number beside it, all others are closed, and standard input is empty. `argv[0]` is `osps`, so that `ps`
/// shows `osps secondary 2`. Its environment is ours, without what a service manager has said to us.
///
/// The child starts with the signals above held back until a loop reads them, ignores the
/// terminal's, and is killed when this process dies, until it says that SIGTERM will do
/// ([`die_gently_with_parent`](super::die_gently_with_parent)). Where it cannot execute the program, it says so on standard
/// error and ends with [`Code::System`].
///
/// # Errors
/// What `open(2)`, `fcntl(2)` or `clone(2)` say: then there is no child.
pub fn spawn(
    program: Option<BorrowedFd<'_>>,
    arguments: &[String],
    descriptors: &[(BorrowedFd<'_>, RawFd)],
) -> io::Result<Pidfd> {
    let birth = Birth::prepare(program, arguments, descriptors)?;
    // A signal for us must not end the child.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let cloned = clone_this_process();
    if let Ok(Cloned::Child) = cloned {
        birth.live();
    }
    // It cannot fail: the mask is one that the kernel has given us.
    let _ = before.thread_set_mask();
    match cloned? {
        Cloned::Parent { child, pidfd } => Ok(Pidfd::known(pidfd, child)),
        Cloned::Child => unreachable!("the child lives and dies above"),
    }
}

/// Who comes back from `clone(2)`.
enum Cloned {
    Parent { child: u32, pidfd: OwnedFd },
    Child,
}

#[cfg(target_arch = "s390x")]
compile_error!("clone(2) takes its arguments in another order here");

/// A child that is a copy of this process, and a pidfd of it in one step: where there is
/// no descriptor left, there is no child either. `clone3(2)` would do as well, but
/// containers often forbid it, for their filters cannot look into its arguments.
fn clone_this_process() -> io::Result<Cloned> {
    let flags = libc::c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    let mut pidfd: RawFd = -1;
    let null = ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM the child has its own copy of memory and, with no stack given,
    // goes on on its copy of this one, as after fork(2). The kernel writes only `pidfd`, which
    // lives here. The C library is not told: its locks may be held by other threads and its
    // idea of the thread id is the parent's, so the child does nothing but system calls
    // (see `Birth::live`) until execve(2) or _exit(2).
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, null, &raw mut pidfd, null, null) };
    match u32::try_from(child) {
        Ok(0) => Ok(Cloned::Child),
        // SAFETY: clone(2) has succeeded, so `pidfd` is a new descriptor that nobody else owns.
        Ok(child) => Ok(Cloned::Parent { child, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// All that a child needs before it executes the program. Made by the parent, for the
/// child must not allocate.
struct Birth<'a> {
    parent: Pid,
    path: CString,
    /// The number under which the program is open.
    program: Option<RawFd>,
    arguments: Strings,
    environment: Strings,
    /// Which descriptor gets which number. The former are all above `highest`, so that none
    /// is overwritten before its turn.
    descriptors: Vec<(BorrowedFd<'a>, RawFd)>,
    /// As above, for those that had to be moved there.
    moved: Vec<(OwnedFd, RawFd)>,
    /// Numbers below `highest` that the child shall not find open.
    gaps: Vec<RawFd>,
    highest: RawFd,
    held: SigSet,
}

/// What failed, in words that follow "cannot".
type Failed = (&'static str, Errno);

impl<'a> Birth<'a> {
    fn prepare(
        program: Option<BorrowedFd<'a>>,
        arguments: &[String],
        descriptors: &[(BorrowedFd<'a>, RawFd)],
    ) -> io::Result<Self> {
        let highest = descriptors.iter().map(|&(_, number)| number).fold(libc::STDERR_FILENO, RawFd::max);
        let program = program.map(|program| (program, highest + 1));
        let descriptors: Vec<_> = descriptors.iter().copied().chain(program).collect();
        let program = program.map(|(_, number)| number);
        let highest = program.unwrap_or(highest);
        let path = match program {
            Some(number) => CString::new(format!("/proc/self/fd/{number}"))?,
            None => c"/proc/self/exe".to_owned(),
        };
        let (descriptors, low): (Vec<_>, Vec<_>) =
            descriptors.into_iter().partition(|(fd, _)| fd.as_raw_fd() > highest);
        let gap = |number: &RawFd| !descriptors.iter().chain(&low).any(|(_, taken)| taken == number);
        let gaps = (libc::STDERR_FILENO + 1..highest).filter(gap).collect();
        let null = File::open("/dev/null")?;
        let moved = low.into_iter().chain([(std::os::fd::AsFd::as_fd(&null), libc::STDIN_FILENO)]);
        let moved = moved
            .map(|(fd, number)| Ok((fcntl_dupfd_cloexec(fd, highest + 1)?, number)))
            .collect::<io::Result<_>>()?;
        let is_for_child = |(name, _): &(OsString, OsString)| {
            !name.to_str().is_some_and(|name| VARIABLES_OF_SERVICE_MANAGER.contains(&name))
        };
        let variables = std::env::vars_os().filter(is_for_child).map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        Ok(Self {
            parent: getpid(),
            path,
            program,
            arguments: Strings::new(["osps"].into_iter().chain(arguments.iter().map(String::as_str)))?,
            environment: Strings::new(variables)?,
            descriptors,
            moved,
            gaps,
            highest,
            held: HELD_SIGNALS.into_iter().collect(),
        })
    }

    /// What the child does. Between clone and exec only async-signal-safe things
    /// (signal-safety(7)): system calls and arithmetic, no allocation, no lock, no panic.
    fn live(&self) -> ! {
        let Err((step, error)) = self.execute();
        last_words(step, error);
        // SAFETY: ends this process at once; no destructor or exit handler of the parent runs.
        unsafe { libc::_exit(Code::System as i32) }
    }

    fn execute(&self) -> Result<Infallible, Failed> {
        let os = |step| move |error: rustix::io::Errno| (step, Errno::from_raw(error.raw_os_error()));
        // First of all, for from here on the death of the parent leaves nobody behind. SIGKILL,
        // for SIGTERM is held back and a stopped process would not act on it; see
        // `die_gently_with_parent`.
        set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(os("ask for the parent-death signal"))?;
        if getppid() != Some(self.parent) {
            return Err(("start: the parent has died", Errno::ESRCH));
        }
        self.take_descriptors().map_err(|error| ("take its descriptors", error))?;
        reset_dispositions().map_err(|error| ("reset its signals", error))?;
        // Exactly these, whatever was blocked by whoever started the watchdog.
        self.held.thread_set_mask().map_err(|error| ("hold signals back", error))?;
        if let Some(number) = self.program {
            // SAFETY: the descriptor was put there right before; the program itself need not find it open.
            Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })
                .map_err(|error| ("take its program", error))?;
        }
        // SAFETY: path and strings end with NUL, the vectors with a null pointer, and all
        // of them live as long as `self`.
        unsafe {
            libc::execve(
                self.path.as_ptr(),
                self.arguments.pointers.as_ptr(),
                self.environment.pointers.as_ptr(),
            )
        };
        Err(("execute its program", Errno::last()))
    }

    /// Closes the rest now, not only at exec: a child that is stopped in between shall
    /// not keep the parent's connections open, nor its lock.
    fn take_descriptors(&self) -> Result<(), Errno> {
        let high = self.descriptors.iter().map(|(fd, number)| (fd.as_raw_fd(), *number));
        let moved = self.moved.iter().map(|(fd, number)| (fd.as_raw_fd(), *number));
        for (fd, number) in high.chain(moved) {
            // SAFETY: what had this number is the parent's affair and only a copy here. The new
            // descriptor is not close-on-exec.
            Errno::result(unsafe { libc::dup2(fd, number) })?;
        }
        for &number in &self.gaps {
            // SAFETY: as above; nobody in this process uses any of them before exec.
            unsafe { libc::close(number) };
        }
        // SAFETY: as above. A kernel without it (before 5.9) answers with an error; all
        // descriptors of our own are close-on-exec anyway.
        unsafe { libc::syscall(libc::SYS_close_range, self.highest + 1, libc::c_uint::MAX, 0) };
        Ok(())
    }
}

/// One line on standard error, if it takes one at once: nobody waits for a paused pager.
fn last_words(step: &str, error: Errno) {
    let mut line = [0; 160];
    let mut rest = &mut line[..];
    // A line that is too long is cut. Nothing is allocated: the words are static.
    let _ = writeln!(rest, "osps: a server cannot {step}: {}", error.desc());
    let left = rest.len();
    let said = line.split_at_checked(line.len() - left).map_or(&line[..], |(said, _)| said);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    if poll(&mut fds, Some(&now)) == Ok(1) {
        let _ = rustix::io::write(stderr, said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::pidfd::Exit;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// Longer than `execve(2)` takes as one argument.
    fn too_long() -> Vec<String> {
        vec!["x".repeat(256 * 1024)]
    }

    #[test]
    fn a_child_that_cannot_execute_the_program_ends_with_a_code_of_its_own() {
        let child = spawn(None, &too_long(), &[]).unwrap();
        assert!(child.ends_within(Duration::from_secs(60)));
        assert_eq!(child.reap().unwrap(), Some(Exit::Code(Code::System as i32)));
    }

    #[test]
    fn another_program_is_executed_and_does_not_find_itself_open() {
        let program = File::open("/bin/ls").unwrap();
        let child =
            spawn(Some(program.as_fd()), &["/proc/self/fd/4".to_owned()], &[(program.as_fd(), 3)]).unwrap();
        assert!(child.ends_within(Duration::from_secs(60)));
        assert_eq!(child.reap().unwrap(), Some(Exit::Code(2)), "there is no descriptor 4");
    }

    #[test]
    fn what_cannot_be_handed_over_is_refused_without_a_child() {
        let error = spawn(None, &["a\0b".to_owned()], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_numbers_between_those_that_are_given_are_closed() {
        let null = File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let birth = Birth::prepare(None, &[], &[(fd, 9), (fd, 3), (fd, 6)]).unwrap();
        assert_eq!((birth.highest, birth.gaps), (9, vec![4, 5, 7, 8]));
        let sources = birth.descriptors.iter().map(|(fd, _)| fd.as_raw_fd());
        let mut sources = sources.chain(birth.moved.iter().map(|(fd, _)| fd.as_raw_fd()));
        assert!(sources.all(|source| source > 9));
        let mut numbers: Vec<_> = birth.descriptors.iter().map(|(_, number)| *number).collect();
        numbers.extend(birth.moved.iter().map(|(_, number)| *number));
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 3, 6, 9]);
    }
}
