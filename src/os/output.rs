//! Standard output of what is a tool, and no server.

use std::io::{ErrorKind, Write, stdout};

use crate::exit::Failure;

/// Writes it. Whoever reads may have seen enough (`osps status | head -1`): that is no error.
///
/// # Errors
/// A [`Failure`] with what `write(2)` says.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = stdout();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// What became of an attempt to write there.
///
/// # Errors
/// As [`print()`].
pub fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::internal("write to standard output", &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
