//! Every listening socket of the system: bound once, here, and inherited by whoever serves it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;

use crate::config::{Address, Config, DataPorts};
use crate::exit::{Code, Failure};
use crate::os::clock;
use crate::os::listener::{self, bind_listener};
use crate::os::rundir::Owner;
use crate::os::socket_file::SocketFile;
use crate::role::watchdog::start::pause;

/// How long binding is tried again after a crashed run: a survivor that was just being
/// started may hold a listener for a moment.
const BIND_WITHIN: Duration = Duration::from_secs(2);
/// How many ports of the kernel's choice may turn out to be taken on another host.
const SPARE_CHOICES: usize = 1000;

/// All listeners.
pub struct Bound {
    /// In the order of `listen`.
    control: Vec<Control>,
    /// Those of each slot in turn: for each request type one on every host.
    data: Vec<TcpListener>,
    /// First index slot minus 1, second the request type.
    ports: Vec<Vec<u16>>,
}

/// A control listener.
enum Control {
    Tcp(TcpListener),
    Unix(SocketFile),
}

impl Bound {
    /// Binds the control listeners, and for every (secondary, type) pair a data port on all hosts.
    pub fn bind(config: &Config, after_crash: bool) -> Result<Self, Failure> {
        let patience = if after_crash { BIND_WITHIN } else { Duration::ZERO };
        let control = config.listen.addresses().iter();
        let control = control
            .map(|address| {
                let bind = || bind_control(address, config.client_idle);
                patiently(patience, bind).map_err(|error| bind_failure(address, &error))
            })
            .collect::<Result<_, _>>()?;
        let mut bound = Self { control, data: Vec::new(), ports: Vec::new() };
        let mut ports = DataPortBinder::new(config);
        for _ in 0..config.secondaries {
            let of_slot = config.request.iter().map(|_| ports.bind_next(&mut bound.data));
            bound.ports.push(of_slot.collect::<Result<_, _>>()?);
        }
        Ok(bound)
    }

    /// All of them, in the order in which a principal inherits them.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let control = self.control.iter().map(|control| match control {
            Control::Tcp(listener) => listener.as_fd(),
            Control::Unix(file) => file.as_fd(),
        });
        control.chain(self.data.iter().map(AsFd::as_fd))
    }

    /// Ports: first index slot minus 1, second the request type.
    pub fn ports(&self) -> &[Vec<u16>] {
        &self.ports
    }

    /// The addresses of the control listeners, with the ports that the kernel has chosen.
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.control.iter().filter_map(|control| {
            Some(match control {
                Control::Tcp(listener) => Address::Tcp(listener.local_addr().ok()?),
                Control::Unix(file) => Address::Unix(file.path().to_owned()),
            })
        });
        addresses.map(|address| address.to_string()).collect()
    }

    /// Hands the files of the Unix sockets to the user that serves them.
    pub fn give_socket_files(&self, owner: Owner) -> Result<(), Failure> {
        for control in &self.control {
            if let Control::Unix(file) = control {
                file.give(owner.uid, owner.gid).map_err(|error| {
                    let path = file.path().display();
                    Failure::new(Code::NoPermission, format!("cannot hand {path} over: {error}"))
                })?;
            }
        }
        Ok(())
    }

    /// Removes the files of the Unix sockets: nobody serves them any more.
    pub fn remove_socket_files(&self) {
        for control in &self.control {
            if let Control::Unix(file) = control
                && let Err(error) = file.remove()
            {
                log::warn!("cannot remove {}: {error}", file.path().display());
            }
        }
    }
}

fn bind_control(address: &Address, user_timeout: Duration) -> io::Result<Control> {
    match address {
        Address::Tcp(address) => bind_listener(*address, user_timeout).map(Control::Tcp),
        Address::Unix(path) => SocketFile::bind(path).map(Control::Unix),
    }
}

