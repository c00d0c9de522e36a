//! Every listening socket of the system: bound once, here, and inherited by whoever serves it.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use crate::config::{Address, Config, DataPorts, Listen};
use crate::exit::{Code, Failure};
use crate::os::activation::PassedSocket;
use crate::os::clock;
use crate::os::listener::{self, bind_listener};
use crate::os::rundir::Owner;
use crate::os::socket_file::SocketFile;
use crate::role::watchdog::passed::Passed;
use crate::role::watchdog::start::pause;

/// How long binding is tried again after a crashed run: a survivor that was just being
/// started may hold a listener for a moment.
const BIND_WITHIN: Duration = Duration::from_secs(2);
/// How many ports of the kernel's choice may turn out to be taken on another host.
const SPARE_CHOICES: usize = 1000;

/// All listeners; a copy holds the same ones.
#[derive(Clone)]
pub struct Bound {
    /// In the order of `listen`; then those that are not in it any more, of which the backlog is still to be heard.
    control: Vec<Rc<Control>>,
    /// Those of each slot and request type: one on every host, or none where they are closed.
    data: Vec<Vec<Rc<Data>>>,
    /// How many of the control listeners are not in `listen` any more.
    closing: usize,
    /// Those of the observer, in the order of `observe`.
    observe: Vec<Rc<Control>>,
}

/// A control listener, or one of the observer.
struct Control {
    /// As it is configured.
    address: Address,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix(SocketFile),
    /// Bound by a service manager, whose it is: the file of a Unix socket, too.
    Passed(OwnedFd),
}

/// The data listeners of a pair: one port on every host.
#[derive(Default)]
struct Data {
    /// Zero where there is none.
    port: u16,
    listeners: Vec<TcpListener>,
}

impl Control {
    fn bind(address: &Address, user_timeout: Duration) -> io::Result<Self> {
        let socket = match address {
            Address::Tcp(address) => bind_listener(*address, user_timeout).map(Socket::Tcp),
            Address::Unix(path) => SocketFile::bind(path).map(Socket::Unix),
        };
        Ok(Self { address: address.clone(), socket: socket? })
    }

    fn adopt(address: Address, passed: PassedSocket, user_timeout: Duration) -> Result<Self, Failure> {
        if matches!(address, Address::Tcp(_)) {
            listener::set_options(&passed.socket, user_timeout).map_err(|error| {
                let what = "a socket that was passed takes no options of TCP";
                Failure::new(Code::Config, format!("cannot listen on {address}: {what}: {error}"))
            })?;
        }
        Ok(Self { address, socket: Socket::Passed(passed.socket) })
    }

    /// Its address, with the port that the kernel has chosen.
    fn bound_to(&self) -> Option<Address> {
        Some(match &self.socket {
            Socket::Tcp(listener) => Address::Tcp(listener.local_addr().ok()?),
            Socket::Unix(file) => Address::Unix(file.path().to_owned()),
            Socket::Passed(_) => self.address.clone(),
        })
    }

    /// Whether it is a Unix socket of ours that nobody finds any more.
    fn is_lost(&self) -> bool {
        matches!(&self.socket, Socket::Unix(file) if file.is_gone())
    }

    fn remove_file(&self) {
        if let Socket::Unix(file) = &self.socket
            && let Err(error) = file.remove()
        {
            log::warn!("cannot remove {}: {error}", file.path().display());
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(file) => file.as_fd(),
            Socket::Passed(socket) => socket.as_fd(),
        }
    }
}

impl Bound {
    /// Binds what was not passed: the control listeners and those of the observer, and for every (secondary, type) pair a data port on all
    /// hosts.
    pub fn bind(config: &Config, passed: Passed, after_crash: bool) -> Result<Self, Failure> {
        let patience = if after_crash { BIND_WITHIN } else { Duration::ZERO };
        let mut there = Self { control: Vec::new(), data: Vec::new(), closing: 0, observe: Vec::new() };
        for (address, socket) in passed.into_sockets() {
            let is_observed = config.observes(&address);
            let adopted = Rc::new(Control::adopt(address, socket, config.client_idle)?);
            if is_observed { there.observe.push(adopted) } else { there.control.push(adopted) }
        }
        there.bind_more(config, &BTreeSet::new(), config.secondaries, patience)
    }

