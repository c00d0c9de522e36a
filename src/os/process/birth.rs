//! The birth of a server: this same program, or a newer one, executed with a role argument.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::{CString, OsString, c_int, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use memmap2::MmapMut;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, getpid, getppid, set_parent_process_death_signal};
use syscalls::{Sysno, syscall};

use crate::exit::Code;
use crate::os::pidfd::Pidfd;
use crate::os::process::command::SIGSET_BYTES;
use crate::os::process::{KEPT_SIGNALS, Strings, TERMINAL_SIGNALS, VARIABLES_OF_SERVICE_MANAGER};
use crate::os::segment;

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
    let out_of_the_way = Moved::prepare(program, descriptors)?;
    let cradle = Cradle::new(Birth::prepare(&out_of_the_way, arguments)?)?;
    // A signal for us must not end the child. Nor shall one of its own before it has left our memory: old kernels (before
    // 5.16) end all who share it when one of them dumps core.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let child = cradle.bear();
    // It cannot fail: the mask is one that the kernel has given us.
    let _ = before.thread_set_mask();
    tidy_up();
    CRADLES.with_borrow_mut(|cradles| cradles.push(cradle));
    child
}

thread_local! {
    /// In which a child may still live.
    static CRADLES: RefCell<Vec<Cradle>> = const { RefCell::new(Vec::new()) };
}

/// Frees what the last children needed until they had executed their program: to be called when one has shown
/// that it has. The next [`spawn`] does it, too.
pub fn tidy_up() {
    CRADLES.with_borrow_mut(|cradles| cradles.retain(Cradle::is_inhabited));
}

/// Much more than a few system calls and one line of text need.
const STACK_BYTES: usize = 64 * 1024;

/// The memory in which a child lives until it executes its program. It shares all memory with its parent, as after
/// vfork(2): nothing is copied, however large the parent is. But the parent goes on at once, so this is the
/// child's alone, and stays until it has left.
struct Cradle(NonNull<Inside>);

struct Inside {
    birth: Birth,
    stack: MmapMut,
    /// Not zero until the child gives this memory up: the kernel makes it zero when it has executed its
    /// program or has ended (set_tid_address(2)).
    inhabited: AtomicI32,
}

impl Cradle {
    fn new(birth: Birth) -> io::Result<Self> {
        let stack = segment::scratch(STACK_BYTES)?;
        let inside = Box::new(Inside { birth, stack, inhabited: AtomicI32::new(0) });
        Ok(Self(NonNull::from(Box::leak(inside))))
    }

    /// A child, and a pidfd of it in one step: where there is no descriptor left, there is no child either.
    /// `clone3(2)` would do as well, but containers often forbid it, for their filters cannot look into its arguments.
    fn bear(&self) -> io::Result<Pidfd> {
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        let inside = self.0.as_ptr();
        let mut pidfd: RawFd = -1;
        // SAFETY: `inside` was leaked by `new` and is freed by `drop` only when no child lives there. The stack
        // grows downwards from its end, which mmap(2) has aligned to a page, and nobody else uses it. The child only
        // reads what it is given, and does nothing but system calls (see `Birth::live`): it allocates nothing and takes
        // no lock, for this thread, whose memory and whose thread-local storage it shares, goes on meanwhile. The kernel
        // writes `pidfd`, which lives here, and later `inhabited`, which is atomic.
        let child = unsafe {
            (*inside).inhabited.store(1, Ordering::Relaxed);
            let stack = (*inside).stack.as_mut_ptr().add(STACK_BYTES);
            libc::clone(live, stack.cast(), flags, inside.cast(), &raw mut pidfd)
        };
        let Ok(child) = u32::try_from(child) else {
            let error = io::Error::last_os_error();
            // SAFETY: as above; no child has come into being.
            unsafe { (*inside).inhabited.store(0, Ordering::Relaxed) };
            return Err(error);
        };
        // SAFETY: clone(2) has succeeded, so `pidfd` is a new descriptor that nobody else owns.
        Ok(Pidfd::known(unsafe { OwnedFd::from_raw_fd(pidfd) }, child))
    }

