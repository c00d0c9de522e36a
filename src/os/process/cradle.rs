//! The memory in which a child lives until it executes its program.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use memmap2::MmapMut;
use nix::libc;
use syscalls::{Sysno, syscall};

use crate::os::pidfd::Pidfd;
use crate::os::process::birth::Birth;
use crate::os::segment;

/// Much more than a few system calls and one line of text need.
const STACK_BYTES: usize = 64 * 1024;

thread_local! {
    /// In which a child may still live, and one that waits for the next.
    static CRADLES: RefCell<Vec<Cradle>> = const { RefCell::new(Vec::new()) };
}

/// Has a child live through a birth, and returns a pidfd of it.
///
/// # Errors
/// What `mmap(2)` or `clone(2)` say: then there is no child.
pub fn bear(birth: Birth) -> io::Result<Pidfd> {
    CRADLES.with_borrow_mut(|cradles| {
        let empty = cradles.iter().position(|cradle| !cradle.is_inhabited());
        let cradle = empty.map_or_else(Cradle::new, |empty| Ok(cradles.swap_remove(empty)))?;
        let child = cradle.bear(birth);
        cradles.push(cradle);
        child
    })
}

/// Frees what the last children needed until they had executed their program: to be called when one has shown
/// that it has. One cradle is kept for the next child.
pub fn tidy_up() {
    CRADLES.with_borrow_mut(|cradles| {
        let mut kept = false;
        cradles.retain(|cradle| cradle.is_inhabited() || !std::mem::replace(&mut kept, true));
    });
}

/// A child shares all memory with its parent, as after vfork(2): nothing is copied, however large the parent is.
/// But the parent goes on at once, so this is the child's alone, and stays until it has left.
struct Cradle(NonNull<Inside>);

struct Inside {
    birth: Option<Birth>,
    stack: MmapMut,
    /// Not zero until the child gives this memory up: the kernel makes it zero when it has executed its
    /// program or has ended (set_tid_address(2)).
    inhabited: AtomicI32,
}

impl Cradle {
    fn new() -> io::Result<Self> {
        let stack = segment::scratch(STACK_BYTES)?;
        let inside = Box::new(Inside { birth: None, stack, inhabited: AtomicI32::new(0) });
        Ok(Self(NonNull::from(Box::leak(inside))))
    }

    /// A child, and a pidfd of it in one step: where there is no descriptor left, there is no child either.
    /// `clone3(2)` would do as well, but containers often forbid it, for their filters cannot look into its arguments.
    fn bear(&self, birth: Birth) -> io::Result<Pidfd> {
        debug_assert!(!self.is_inhabited());
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        let inside = self.0.as_ptr();
        let mut pidfd: RawFd = -1;
        // SAFETY: `inside` was leaked by `new` and is freed by `drop`; it is written to, and freed, only when no child
        // lives there. The stack grows downwards from its end, which mmap(2) has aligned to a page, and nobody else
        // uses it. The child only reads what it is given, and does nothing but system calls (see `Birth::live`): it
        // allocates nothing and takes no lock, for this thread, whose memory and whose thread-local storage it
        // shares, goes on meanwhile. The kernel writes `pidfd`, which lives here, and later `inhabited`, which is
        // atomic.
        let child = unsafe {
            (*inside).birth = Some(birth);
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
        (*inside).birth.as_ref()
    };
    match birth {
        Some(birth) => birth.live(),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::pidfd::Exit;
    use crate::os::process::spawn;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// How many there are, and in how many of them a child lives.
    fn cradles() -> (usize, usize) {
        CRADLES.with_borrow(|cradles| {
            (cradles.len(), cradles.iter().filter(|cradle| cradle.is_inhabited()).count())
        })
    }

    #[test]
    fn what_a_child_lived_in_is_used_again_when_it_has_left_and_not_before() {
        let (reader, writer) = std::io::pipe().unwrap();
        let program = File::open("/bin/cat").unwrap();
        // It reads as long as we have the other end.
        let arguments = ["/proc/self/fd/3".to_owned()];
        let start = || spawn(Some(program.as_fd()), &arguments, &[(reader.as_fd(), 3)]).unwrap();
        let mut children = vec![start(), start()];
        while cradles().1 > 0 {}
        tidy_up();
        assert_eq!(cradles(), (1, 0), "they live, in memory of their own");
        children.push(start());
        assert_eq!(cradles().0, 1);
        drop(writer);
        for child in children {
            assert!(child.ends_within(Duration::from_secs(60)));
            assert_eq!(child.reap().unwrap(), Some(Exit::Code(0)));
        }

        // Longer than execve(2) takes as one argument.
        let child = spawn(None, &["x".repeat(256 * 1024)], &[]).unwrap();
        assert!(child.ends_within(Duration::from_secs(60)));
        assert_eq!(cradles(), (1, 0), "it has ended");
    }
}
