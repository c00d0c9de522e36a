//! Clients in a closed loop: each asks, is served, and writes down what became of it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{PATIENCE, now, pause, read_once};
use crate::dice::Dice;
use crate::journal::{Journal, Mark};

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every message was answered as it should be.
    Served,
    /// The control connection broke before there was an answer.
    ControlBroke,
    /// The principal answered -1, and perhaps why.
    Refused(String),
    /// The data connection broke, after so many answers.
    DataBroke { answers: u64 },
    /// Something that must not happen.
    Wrong(String),
}

/// A request, as its client saw it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its type, by place in the list of types.
    pub kind: usize,
    pub outcome: Outcome,
    /// Who was asked last: 0 for the principal, else the slot of the port.
    pub slot: u16,
    /// The server that was asked last was alive after this ...
    pub since: Mark,
    /// ... and what became of it was seen before this.
    pub until: Mark,
    pub took: Duration,
}

/// What clients know of the system.
pub struct World {
    pub principal: SocketAddr,
    pub types: Vec<String>,
    /// The slot of each data port.
    pub slots: BTreeMap<u16, u16>,
    pub journal: Journal,
    pub over: AtomicBool,
    /// Requests that shall block a secondary for too long, wanted so far.
    pub stalls: AtomicUsize,
    pub longest_thought: Duration,
}

/// The types that clients ask for; `stall` is asked for only when the storm wants it.
pub const WANTED: [&str; 5] = ["echo", "requetetype1", "block", "cat", "frames"];

/// One client and its ways.
struct Client {
    world: Arc<World>,
    dice: Dice,
    /// Ends its requests with a newline.
    lines: bool,
    /// Keeps its control connection for the next request.
    keeps: bool,
    control: Option<TcpStream>,
    /// The principal on the other side of it was alive after this.
    alive: Mark,
    records: Vec<Record>,
}

/// A request on its way.
struct Request {
    since: Mark,
    slot: u16,
}

/// Asks until the storm is over. The seed decides what it asks for and when; its number, how.
pub fn ask_and_ask(world: Arc<World>, seed: u64, number: usize) -> Vec<Record> {
    let mut client = Client::new(world, seed, number);
    while !client.world.over.load(Ordering::Relaxed) {
        let kind = client.dice.pick(&WANTED);
        client.one_request(kind);
        client.think();
    }
    client.records
}

/// Makes the requests that block for too long, as the storm wants them; `workers` share them.
pub fn stall(world: Arc<World>, seed: u64, number: usize, workers: usize) -> Vec<Record> {
    let mut client = Client::new(world, seed, number);
    let mut next = number % workers;
    while !client.world.over.load(Ordering::Relaxed) {
        if client.world.stalls.load(Ordering::Relaxed) > next {
            next += workers;
            client.one_request("stall");
        } else {
            pause();
        }
    }
    client.records
}

impl Client {
    fn new(world: Arc<World>, seed: u64, number: usize) -> Self {
        let mixed = Dice::new(seed ^ u64::try_from(number).unwrap() << 32).roll();
        Self {
            dice: Dice::new(mixed),
            lines: number.is_multiple_of(2),
            keeps: (number / 2).is_multiple_of(2),
            control: None,
            alive: 0,
            records: Vec::new(),
            world,
        }
    }

    fn one_request(&mut self, name: &str) {
        let began = now();
        let kind = self.world.types.iter().position(|known| known == name).unwrap();
        let mut request = Request { since: 0, slot: 0 };
        let outcome = self.ask_and_be_served(name, &mut request);
        let Request { since, slot } = request;
        let until = self.world.journal.mark();
        let took = now().since(began);
        self.records.push(Record { kind, outcome, slot, since, until, took });
    }

