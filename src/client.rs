//! The client side: ask the principal for a type of work, then talk to the secondary.
//!
//! Blocking and plain: no reactor is needed to use a server of OSPS.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

/// Longer answers are no answers.
const MAX_ANSWER_BYTES: u64 = 4096;

/// Which step failed, and why.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers under that address.
    #[error("cannot connect to {what} at {address}: {source}")]
    Connect {
        /// `the principal`, `the secondary`.
        what: &'static str,
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The control connection broke.
    #[error("the principal did not answer the request for \"{kind}\": {source}")]
    Request {
        /// The type that was asked for.
        kind: String,
        /// Why.
        source: io::Error,
    },
    /// The principal answered -1.
    #[error("the principal refuses \"{kind}\": {reason}")]
    Refused {
        /// The type that was asked for.
        kind: String,
        /// The reason, in the principal's words.
        reason: String,
    },
    /// The data connection broke.
    #[error("the exchange with the secondary broke: {0}")]
    Exchange(io::Error),
    /// Our own input cannot be read.
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    /// Our own output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// A control connection; it may be used for any number of requests.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<TcpStream>,
    timeout: Duration,
}

impl Control {
    /// Connects to a principal; no step takes longer than `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(at: &str, timeout: Duration) -> Result<Self, ClientError> {
        let connect = || {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in at.to_socket_addrs()? {
                match connect_within(address, timeout) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let stream = connect().map_err(|source| ClientError::Connect {
            what: "the principal",
            address: at.to_owned(),
            source,
        })?;
        Ok(Self { stream: BufReader::new(stream), timeout })
    }

    /// Asks for a type of work and returns where it will be served.
    ///
    /// # Errors
    /// [`ClientError::Request`], [`ClientError::Refused`].
    pub fn request(&mut self, kind: &str) -> Result<SocketAddr, ClientError> {
        let broken = |source| ClientError::Request { kind: kind.to_owned(), source };
        let answer = self.ask(kind).map_err(broken)?;
        if let Some(reason) = answer.strip_prefix("-1") {
            let reason = reason.trim().to_owned();
            return Err(ClientError::Refused { kind: kind.to_owned(), reason });
        }
        let port = answer.trim().parse().map_err(|_| {
            broken(io::Error::new(io::ErrorKind::InvalidData, format!("no port: {answer:?}")))
        })?;
        let mut address = self.stream.get_ref().peer_addr().map_err(broken)?;
        address.set_port(port);
        Ok(address)
    }

    /// Asks for a type of work and connects to whom the principal names.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn open(&mut self, kind: &str) -> Result<TcpStream, ClientError> {
        let address = self.request(kind)?;
        connect_within(address, self.timeout).map_err(|source| ClientError::Connect {
            what: "the secondary",
            address: address.to_string(),
            source,
        })
    }

    fn ask(&mut self, kind: &str) -> io::Result<String> {
        self.stream.get_mut().write_all(format!("{kind}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.by_ref().take(MAX_ANSWER_BYTES).read_line(&mut answer)?;
        if answer.ends_with('\n') {
            return Ok(answer);
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"))
    }
}

fn connect_within(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends all of `input`, then ends the sending side; writes all that comes back to
/// `output` while it comes, until the secondary closes. A silence of both sides of
/// `timeout` is an error. Returns the bytes received.
///
/// # Errors
/// [`ClientError::Exchange`], [`ClientError::Input`], [`ClientError::Output`].
pub fn exchange(
    mut stream: TcpStream,
    mut input: impl Read + AsFd,
    output: &mut dyn Write,
    timeout: Duration,
) -> Result<u64, ClientError> {
    let broke = ClientError::Exchange;
    stream.set_nonblocking(true).map_err(broke)?;
    let mut pending: Vec<u8> = Vec::new();
    let (mut input_open, mut received) = (true, 0);
    loop {
        let wants_input = input_open && pending.is_empty();
        let ready = wait(&stream, input.as_fd(), wants_input, !pending.is_empty(), timeout).map_err(broke)?;
        if ready.input {
            input_open = refill(&mut input, &mut pending).map_err(ClientError::Input)?;
            if !input_open {
                stream.shutdown(Shutdown::Write).map_err(broke)?;
            }
        }
        if !pending.is_empty() {
            let sent = some(stream.write(&pending)).map_err(broke)?.unwrap_or(0);
            pending.drain(..sent);
        }
        if ready.readable {
            let mut buffer = [0; 16 * 1024];
            match some(stream.read(&mut buffer)).map_err(broke)? {
                Some(0) => return Ok(received),
                Some(length) => {
                    let shown = output.write_all(&buffer[..length]).and_then(|()| output.flush());
                    shown.map_err(ClientError::Output)?;
                    received += length as u64;
                }
                None => {}
            }
        }
    }
}

/// What can be done without blocking.
struct CanDo {
    input: bool,
    readable: bool,
}

fn wait(
    stream: &TcpStream,
    input: BorrowedFd<'_>,
    wants_input: bool,
    wants_room: bool,
    timeout: Duration,
) -> io::Result<CanDo> {
    let room = if wants_room { PollFlags::OUT } else { PollFlags::empty() };
    let mut fds = vec![PollFd::new(stream, PollFlags::IN | room)];
    if wants_input {
        fds.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
    }
    // Whoever types may take his time: only the secondary's silence is timed.
    let limit = if wants_input { None } else { Timespec::try_from(timeout).ok() };
    loop {
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("silence for {timeout:?}"))),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let readable = !fds[0].revents().difference(PollFlags::OUT).is_empty();
    Ok(CanDo { input: fds.get(1).is_some_and(|fd| !fd.revents().is_empty()), readable })
}

/// Reads some input; false at its end.
fn refill(input: &mut impl Read, pending: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    match input.read(&mut buffer) {
        Ok(length) => {
            pending.extend_from_slice(&buffer[..length]);
            Ok(length > 0)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    }
}

/// A result of non-blocking I/O; `None` where it would have blocked.
fn some(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
