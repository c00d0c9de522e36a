//! Listening sockets: bound once by the watchdog, inherited by whoever serves them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mio::event::Source;
use mio::net::UnixListener;
use mio::{Interest, Registry, Token};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::core::moment::Moment;
use crate::os::log::Recurrence;
use crate::os::stream::Stream;

/// Connections accepted from one listener in one turn.
pub const ACCEPTS_PER_TURN: usize = 64;
/// How long accepting pauses when descriptors run out.
const SCARCITY_PAUSE: Duration = Duration::from_millis(50);
/// The kernel cuts this down to `net.core.somaxconn` (listen(2)). The longer the
/// backlog, the more clients can wait while a server is replaced.
pub const BACKLOG: i32 = i32::MAX;

/// Binds and listens; the socket is non-blocking and close-on-exec, and has the options of [`set_options`].
///
/// # Errors
/// What `socket(2)`, `bind(2)` or `listen(2)` say.
pub fn bind_listener(address: SocketAddr, user_timeout: Duration) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    set_options(&socket, user_timeout)?;
    if address.is_ipv6() {
        // Else it would take the port of every IPv4 address as well (ipv6(7)).
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// What every TCP listener has. Accepted sockets inherit `TCP_NODELAY` and `TCP_USER_TIMEOUT` (tcp(7)), which saves
/// calls for each: a peer that for `user_timeout` takes nothing of what was sent to it is given up by the kernel,
/// while one that reads slowly is not.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn set_options(socket: impl AsFd, user_timeout: Duration) -> io::Result<()> {
    let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(sockopt::set_tcp_user_timeout(&socket, millis)?)
}

/// The port a listener is bound to.
///
/// # Errors
/// What `getsockname(2)` says.
pub fn port(listener: &TcpListener) -> io::Result<u16> {
    listener.local_addr().map(|address| address.port())
}

/// A data listener that was inherited, for mio.
#[must_use]
pub fn from_inherited(fd: OwnedFd) -> mio::net::TcpListener {
    mio::net::TcpListener::from_std(TcpListener::from(fd))
}

/// A control listener, of either kind.
#[derive(Debug)]
pub enum Listener {
    /// Under an address and port.
    Tcp(mio::net::TcpListener),
    /// Under a path.
    Unix(UnixListener),
}

impl Listener {
    /// A listener that was inherited.
    ///
    /// # Errors
    /// What `getsockopt(2)` says: it is no socket.
    pub fn from_inherited(fd: OwnedFd) -> io::Result<Self> {
        Ok(match sockopt::socket_domain(&fd)? {
            AddressFamily::UNIX => Self::Unix(UnixListener::from_std(fd.into())),
            _ => Self::Tcp(from_inherited(fd)),
        })
    }

    /// Takes a connection from the backlog, and by which address its client is known.
    ///
    /// # Errors
    /// What `accept(2)` says.
    pub fn accept(&self) -> io::Result<(Stream, IpAddr)> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().map(|(stream, peer)| (Stream::Tcp(stream), client_address(peer)))
            }
            Self::Unix(listener) => {
                listener.accept().map(|(stream, _)| (Stream::Unix(stream), IpAddr::V4(Ipv4Addr::LOCALHOST)))
            }
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(listener) => listener,
            Self::Unix(listener) => listener,
        }
    }
}

impl Source for Listener {
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

/// The address that a client is known by: IPv4-mapped equals IPv4, and this machine is one,
/// whichever loopback it comes over.
#[must_use]
pub fn client_address(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
        address => address,
    }
}

/// What a look into the backlog came to.
#[derive(Debug)]
pub enum Accepted<T> {
    /// A connection.
    One(T),
    /// One that broke while it waited: the next may be well.
    Broken,
    /// The backlog is empty.
    Nothing,
    /// Something runs short. The connection stays in the backlog: it waits, it is not refused.
    Scarce(io::Error),
}

impl<T> From<io::Result<T>> for Accepted<T> {
    fn from(result: io::Result<T>) -> Self {
        match result {
            Ok(connection) => Self::One(connection),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Self::Nothing,
            Err(error) if is_connection_error(&error) => Self::Broken,
            Err(error) => Self::Scarce(error),
        }
    }
}

/// Whether an error of `accept(2)` concerns only the connection that was to be accepted.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || matches!(
        rustix::io::Errno::from_io_error(error),
        Some(
            rustix::io::Errno::PROTO
                | rustix::io::Errno::PERM
                | rustix::io::Errno::HOSTUNREACH
                | rustix::io::Errno::NETUNREACH
                | rustix::io::Errno::TIMEDOUT
        )
    )
}

/// Descriptors run out for all listeners of a process at once: all pause until the same timer.
#[derive(Debug, Default)]
pub struct Scarcity {
    trouble: Recurrence,
    is_armed: bool,
}

impl Scarcity {
    /// An accept has failed. Returns when to try again, unless that is known already.
    pub fn met(&mut self, now: Moment, error: &io::Error) -> Option<Moment> {
        if self.trouble.is_news(now) {
            log::warn!("cannot accept, trying again every {SCARCITY_PAUSE:?}: {error}");
        }
        let is_new = !std::mem::replace(&mut self.is_armed, true);
        is_new.then(|| now + SCARCITY_PAUSE)
    }

    /// That time has come: every listener is to be tried again.
    pub fn paused(&mut self) {
        self.is_armed = false;
    }
}

/// Where a tool on this machine reaches a server that listens on any address.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(reachable_host(address.ip()), address.port())
}

/// The loopback of its family in place of "any address".
#[must_use]
pub fn reachable_host(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => host,
    }
}
