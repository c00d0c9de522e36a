//! What signals do in a child that has not executed its program yet.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ops::RangeInclusive;

use nix::libc;
use nix::sys::signal::Signal;
use syscalls::{Sysno, syscall};

/// All that there are, and those without the real-time ones. The C library's functions refuse to touch two of the latter.
pub const ALL: RangeInclusive<c_int> = 1..=64;
pub const STANDARD: RangeInclusive<c_int> = 1..=libc::SIGSYS;
/// The size of the kernel's set of signals.
pub const SIGSET_BYTES: usize = 8;
/// Which word of the kernel's `struct sigaction` is the handler.
const HANDLER: usize = if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 1 } else { 0 };

/// Gives signals their defaults, but for `kept`, which nobody touches, and `ignored`. What is ignored stays so across
/// `execve(2)`, handlers become defaults there.
///
/// Makes system calls only, past the C library: sigaction(3) takes a lock for SIGABRT, which the parent may hold.
pub fn reset(
    signals: RangeInclusive<c_int>,
    kept: &[Signal],
    ignored: &[Signal],
) -> Result<(), syscalls::Errno> {
    for number in signals {
        let is_among = |signals: &[Signal]| signals.iter().any(|&signal| signal as c_int == number);
        if is_among(kept) {
            continue;
        }
        // The kernel's `struct sigaction`, which is longer than that nowhere: no flags, no mask.
        let mut action = [0_usize; 16];
        action[HANDLER] = if is_among(ignored) { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: the disposition is "ignore" or "default": no code of ours runs in a handler. A child has a
        // table of dispositions of its own (no CLONE_SIGHAND).
        let reset = unsafe { syscall!(Sysno::rt_sigaction, number, action.as_ptr(), 0, SIGSET_BYTES) };
        // A tracer or an emulator may keep real-time signals to itself.
        if number <= *STANDARD.end() {
            reset?;
        }
    }
    Ok(())
}
