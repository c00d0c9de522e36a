//! Sockets with deadlines.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::client::error::ClientError;
use crate::core::moment::Moment;
use crate::os::clock;

/// How often a Unix socket with a full backlog is tried again: nothing tells that it has room.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Where a principal listens: `HOST:PORT` (IPv6 in brackets), or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host, by name or address, and a port.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = ClientError;

    fn from_str(given: &str) -> Result<Self, ClientError> {
        if let Some(path) = given.strip_prefix("unix:") {
            return match path {
                "" => Err(ClientError::Address { given: given.to_owned() }),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        let is_host = |host: &str| match host.strip_prefix('[') {
            Some(rest) => rest.ends_with(']'),
            None => !host.is_empty() && !host.contains(':'),
        };
        match given.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(Self::Tcp(given.to_owned()))
            }
            Some(_) | None => Err(ClientError::Address { given: given.to_owned() }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => f.write_str(at),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A control connection's socket, non-blocking.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects within `limit`, all addresses of a name together.
    pub fn connect(at: &Endpoint, limit: Duration) -> io::Result<Self> {
        match at {
            Endpoint::Tcp(at) => {
                let stream = connect_tcp(&resolve(at)?, limit)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Tcp(stream))
            }
            Endpoint::Unix(path) => connect_unix(path, limit).map(Self::Unix),
        }
    }

    /// Reads what is there now; `None` where nothing is, 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        would_block(match self {
            Self::Tcp(stream) => (&mut &*stream).read(buffer),
            Self::Unix(stream) => (&mut &*stream).read(buffer),
        })
    }

    /// Writes all within `limit`.
    pub fn write_all(&self, mut bytes: &[u8], limit: Duration) -> io::Result<()> {
        let deadline = clock::now() + limit;
        while !bytes.is_empty() {
            let written = would_block(match self {
                Self::Tcp(stream) => (&mut &*stream).write(bytes),
                Self::Unix(stream) => (&mut &*stream).write(bytes),
            })?;
            match written {
                Some(length) => bytes = &bytes[length..],
                None => wait(self.as_fd(), PollFlags::OUT, deadline, limit)?,
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// The addresses of a name.
pub fn resolve(at: &str) -> io::Result<Vec<SocketAddr>> {
    at.to_socket_addrs().map(Iterator::collect)
}

/// Connects to the first address that accepts. Each of those that are left has the same share of
/// the time that is left, so that a silent one does not use up that of the others.
pub fn connect_tcp(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let deadline = clock::now() + limit;
    let mut refused: Option<io::Error> = None;
    for (index, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = (deadline.since(clock::now()) / left).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => {
                // A request and its answer are small: neither shall wait for more.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) if addresses.len() == 1 => return Err(error),
            Err(error) => {
                let before = refused.map_or(String::new(), |refused| format!("{refused}; "));
                refused = Some(io::Error::new(error.kind(), format!("{before}{address}: {error}")));
            }
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// A blocking connect(2) to a Unix socket with a full backlog would wait without limit (unix(7)).
fn connect_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let deadline = clock::now() + limit;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(rustix::io::Errno::AGAIN) if clock::now() < deadline => pause(LOOK_EVERY),
            Err(rustix::io::Errno::AGAIN) => return Err(too_late("no room in the backlog", limit)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until something can be done with a descriptor, or its peer is gone.
pub fn wait(fd: BorrowedFd<'_>, what: PollFlags, deadline: Moment, limit: Duration) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(fd, what)];
    if poll_until(&mut fds, Some(deadline))? { Ok(()) } else { Err(too_late("nothing came", limit)) }
}

/// Polls; false where the deadline came first.
pub fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Moment>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.since(clock::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timeout.as_ref()) {
            Ok(0) if left == Some(Duration::ZERO) => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends what there is room for. What is followed by `more` at once, or by the end of the sending side,
/// goes into one segment with that (`MSG_MORE`, send(2)): whoever receives it is woken once, and knows
/// the end with the last bytes.
pub fn send(stream: &TcpStream, bytes: &[u8], more: bool) -> io::Result<usize> {
    let more = if more { SendFlags::MORE } else { SendFlags::empty() };
    Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL | more)?)
}

/// Waits for so long.
pub fn pause(time: Duration) {
    // Without a descriptor only time can end it.
    let _ = poll_until(&mut [], Some(clock::now() + time));
}

/// The error of a step that took longer than it may.
pub fn too_late(what: &str, limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {limit:?}"))
}

/// A result of non-blocking I/O; `None` where it would have blocked.
pub fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_what_is_none() {
        for given in ["127.0.0.1:2222", "localhost:1", "[::1]:2222", "unix:/run/x", "unix:x"] {
            assert_eq!(given.parse::<Endpoint>().unwrap().to_string(), given);
        }
        for given in ["", "localhost", ":2222", "a:", "a:x", "a:0", "a:65536", "::1:2222", "unix:"] {
            assert!(given.parse::<Endpoint>().is_err(), "{given}");
        }
    }
}
