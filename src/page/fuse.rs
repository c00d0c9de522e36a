//! Kills the keeper of a page before a chosen store: in tests only.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What the unwinding of a killed keeper carries.
struct Killed;

/// A store is about to happen.
pub fn burn() {
    match LEFT.get() {
        None => {}
        Some(0) => {
            LEFT.set(None);
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
pub fn spare(other: impl FnOnce()) {
    let left = LEFT.take();
    other();
    LEFT.set(left);
}
