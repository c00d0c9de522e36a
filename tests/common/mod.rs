//! What the tests with real processes share: a system of their own, in a temporary
//! directory, on ports from the kernel, in a process group that is gone when the test
//! ends, with its logs shown when the test fails.
#![allow(dead_code, reason = "each test binary uses its part of this")]
#![allow(clippy::unwrap_used)]

pub mod blows;
pub mod ports;
pub mod worker;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use osps::core::moment::Moment;
use osps::os::{clock, proc};
use serde_json::Value;

/// Longer than anything takes on a loaded machine; nobody waits so long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The request types that most tests want.
pub const REQUESTS: &str = r#"
[[request]]
name = "requetetype1"
handler = "delay"
delay = "20ms"

[[request]]
name = "requetetype2"
handler = "delay"
delay = "50ms"

[[request]]
name = "echo"
handler = "echo"

[[request]]
name = "block"
handler = "block"
delay = "20ms"
"#;

/// A running system.
pub struct System {
    pub watchdog: Child,
    pub dir: tempfile::TempDir,
    /// Which binary: `osps`, or one with handlers of its own.
    program: PathBuf,
    /// Which one its tools are.
    tools: PathBuf,
    /// The process groups of watchdogs before this one.
    before: Vec<Pid>,
}

/// A command for the `osps` binary that was built for this test run.
pub fn osps() -> Command {
    Command::new(env!("CARGO_BIN_EXE_osps"))
}

/// The binary of an example, which `cargo test` builds.
pub fn example(name: &str) -> PathBuf {
    let of_tests = std::env::current_exe().unwrap();
    let profile = of_tests.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{path:?} is missing: cargo build --examples");
    path
}

/// What `tests/browser/install.sh` has installed.
pub fn installed(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(name);
    assert!(path.exists(), "{path:?} is missing: tests/browser/install.sh");
    path
}

/// A command for the `osps-client` binary.
pub fn osps_client() -> Command {
    Command::new(env!("CARGO_BIN_EXE_osps-client"))
}

/// Waits until `condition` gives something; fails the test, naming `what`, if it never does.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let give_up_at = clock::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(clock::now() < give_up_at, "not within {PATIENCE:?}: {what}");
        pause();
    }
}

