//! A service manager as systemd is one: it hears what the system says of itself (sd_notify(3)), watches it, and
//! passes sockets to it (sd_listen_fds(3)).
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod notices;
mod sockets;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Output, Stdio};

use common::{PATIENCE, REQUESTS, System};

/// Whom the system tells how it is.
struct Manager {
    socket: UnixDatagram,
    /// `NOTIFY_SOCKET`
    address: String,
    _dir: tempfile::TempDir,
}

impl Manager {
    /// Under a path.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::of(socket, path.to_str().unwrap().to_owned(), dir)
    }

    /// Under an abstract name (unix(7)).
    fn under_abstract_name() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("notify").to_str().unwrap().trim_start_matches('/').to_owned();
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Self::of(socket, format!("@{name}"), dir)
    }

    fn of(socket: UnixDatagram, address: String, dir: tempfile::TempDir) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, address, _dir: dir }
    }

    /// The next message, waited for.
    fn message(&self) -> String {
        let mut message = [0; 4096];
        loop {
            match self.socket.recv(&mut message) {
                Ok(length) => return String::from_utf8(message[..length].to_vec()).unwrap(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no message: {error}"),
            }
        }
    }

    /// The messages up to one that has all of these in it, waited for.
    fn until(&self, words: &[&str]) -> Vec<String> {
        let mut messages = Vec::new();
        loop {
            let message = self.message();
            let is_last = words.iter().all(|word| message.contains(word));
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }

    /// What is there by now.
    fn waiting(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut message = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut message) {
            messages.push(String::from_utf8(message[..length].to_vec()).unwrap());
        }
        self.socket.set_nonblocking(false).unwrap();
        messages
    }

    /// Sends empty messages until nobody can send any more. Each sender has a limit of its own, too.
    fn fill(&self) {
        let mut last = 1;
        while last > 0 {
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            sender.connect(&self.address).unwrap();
            last = (0..).take_while(|_| sender.send(b"").is_ok()).count();
        }
    }

    /// Starts a system that is to tell this one.
    fn start(&self, top: &str, variables: &[(&str, &str)]) -> System {
        Launch { manager: Some(self), variables, ..Launch::default() }.start(top)
    }
}

/// What a system is started with.
#[derive(Default)]
struct Launch<'a> {
    manager: Option<&'a Manager>,
    variables: &'a [(&'a str, &'a str)],
    /// Two at most.
    sockets: &'a [&'a dyn AsFd],
    /// Their names, with colons between.
    names: &'a str,
    /// For which pid they are, in the words of the shell that becomes the watchdog.
    pid: Option<&'a str>,
}

impl Launch<'_> {
    /// Starts it, without waiting for more than the process. A shell gives the sockets their numbers, and learns its
    /// pid, which the watchdog has then.
    fn start(&self, top: &str) -> System {
        let taken = ["exec ", "exec 3>&1 ", "exec 3>&1 4>&2 "][self.sockets.len()];
        let pid = self.pid.unwrap_or("$$");
        let script = format!("{taken} >>stdout 2>>stderr; export LISTEN_PID={pid}; exec \"$@\"");
        System::start_by(top, REQUESTS, |command| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
            for (number, socket) in self.sockets.iter().enumerate() {
                let socket: OwnedFd = socket.as_fd().try_clone_to_owned().unwrap();
                if number == 0 {
                    shell.stdout(socket)
                } else {
                    shell.stderr(socket)
                };
            }
            if !self.sockets.is_empty() {
                shell.env("LISTEN_FDS", self.sockets.len().to_string()).env("LISTEN_FDNAMES", self.names);
            }
            if let Some(manager) = self.manager {
                shell.env("NOTIFY_SOCKET", &manager.address);
            }
            shell.envs(self.variables.iter().copied());
            shell
        })
    }

    /// Starts one that cannot start: its exit code and what it says.
    fn fails(&self, top: &str) -> (Option<i32>, String) {
        let mut system = self.start(top);
        (system.ended().code(), system.log())
    }
}

/// Runs a command of `osps` for a system.
fn run(system: &System, arguments: &[&str]) -> Output {
    let mut tool = common::osps();
    tool.args(arguments).arg("--runtime-dir").arg(system.rundir()).current_dir("/").stdin(Stdio::null());
    tool.output().unwrap()
}

/// Runs one that must succeed.
fn runs(system: &System, arguments: &[&str]) {
    let output = run(system, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs one that must fail: what it says.
fn fails(system: &System, arguments: &[&str]) -> String {
    let output = run(system, arguments);
    assert_eq!(output.status.code(), Some(69), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Changes words of the configuration.
fn rewrite(system: &System, from: &str, to: &str) {
    let path = system.dir.path().join("osps.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}
