//! The birth of a server: this same program, or a newer one, executed with a role argument.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, getpid, getppid, set_parent_process_death_signal};
use syscalls::{Sysno, syscall};

use crate::exit::Code;
use crate::os::pidfd::Pidfd;
use crate::os::process::cradle::{self, tidy_up};
use crate::os::process::dispositions::{self, STANDARD};
use crate::os::process::{KEPT_SIGNALS, Strings, TERMINAL_SIGNALS, VARIABLES_OF_SERVICE_MANAGER};

/// Starts this program again with `arguments`, or the one that is open as `program`; each descriptor gets
/// the number beside it, all others are closed, and standard input is empty. `argv[0]` is `osps`, so that `ps`
/// shows `osps secondary 2`. Its environment is ours, without what a service manager has said to us.
///
/// The child starts with every signal held back until its loop takes them over, will ignore the
/// terminal's, and is killed when this process dies, until it says that SIGTERM will do
/// ([`die_gently_with_parent`](super::die_gently_with_parent)). Where it cannot execute the program, it says so on standard
/// error and ends with [`Code::System`].
///
/// # Errors
/// What `open(2)`, `fcntl(2)`, `mmap(2)` or `clone(2)` say: then there is no child.
pub fn spawn(
    program: Option<BorrowedFd<'_>>,
    arguments: &[String],
    descriptors: &[(BorrowedFd<'_>, RawFd)],
) -> io::Result<Pidfd> {
    let heritage = Heritage::ours()?;
    let program = program.unwrap_or(heritage.program.as_fd());
    let moved = Moved::prepare(program, heritage.null.as_fd(), descriptors)?;
    let birth = Birth::prepare(&moved, arguments, &heritage.environment)?;
    // A signal for us must not end the child. Nor shall one of its own before it has left our memory: old kernels (before
    // 5.16) end all who share it when one of them dumps core.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let child = cradle::bear(birth);
    // It cannot fail: the mask is one that the kernel has given us.
    let _ = before.thread_set_mask();
    tidy_up();
    child
}

/// What every child is given, prepared once: a replacement shall start at once. It stays for ever, for a child may
/// read it.
struct Heritage {
    /// This program.
    program: OwnedFd,
    /// `/dev/null`.
    null: OwnedFd,
    environment: Strings,
}

impl Heritage {
    fn ours() -> io::Result<&'static Self> {
        thread_local! {
            static OURS: Cell<Option<&'static Heritage>> = const { Cell::new(None) };
        }
        if let Some(ours) = OURS.get() {
            return Ok(ours);
        }
        let ours: &Self = Box::leak(Box::new(Self::prepare()?));
        OURS.set(Some(ours));
        Ok(ours)
    }

    fn prepare() -> io::Result<Self> {
        let is_for_child = |(name, _): &(OsString, OsString)| {
            !name.to_str().is_some_and(|name| VARIABLES_OF_SERVICE_MANAGER.contains(&name))
        };
        let variables = std::env::vars_os().filter(is_for_child).map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        Ok(Self {
            program: open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
            null: open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
            environment: Strings::new(variables)?,
        })
    }
}

/// Descriptors for a child, above all numbers that they are to get, so that none is overwritten before its turn.
struct Moved<'a> {
    /// Which descriptor gets which number. These are high enough,
    high: Vec<(BorrowedFd<'a>, RawFd)>,
    /// these are copies, which the parent closes when it has a child.
    copies: Vec<(OwnedFd, RawFd)>,
    /// The number that the program gets, above all others.
    program: RawFd,
}

impl<'a> Moved<'a> {
    fn prepare(
        program: BorrowedFd<'a>,
        stdin: BorrowedFd<'a>,
        descriptors: &[(BorrowedFd<'a>, RawFd)],
    ) -> io::Result<Self> {
        let highest = descriptors.iter().map(|&(_, number)| number).fold(libc::STDERR_FILENO, RawFd::max) + 1;
        let all = descriptors.iter().copied().chain([(stdin, libc::STDIN_FILENO), (program, highest)]);
        let (high, low): (Vec<_>, Vec<_>) = all.partition(|(fd, _)| fd.as_raw_fd() > highest);
        let copies = low
            .into_iter()
            .map(|(fd, number)| Ok((fcntl_dupfd_cloexec(fd, highest + 1)?, number)))
            .collect::<io::Result<_>>()?;
        Ok(Self { high, copies, program: highest })
    }

    /// From which number to which.
    fn numbers(&self) -> Vec<(RawFd, RawFd)> {
        let high = self.high.iter().map(|(fd, number)| (fd.as_raw_fd(), *number));
        high.chain(self.copies.iter().map(|(fd, number)| (fd.as_raw_fd(), *number))).collect()
    }
}

/// All that a child needs before it executes the program. Made by the parent, for the
/// child must not allocate.
pub struct Birth {
    parent: Pid,
    arguments: Strings,
    environment: &'static Strings,
    /// From which number to which each descriptor goes; the former are all above `program`.
    descriptors: Vec<(RawFd, RawFd)>,
    /// Numbers below `program` that the child shall not find open.
    gaps: Vec<RawFd>,
    /// The number under which the program is open, until it is executed,
    program: RawFd,
    /// and the path that leads there.
    path: CString,
}

/// What failed, in words that follow "cannot".
type Failed = (&'static str, Errno);

impl Birth {
    fn prepare(moved: &Moved<'_>, arguments: &[String], environment: &'static Strings) -> io::Result<Self> {
        let descriptors = moved.numbers();
        let gap = |number: &RawFd| !descriptors.iter().any(|(_, taken)| taken == number);
        let gaps = (libc::STDERR_FILENO + 1..moved.program).filter(gap).collect();
        Ok(Self {
            parent: getpid(),
            arguments: Strings::new(["osps"].into_iter().chain(arguments.iter().map(String::as_str)))?,
            environment,
            descriptors,
            gaps,
            program: moved.program,
            path: CString::new(format!("/proc/self/fd/{}", moved.program))?,
        })
    }

    /// What the child does. Between clone and exec only system calls and arithmetic, no allocation, no lock, no
    /// panic; and past the C library, whose `errno`, locks and notion of a thread are the parent's, too.
    pub fn live(&self) -> ! {
        let Err((step, error)) = self.execute();
        last_words(step, error);
        // SAFETY: ends this process at once; no destructor or exit handler of the parent runs.
        unsafe { libc::_exit(Code::System as i32) }
    }

    fn execute(&self) -> Result<Infallible, Failed> {
        let os = |step| move |error: rustix::io::Errno| (step, Errno::from_raw(error.raw_os_error()));
        let raw = |step| move |error: syscalls::Errno| (step, Errno::from_raw(error.into_raw()));
        // The program itself is there: we have it open.
        let in_execution = |error| match error {
            syscalls::Errno::ENOENT => raw("execute a script, or a program without its loader")(error),
            error => raw("execute its program")(error),
        };
        // First of all, for from here on the death of the parent leaves nobody behind. SIGKILL,
        // for SIGTERM is held back and a stopped process would not act on it; see
        // `die_gently_with_parent`.
        set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(os("ask for the parent-death signal"))?;
        if getppid() != Some(self.parent) {
            return Err(("start: the parent has died", Errno::ESRCH));
        }
        self.take_descriptors().map_err(raw("take its descriptors"))?;
        // What a parent of ours may have ignored: a SIGCHLD that is ignored reaps children behind our back. The real-time
        // signals stay ignored.
        dispositions::reset(STANDARD, &KEPT_SIGNALS, &TERMINAL_SIGNALS).map_err(raw("reset its signals"))?;
        let (arguments, environment) = (self.arguments.pointers.as_ptr(), self.environment.pointers.as_ptr());
        let (nothing, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: the strings end with NUL, the vectors with a null pointer, and all of them live as long as `self`.
        let executed = unsafe {
            match syscall!(Sysno::execveat, self.program, nothing, arguments, environment, flags) {
                // A filter may know only the older call, which looks the path up first.
                Err(syscalls::Errno::ENOSYS | syscalls::Errno::EPERM) => {
                    syscall!(Sysno::execve, self.path.as_ptr(), arguments, environment)
                }
                executed => executed,
            }
        };
        // Where it succeeds it does not return.
        Err(executed.map_or_else(in_execution, |_| ("execute its program", Errno::UnknownErrno)))
    }

    /// Closes the rest now, not only at exec: a child that is stopped in between shall
    /// not keep the parent's connections open, nor its lock.
    fn take_descriptors(&self) -> Result<(), syscalls::Errno> {
        for &(fd, number) in &self.descriptors {
            // The program itself need not find it open.
            let flags = if number == self.program { libc::O_CLOEXEC } else { 0 };
            // SAFETY: what had this number is the parent's affair and only a copy here: tables of descriptors are
            // not shared.
            unsafe { syscall!(Sysno::dup3, fd, number, flags) }?;
        }
        for &number in &self.gaps {
            // SAFETY: as above; nobody in this process uses any of them before exec.
            let _ = unsafe { syscall!(Sysno::close, number) };
        }
        // SAFETY: as above. A kernel without it (before 5.9) answers with an error; all
        // descriptors of our own are close-on-exec anyway.
        let _ = unsafe { syscall!(Sysno::close_range, self.program + 1, libc::c_uint::MAX, 0) };
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
    use std::fs::File;
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
        let moved = Moved::prepare(fd, fd, &[(fd, 9), (fd, 3), (fd, 6)]).unwrap();
        let birth = Birth::prepare(&moved, &[], &Heritage::ours().unwrap().environment).unwrap();
        assert_eq!((birth.program, birth.gaps), (10, vec![4, 5, 7, 8]));
        assert!(birth.descriptors.iter().all(|&(source, _)| source > 10));
        let mut numbers: Vec<_> = birth.descriptors.iter().map(|&(_, number)| number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 3, 6, 9, 10]);
    }
}
