//! Listening sockets, which the watchdog holds, so that whoever dies, the backlog lives; and
//! the connections in them.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::clients::{ClientId, Step};
use crate::machine::{Event, Key, Machine, Proc};
use crate::plan::{TYPES, micros, millis};

pub type ConnId = usize;
/// The listener of the principal; the others are a slot's, by request type.
pub const CONTROL: usize = 0;

/// Connections accepted in one turn.
pub const ACCEPTS_PER_TURN: usize = 3;

/// What the other end has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Nothing,
    /// It asks for that type.
    Request(usize),
    /// It has ended its input and had its answers.
    End,
    Reset,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Backlog,
    With(Proc),
    /// Closed by either side.
    Gone,
}

#[derive(Clone, Debug)]
pub struct Conn {
    pub client: ClientId,
    pub place: Place,
    pub input: Input,
}

#[derive(Debug, Default)]
struct Listener {
    backlog: VecDeque<ConnId>,
    watchers: Vec<(Proc, Key)>,
}

#[derive(Debug)]
pub struct Net {
    listeners: Vec<Listener>,
    pub conns: Vec<Conn>,
}

/// The data listener of a slot, counted from 0.
pub fn data_listener(slot: usize, kind: usize) -> usize {
    1 + slot * TYPES + kind
}

impl Net {
    pub fn new(listeners: usize) -> Self {
        Self { listeners: (0..listeners).map(|_| Listener::default()).collect(), conns: Vec::new() }
    }

    /// Who accepts there.
    pub fn accepting(&self, listener: usize) -> impl Iterator<Item = Proc> + '_ {
        self.listeners[listener].watchers.iter().map(|(proc, _)| *proc)
    }
}

impl Machine {
    /// A client connects: the backlog takes it, whoever lives.
    pub fn connect(&mut self, client: ClientId, listener: usize, input: Input) -> ConnId {
        let conn = self.net.conns.len();
        self.net.conns.push(Conn { client, place: Place::Backlog, input });
        self.net.listeners[listener].backlog.push_back(conn);
        for (proc, key) in self.net.listeners[listener].watchers.clone() {
            self.post(proc, key);
        }
        conn
    }

    /// Something comes from the client's end.
    pub fn say(&mut self, conn: ConnId, input: Input) {
        self.net.conns[conn].input = input;
        if let Place::With(proc) = self.net.conns[conn].place {
            self.post(proc, Key::Conn(conn));
        }
    }

    pub fn listen(&mut self, proc: Proc, listener: usize, key: Key) {
        self.system_call();
        self.net.listeners[listener].watchers.push((proc, key));
        if !self.net.listeners[listener].backlog.is_empty() {
            self.post(proc, key);
        }
    }

    pub fn stop_listening(&mut self, proc: Proc, listener: usize) {
        self.system_call();
        self.net.listeners[listener].watchers.retain(|(watcher, _)| *watcher != proc);
    }

    pub fn accept(&mut self, proc: Proc, listener: usize) -> Option<ConnId> {
        self.system_call();
        let conn = self.net.listeners[listener].backlog.pop_front()?;
        self.net.conns[conn].place = Place::With(proc);
        self.post(proc, Key::Conn(conn));
        Some(conn)
    }

    /// The address of the other end.
    pub fn peer(&self, conn: ConnId) -> IpAddr {
        self.clients[self.net.conns[conn].client].address
    }

    /// The server closes the connection; the client notices as that step.
    pub fn close(&mut self, conn: ConnId, seen_as: Step) {
        if self.net.conns[conn].place == Place::Gone {
            return;
        }
        self.net.conns[conn].place = Place::Gone;
        let client = self.net.conns[conn].client;
        self.after(micros(10), millis(1), Event::Client(client, seen_as));
    }

    /// What a process had accepted breaks when it dies; what stands in a backlog does not.
    pub fn net_of_the_dead(&mut self, proc: Proc) {
        for listener in &mut self.net.listeners {
            listener.watchers.retain(|(watcher, _)| *watcher != proc);
        }
        let nobody_holds = !self.processes.iter().any(crate::kernel::Process::is_alive);
        for conn in 0..self.net.conns.len() {
            let place = self.net.conns[conn].place;
            if place == Place::With(proc) || nobody_holds && place == Place::Backlog {
                self.close(conn, Step::Broken(conn));
            }
        }
    }
}
