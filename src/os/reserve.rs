//! Descriptors that are kept for what must not fail when none is left.

use std::fs::File;
use std::os::fd::OwnedFd;

/// As many as a look for processes needs at once: a directory, a file in it, a pidfd, and one to spare.
const KEPT: usize = 4;

/// A few descriptors that are held for nothing but to be given back.
#[derive(Debug, Default)]
pub struct Reserve(#[expect(dead_code, reason = "held, never used")] Vec<OwnedFd>);

impl Reserve {
    /// Takes what can be had.
    #[must_use]
    pub fn new() -> Self {
        let Ok(first) = File::open("/dev/null").map(OwnedFd::from) else {
            return Self::default();
        };
        let more = (1..KEPT).map_while(|_| first.try_clone().ok()).collect::<Vec<_>>();
        Self(std::iter::once(first).chain(more).collect())
    }
}
