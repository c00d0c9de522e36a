//! One client: asks for a port over its control connection, connects to it, sends, and reads the answer.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Shutdown, SocketAddr};

use mio::Interest;
use mio::net::TcpStream;

use crate::core::moment::Moment;
use crate::core::timers::TimerId;
use crate::os::connect;
use crate::os::reactor::{Handle, Ready, SourceId};
use crate::os::stream::{Stream, write_some};
use crate::stress::load::{Key, Target};
use crate::stress::record::Failed;
use crate::stress::{Expect, Plan};

/// Longer answers of a principal are none.
const LONGEST_LINE: usize = 2048;
const READ_WRITE: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// What has failed, and an example of it in words.
pub type Failure = (Failed, String);

/// A client and what it is at.
pub struct Client {
    place: usize,
    source: Option<IpAddr>,
    control: Option<Control>,
    /// The request that it is at.
    pub work: Option<Work>,
}

struct Control {
    stream: Stream,
    id: SourceId,
    /// What has come of the answer.
    line: Vec<u8>,
}

/// A request under way.
pub struct Work {
    /// Its type, by place.
    pub kind: usize,
    /// When it should have begun.
    pub intended: Moment,
    /// Ends it, if it takes too long.
    pub timer: TimerId,
    stage: Stage,
}

enum Stage {
    /// So many bytes of the request are sent.
    Asking { sent: usize },
    Exchanging {
        data: TcpStream,
        id: SourceId,
        port: u16,
        connected: bool,
        sent: usize,
        ended: bool,
        received: usize,
    },
}

/// Whether a request is over.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for the kernel.
    Goes,
    /// The answer is complete.
    Served,
}

impl Client {
    /// A client with that place among all, which connects from that address, if one is given.
    pub fn new(place: usize, source: Option<IpAddr>) -> Self {
        Self { place, source, control: None, work: None }
    }

    /// Begins a request.
    pub fn begin(
        &mut self,
        reactor: &mut Handle<Key>,
        plan: &Plan,
        target: &Target,
        (kind, intended, timer): (usize, Moment, TimerId),
    ) -> Result<Progress, Failure> {
        self.work = Some(Work { kind, intended, timer, stage: Stage::Asking { sent: 0 } });
        if self.control.is_none() {
            let stream = match target {
                Target::Tcp(address) => connect::tcp(*address, self.source).map(Stream::Tcp),
                Target::Unix(path) => connect::unix(path),
            };
            let mut stream =
                stream.map_err(|error| located(failure(&error, "connect to the principal"), target))?;
            let id = reactor
                .register(&mut stream, Key::Control(self.place), READ_WRITE)
                .map_err(|error| failure(&error, "watch a connection"))?;
            self.control = Some(Control { stream, id, line: Vec::new() });
        }
        self.ask(plan).map_err(|failure| located(failure, target))?;
        Ok(Progress::Goes)
    }

    /// Sends what is left of the request.
    fn ask(&mut self, plan: &Plan) -> Result<(), Failure> {
        if let (Some(control), Some(Work { kind, stage: Stage::Asking { sent }, .. })) =
            (&mut self.control, &mut self.work)
        {
            let request = &plan.requests[*kind];
            let written = write_some(&mut control.stream, &request[*sent..]);
            *sent += written.map_err(|error| failure(&error, "ask the principal"))?;
        }
        Ok(())
    }

    /// The control connection is ready.
    pub fn on_control(
        &mut self,
        reactor: &mut Handle<Key>,
        plan: &Plan,
        target: &Target,
        ready: Ready,
    ) -> Result<Progress, Failure> {
        if self.work.is_none() {
            // Kept for the next request: whatever comes now, the next one finds a new one.
            if ready.readable {
                self.drop_control(reactor);
            }
            return Ok(Progress::Goes);
        }
        if ready.writable {
            self.ask(plan).map_err(|failure| located(failure, target))?;
        }
        if !ready.readable || !matches!(self.work, Some(Work { stage: Stage::Asking { .. }, .. })) {
            return Ok(Progress::Goes);
        }
        let Some(line) = self.read_answer().map_err(|failure| located(failure, target))? else {
            return Ok(Progress::Goes);
        };
        let port = port_of(&line)?;
        let reached = self.control.as_ref().and_then(|control| peer_of(&control.stream));
        if !plan.keep {
            self.drop_control(reactor);
        }
        let host = reached.unwrap_or_else(|| target.host());
        self.connect_data(reactor, plan, SocketAddr::new(host, port))
    }