/// What is to be seen when it stays the same for a while: of a process that is looking for others, descriptors
/// come and go.
pub fn at_rest<T: PartialEq>(look: impl Fn() -> T) -> T {
    let (mut last, mut same) = (look(), 0);
    while same < 25 {
        pause();
        let now = look();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// A moment between two looks at a condition.
#[expect(clippy::disallowed_methods, reason = "between two looks at a condition, never to order events")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// Runs clients at the same time, each in a thread of the test, and collects what they return.
#[expect(clippy::disallowed_methods, reason = "clients in a test, no server")]
pub fn together<T: Send + 'static>(
    clients: usize,
    client: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let client = std::sync::Arc::new(client);
    let threads: Vec<_> = (0..clients)
        .map(|number| {
            let client = client.clone();
            std::thread::spawn(move || client(number))
        })
        .collect();
    // All have ended before one that failed fails the test, so that nobody uses a system any more.
    let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
    ended.into_iter().map(|result| result.unwrap()).collect()
}

/// The time now.
pub fn now() -> Moment {
    clock::now()
}

impl System {
    /// Starts a system with `top` before and `rest` after the usual keys of the
    /// configuration, and waits until all its servers are ready.
    pub fn start(top: &str, rest: &str) -> Self {
        let system = Self::start_unready(top, rest);
        system.all_ready();
        system
    }

    /// As [`System::start`], without waiting for more than the process.
    pub fn start_unready(top: &str, rest: &str) -> Self {
        Self::start_by(top, rest, |command| command)
    }

    /// As [`System::start_unready`], with the command as `dress` makes it: another
    /// environment, other outputs, or another program that becomes `osps`.
    pub fn start_by(top: &str, rest: &str, dress: impl FnOnce(Command) -> Command) -> Self {
        Self::start_dressed(env!("CARGO_BIN_EXE_osps").into(), top, rest, dress)
    }

    /// As [`System::start_unready`], all processes on one core (taskset(1)).
    pub fn start_on_core(core: usize, top: &str, rest: &str) -> Self {
        Self::start_by(top, rest, |command| {
            let mut pinned = Command::new("sh");
            pinned.args(["-c", "exec taskset -c \"$@\" >>stdout 2>>stderr", "sh", &core.to_string()]);
            pinned.arg(command.get_program()).args(command.get_args());
            pinned
        })
    }

    /// As [`System::start`], of a server with handlers of its own.
    pub fn start_example(name: &str, top: &str, rest: &str) -> Self {
        let mut system = Self::start_program(example(name), top, rest);
        system.tools = example(name);
        system
    }

    /// As [`System::start_by`], of a server with handlers of its own.
    pub fn start_example_by(
        name: &str,
        top: &str,
        rest: &str,
        dress: impl FnOnce(Command) -> Command,
    ) -> Self {
        Self::start_dressed(example(name), top, rest, dress)
    }

    /// As [`System::start`], of a program at that path, which may become another.
    pub fn start_program(program: PathBuf, top: &str, rest: &str) -> Self {
        let system = Self::start_dressed(program, top, rest, |command| command);
        system.all_ready();
        system
    }

    fn start_dressed(
        program: PathBuf,
        top: &str,
        rest: &str,
        dress: impl FnOnce(Command) -> Command,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = if top.contains("listen") { "" } else { "listen = \"127.0.0.1:0\"\n" };
        let ports = if top.contains("data_ports") { "" } else { "data_ports = \"0\"\n" };
        let config = format!("{listen}{ports}runtime_dir = {:?}\n{top}\n{rest}", dir.path().join("run"));
        fs::write(dir.path().join("osps.toml"), config).unwrap();
        let watchdog = Self::spawn(&program, dir.path(), dress);
        Self { watchdog, dir, program, tools: env!("CARGO_BIN_EXE_osps").into(), before: Vec::new() }
    }

    fn spawn(program: &Path, dir: &Path, dress: impl FnOnce(Command) -> Command) -> Child {
        let output =
            |name| Stdio::from(File::options().append(true).create(true).open(dir.join(name)).unwrap());
        let mut command = Command::new(program);
        command.arg("--config").arg(dir.join("osps.toml")).stdout(output("stdout")).stderr(output("stderr"));
        dress(command).current_dir(dir).stdin(Stdio::null()).process_group(0).spawn().unwrap()
    }

    /// Starts a watchdog again in the same directory, after the first has ended.
    pub fn start_again(&mut self) {
        self.start_again_unready();
        self.is_the_new_one();
        self.all_ready();
    }

    /// Waits until the status is that of the watchdog started last. What the one before has left tells of
    /// servers that were ready.
    fn is_the_new_one(&self) {
        self.until("the status of the new one", |status| status["pid"] == self.watchdog.id());
    }

    /// As [`System::start_again`], without waiting for more than the process.
    pub fn start_again_unready(&mut self) {
        self.watchdog.wait().unwrap();
        self.before.push(self.group());
        self.watchdog = Self::spawn(&self.program, self.dir.path(), |command| command);
    }

    /// Starts a watchdog in the same directory while the first, which was killed, may still be
    /// being taken apart.
    pub fn start_again_at_once(&mut self) {
        self.before.push(self.group());
        let next = Self::spawn(&self.program, self.dir.path(), |command| command);
        std::mem::replace(&mut self.watchdog, next).wait().unwrap();
        self.is_the_new_one();
        self.all_ready();
    }

    /// The runtime directory.
    pub fn rundir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// What stands in the runtime directory, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.rundir()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A command of `osps` for this system.
    pub fn tool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tools);
        command.args(arguments).arg("--config").arg(self.dir.path().join("osps.toml"));
        command
    }

    /// `osps status --json`, if it can be had.
    pub fn try_status(&self) -> Option<Value> {
        let output = self.tool(&["status", "--json"]).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// `osps status --json`.
    pub fn status(&self) -> Value {
        eventually("status", || self.try_status())
    }

    /// Waits until the status satisfies `condition`, and returns it.
    pub fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || self.try_status().filter(|status| condition(status)))
    }

    /// Waits until every slot has a server that is ready.
    pub fn all_ready(&self) -> Value {
        self.until("all servers ready", |status| {
            let servers = status["servers"].as_array().unwrap();
            servers.iter().all(|server| server["state"] == "ready" || server["state"] == "draining")
        })
    }

    /// The entry of `status` for a slot; 0 is the principal.
    pub fn server(status: &Value, slot: u64) -> Value {
        let servers = status["servers"].as_array().unwrap();
        let of_slot = |server: &&Value| server["slot"] == slot && server["state"] != "draining";
        servers.iter().find(of_slot).unwrap().clone()
    }

    /// The pid of the server in a slot; 0 is the principal.
    pub fn pid(&self, slot: u64) -> u32 {
        let status = self.until("a server in the slot", |status| Self::server(status, slot)["pid"].is_u64());
        u32::try_from(Self::server(&status, slot)["pid"].as_u64().unwrap()).unwrap()
    }

    /// The pids of all servers, the watchdog first.
    pub fn pids(&self) -> Vec<u32> {
        let status = self.status();
        let servers = status["servers"].as_array().unwrap().clone();
        let pids = servers.iter().filter_map(|server| server["pid"].as_u64());
        [self.watchdog.id()].into_iter().chain(pids.map(|pid| u32::try_from(pid).unwrap())).collect()
    }

    /// Where the principal listens: the first TCP address.
    pub fn address(&self) -> SocketAddr {
        self.addresses()[0]
    }

    /// All TCP addresses on which the principal listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listen = self.status()["listen"].as_array().unwrap().clone();
        listen.iter().filter_map(|address| address.as_str().unwrap().parse().ok()).collect()
    }

    /// A control connection with patience for reads.
    pub fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// Sends a signal to one process of this system.
    pub fn signal(&self, pid: u32, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// Sends a signal to a process that may be gone, and its pid another's by now. Returns
    /// whether there was one of this system.
    pub fn strike(&self, pid: u32, signal: Signal) -> bool {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        getpgid(Some(pid)) == Ok(self.group()) && kill(pid, signal).is_ok()
    }

    /// Waits until the watchdog has ended.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the end of the watchdog", || self.watchdog.try_wait().unwrap())
    }

    /// Stops gracefully by SIGINT, as Ctrl-C does, to the whole group.
    pub fn stop(&mut self) -> ExitStatus {
        killpg(self.group(), Signal::SIGINT).unwrap();
        self.ended()
    }

    /// What was logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    /// Whether any process of this system is left, zombies included.
    pub fn has_processes(&self) -> bool {
        self.before.iter().chain([&self.group()]).any(|&group| killpg(group, None).is_ok())
    }

    /// The processes of this system that have ended and were not reaped yet.
    pub fn zombies(&self) -> Vec<u32> {
        let pids = fs::read_dir("/proc").unwrap();
        let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let is_zombie = |pid: &u32| proc::stat(*pid).is_ok_and(|stat| stat.letter == 'Z');
        let is_ours =
            |pid: &u32| getpgid(Some(Pid::from_raw(i32::try_from(*pid).unwrap()))) == Ok(self.group());
        pids.filter(is_zombie).filter(is_ours).collect()
    }

    /// Whether any process is left of the watchdogs before this one.
    pub fn has_survivors(&self) -> bool {
        self.before.iter().any(|&group| killpg(group, None).is_ok())
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.watchdog.id()).unwrap())
    }

    /// Waits until nothing is open, then checks that the books are exact.
    pub fn books_are_exact(&self) -> Value {
        let status = self.until("no open job", |status| status["ledger"]["open"] == 0);
        let entry = |name: &str| status["ledger"][name].as_u64().unwrap();
        let ends = entry("done") + entry("failed") + entry("expired");
        assert_eq!(entry("accepted"), ends, "{}", status["ledger"]);
        status
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the system ---\n{}", self.log());
        }
        self.end();
        eventually("the end of every process of the test", || (!self.has_processes()).then_some(()));
    }
}

