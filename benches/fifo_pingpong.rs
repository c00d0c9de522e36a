//! What the reactor costs: round trips through two FIFOs between two processes.
//!
//! The same line goes back and forth between
//! - `blocking`: two processes that read and write, nothing else: the floor,
//! - `mio`: two bare mio loops,
//! - `reactor`: two processes of this crate, with its event loop and its commands.
//!
//! After criterion's own report the three run in turn, round by round, so that the
//! machine's moods hit all of them; a table gives medians and ratios. `reactor` shall
//! stay within 1.5 times `blocking`. Both processes have one core, then each has its own: where the scheduler puts them
//! makes more of a difference than anything else.

mod ratio;

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use criterion::{Criterion, Throughput};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use osps::core::moment::Moment;
use osps::os::clock;
use osps::os::fifo::{self, Flushed, Reader, Writer};
use osps::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use osps::wire::tube::Command;
use ratio::{Limit, Ratio};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

/// Tells this program that it is the other process, and of which kind.
const CHILD: &str = "OSPS_BENCH_CHILD";
/// Where the FIFOs of parent and child are.
const DIRECTORY: &str = "OSPS_BENCH_DIRECTORY";

const ROUNDS: usize = 9;
const ROUND_TRIPS: u64 = 5_000;

fn main() -> io::Result<()> {
    if let Some(kind) = env::var_os(CHILD) {
        let directory = env::var_os(DIRECTORY).ok_or(io::ErrorKind::NotFound)?;
        let kind = Kind::ALL.into_iter().find(|known| kind == known.name()).ok_or(io::ErrorKind::NotFound)?;
        return answer(kind, Path::new(&directory));
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    measure(&mut criterion)?;
    criterion.final_summary();
    // Without `--bench` it is `cargo test`, which wants to know only whether it works.
    if env::args().any(|argument| argument == "--bench") {
        let placements = [("one core", [0, 0]), ("two cores", [0, 1])];
        let ratios = placements.map(|(title, cores)| compare(title, cores));
        ratio::keep("fifo_pingpong", &ratios.into_iter().collect::<io::Result<Vec<_>>>()?);
    }
    Ok(())
}

/// The three under criterion's eyes.
fn measure(criterion: &mut Criterion) -> io::Result<()> {
    let mut group = criterion.benchmark_group("fifo_pingpong");
    group.throughput(Throughput::Elements(1));
    for kind in Kind::ALL {
        let mut pair = Pair::start(kind)?;
        group.bench_function(kind.name(), |bencher| {
            bencher.iter_custom(|round_trips| pair.run(round_trips).expect("the FIFOs of a benchmark work"));
        });
    }
    group.finish();
    Ok(())
}

/// The three in turn, this process on the first of these cores and the others on the second, and a table.
fn compare(title: &str, cores: [usize; 2]) -> io::Result<Ratio> {
    // Children are born where their parent is.
    pin(cores[1]);
    let mut pairs = Kind::ALL.map(Pair::start).into_iter().collect::<io::Result<Vec<_>>>()?;
    pin(cores[0]);
    let mut micros = vec![Vec::new(); pairs.len()];
    for _ in 0..ROUNDS {
        for (pair, micros) in pairs.iter_mut().zip(&mut micros) {
            micros.push(pair.run(ROUND_TRIPS)?.as_secs_f64() * 1e6 / ROUND_TRIPS as f64);
        }
    }
    let ratios = micros[0].iter().zip(&micros[2]).map(|(blocking, reactor)| reactor / blocking);
    let ratio = Ratio::of(&format!("FIFO ping-pong, {title}"), "two that block", Limit::AtMost(1.5), ratios);
    let medians: Vec<f64> = micros.into_iter().map(median).collect();
    println!("{title:<10} {:>14} {:>14}", "round trip", "to blocking");
    for (kind, median) in Kind::ALL.into_iter().zip(&medians) {
        println!("{:<10} {median:>11.2} µs {:>14.2}", kind.name(), median / medians[0]);
    }
    Ok(ratio)
}

/// Moves this process to a core, if there is such a core.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Clone, Copy)]
enum Kind {
    Blocking,
    Mio,
    Reactor,
}

impl Kind {
    /// The one that the others are compared with comes first.
    const ALL: [Self; 3] = [Self::Blocking, Self::Mio, Self::Reactor];

    fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Mio => "mio",
            Self::Reactor => "reactor",
        }
    }
}

/// A child that answers, and this process's side of the game.
struct Pair {
    side: Box<dyn Side>,
    _child: Answering,
    _directory: TempDir,
}

impl Pair {
    fn start(kind: Kind) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        fifo::create(&directory.path().join("ping"))?;
        fifo::create(&directory.path().join("pong"))?;
        let mut program = Program::new(env::current_exe()?);
        program.env(CHILD, kind.name()).env(DIRECTORY, directory.path()).stdin(Stdio::null());
        let child = Answering(program.spawn()?);
        let side = side(kind, directory.path(), ["pong", "ping"])?;
        Ok(Self { side, _child: child, _directory: directory })
    }

    fn run(&mut self, round_trips: u64) -> io::Result<Duration> {
        let start = clock::now();
        self.side.ask(round_trips)?;
        Ok(clock::now().since(start))
    }
}

/// The child, killed and reaped with its pair.
struct Answering(Child);