fn patiently<T>(patience: Duration, mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let give_up_at = clock::now() + patience;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && clock::now() < give_up_at => {
                pause(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Goes through the ports that data listeners may have.
struct DataPortBinder<'a> {
    config: &'a Config,
    hosts: Vec<SocketAddr>,
    candidates: Box<dyn Iterator<Item = u16>>,
}

impl<'a> DataPortBinder<'a> {
    fn new(config: &'a Config) -> Self {
        let candidates: Box<dyn Iterator<Item = u16>> = match &config.data_ports {
            DataPorts::Range(range) => Box::new(range.clone()),
            DataPorts::Kernel => {
                let wanted = usize::from(config.secondaries) * config.request.len();
                Box::new(std::iter::repeat_n(0, wanted + SPARE_CHOICES))
            }
        };
        Self { config, hosts: config.listen.hosts(), candidates }
    }

    /// Binds the next port that nobody else has on any host, on all of them.
    fn bind_next(&mut self, listeners: &mut Vec<TcpListener>) -> Result<u16, Failure> {
        for candidate in self.candidates.by_ref() {
            match bind_on_all(&self.hosts, candidate, self.config.client_idle) {
                Ok((port, bound)) => {
                    listeners.extend(bound);
                    return Ok(port);
                }
                Err((address, error)) if error.kind() == io::ErrorKind::AddrInUse => {
                    log::info!("data port {address} is taken by another program: passed over");
                }
                Err((address, error)) => return Err(bind_failure(&Address::Tcp(address), &error)),
            }
        }
        let hosts: Vec<String> = self.hosts.iter().map(|host| host.ip().to_string()).collect();
        let message = format!(
            "data_ports = \"{}\": not enough free ports on {} for {} secondaries with {} request types each",
            self.config.data_ports,
            hosts.join(" and "),
            self.config.secondaries,
            self.config.request.len()
        );
        Err(Failure::new(Code::Unavailable, message))
    }
}

/// Binds one port on every host; port 0 is what the kernel gives on the first.
fn bind_on_all(
    hosts: &[SocketAddr],
    mut port: u16,
    user_timeout: Duration,
) -> Result<(u16, Vec<TcpListener>), (SocketAddr, io::Error)> {
    let mut listeners = Vec::new();
    for host in hosts {
        let mut address = *host;
        address.set_port(port);
        let listener = bind_listener(address, user_timeout).map_err(|error| (address, error))?;
        port = listener::port(&listener).map_err(|error| (address, error))?;
        listeners.push(listener);
    }
    Ok((port, listeners))
}

fn bind_failure(address: &Address, error: &io::Error) -> Failure {
    let (code, hint) = match address {
        Address::Tcp(address) => hint_at_tcp(*address, error),
        Address::Unix(_) => hint_at_unix(error),
    };
    Failure::new(code, format!("cannot listen on {address}: {error} ({hint})"))
}

fn hint_at_tcp(address: SocketAddr, error: &io::Error) -> (Code, &'static str) {
    match error.kind() {
        io::ErrorKind::AddrInUse => (Code::Unavailable, "another program has this port"),
        io::ErrorKind::AddrNotAvailable => (Code::Unavailable, "this machine does not have that address"),
        io::ErrorKind::PermissionDenied => (Code::NoPermission, "ports below 1024 are for root"),
        _ if address.is_ipv6() && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            (Code::Unavailable, "this machine has no IPv6")
        }
        _ => (Code::Unavailable, "see listen and data_ports"),
    }
}

fn hint_at_unix(error: &io::Error) -> (Code, &'static str) {
    match error.kind() {
        io::ErrorKind::AddrInUse => (Code::Unavailable, "another server listens there"),
        io::ErrorKind::PermissionDenied => (Code::NoPermission, "see the modes of its directories"),
        io::ErrorKind::AlreadyExists => (Code::CannotCreate, "it is left alone: choose another path"),
        _ => (Code::CannotCreate, "see listen"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_on_another_host_is_given_up_for_the_next() {
        let config: Config = toml::from_str("listen = [\"127.0.0.1:0\", \"127.0.0.2:0\"]").unwrap();
        let taken = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let candidates = std::iter::once(port).chain(std::iter::repeat_n(0, SPARE_CHOICES));
        let mut ports = DataPortBinder { candidates: Box::new(candidates), ..DataPortBinder::new(&config) };
        let mut listeners = Vec::new();
        let found = ports.bind_next(&mut listeners).unwrap();
        assert_ne!(found, port);
        let bound: Vec<String> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        assert_eq!(bound, [format!("127.0.0.1:{found}"), format!("127.0.0.2:{found}")]);
    }
}
