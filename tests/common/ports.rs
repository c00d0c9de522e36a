//! Ports that no other test takes meanwhile.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

/// An address that is bound, and where nobody listens: connections are refused. It stays so while the socket is held.
pub fn nobody() -> (OwnedFd, SocketAddr) {
    let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&bound, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = SocketAddr::try_from(getsockname(&bound).unwrap()).unwrap();
    (bound, address)
}

/// An address that is free, for a system that binds it again and again. What is bound in between has another host.
pub fn own_address() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 64 | high >> 2, low, 1);
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}
