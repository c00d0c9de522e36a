//! What a job of a command costs: `/bin/cat` for each job, and a worker that stays
//! (`examples/worker.rs`), beside `tcpserver` of ucspi-tcp, which
//! forks and executes it for each connection and does nothing else.
//!
//! Both have one core for all that they start, the 16 clients have the other. A client of OSPS keeps
//! its control connection and asks for each job; then, as that of `tcpserver`, it connects, sends a
//! line, ends its input and reads the line back until the end. Rounds of one and the other take
//! turns, so that the machine's moods hit both. `cargo bench --bench commands`; a number as
//! argument is the jobs of one round.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
mod ratio;

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use common::{PATIENCE, System, ask, connect, eventually, now};
use ratio::{Limit, Ratio};
use rustix::thread::{CpuSet, sched_setaffinity};

const CLIENTS: usize = 16;
const JOBS: usize = 1_000;
const ROUNDS: usize = 9;
/// Without `--bench` it is `cargo test`, which wants to know only whether it works.
const SMOKE_JOBS: usize = 32;
/// In upper case, for that is how the worker answers.
const LINE: &[u8] = b"WHAT COMES GOES\n";
const REQUESTS: &str =
    "[[request]]\nname = \"cat\"\nhandler = \"exec\"\ncommand = [\"/bin/cat\"]\ntime_limit = \"60s\"\n";

fn main() {
    let is_bench = env::args().any(|argument| argument == "--bench");
    let (rounds, usual) = if is_bench { (ROUNDS, JOBS) } else { (1, SMOKE_JOBS) };
    let jobs = env::args().find_map(|argument| argument.parse().ok()).unwrap_or(usual);
    let requests = format!("{REQUESTS}{}", common::worker::request("stays", &[], ""));
    let system = System::start_on_core(0, "secondaries = 4", &requests);
    system.all_ready();
    let peer = Peer::start();
    let mut servers = vec![
        ("exec", Server::Osps(system.address(), "cat"), Vec::new()),
        ("persistent", Server::Osps(system.address(), "stays"), Vec::new()),
    ];
    match &peer {
        Some(peer) => servers.insert(0, ("tcpserver", Server::Plain(peer.address), Vec::new())),
        None => println!("tcpserver is not installed (package ucspi-tcp): nothing to compare with"),
    }
    for _ in 0..rounds {
        for (_, server, rates) in &mut servers {
            rates.push(round(server, jobs));
        }
    }
    if peer.is_some() && is_bench {
        let to_peer = |of: usize| servers[0].2.iter().zip(&servers[of].2).map(|(peer, rate)| rate / peer);
        let ratios = [
            Ratio::of("a command for each job, jobs/s", "tcpserver", Limit::AtLeast(0.85), to_peer(1)),
            Ratio::of("a worker that stays, jobs/s", "tcpserver", Limit::AtLeast(10.0), to_peer(2)),
        ];
        ratio::keep("commands", &ratios);
    }
    println!("{:<12}{:>8}{:>12}{:>16}", "", "rounds", "jobs/s", "to the first");
    let mut first = None;
    for (name, _, rates) in &mut servers {
        rates.sort_by(f64::total_cmp);
        let rate = rates[rates.len() / 2];
        let ratio = rate / *first.get_or_insert(rate);
        println!("{name:<12}{:>8}{rate:>12.0}{ratio:>16.2}", rates.len());
    }
    system.books_are_exact();
}

enum Server {
    /// Each connection is a job.
    Plain(SocketAddr),
    /// A job is asked for first.
    Osps(SocketAddr, &'static str),
}

/// So many jobs by all clients together; how many that are in a second.
fn round(server: &Server, jobs: usize) -> f64 {
    let begin = now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                pin(1);
                let mut client = Client::new(server);
                (0..jobs.div_ceil(CLIENTS)).for_each(|_| client.job());
            });
        }
    });
    (jobs.div_ceil(CLIENTS) * CLIENTS) as f64 / now().since(begin).as_secs_f64()
}

struct Client<'a> {
    server: &'a Server,
    control: Option<TcpStream>,
}

impl<'a> Client<'a> {
    fn new(server: &'a Server) -> Self {
        let control = match server {
            Server::Plain(_) => None,
            Server::Osps(address, _) => Some(connect(*address)),
        };
        Self { server, control }
    }

    fn job(&mut self) {
        let address = match (self.server, &mut self.control) {
            (Server::Osps(address, kind), Some(control)) => {
                SocketAddr::new(address.ip(), ask(control, kind).parse().unwrap())
            }
            (Server::Plain(address) | Server::Osps(address, _), _) => *address,
        };
        let mut data = TcpStream::connect(address).unwrap();
        data.set_read_timeout(Some(PATIENCE)).unwrap();
        data.write_all(LINE).unwrap();
        data.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        data.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, LINE);
    }
}

/// This thread runs on that core only, where there are two.
fn pin(core: usize) {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > core) {
        let mut set = CpuSet::new();
        set.set(core);
        let _ = sched_setaffinity(None, &set);
    }
}

/// The same command, on the first core with all that it starts.
fn on_first_core(command: Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", "0"]).arg(command.get_program()).args(command.get_args());
    pinned
}

/// A `tcpserver`, killed and reaped at the end.
struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    fn start() -> Option<Self> {
        // Free now, and for long enough as the kernel gives ports in turn.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut tcpserver = Command::new("tcpserver");
        let port = address.port().to_string();
        // Looks no names up, lets 1,000 in at once.
        tcpserver.args(["-H", "-R", "-l", "0", "-c", "1000", "127.0.0.1", &port, "/bin/cat"]);
        let child = on_first_core(tcpserver).stdin(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let mut peer = Self { child, address };
        let is_there = eventually("tcpserver listens, or is not there", || {
            if peer.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            TcpStream::connect(address).ok().map(|_| true)
        });
        is_there.then_some(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
