//! Reading and writing non-blocking streams under an edge-triggered poll.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::os::reactor::Ready;

/// A connection of a client, however it came.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket: from this machine.
    Unix(UnixStream),
}

impl Stream {
    /// Under which address of this machine the client has reached us; `None` where it was a path.
    #[must_use]
    pub fn reached_at(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok().map(|address| address.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }

    /// Whether it came over TCP.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Whether the peer has gone, or has ended its input, without a byte that is unread.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match recv(self, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, length)) => length == 0,
            Err(error) => error != Errno::WOULDBLOCK && error != Errno::INTR,
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

/// What one read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes stand in the buffer.
    Bytes(usize),
    /// The peer will send nothing more.
    End,
    /// Nothing is there now.
    Nothing,
}

/// Remembers that a stream may hold unread input: the kernel tells only once, and
/// whoever leaves input unread must know by himself to come back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unread {
    maybe: bool,
    /// The peer has closed its side: a short read is not the last one.
    closed: bool,
}

impl Unread {
    /// Takes note of an event.
    pub fn note(&mut self, ready: Ready) {
        self.maybe |= ready.readable;
        self.closed |= ready.read_closed;
    }

    /// Whether a read may find something.
    #[must_use]
    pub fn is_likely(self) -> bool {
        self.maybe
    }

    /// Reads once.
    ///
    /// # Errors
    /// What `read(2)` says: the connection is broken.
    pub fn read(&mut self, stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match stream.read(buffer) {
                Ok(0) => {
                    *self = Self::default();
                    return Ok(Received::End);
                }
                Ok(length) => {
                    // A short read has emptied the stream, unless its end is there already.
                    self.maybe = length == buffer.len() || self.closed;
                    return Ok(Received::Bytes(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *self = Self::default();
                    return Ok(Received::Nothing);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Of a long message so much is written in one turn before others get theirs.
pub const WRITE_BUDGET: usize = 256 * 1024;

/// Writes as much as the stream takes now; returns how much that was.
///
/// # Errors
/// What `write(2)` says: the connection is broken.
pub fn write_some(stream: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
