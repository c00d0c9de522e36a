//! Plays a transcript against a server.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use osps::core::conversation::BARE_SILENCE;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use crate::common::{PATIENCE, now, read_once};
use crate::transcript::{Act, Part, Step, Transcript, Variables};

/// Between the two pieces of what is cut: long enough that the server mostly sees two.
const CUT_PAUSE: Duration = Duration::from_millis(3);

/// What an operator can be asked to do.
pub type Operator<'a> = &'a dyn Fn(&str);

/// Why a transcript was not played to its end.
pub enum Failure {
    /// The server does something else.
    Differs(String),
    /// So much time went by between two pieces that the first may have been taken for the
    /// whole: this says nothing about the server.
    Late,
}

struct Stream {
    stream: TcpStream,
    /// What has come and was not expected yet.
    received: Vec<u8>,
}

enum Received {
    Something,
    /// Not within that time.
    Nothing,
    /// The connection was closed or reset.
    End,
}

struct Play<'a> {
    server: SocketAddr,
    operator: Operator<'a>,
    /// Makes the addresses of its clients its own: what other plays have left claims nothing here.
    number: u32,
    variables: Variables,
    streams: HashMap<String, Stream>,
}

/// Plays a transcript, one step of it perhaps cut in two at a byte; again where the play was late.
pub fn play(
    transcript: &Transcript,
    cut: Option<(usize, usize)>,
    server: SocketAddr,
    operator: Operator<'_>,
) -> Result<(), String> {
    let give_up_at = now() + PATIENCE;
    loop {
        match Play::new(server, operator).run(transcript, cut) {
            Ok(()) => return Ok(()),
            Err(Failure::Late) if now() < give_up_at => {}
            Err(Failure::Late) => return Err("always too late: the machine is too slow".to_owned()),
            Err(Failure::Differs(how)) => return Err(how),
        }
    }
}

/// Lets time pass: a transcript says how long a client is silent at least.
#[expect(clippy::disallowed_methods, reason = "a client's pause, as a transcript tells it")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn differs<T>(how: String) -> Result<T, Failure> {
    Err(Failure::Differs(how))
}

fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

impl<'a> Play<'a> {
    fn new(server: SocketAddr, operator: Operator<'a>) -> Self {
        static PLAYS: AtomicU32 = AtomicU32::new(0);
        let number = PLAYS.fetch_add(1, Ordering::Relaxed);
        Self { server, operator, number, variables: HashMap::new(), streams: HashMap::new() }
    }

    fn run(mut self, transcript: &Transcript, cut: Option<(usize, usize)>) -> Result<(), Failure> {
        for (index, step) in transcript.steps.iter().enumerate() {
            let cut = cut.filter(|(cut_step, _)| *cut_step == index).map(|(_, byte)| byte);
            self.step(step, cut).map_err(|failure| match failure {
                Failure::Differs(how) => {
                    Failure::Differs(format!("line {}: {}: {how}", step.line, step.text))
                }
                Failure::Late => Failure::Late,
            })?;
        }
        for (who, stream) in &mut self.streams {
            let _ = stream.receive(Duration::from_millis(1));
            if !stream.received.is_empty() {
                return differs(format!("{who} got more than is told: {}", show(&stream.received)));
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, cut: Option<usize>) -> Result<(), Failure> {
        let who = &step.who;
        match &step.act {
            Act::Control => self.open(who, self.server, 0),
            Act::Data { host, port, elsewhere } => {
                let address = self.data_address(host.as_deref(), port);
                self.open(who, address, u32::from(*elsewhere));
            }
            Act::Send { parts, .. } => {
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.value(&self.variables)).collect();
                return self.stream(who).send(&bytes, cut);
            }
            Act::Expect(parts) => return self.expect(who, parts),
            Act::Silent(time) => return self.stream(who).nothing_within(*time),
            Act::Ends => self.stream(who).stream.shutdown(Shutdown::Write).unwrap(),
            Act::Closes => drop(self.streams.remove(who)),
            Act::Resets => {
                let stream = self.streams.remove(who).unwrap().stream;
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
            Act::Floods => return self.streams.remove(who).unwrap().flood(),
            Act::Closed => return self.streams.remove(who).unwrap().closed(),
            Act::Wait(time) => pause(*time),
            Act::Operator(what) => (self.operator)(what),
        }
        Ok(())
    }

    fn stream(&mut self, who: &str) -> &mut Stream {
        self.streams.get_mut(who).unwrap_or_else(|| panic!("no connection {who}"))
    }

    fn data_address(&self, host: Option<&str>, port: &str) -> SocketAddr {
        let text = |name: &str| String::from_utf8(self.variables[name].clone()).unwrap();
        let ip = host.map_or(self.server.ip(), |host| text(host).parse().unwrap());
        SocketAddr::new(ip, text(port).parse().unwrap())
    }

    /// Connects from the address of this play, or from its other one.
    fn open(&mut self, who: &str, to: SocketAddr, other: u32) {
        let [_, a, b, c] = (self.number * 2 + other).to_be_bytes();
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 128 | a, b, c)), 0);
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &from).unwrap();
        connect(&socket, &to).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        self.streams.insert(who.to_owned(), Stream { stream, received: Vec::new() });
    }

    fn expect(&mut self, who: &str, parts: &[Part]) -> Result<(), Failure> {
        let Self { streams, variables, .. } = self;
        let stream = streams.get_mut(who).unwrap();
        loop {
            match matches(&stream.received, parts, variables) {
                Match::Yes { length } => {
                    stream.received.drain(..length);
                    return Ok(());
                }
                Match::No { wanted, at } => {
                    let got = show(&stream.received);
                    return differs(format!("expected {} at byte {at}, got {got}", show(&wanted)));
                }
                Match::NotYet => {}
            }
            if !matches!(stream.receive(PATIENCE), Received::Something) {
                return differs(format!("got {} and no more", show(&stream.received)));
            }
        }
    }
}

