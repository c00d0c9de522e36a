//! Connections that are begun and not waited for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};

use crate::os::stream::Stream;

/// Begins a connection, from that address of this machine if one is given. It is there once the stream
/// can be written; on the loopback that is mostly so at once.
///
/// # Errors
/// What `socket(2)`, `bind(2)` and `connect(2)` say: `AddrNotAvailable` where no port is left, for instance.
pub fn tcp(target: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(from) = from {
        // The port is chosen at connect(2), where one suffices for many targets (ip(7)).
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        bind(&socket, &SocketAddr::new(from, 0))?;
    }
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = std::net::TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(TcpStream::from_std(stream))
}

/// Connects to a Unix socket. A full backlog is `WouldBlock`: nothing tells when it has room (connect(2)).
///
/// # Errors
/// What `socket(2)` and `connect(2)` say.
pub fn unix(path: &Path) -> io::Result<Stream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(Stream::Unix(mio::net::UnixStream::from_std(UnixStream::from(socket))))
}
