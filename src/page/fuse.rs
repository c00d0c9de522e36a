//! Kills the keeper of a page before a chosen store. It exists in builds with debug
//! assertions only (what `cargo test` builds): tests show with it that the books are exact
//! wherever their keeper dies.
//!
//! In a test the "death" is an unwinding ([`burns_after`]); in a real process it is SIGKILL,
//! lit by the environment: `OSPS_FUSE=principal.1:57` kills the first principal before the
//! 57th store that it makes once it has its pages.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rustix::process::{Signal, getpid, kill_process};

/// The environment variable that lights the fuse of a real process.
pub const VARIABLE: &str = "OSPS_FUSE";

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static IS_REAL: Cell<bool> = const { Cell::new(false) };
}

/// What the unwinding of a killed keeper carries.
struct Killed;

/// A store is about to happen.
pub fn burn() {
    match LEFT.get() {
        None => {}
        Some(0) => {
            LEFT.set(None);
            if IS_REAL.get() {
                // Nothing that stands behind this line is run.
                let _ = kill_process(getpid(), Signal::KILL);
            }
            resume_unwind(Box::new(Killed));
        }
        Some(left) => LEFT.set(Some(left - 1)),
    }
}

/// Runs `life` until it has made so many stores. Returns whether it came to its end.
pub fn burns_after(stores: u64, life: impl FnOnce()) -> bool {
    LEFT.set(Some(stores));
    let lived = catch_unwind(AssertUnwindSafe(life));
    LEFT.set(None);
    match lived {
        Ok(()) => true,
        Err(payload) if payload.is::<Killed>() => false,
        Err(payload) => resume_unwind(payload),
    }
}

/// Stores in here are somebody else's.
pub fn spare<T>(other: impl FnOnce() -> T) -> T {
    let left = LEFT.take();
    let result = other();
    LEFT.set(left);
    result
}

/// Lights the fuse of this process, where the environment asks for it by its name.
pub fn light_by_environment(name: &str) {
    let stores = std::env::var(VARIABLE).ok().and_then(|fuses| {
        let mut fuses = fuses.split(',').filter_map(|fuse| fuse.split_once(':'));
        fuses.find(|(whose, _)| *whose == name)?.1.parse().ok()
    });
    if stores.is_some() {
        IS_REAL.set(true);
        LEFT.set(stores);
    }
}