    fn is_inhabited(&self) -> bool {
        // SAFETY: it lives as long as `self`; the kernel writes to it, atomically.
        unsafe { (*self.0.as_ptr()).inhabited.load(Ordering::Acquire) != 0 }
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        if !self.is_inhabited() {
            // SAFETY: it was leaked by `new`, and no child uses it any more. Else it is lost: better than to
            // take it from under a child.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }
}

/// The child begins here.
extern "C" fn live(inside: *mut c_void) -> c_int {
    // SAFETY: it is what was given to clone(2), and stays until the child has left it; nobody writes to its `birth`.
    // The system call cannot fail. `CLONE_CHILD_CLEARTID` would say the same, but musl's clone(3) refuses it; a child
    // that is killed before it comes here leaves its cradle behind for ever.
    let birth = unsafe {
        let inside = inside.cast::<Inside>();
        let _ = syscall!(Sysno::set_tid_address, (*inside).inhabited.as_ptr());
        &(*inside).birth
    };
    birth.live()
}

/// Descriptors for a child, above all numbers that they are to get, so that none is overwritten before its turn.
struct Moved<'a> {
    /// Which descriptor gets which number. These are high enough,
    high: Vec<(BorrowedFd<'a>, RawFd)>,
    /// these are copies, which the parent closes when it has a child.
    copies: Vec<(OwnedFd, RawFd)>,
    /// The number under which the program is open.
    program: Option<RawFd>,
    highest: RawFd,
}

impl<'a> Moved<'a> {
    fn prepare(program: Option<BorrowedFd<'a>>, descriptors: &[(BorrowedFd<'a>, RawFd)]) -> io::Result<Self> {
        let highest = descriptors.iter().map(|&(_, number)| number).fold(libc::STDERR_FILENO, RawFd::max);
        let program = program.map(|program| (program, highest + 1));
        let descriptors = descriptors.iter().copied().chain(program);
        let program = program.map(|(_, number)| number);
        let highest = program.unwrap_or(highest);
        let (high, low): (Vec<_>, Vec<_>) = descriptors.partition(|(fd, _)| fd.as_raw_fd() > highest);
        let null = File::open("/dev/null")?;
        let low = low.into_iter().chain([(null.as_fd(), libc::STDIN_FILENO)]);
        let copies = low
            .map(|(fd, number)| Ok((fcntl_dupfd_cloexec(fd, highest + 1)?, number)))
            .collect::<io::Result<_>>()?;
        Ok(Self { high, copies, program, highest })
    }

    /// From which number to which.
    fn numbers(&self) -> Vec<(RawFd, RawFd)> {
        let high = self.high.iter().map(|(fd, number)| (fd.as_raw_fd(), *number));
        high.chain(self.copies.iter().map(|(fd, number)| (fd.as_raw_fd(), *number))).collect()
    }
}

/// All that a child needs before it executes the program. Made by the parent, for the
/// child must not allocate.
struct Birth {
    parent: Pid,
    path: CString,
    /// The number under which the program is open.
    program: Option<RawFd>,
    arguments: Strings,
    environment: Strings,
    /// From which number to which each descriptor goes; the former are all above `highest`.
    descriptors: Vec<(RawFd, RawFd)>,
    /// Numbers below `highest` that the child shall not find open.
    gaps: Vec<RawFd>,
    highest: RawFd,
}