    /// What there is, and whatever else this configuration asks for. Types that are retired get nothing new.
    /// Nothing is closed by it: what is not asked for any more stays until [`Bound::close_what_was_replaced`] or
    /// [`Bound::close`].
    pub fn bind_more(
        &self,
        config: &Config,
        retired: &BTreeSet<usize>,
        slots: u16,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let bind = |known: &[Rc<Control>], address: &Address| {
            // One that nobody finds any more is bound again; who stands in its backlog is heard, as where it is removed.
            let is_it = |known: &&Rc<Control>| known.address == *address && !known.is_lost();
            if let Some(known) = known.iter().find(is_it) {
                return Ok(known.clone());
            }
            let bound = patiently(patience, || Control::bind(address, config.client_idle));
            bound.map(Rc::new).map_err(|error| bind_failure(address, &error, self.holder(address)))
        };
        let wanted = config.listen.addresses().iter();
        let mut control =
            wanted.map(|address| bind(&self.control, address)).collect::<Result<Vec<_>, _>>()?;
        let wanted = config.observe.iter().flat_map(Listen::addresses);
        let observe = wanted.map(|address| bind(&self.observe, address)).collect::<Result<Vec<_>, _>>();
        let listened = control.len();
        let is_new = |old: &&Rc<Control>| !control.iter().any(|control| Rc::ptr_eq(control, old));
        let closing: Vec<_> = self.control.iter().filter(is_new).cloned().collect();
        control.extend(closing);
        let closing = control.len() - listened;
        let mut bound = Self { control, data: self.data.clone(), closing, observe: Vec::new() };
        bound.data.resize(usize::from(slots), Vec::new());
        let bound_data = observe.and_then(|observe| {
            bound.observe = observe;
            bound.bind_data(config, retired)
        });
        match bound_data {
            Ok(()) => Ok(bound),
            Err(failure) => {
                bound.remove_socket_files_but(self);
                Err(failure)
            }
        }
    }

    fn bind_data(&mut self, config: &Config, retired: &BTreeSet<usize>) -> Result<(), Failure> {
        let taken = self.data.iter().flatten().map(|data| data.port).collect();
        let mut ports = DataPortBinder::new(config, taken);
        for (slot, data) in self.data.iter_mut().enumerate() {
            data.resize(config.request.len(), Rc::default());
            for (kind, pair) in data.iter_mut().enumerate() {
                let is_wanted = slot < usize::from(config.secondaries) && !retired.contains(&kind);
                if is_wanted && pair.port == 0 {
                    *pair = Rc::new(ports.bind_next()?);
                }
            }
        }
        Ok(())
    }

