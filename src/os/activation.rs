//! Listening sockets that a service manager has opened for us (sd_listen_fds(3)).

use std::env;
use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use listenfd::ListenFd;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, getsockname, sockopt};
use thiserror::Error;

use crate::os::process;

/// More than any configuration can use.
const MOST: usize = 1024;

/// A listening stream socket, non-blocking and close-on-exec.
#[derive(Debug)]
pub struct PassedSocket {
    /// The socket. Whoever has passed it may hold it, too.
    pub socket: OwnedFd,
    /// Where it listens.
    pub place: Place,
    /// What the service manager calls it (`FileDescriptorName=`), if anything.
    pub name: String,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// TCP, of one family.
    Tcp(SocketAddr),
    /// A Unix socket with a path.
    Unix(PathBuf),
}

/// Why what was passed cannot be listened on.
#[derive(Debug, Error)]
pub enum ActivationError {
    /// The number of descriptors.
    #[error("LISTEN_FDS = {0:?}: a whole number up to {MOST} is wanted")]
    Number(String),
    /// One of them.
    #[error("descriptor {number}{name}, which the service manager has passed, {what}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// Its name, in words that follow the number.
        name: String,
        /// What is wrong with it, and what would be right.
        what: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Takes the sockets that were passed to this process: none where they were passed to another. To be called once,
/// before anything is opened: a number that is not open may be one of our own soon.
///
/// # Errors
/// [`ActivationError`]: something else was passed than listening stream sockets of TCP or Unix.
pub fn take() -> Result<Vec<PassedSocket>, ActivationError> {
    let Some(number) = env::var_os("LISTEN_FDS").filter(|_| is_for_us()) else {
        return Ok(Vec::new());
    };
    let number = number.to_string_lossy();
    if !number.parse().is_ok_and(|number: usize| number <= MOST) {
        return Err(ActivationError::Number(number.into_owned()));
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let name = names.next().unwrap_or_default();
        if let Ok(Some(number)) = passed.take_raw_fd(index) {
            let described = if name.is_empty() { String::new() } else { format!(" ({name:?})") };
            let socket = adopt(number, name);
            let wrong = |what| ActivationError::Descriptor { number, name: described, what };
            sockets.push(socket.map_err(wrong)?);
        }
    }
    Ok(sockets)
}

/// As the crate that reads the rest decides it: without a pid they are for whoever is started.
fn is_for_us() -> bool {
    match env::var("LISTEN_PID") {
        Ok(pid) => pid.is_empty() || pid.parse() == Ok(std::process::id()),
        Err(_) => true,
    }
}

fn adopt(number: RawFd, name: &str) -> Result<PassedSocket, String> {
    let failed = |what: &str, error: &dyn fmt::Display| format!("{what}: {error}");
    let socket = process::inherited(number).map_err(|error| failed("cannot be taken", &error))?;
    let place = place(&socket)?;
    ioctl_fionbio(&socket, true).map_err(|error| failed("cannot be made non-blocking", &error))?;
    Ok(PassedSocket { socket, place, name: name.to_owned() })
}

/// Where it listens, if it is what is wanted.
fn place(socket: &OwnedFd) -> Result<Place, String> {
    const WANTED: &str = "a listening stream socket, TCP or Unix, is wanted (ListenStream= in a socket unit)";
    let kind = match sockopt::socket_type(socket) {
        Ok(kind) => kind,
        Err(Errno::NOTSOCK) => return Err(format!("is no socket: {WANTED}")),
        Err(error) => return Err(format!("cannot be looked at: {error}")),
    };
    let looked = |error: Errno| format!("cannot be looked at: {error}");
    let family = sockopt::socket_domain(socket).map_err(looked)?;
    let address = getsockname(socket).map_err(looked)?;
    let place = match family {
        AddressFamily::UNIX => SocketAddrUnix::try_from(address).ok().map(unix_place),
        AddressFamily::INET | AddressFamily::INET6 => {
            SocketAddr::try_from(address).ok().map(|address| Ok(Place::Tcp(address)))
        }
        _ => None,
    };
    let Some(place) = place else {
        return Err(format!("is a socket of another family: {WANTED}"));
    };
    let shown = match &place {
        Ok(place) => format!(" of {place}"),
        Err(_) => String::new(),
    };
    if kind != SocketType::STREAM {
        let kind = if kind == SocketType::DGRAM { "a datagram socket" } else { "no stream socket" };
        return Err(format!("is {kind}{shown}: {WANTED}"));
    }
    if !sockopt::socket_acceptconn(socket).map_err(looked)? {
        return Err(format!("is a socket{shown} that does not listen: {WANTED}"));
    }
    match place? {
        Place::Tcp(SocketAddr::V6(address)) => of_one_family(socket, address),
        place => Ok(place),
    }
}

fn unix_place(address: SocketAddrUnix) -> Result<Place, String> {
    match address.path() {
        Some(path) => Ok(Place::Unix(std::ffi::OsString::from_vec(path.to_bytes().to_vec()).into())),
        None => Err("is a Unix socket without a path: one with a path is wanted".to_owned()),
    }
}

/// Data ports are bound for each family apart: who came by IPv4 to such a socket would find none.
fn of_one_family(socket: &OwnedFd, address: SocketAddrV6) -> Result<Place, String> {
    let port = address.port();
    if let Some(ip) = address.ip().to_ipv4_mapped() {
        return Err(format!("listens on {address}, IPv4 written as IPv6: {ip}:{port} is wanted"));
    }
    if address.ip().is_unspecified() && !sockopt::ipv6_v6only(socket).unwrap_or(false) {
        return Err(format!(
            "listens on {address} for IPv4 as well: one for IPv6 only is wanted, and one of 0.0.0.0:{port} beside it \
             (BindIPv6Only=ipv6-only, ListenStream=0.0.0.0:{port} in a socket unit)"
        ));
    }
    Ok(Place::Tcp(address.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SocketFlags, bind, listen, socket_with};
    use std::net::{TcpListener, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    #[test]
    fn a_listening_stream_socket_has_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert_eq!(place(&tcp.into()), Ok(Place::Tcp(address)));
        let unix = UnixListener::bind(&path).unwrap();
        assert_eq!(place(&unix.into()), Ok(Place::Unix(path.clone())));
        let place = Place::Unix(path.clone());
        assert_eq!(place.to_string(), format!("unix:{}", path.display()));
    }

    #[test]
    fn all_else_is_refused_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let of_stream = || {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::empty(), None);
            let socket = socket.unwrap();
            bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            socket
        };
        let packets = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None);
        let packets = packets.unwrap();
        bind(&packets, &SocketAddrUnix::new(dir.path().join("p")).unwrap()).unwrap();
        listen(&packets, 1).unwrap();
        let name = format!("osps-activation-{}", std::process::id());
        let name = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::empty(), None);
        for (socket, words) in [
            (
                UdpSocket::bind("127.0.0.1:0").unwrap().into(),
                &["a datagram socket of 127.0.0.1:", "ListenStream"][..],
            ),
            (UnixDatagram::bind(dir.path().join("d")).unwrap().into(), &["a datagram socket of unix:/"]),
            (packets, &["no stream socket"]),
            (of_stream(), &["does not listen", "127.0.0.1:"]),
            (UnixListener::bind_addr(&name).unwrap().into(), &["without a path"]),
            (netlink.unwrap(), &["another family"]),
            (std::fs::File::open("/dev/null").unwrap().into(), &["no socket"]),
        ] {
            let why = place(&socket).unwrap_err();
            assert!(words.iter().all(|word| why.contains(word)), "{why}");
        }
    }

    #[test]
    fn a_socket_of_both_families_is_refused_where_there_is_one() {
        // Without IPv6 on this machine there is nothing to refuse.
        for address in ["[::]:0", "[::ffff:127.0.0.1]:0"] {
            let Ok(both) = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::empty(), None)
            else {
                return;
            };
            sockopt::set_ipv6_v6only(&both, false).unwrap();
            let address: SocketAddr = address.parse().unwrap();
            bind(&both, &address).unwrap();
            listen(&both, 1).unwrap();
            let why = place(&both).unwrap_err();
            assert!(why.contains("is wanted") && why.contains("IPv4"), "{why}");
        }
    }
}