    fn ask_and_be_served(&mut self, name: &str, request: &mut Request) -> Outcome {
        let answer = match self.ask(name, request) {
            Ok(answer) => answer,
            Err(error) => {
                self.control = None;
                return if is_break(&error) { Outcome::ControlBroke } else { wrong("control", &error) };
            }
        };
        if !self.keeps {
            self.control = None;
        }
        if let Some(reason) = answer.strip_prefix("-1") {
            return Outcome::Refused(reason.trim().to_owned());
        }
        let Ok(port) = answer.parse::<u16>() else {
            return Outcome::Wrong(format!("answered {answer:?}"));
        };
        let Some(&slot) = self.world.slots.get(&port) else {
            return Outcome::Wrong(format!("port {port} is nobody's"));
        };
        request.slot = slot;
        request.since = self.world.journal.mark();
        let mut answers = 0;
        match self.be_served(name, port, request, &mut answers) {
            Ok(outcome) => outcome,
            Err(error) if is_break(&error) => Outcome::DataBroke { answers },
            Err(error) => wrong(&format!("data, port {port}, slot {slot}, {answers} answers"), &error),
        }
    }

    /// Sends the request and reads the answer to it, without its newline.
    fn ask(&mut self, name: &str, request: &mut Request) -> io::Result<String> {
        let mark = self.world.journal.mark();
        let mut control = match self.control.take() {
            // It may have broken long ago: since the last answer.
            Some(control) => {
                request.since = self.alive;
                control
            }
            None => {
                request.since = mark;
                connect(self.world.principal)?
            }
        };
        let ending = if self.lines { "\n" } else { "" };
        control.write_all(format!("{name}{ending}").as_bytes())?;
        let answer = if self.lines { receive_line(&mut control)? } else { receive(&mut control)? };
        // Whoever answered was alive when it was asked.
        self.alive = mark;
        self.control = Some(control);
        Ok(answer)
    }

    /// One to three messages, each with its answer.
    fn be_served(
        &mut self,
        name: &str,
        port: u16,
        request: &mut Request,
        answers: &mut u64,
    ) -> io::Result<Outcome> {
        let messages = if ["stall", "frames"].contains(&name) { 1 } else { 1 + self.dice.below(3) };
        let mut data = connect(SocketAddr::new(self.world.principal.ip(), port))?;
        for message in 1..=messages {
            let mark = self.world.journal.mark();
            let text = format!("message {message} of {}\n", self.dice.roll());
            data.write_all(text.as_bytes())?;
            if name == "frames" {
                data.shutdown(Shutdown::Write)?;
            }
            let answer = receive_line(&mut data)?;
            let expected = match name {
                "echo" | "cat" | "frames" => text.trim_end().to_owned(),
                _ => format!("ok message {message} secondary {}", request.slot),
            };
            if answer != expected {
                return Ok(Outcome::Wrong(format!("{text:?} is answered {answer:?}, not {expected:?}")));
            }
            *answers = message;
            // A command may outlive its secondary, and that one's obituary, for a moment.
            if name != "cat" {
                request.since = mark;
            }
        }
        Ok(Outcome::Served)
    }

    /// A closed loop without a pause would measure the machine, and nothing else.
    #[expect(clippy::disallowed_methods, reason = "a client that thinks; nothing is ordered by it")]
    fn think(&mut self) {
        std::thread::sleep(self.dice.up_to(self.world.longest_thought));
    }
}

fn wrong(what: &str, error: &io::Error) -> Outcome {
    Outcome::Wrong(match error.kind() {
        ErrorKind::ConnectionRefused => format!("REFUSED: {what}"),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("nothing for {PATIENCE:?}: {what}"),
        _ => format!("{what}: {error}"),
    })
}

/// Whether a peer's death looks like this; a refused connection does not.
fn is_break(error: &io::Error) -> bool {
    let breaks = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof];
    breaks.contains(&error.kind())
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One `recv`, as the plainest client does it.
fn receive(stream: &mut TcpStream) -> io::Result<String> {
    let mut buffer = [0; 512];
    match read_once(stream, &mut buffer)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        length => Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
    }
}

fn receive_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line += &receive(stream)?;
    }
    line.pop();
    Ok(line)
}
