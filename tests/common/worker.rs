//! The worker of `examples/worker.rs`, and jobs that are followed to their end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{System, connect};

/// Its program, compiled once for each run of a test: `cargo test --test NAME` builds no examples.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/worker.rs");
        let program = directory.join("worker");
        let new = directory.join(format!("worker.{}", std::process::id()));
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let mut rustc = Command::new(rustc);
        rustc.args(["--edition", "2024", "-O", "--cap-lints", "allow", "-o"]).arg(&new).arg(&source);
        assert!(rustc.status().unwrap().success());
        // Others may run it just now.
        fs::rename(&new, &program).unwrap();
        program
    })
}

/// `[[request]]` of a type whose worker has these arguments and keys.
pub fn request(name: &str, arguments: &[&str], keys: &str) -> String {
    let command: Vec<&str> = [program().to_str().unwrap()].iter().chain(arguments).copied().collect();
    format!(
        "[[request]]\nname = \"{name}\"\nhandler = \"exec\"\nmode = \"persistent\"\ncommand = {command:?}\n{keys}\n"
    )
}

/// A job that is followed.
pub struct Followed {
    control: BufReader<TcpStream>,
    jeton: String,
    pub data: TcpStream,
}

impl Followed {
    /// A job whose data connection is open, with nothing sent but its jeton.
    pub fn begin(system: &System, kind: &str) -> Self {
        let mut control = BufReader::new(system.connect());
        control.get_mut().write_all(format!("suivi {kind}\n").as_bytes()).unwrap();
        let mut line = String::new();
        control.read_line(&mut line).unwrap();
        let (port, jeton) = line.trim_end().split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let host = control.get_ref().peer_addr().unwrap().ip();
        let mut data = connect(SocketAddr::new(host, port.parse().unwrap()));
        data.write_all(format!("jeton {jeton}\n").as_bytes()).unwrap();
        Self { jeton: jeton.to_owned(), control, data }
    }

    /// As [`Followed::begin`], with the whole message.
    pub fn ask(system: &System, kind: &str, message: &str) -> Self {
        let mut followed = Self::begin(system, kind);
        followed.data.write_all(message.as_bytes()).unwrap();
        followed.data.shutdown(Shutdown::Write).unwrap();
        followed
    }

    /// Waits until it has begun.
    pub fn has_begun(&mut self) {
        assert_eq!(self.line(), format!("debuttraitement {}", self.jeton));
    }

    /// Its final line: nothing where it is done, else the reason.
    pub fn end(&mut self) -> String {
        loop {
            let line = self.line();
            if let Some(reason) = line.strip_prefix(&format!("errtraitement {}", self.jeton)) {
                return reason.trim_start().to_owned();
            }
            if line == format!("fintraitement {}", self.jeton) {
                return String::new();
            }
            assert_eq!(line, format!("debuttraitement {}", self.jeton));
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the control connection has ended: {line:?}");
        line.truncate(line.len() - 1);
        line
    }

    /// What its client gets, and how it ends.
    pub fn outcome(mut self) -> (String, String) {
        let mut answer = Vec::new();
        // A job that fails may break its connection.
        let _ = self.data.read_to_end(&mut answer);
        (String::from_utf8(answer).unwrap(), self.end())
    }
}

/// A whole job: what its client gets, and how it ends.
pub fn job(system: &System, kind: &str, message: &str) -> (String, String) {
    Followed::ask(system, kind, message).outcome()
}

/// A job that is done: its answer.
pub fn done(system: &System, kind: &str, message: &str) -> String {
    let (answer, end) = job(system, kind, message);
    assert_eq!(end, "", "{message:?} is answered {answer:?}");
    answer
}