/// What failed, in words that follow "cannot".
type Failed = (&'static str, Errno);

impl Birth {
    fn prepare(moved: &Moved<'_>, arguments: &[String]) -> io::Result<Self> {
        let path = match moved.program {
            Some(number) => CString::new(format!("/proc/self/fd/{number}"))?,
            None => c"/proc/self/exe".to_owned(),
        };
        let descriptors = moved.numbers();
        let gap = |number: &RawFd| !descriptors.iter().any(|(_, taken)| taken == number);
        let gaps = (libc::STDERR_FILENO + 1..moved.highest).filter(gap).collect();
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
            program: moved.program,
            arguments: Strings::new(["osps"].into_iter().chain(arguments.iter().map(String::as_str)))?,
            environment: Strings::new(variables)?,
            descriptors,
            gaps,
            highest: moved.highest,
        })
    }

    /// What the child does. Between clone and exec only system calls and arithmetic, no allocation, no lock, no
    /// panic; and past the C library, whose `errno`, locks and notion of a thread are the parent's, too.
    fn live(&self) -> ! {
        let Err((step, error)) = self.execute();
        last_words(step, error);
        // SAFETY: ends this process at once; no destructor or exit handler of the parent runs.
        unsafe { libc::_exit(Code::System as i32) }
    }

    fn execute(&self) -> Result<Infallible, Failed> {
        let os = |step| move |error: rustix::io::Errno| (step, Errno::from_raw(error.raw_os_error()));
        let raw = |step| move |error: syscalls::Errno| (step, Errno::from_raw(error.into_raw()));
        // First of all, for from here on the death of the parent leaves nobody behind. SIGKILL,
        // for SIGTERM is held back and a stopped process would not act on it; see
        // `die_gently_with_parent`.
        set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(os("ask for the parent-death signal"))?;
        if getppid() != Some(self.parent) {
            return Err(("start: the parent has died", Errno::ESRCH));
        }
        self.take_descriptors().map_err(raw("take its descriptors"))?;
        reset_dispositions().map_err(raw("reset its signals"))?;
        if let Some(number) = self.program {
            // SAFETY: the descriptor was put there right before; the program itself need not find it open.
            unsafe { syscall!(Sysno::fcntl, number, libc::F_SETFD, libc::FD_CLOEXEC) }
                .map_err(raw("take its program"))?;
        }
        let (arguments, environment) = (&self.arguments.pointers, &self.environment.pointers);
        // SAFETY: path and strings end with NUL, the vectors with a null pointer, and all
        // of them live as long as `self`.
        let executed =
            unsafe { syscall!(Sysno::execve, self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        // Where it succeeds it does not return.
        Err(executed
            .map_or_else(raw("execute its program"), |_| ("execute its program", Errno::UnknownErrno)))
    }

    /// Closes the rest now, not only at exec: a child that is stopped in between shall
    /// not keep the parent's connections open, nor its lock.
    fn take_descriptors(&self) -> Result<(), syscalls::Errno> {
        for &(fd, number) in &self.descriptors {
            // SAFETY: what had this number is the parent's affair and only a copy here: tables of descriptors are
            // not shared. The new descriptor is not close-on-exec.
            unsafe { syscall!(Sysno::dup3, fd, number, 0) }?;
        }
        for &number in &self.gaps {
            // SAFETY: as above; nobody in this process uses any of them before exec.
            let _ = unsafe { syscall!(Sysno::close, number) };
        }
        // SAFETY: as above. A kernel without it (before 5.9) answers with an error; all
        // descriptors of our own are close-on-exec anyway.
        let _ = unsafe { syscall!(Sysno::close_range, self.highest + 1, libc::c_uint::MAX, 0) };
        Ok(())
    }
}

/// Ignores the terminal's signals and undoes what a parent of ours may have ignored: a
/// SIGCHLD that is ignored reaps children behind our back. Only ignored signals survive
/// `execve(2)`; handlers become defaults there.
fn reset_dispositions() -> Result<(), syscalls::Errno> {
    for number in 1..=libc::SIGSYS {
        let is_among = |signals: &[Signal]| signals.iter().any(|&signal| signal as c_int == number);
        if is_among(&KEPT_SIGNALS) {
            continue;
        }
        // The kernel's `struct sigaction`, which is longer than that nowhere: no flags, no mask.
        let mut action = [0_usize; 16];
        action[HANDLER] = if is_among(&TERMINAL_SIGNALS) { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: the disposition is "ignore" or "default": no code of ours runs in a handler. The child has a
        // table of dispositions of its own (no CLONE_SIGHAND).
        unsafe { syscall!(Sysno::rt_sigaction, number, action.as_ptr(), 0, SIGSET_BYTES) }?;
    }
    Ok(())
}

/// Which word of the kernel's `struct sigaction` is the handler.
const HANDLER: usize = if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 1 } else { 0 };

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
        let moved = Moved::prepare(None, &[(fd, 9), (fd, 3), (fd, 6)]).unwrap();
        let birth = Birth::prepare(&moved, &[]).unwrap();
        assert_eq!((birth.highest, birth.gaps), (9, vec![4, 5, 7, 8]));
        assert!(birth.descriptors.iter().all(|&(source, _)| source > 9));
        let mut numbers: Vec<_> = birth.descriptors.iter().map(|&(_, number)| number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 3, 6, 9]);
    }

    #[test]
    fn what_a_child_lived_in_is_freed_when_it_has_left_and_not_before() {
        let cradles = || CRADLES.with_borrow(Vec::len);
        let (reader, writer) = std::io::pipe().unwrap();
        let program = File::open("/bin/cat").unwrap();
        // It reads as long as we have the other end.
        let arguments = ["/proc/self/fd/3".to_owned()];
        let child = spawn(Some(program.as_fd()), &arguments, &[(reader.as_fd(), 3)]).unwrap();
        while cradles() > 0 {
            tidy_up();
        }
        assert_eq!(child.reap().unwrap(), None, "it lives, in memory of its own");
        drop(writer);
        assert!(child.ends_within(Duration::from_secs(60)));
        assert_eq!(child.reap().unwrap(), Some(Exit::Code(0)));

        let child = spawn(None, &too_long(), &[]).unwrap();
        assert!(child.ends_within(Duration::from_secs(60)));
        tidy_up();
        assert_eq!(cradles(), 0, "it has ended");
    }
}
