//! Listening sockets: bound once by the watchdog, inherited by whoever serves them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

/// The kernel cuts this down to `net.core.somaxconn` (listen(2)). The longer the
/// backlog, the more clients can wait while a server is replaced.
const BACKLOG: i32 = i32::MAX;

/// Binds and listens; the socket is non-blocking and close-on-exec. Accepted sockets
/// inherit `TCP_NODELAY` and `TCP_USER_TIMEOUT` (tcp(7)), which saves calls for each: a peer
/// that for `user_timeout` takes nothing of what was sent to it is given up by the kernel,
/// while one that reads slowly is not.
///
/// # Errors
/// What `socket(2)`, `bind(2)` or `listen(2)` say.
pub fn bind_listener(address: SocketAddr, user_timeout: Duration) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&socket, millis)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The port a listener is bound to.
///
/// # Errors
/// What `getsockname(2)` says.
pub fn port(listener: &TcpListener) -> io::Result<u16> {
    listener.local_addr().map(|address| address.port())
}

/// An inherited listening socket, for mio.
#[must_use]
pub fn from_inherited(fd: OwnedFd) -> mio::net::TcpListener {
    mio::net::TcpListener::from_std(TcpListener::from(fd))
}

/// The address that a client is known by: IPv4-mapped equals IPv4.
#[must_use]
pub fn client_address(peer: SocketAddr) -> std::net::IpAddr {
    peer.ip().to_canonical()
}

/// Whether an error of `accept(2)` concerns only the connection that was to be accepted.
#[must_use]
pub fn is_connection_error(error: &io::Error) -> bool {
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

/// Where a tool on this machine reaches a server that listens on any address.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, v4.port()))
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => address,
    }
}