impl System {
    /// Asks to stop, again and again, so that all are reaped by whom they belong to; kills
    /// what does not obey.
    fn end(&mut self) {
        let give_up_at = clock::now() + Duration::from_secs(10);
        while clock::now() < give_up_at && self.watchdog.try_wait().unwrap().is_none() {
            let _ = kill(self.group(), Signal::SIGCONT);
            let _ = kill(self.group(), Signal::SIGTERM);
            pause();
        }
        for &group in self.before.iter().chain([&self.group()]) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.watchdog.wait();
    }
}

/// Connects, with patience for reads and writes.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads once. A read with a timeout is interrupted where a child of the test ends just then,
/// even though nobody handles SIGCHLD (signal(7)): that is no answer.
pub fn read_once(stream: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// One `recv`, as the plainest client does it.
pub fn recv(stream: &mut impl Read) -> String {
    let mut buffer = [0; 4096];
    let length = read_once(stream, &mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Reads until the peer closes.
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A bare request on a connection of its own, closed before the data connection is opened.
pub fn request(address: SocketAddr, kind: &str) -> TcpStream {
    let mut control = connect(address);
    control.write_all(kind.as_bytes()).unwrap();
    let port: u16 = recv(&mut control).parse().unwrap();
    drop(control);
    connect(SocketAddr::new(address.ip(), port))
}

/// A line request on a control connection that is kept; the answer without its newline.
pub fn ask(control: &mut (impl Read + Write), kind: &str) -> String {
    control.write_all(format!("{kind}\n").as_bytes()).unwrap();
    recv(control).trim_end_matches('\n').to_owned()
}

/// Asks for a job, which must be given: its port.
pub fn job(control: &mut (impl Read + Write), kind: &str) -> u16 {
    let answer = ask(control, kind);
    answer.parse().unwrap_or_else(|_| panic!("{kind} is answered {answer:?}"))
}

/// Sends a message and receives the answer to it.
pub fn say(stream: &mut TcpStream, message: &str) -> String {
    stream.write_all(message.as_bytes()).unwrap();
    recv(stream)
}

/// Waits until the peer closes or breaks a connection on which it owes nothing more.
pub fn breaks(stream: &mut TcpStream) {
    match read_once(stream, &mut [0; 64]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("not broken: {other:?}"),
    }
}
