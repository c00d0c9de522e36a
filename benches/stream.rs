//! What a long stream costs: `osps-client echo` through a secondary, beside a bare echo loop.
//!
//! The bare loop is one process with one epoll that speaks the same protocol and nothing else: it
//! answers each line with the port of its other listener, and sends back what comes there. The same
//! client drives both, round by round, so that the machine's moods hit both:
//!
//! - `file`: from a file to `/dev/null`: the least that the client can do,
//! - `pipe`: `cat big | osps-client echo > out`.
//!
//! Rates are medians; CPU time is what the server and the client used for each GiB. A number as
//! argument is the length of the stream in MiB.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{System, now};
use osps::os::proc::CpuClock;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getppid, set_parent_process_death_signal, waitid};

/// Tells this program that it is the bare loop.
const BARE: &str = "OSPS_BENCH_BARE";
const ROUNDS: usize = 9;
const MEBIBYTES: u64 = 512;
/// Without `--bench` it is `cargo test`, which wants to know only whether it works.
const SMOKE_MEBIBYTES: u64 = 8;
const REQUESTS: &str = "[[request]]\nname = \"echo\"\nhandler = \"echo\"\n";

fn main() {
    if env::var_os(BARE).is_some() {
        return bare().unwrap();
    }
    let is_bench = env::args().any(|argument| argument == "--bench");
    let (rounds, usual) = if is_bench { (ROUNDS, MEBIBYTES) } else { (1, SMOKE_MEBIBYTES) };
    let mebibytes = env::args().find_map(|argument| argument.parse().ok()).unwrap_or(usual);
    let mut range = Range::new(mebibytes << 20);
    for _ in 0..rounds {
        for shape in [Shape::File, Shape::Pipe] {
            for server in [Server::Bare, Server::Osps] {
                range.run(shape, server);
            }
        }
    }
    range.report();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Shape {
    File,
    Pipe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Server {
    Bare,
    Osps,
}

/// What one run took.
struct Sample {
    time: Duration,
    server_cpu: Duration,
    client_cpu: Duration,
}

/// Both servers, the files, and what was measured.
struct Range {
    system: System,
    bare: Bare,
    dir: tempfile::TempDir,
    bytes: u64,
    samples: HashMap<(Shape, Server), Vec<Sample>>,
}

impl Range {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut big = io::BufWriter::new(File::create(dir.path().join("big")).unwrap());
        let words = (0..bytes / 8).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.for_each(|word| big.write_all(&word.to_le_bytes()).unwrap());
        big.into_inner().unwrap();
        let system = System::start("secondaries = 1", REQUESTS);
        Self { system, bare: Bare::start(), dir, bytes, samples: HashMap::new() }
    }

    fn run(&mut self, shape: Shape, server: Server) {
        let (at, pid) = match server {
            Server::Bare => (self.bare.at.clone(), self.bare.child.id()),
            Server::Osps => (self.system.address().to_string(), self.system.pid(1)),
        };
        let clock = CpuClock::of(pid);
        let before = clock.read().unwrap();
        let start = now();
        let client_cpu = self.stream(shape, &at);
        let time = now().since(start);
        let server_cpu = clock.read().unwrap() - before;
        self.samples.entry((shape, server)).or_default().push(Sample { time, server_cpu, client_cpu });
    }

    /// Sends the file through the client; the CPU time that took the client.
    fn stream(&self, shape: Shape, at: &str) -> Duration {
        let big = self.dir.path().join("big");
        let out = self.dir.path().join("out");
        let mut client = Command::new(env!("CARGO_BIN_EXE_osps-client"));
        client.args(["--at", at, "echo"]);
        let mut cat = None;
        match shape {
            Shape::File => client.stdin(File::open(&big).unwrap()).stdout(Stdio::null()),
            Shape::Pipe => {
                let mut child = Command::new("cat").arg(&big).stdout(Stdio::piped()).spawn().unwrap();
                let output = child.stdout.take().unwrap();
                cat = Some(child);
                client.stdin(output).stdout(File::create(&out).unwrap())
            }
        };
        let mut client = client.spawn().unwrap();
        if let Some(mut cat) = cat {
            cat.wait().unwrap();
        }
        let clock = CpuClock::of(client.id());
        // Its clock is read while it is a zombie: it stands, and is still there.
        let pid = Pid::from_raw(i32::try_from(client.id()).unwrap()).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        let cpu = clock.read().unwrap();
        assert!(client.wait().unwrap().success());
        if shape == Shape::Pipe {
            assert_eq!(out.metadata().unwrap().len(), self.bytes);
        }
        cpu
    }

    fn report(self) {
        let mebibytes = self.bytes as f64 / 1024.0 / 1024.0;
        println!(
            "{:<12}{:>8}{:>12}{:>10}{:>22}{:>22}",
            format!("{mebibytes} MiB"),
            "samples",
            "MiB/s",
            "to bare",
            "server, CPU ms/GiB",
            "client, CPU ms/GiB"
        );
        for shape in [Shape::File, Shape::Pipe] {
            let mut bare = 0.0;
            for server in [Server::Bare, Server::Osps] {
                let samples = &self.samples[&(shape, server)];
                let rate = median(samples, |sample| mebibytes / sample.time.as_secs_f64());
                let per_gib = |time: Duration| time.as_secs_f64() * 1e3 * 1024.0 / mebibytes;
                let server_cpu = median(samples, |sample| per_gib(sample.server_cpu));
                let client_cpu = median(samples, |sample| per_gib(sample.client_cpu));
                if server == Server::Bare {
                    bare = rate;
                }
                println!(
                    "{:<12}{:>8}{rate:>12.0}{:>10.2}{server_cpu:>22.0}{client_cpu:>22.0}",
                    format!("{shape:?} {server:?}").to_lowercase(),
                    samples.len(),
                    rate / bare
                );
            }
        }
    }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The bare loop, killed and reaped at the end.
struct Bare {
    child: Child,
    at: String,
}

impl Bare {
    fn start() -> Self {
        let mut program = Command::new(env::current_exe().unwrap());
        program.env(BARE, "yes").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let mut at = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.take().unwrap()), &mut at).unwrap();
        Self { child, at: at.trim().to_owned() }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a descriptor of the bare loop is.
enum Socket {
    Control(TcpListener),
    Data(TcpListener),
    /// Each line is answered with the port.
    Asking(TcpStream),
    Echo(Echo),
}

/// A connection whose bytes are sent back.
struct Echo {
    stream: TcpStream,
    unsent: Vec<u8>,
    ended: bool,
}

/// As much as a read of an echo server that is written for long streams takes.
const BUFFER: usize = 64 * 1024;

/// The program of the bare loop: it runs until it is killed, at the latest with its parent.
fn bare() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|parent| parent.is_init()) {
        return Ok(());
    }
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let (control, data) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let answer = format!("{}\n", data.local_addr()?.port());
    println!("{}", control.local_addr()?);
    let mut sockets: HashMap<RawFd, Socket> = HashMap::new();
    let watch = |sockets: &mut HashMap<RawFd, Socket>, fd: RawFd, socket: Socket| {
        sockets.insert(fd, socket);
        let source = match &sockets[&fd] {
            Socket::Control(listener) | Socket::Data(listener) => rustix::fd::AsFd::as_fd(listener),
            Socket::Asking(stream) | Socket::Echo(Echo { stream, .. }) => rustix::fd::AsFd::as_fd(stream),
        };
        epoll::add(&epoll, source, EventData::new_u64(u64::try_from(fd).unwrap()), EventFlags::IN)
    };
    watch(&mut sockets, control.as_raw_fd(), Socket::Control(control))?;
    watch(&mut sockets, data.as_raw_fd(), Socket::Data(data))?;
    let mut buffer = vec![0; BUFFER];
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let fd = RawFd::try_from(event.data.u64()).unwrap();
            let is_open = match sockets.get_mut(&fd).unwrap() {
                Socket::Control(listener) => {
                    let (stream, _) = listener.accept()?;
                    watch(&mut sockets, stream.as_raw_fd(), Socket::Asking(stream))?;
                    true
                }
                Socket::Data(listener) => {
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    let echo = Echo { stream, unsent: Vec::new(), ended: false };
                    watch(&mut sockets, echo.stream.as_raw_fd(), Socket::Echo(echo))?;
                    true
                }
                Socket::Asking(stream) => match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => false,
                    Ok(_) => stream.write_all(answer.as_bytes()).is_ok(),
                },
                Socket::Echo(echo) => match echo.turn(&mut buffer) {
                    Ok(Some(interest)) => {
                        epoll::modify(&epoll, &echo.stream, event.data, interest)?;
                        true
                    }
                    Ok(None) | Err(_) => false,
                },
            };
            if !is_open {
                sockets.remove(&fd);
            }
        }
    }
}

impl Echo {
    /// Sends what was left, or reads once and sends that; what to wait for, or nothing at the end.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<Option<EventFlags>> {
        if self.unsent.is_empty() {
            match self.stream.read(buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    let sent = some(self.stream.write(&buffer[..length]))?;
                    self.unsent.extend_from_slice(&buffer[sent..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        } else {
            let sent = some(self.stream.write(&self.unsent))?;
            self.unsent.drain(..sent);
        }
        let interest = if self.unsent.is_empty() { EventFlags::IN } else { EventFlags::OUT };
        Ok((!self.ended || !self.unsent.is_empty()).then_some(interest))
    }
}

fn some(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}
