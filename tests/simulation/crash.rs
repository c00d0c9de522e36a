//! Death in the middle of a turn: before any store in a page, before any system call.
//!
//! The process unwinds out of its turn, as if SIGKILL had come: what it had in memory is
//! lost, what it had stored or sent is not.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What the unwinding of a process carries that was killed while its turn was under way.
struct KilledMeanwhile;

/// A system call is about to happen.
pub fn burn() {
    #[cfg(debug_assertions)]
    osps::page::fuse::burn();
}

/// The process whose turn it is was killed by somebody else.
pub fn die_here() -> ! {
    resume_unwind(Box::new(KilledMeanwhile))
}

/// What happens in here is done by others.
pub fn spare<T>(other: impl FnOnce() -> T) -> T {
    #[cfg(debug_assertions)]
    return osps::page::fuse::spare(other);
    #[cfg(not(debug_assertions))]
    other()
}

/// Runs a turn, up to the store or system call that the fuse says. Returns whether the
/// process lived to its end. A build without debug assertions has no fuse.
pub fn survives(fuse: Option<u64>, turn: impl FnOnce()) -> bool {
    spare(|| {
        let mut lived = false;
        let life = || lived = unless_killed(turn);
        match fuse {
            #[cfg(debug_assertions)]
            Some(stores) => {
                osps::page::fuse::burns_after(stores, life);
            }
            _ => life(),
        }
        lived
    })
}

fn unless_killed(turn: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(turn)) {
        Ok(()) => true,
        Err(payload) if payload.is::<KilledMeanwhile>() => false,
        Err(payload) => resume_unwind(payload),
    }
}

/// The words of a panic.
pub fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