    fn read_answer(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(Control { stream, line, .. }) = &mut self.control else {
            return Ok(None);
        };
        let mut buffer = [0; 512];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    let what = "the principal has closed the connection before it has answered";
                    return Err((Failed::EarlyClose, what.to_owned()));
                }
                Ok(length) => line.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(failure(&error, "read the principal's answer")),
            }
            if line.ends_with(b"\n") {
                return Ok(Some(std::mem::take(line)));
            }
            if line.len() > LONGEST_LINE {
                return Err((Failed::Wrong, "an answer without an end".to_owned()));
            }
        }
    }

    fn connect_data(
        &mut self,
        reactor: &mut Handle<Key>,
        plan: &Plan,
        to: SocketAddr,
    ) -> Result<Progress, Failure> {
        let connected = connect::tcp(to, self.source.filter(|source| source.is_ipv4() == to.is_ipv4()));
        let mut data =
            connected.map_err(|error| failure(&error, &format!("connect to port {}", to.port())))?;
        let id = reactor
            .register(&mut data, Key::Data(self.place), READ_WRITE)
            .map_err(|error| failure(&error, "watch a connection"))?;
        if let Some(work) = &mut self.work {
            work.stage = Stage::Exchanging {
                data,
                id,
                port: to.port(),
                connected: false,
                sent: 0,
                ended: false,
                received: 0,
            };
        }
        self.exchange(plan)
    }

    /// The data connection is ready.
    pub fn on_data(&mut self, plan: &Plan, ready: Ready) -> Result<Progress, Failure> {
        if let Some(Work { stage: Stage::Exchanging { connected, .. }, .. }) = &mut self.work {
            *connected |= ready.writable;
        }
        self.exchange(plan)
    }

    /// Sends and reads what can be.
    fn exchange(&mut self, plan: &Plan) -> Result<Progress, Failure> {
        let Some(Work {
            stage: Stage::Exchanging { data, port, connected, sent, ended, received, .. }, ..
        }) = &mut self.work
        else {
            return Ok(Progress::Goes);
        };
        if *sent < plan.payload.len() {
            let written = write_some(data, &plan.payload[*sent..]);
            *sent += written.map_err(|error| failure(&error, &format!("send to port {port}")))?;
            *connected |= *sent > 0;
        }
        if *connected && *sent == plan.payload.len() && !*ended && plan.expect == Expect::End {
            let ended_input = data.shutdown(Shutdown::Write);
            ended_input.map_err(|error| failure(&error, &format!("end the input at port {port}")))?;
            *ended = true;
        }
        if *connected { read_data(data, received, plan) } else { Ok(Progress::Goes) }
    }

    /// The request is over: whatever it holds is let go of. Returns what it was.
    pub fn finish(&mut self, reactor: &mut Handle<Key>) -> Option<Work> {
        let mut work = self.work.take()?;
        match &mut work.stage {
            Stage::Exchanging { data, id, .. } => reactor.deregister(data, *id),
            // It was not answered: an answer that comes late must not be taken for the next one's.
            Stage::Asking { .. } => self.drop_control(reactor),
        }
        Some(work)
    }

    fn drop_control(&mut self, reactor: &mut Handle<Key>) {
        if let Some(mut control) = self.control.take() {
            reactor.deregister(&mut control.stream, control.id);
        }
    }
}

fn read_data(data: &mut TcpStream, received: &mut usize, plan: &Plan) -> Result<Progress, Failure> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match data.read(&mut buffer) {
            Ok(0) if plan.expect == Expect::End && (*received > 0 || plan.payload.is_empty()) => {
                return Ok(Progress::Served);
            }
            Ok(0) => {
                let what =
                    format!("the secondary has closed the connection after {received} bytes of answer");
                return Err((Failed::EarlyClose, what));
            }
            Ok(length) => {
                let came = &buffer[..length];
                let is_echo = plan.expect == Expect::Echo;
                if is_echo && plan.payload.get(*received..*received + length) != Some(came) {
                    return Err((Failed::Wrong, "what came back is not what was sent".to_owned()));
                }
                *received += length;
                let is_whole = is_echo && *received == plan.payload.len()
                    || plan.expect == Expect::Line && came.ends_with(b"\n");
                if is_whole {
                    return Ok(Progress::Served);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Goes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failure(&error, "read an answer")),
        }
    }
}

/// Where the principal was reached, there its secondaries are.
fn peer_of(stream: &Stream) -> Option<IpAddr> {
    match stream {
        Stream::Tcp(stream) => stream.peer_addr().ok().map(|peer| peer.ip()),
        Stream::Unix(_) => None,
    }
}

/// Enough of it to know it again.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// With the address that was asked.
fn located((failed, what): Failure, target: &Target) -> Failure {
    (failed, format!("{what} ({target})"))
}

/// The port that an answer gives, or why it gives none.
fn port_of(line: &[u8]) -> Result<u16, Failure> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if is_number && port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(match text.strip_prefix("-1") {
            Some(why) if why.trim_start().starts_with("busy") => (Failed::Busy, why.trim().to_owned()),
            Some(why) => (Failed::NoPort, why.trim().to_owned()),
            None => (Failed::Wrong, format!("the principal has answered {:?}", shortened(text))),
        }),
    }
}

/// What an error of the kernel is for who measures.
pub fn failure(error: &io::Error, what: &str) -> Failure {
    let failed = match error.kind() {
        ErrorKind::ConnectionRefused => Failed::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Failed::Reset,
        ErrorKind::NotConnected => Failed::Reset,
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse => Failed::OutOfPorts,
        ErrorKind::TimedOut => Failed::Timeout,
        _ if error
            .raw_os_error()
            .is_some_and(|code| [nix::libc::EMFILE, nix::libc::ENFILE].contains(&code)) =>
        {
            Failed::OutOfDescriptors
        }
        _ => Failed::Unreachable,
    };
    (failed, format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_port_or_a_reason() {
        assert_eq!(port_of(b"2223\n").unwrap(), 2223);
        for (line, failed) in [
            (&b"-1 busy: all secondaries are full\n"[..], Failed::Busy),
            (b"-1 unknown request type \"foo\"\n", Failed::NoPort),
            (b"-1 stopping\r\n", Failed::NoPort),
            (b"hello\n", Failed::Wrong),
            (b"99999\n", Failed::Wrong),
            (b"+2223\n", Failed::Wrong),
            (b"0\n", Failed::Wrong),
        ] {
            assert_eq!(port_of(line).unwrap_err().0, failed, "{}", line.escape_ascii());
        }
    }
}