impl Stream {
    fn send(&mut self, bytes: &[u8], cut: Option<usize>) -> Result<(), Failure> {
        let began = now();
        let (first, rest) = bytes.split_at(cut.unwrap_or(0));
        let sent = self.stream.write_all(first).and_then(|()| {
            if cut.is_some() {
                pause(CUT_PAUSE);
            }
            self.stream.write_all(rest)
        });
        if cut.is_some() && now().since(began) > BARE_SILENCE * 4 / 5 {
            return Err(Failure::Late);
        }
        match sent {
            Err(error) if error.kind() == ErrorKind::WouldBlock => differs("is not read".to_owned()),
            // What comes next tells whether it should have been closed.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn receive(&mut self, within: Duration) -> Received {
        self.stream.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 4096];
        match read_once(&mut self.stream, &mut buffer) {
            Ok(0) => Received::End,
            Ok(length) => {
                self.received.extend_from_slice(&buffer[..length]);
                Received::Something
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Received::Nothing
            }
            Err(_) => Received::End,
        }
    }

    fn nothing_within(&mut self, time: Duration) -> Result<(), Failure> {
        match self.receive(time) {
            Received::Nothing if self.received.is_empty() => Ok(()),
            Received::Nothing | Received::Something => differs(format!("got {}", show(&self.received))),
            Received::End => differs(format!("got {} and then a close", show(&self.received))),
        }
    }

    fn closed(mut self) -> Result<(), Failure> {
        loop {
            match self.receive(PATIENCE) {
                Received::End if self.received.is_empty() => return Ok(()),
                Received::Something if self.received.is_empty() => {}
                Received::Nothing => return differs("is not closed".to_owned()),
                Received::End | Received::Something => {
                    return differs(format!("got {}", show(&self.received)));
                }
            }
        }
    }

    /// Sends and never reads, until the connection breaks.
    fn flood(mut self) -> Result<(), Failure> {
        let bytes = [0; 1 << 16];
        loop {
            match self.stream.write_all(&bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return differs("is not broken".to_owned());
                }
                Err(_) => return Ok(()),
                Ok(()) => {}
            }
        }
    }
}

enum Match {
    Yes { length: usize },
    No { wanted: Vec<u8>, at: usize },
    NotYet,
}

/// Compares what has come with what is expected, and captures variables.
fn matches(bytes: &[u8], parts: &[Part], variables: &mut Variables) -> Match {
    let mut at = 0;
    for part in parts {
        if let Part::Variable { name, anew, .. } = part
            && (*anew || !variables.contains_key(name))
        {
            match capture(name, &bytes[at..]) {
                Some(length) => variables.insert(name.clone(), bytes[at..at + length].to_vec()),
                None => return Match::NotYet,
            };
        }
        let wanted = part.value(variables);
        let rest = &bytes[at..];
        if !rest.starts_with(&wanted) {
            return if wanted.starts_with(rest) { Match::NotYet } else { Match::No { wanted, at } };
        }
        at += wanted.len();
    }
    Match::Yes { length: at }
}

/// How many of these bytes a variable of that name takes; `None` where they are too few. Its
/// kind is told by its letters.
fn capture(name: &str, bytes: &[u8]) -> Option<usize> {
    let (is_of_kind, least, most): (fn(&u8) -> bool, _, _) = match name.trim_end_matches(char::is_numeric) {
        "PORT" => (u8::is_ascii_digit, 4, 5),
        "JETON" => (|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'), 32, 32),
        "SLOT" => (u8::is_ascii_digit, 1, 5),
        "HOST" if bytes.starts_with(b"[") => return Some(1 + bytes.iter().position(|&byte| byte == b']')?),
        "HOST" => (|byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte), 1, 253),
        _ => panic!("a variable of no kind: {name}"),
    };
    let length = bytes.iter().take(most).take_while(|byte| is_of_kind(byte)).count();
    (length >= least).then_some(length)
}
