//! Exit codes, after `sysexits(3head)`, and the one line that explains each.

use std::fmt;
use std::process::ExitCode;

/// Why a program of OSPS ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// All went well.
    Ok = 0,
    /// The command line is wrong.
    Usage = 64,
    /// Something needed is not there: a port is taken, nobody answers.
    Unavailable = 69,
    /// A bug, or the kernel refused what it should not.
    Internal = 70,
    /// The system refused to run a server (`EX_OSERR`): a child that could not execute this
    /// program ends with it. It is started again, after a pause.
    System = 71,
    /// A file or directory cannot be created.
    CannotCreate = 73,
    /// A watchdog runs in this runtime directory already.
    AlreadyRunning = 75,
    /// Not allowed.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Code {
    /// Whether a server that ends with this code says that starting it again is of no use.
    #[must_use]
    pub fn means_cannot_start(code: i32) -> bool {
        [Self::Usage, Self::Config].iter().any(|known| *known as i32 == code)
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error that ends a program: its exit code and one clear line.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// What went wrong, without a newline at the end.
    pub message: String,
}

impl Failure {
    /// A failure with a message.
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// The kernel refused what it should not: says what was tried.
    pub fn internal(what: &str, error: &dyn fmt::Display) -> Self {
        Self::new(Code::Internal, format_args!("cannot {what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
