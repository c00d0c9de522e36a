//! The kernel's random source.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes that nobody can foretell (getrandom(2), from the source of `/dev/urandom`).
///
/// # Errors
/// What `getrandom(2)` says; up to 256 bytes come whole and without an interruption.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    if filled == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