    /// Which key of the configuration in force has an address: then no other program has it.
    fn holder(&self, address: &Address) -> Option<&'static str> {
        let has = |controls: &[Rc<Control>]| {
            let mut found = controls.iter().filter(|control| !control.is_lost());
            found.any(|control| control.bound_to().is_some_and(|bound| bound.clashes_with(address)))
        };
        let mut data = self.data.iter().flatten().flat_map(|data| &data.listeners);
        let is_same = |listener: &TcpListener| {
            listener.local_addr().is_ok_and(|bound| Address::Tcp(bound).clashes_with(address))
        };
        if has(&self.control) {
            Some("listen")
        } else if has(&self.observe) {
            Some("observe")
        } else {
            data.any(is_same).then_some("data_ports")
        }
    }

    /// All of them, in the order in which a principal inherits them.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let control = self.control.iter().map(|control| control.as_fd());
        control.chain(self.data.iter().flatten().flat_map(|data| data.listeners.iter().map(AsFd::as_fd)))
    }

    /// Those of the observer.
    pub fn observers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.observe.iter().map(|control| control.as_fd())
    }

    /// How many control listeners come last of them that are only to be emptied.
    pub fn closing(&self) -> usize {
        self.closing
    }

    /// Ports: first index slot minus 1, second the request type; zero where there is none.
    pub fn ports(&self) -> Vec<Vec<u16>> {
        self.data.iter().map(|data| data.iter().map(|data| data.port).collect()).collect()
    }

    /// The addresses of the control listeners, with the ports that the kernel has chosen.
    pub fn addresses(&self) -> Vec<String> {
        addresses(&self.control[..self.control.len() - self.closing])
    }

    /// The addresses at which nobody finds us any more: the files of their sockets were removed.
    pub fn lost(&self) -> BTreeSet<String> {
        let listened = &self.control[..self.control.len() - self.closing];
        let lost = listened.iter().chain(&self.observe).filter(|control| control.is_lost());
        lost.map(|control| control.address.to_string()).collect()
    }

    /// The addresses of the observer.
    pub fn observed(&self) -> Vec<String> {
        addresses(&self.observe)
    }

    /// Another principal accepts: nobody comes to the control listeners any more that are not in `listen`.
    pub fn close_what_was_replaced(&mut self) {
        for closed in self.control.drain(self.control.len() - self.closing..) {
            closed.remove_file();
        }
        self.closing = 0;
    }

    /// Closes those of a pair.
    pub fn close(&mut self, slot: usize, kind: usize) {
        self.data[slot][kind] = Rc::default();
    }

    /// Hands the files of the Unix sockets to the user that serves them.
    pub fn give_socket_files(&self, owner: Owner) -> Result<(), Failure> {
        for control in self.all_but_data() {
            if let Socket::Unix(file) = &control.socket {
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
        self.all_but_data().for_each(|control| control.remove_file());
    }

    /// Removes the files of those that the other has not.
    pub fn remove_socket_files_but(&self, kept: &Self) {
        let is_kept = |control: &Rc<Control>| kept.all_but_data().any(|kept| Rc::ptr_eq(kept, control));
        self.all_but_data().filter(|control| !is_kept(control)).for_each(|control| control.remove_file());
    }

    /// Removes the files of those of the observer that the other has not.
    pub fn remove_observer_files_but(&self, kept: &Self) {
        let is_kept = |control: &Rc<Control>| kept.observe.iter().any(|kept| Rc::ptr_eq(kept, control));
        self.observe.iter().filter(|control| !is_kept(control)).for_each(|control| control.remove_file());
    }

    fn all_but_data(&self) -> impl Iterator<Item = &Rc<Control>> {
        self.control.iter().chain(&self.observe)
    }
}

fn addresses(listeners: &[Rc<Control>]) -> Vec<String> {
    listeners.iter().filter_map(|control| control.bound_to()).map(|address| address.to_string()).collect()
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
    /// Those that are taken by us are passed over in silence.
    fn new(config: &'a Config, taken: BTreeSet<u16>) -> Self {
        let candidates: Box<dyn Iterator<Item = u16>> = match &config.data_ports {
            DataPorts::Range(range) => Box::new(range.clone().filter(move |port| !taken.contains(port))),
            DataPorts::Kernel => {
                let wanted = usize::from(config.secondaries) * config.request.len();
                Box::new(std::iter::repeat_n(0, wanted + SPARE_CHOICES))
            }
        };
        Self { config, hosts: config.listen.hosts(), candidates }
    }

    /// Binds the next port that nobody else has on any host, on all of them.
    fn bind_next(&mut self) -> Result<Data, Failure> {
        for candidate in self.candidates.by_ref() {
            match bind_on_all(&self.hosts, candidate, self.config.client_idle) {
                Ok((port, listeners)) => return Ok(Data { port, listeners }),
                Err((address, error)) if error.kind() == io::ErrorKind::AddrInUse => {
                    log::info!("data port {address} is taken by another program: passed over");
                }
                Err((address, error)) => return Err(bind_failure(&Address::Tcp(address), &error, None)),
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

/// `holder`: the key by which osps itself has this address already.
fn bind_failure(address: &Address, error: &io::Error, holder: Option<&str>) -> Failure {
    if let Some(key) = holder.filter(|_| error.kind() == io::ErrorKind::AddrInUse) {
        let hint = "choose another, or take that out and reload first";
        let message = format!("cannot listen on {address}: osps itself has it by the present {key}: {hint}");
        return Failure::new(Code::Unavailable, message);
    }
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
        let mut ports = DataPortBinder {
            candidates: Box::new(candidates),
            ..DataPortBinder::new(&config, BTreeSet::new())
        };
        let Data { port: found, listeners } = ports.bind_next().unwrap();
        assert_ne!(found, port);
        let bound: Vec<String> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        assert_eq!(bound, [format!("127.0.0.1:{found}"), format!("127.0.0.2:{found}")]);
    }
}