impl Drop for Answering {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's program: it answers until it is killed, at the latest with its parent.
fn answer(kind: Kind, directory: &Path) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|parent| parent.is_init()) {
        return Ok(());
    }
    side(kind, directory, ["ping", "pong"])?.answer()
}

/// What one process does, given the FIFO it reads and the one it writes.
trait Side {
    fn ask(&mut self, round_trips: u64) -> io::Result<()>;
    fn answer(&mut self) -> io::Result<()>;
}

fn side(kind: Kind, directory: &Path, names: [&str; 2]) -> io::Result<Box<dyn Side>> {
    let [input, output] = names.map(|name| directory.join(name));
    Ok(match kind {
        Kind::Blocking => Box::new(Blocking::open(&input, &output)?),
        Kind::Mio => Box::new(Mio::open(&input, &output)?),
        Kind::Reactor => Box::new(Looped::open(&input, &output)?),
    })
}

/// What the two without commands exchange: as long as a command with its number.
const PING: &[u8] = b"ping 12345\n";
const PONG: &[u8] = b"pong 12345\n";

fn is_line(line: &[u8], expected: &[u8]) -> io::Result<()> {
    if line == expected { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

struct Blocking {
    input: File,
    output: File,
}

impl Blocking {
    /// Read-write, so that opening does not wait for the other process (fifo(7)).
    fn open(input: &Path, output: &Path) -> io::Result<Self> {
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        Ok(Self { input: open(input)?, output: open(output)? })
    }

    fn receive(&mut self, expected: &[u8]) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let length = self.input.read(&mut buffer)?;
        is_line(&buffer[..length], expected)
    }
}

impl Side for Blocking {
    fn ask(&mut self, round_trips: u64) -> io::Result<()> {
        for _ in 0..round_trips {
            self.output.write_all(PING)?;
            self.receive(PONG)?;
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        loop {
            self.receive(PING)?;
            self.output.write_all(PONG)?;
        }
    }
}

struct Mio {
    poll: Poll,
    events: Events,
    input: File,
    output: File,
}

impl Mio {
    fn open(input: &Path, output: &Path) -> io::Result<Self> {
        let (input, output) = (fifo::open_end(input)?, fifo::open_end(output)?);
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&input.as_raw_fd()), Token(0), Interest::READABLE)?;
        Ok(Self { poll, events: Events::with_capacity(16), input, output })
    }

    /// Polls once and reads until a short read.
    fn receive(&mut self, expected: &[u8]) -> io::Result<()> {
        self.poll.poll(&mut self.events, None)?;
        for _ in &self.events {
            let mut buffer = [0; 4096];
            let mut length = buffer.len();
            while length == buffer.len() {
                length = self.input.read(&mut buffer)?;
                is_line(&buffer[..length], expected)?;
            }
        }
        Ok(())
    }
}

impl Side for Mio {
    fn ask(&mut self, round_trips: u64) -> io::Result<()> {
        for _ in 0..round_trips {
            self.output.write_all(PING)?;
            self.receive(PONG)?;
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        loop {
            self.receive(PING)?;
            self.output.write_all(PONG)?;
        }
    }
}

/// The reactor and its role.
struct Looped {
    reactor: Reactor<()>,
    player: Player,
}

impl Looped {
    fn open(input: &Path, output: &Path) -> io::Result<Self> {
        let mut reactor = Reactor::new(&[])?;
        let player = Player { reader: Reader::open(input)?, writer: Writer::open(output)?, left: 0 };
        player.reader.with_source(|source| reactor.handle().register(source, (), Interest::READABLE))?;
        Ok(Self { reactor, player })
    }
}

impl Side for Looped {
    fn ask(&mut self, round_trips: u64) -> io::Result<()> {
        self.player.left = round_trips;
        self.player.writer.push(Command::Ping(round_trips));
        self.player.flush();
        while self.player.left > 0 {
            self.reactor.turn(&mut self.player)?;
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        self.reactor.run(&mut self.player)
    }
}

/// Answers each ping, and each pong as long as round trips are left.
struct Player {
    reader: Reader,
    writer: Writer,
    left: u64,
}

impl Player {
    fn flush(&mut self) {
        let flushed = self.writer.flush().expect("a FIFO of a benchmark can be written");
        assert_eq!(flushed, Flushed::All, "one line is under way, and it fills a FIFO");
    }
}

impl Role for Player {
    type Key = ();

    fn on_signal(&mut self, _: &mut Handle<()>, _: rustix::process::Signal) {}

    fn on_ready(&mut self, _: &mut Handle<()>, _: SourceId, (): (), _: Ready) -> Progress {
        let Self { reader, writer, left } = self;
        let line = |line: &[u8]| match Command::parse(line) {
            Ok(Command::Ping(number)) => writer.push(Command::Pong(number)),
            Ok(Command::Pong(number)) => {
                assert_eq!(number, *left);
                *left -= 1;
                if *left > 0 {
                    writer.push(Command::Ping(*left));
                }
            }
            other => panic!("neither ping nor pong: {other:?}"),
        };
        reader.read(line).expect("a FIFO of a benchmark can be read")
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }

    fn on_deadline(&mut self, _: &mut Handle<()>) {}

    fn settle(&mut self, _: &mut Handle<()>) {
        self.flush();
    }
}
