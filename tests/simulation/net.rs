//! Listening sockets, which the watchdog holds, so that whoever dies, the backlog lives; and
//! the connections in them.

use std::collections::VecDeque;
use std::net::IpAddr;

use osps::wire::jeton::Jeton;

use crate::clients::{ClientId, Step};
use crate::machine::{Event, Key, Machine, Proc};
use crate::plan::{TYPES, micros, millis};

pub type ConnId = usize;
/// The listener of the principal; the others are a slot's, by request type.
pub const CONTROL: usize = 0;

/// Connections accepted in one turn.
pub const ACCEPTS_PER_TURN: usize = 3;
/// Bytes that one read takes.
const READ_BYTES: usize = 24;

/// What the other end has done, after what it has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Nothing,
    End,
    Reset,
}

/// What a read comes to.
pub enum Received {
    Bytes(Vec<u8>),
    End,
    Nothing,
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
    /// Who made it; a control connection may be of use to others too.
    pub client: ClientId,
    listener: usize,
    pub place: Place,
    /// A principal that is to take over has a descriptor of it, too.
    pub heir: Option<Proc>,
    pub input: Input,
    /// What the client has said and nobody has taken yet.
    pub bytes: Vec<u8>,
    /// What it is about to say.
    pub unsaid: Vec<u8>,
    /// The jeton that it says, or is about to say.
    pub jeton: Option<Jeton>,
    /// What the server has said and the client has not taken yet.
    pub answers: Vec<u8>,
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

/// Whether that is a connection to a principal.
pub fn is_control(conn: &Conn) -> bool {
    conn.listener == CONTROL
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
    /// A client connects, and says something: the backlog takes it, whoever lives.
    pub fn connect(&mut self, client: ClientId, listener: usize, bytes: Vec<u8>) -> ConnId {
        let conn = self.net.conns.len();
        self.net.conns.push(Conn {
            client,
            listener,
            place: Place::Backlog,
            heir: None,
            input: Input::Nothing,
            bytes,
            unsaid: Vec::new(),
            jeton: None,
            answers: Vec::new(),
        });
        self.net.listeners[listener].backlog.push_back(conn);
        for (proc, key) in self.net.listeners[listener].watchers.clone() {
            self.post(proc, key);
        }
        conn
    }

    /// Bytes come from the client's end.
    pub fn speak(&mut self, conn: ConnId, bytes: &[u8]) {
        self.net.conns[conn].bytes.extend_from_slice(bytes);
        self.noticed(conn);
    }

    /// The client's end is closed, for sending or for good.
    pub fn say(&mut self, conn: ConnId, input: Input) {
        self.net.conns[conn].input = input;
        self.noticed(conn);
    }

    fn noticed(&mut self, conn: ConnId) {
        if let Place::With(proc) = self.net.conns[conn].place {
            self.post(proc, Key::Conn(conn));
        }
    }

    /// Reads once.
    pub fn read(&mut self, conn: ConnId) -> Received {
        self.system_call();
        let known = &mut self.net.conns[conn];
        let length = known.bytes.len().min(READ_BYTES);
        match known.input {
            _ if length > 0 => Received::Bytes(known.bytes.drain(..length).collect()),
            Input::End => Received::End,
            Input::Nothing | Input::Reset => Received::Nothing,
        }
    }

    /// Whether a read would come to something.
    pub fn has_unread(&self, conn: ConnId) -> bool {
        let known = &self.net.conns[conn];
        !known.bytes.is_empty() || known.input == Input::End
    }

    /// The server says something: its client, or whoever shares the connection, hears it.
    pub fn write(&mut self, conn: ConnId, bytes: &[u8]) {
        self.system_call();
        self.net.conns[conn].answers.extend_from_slice(bytes);
        self.after(micros(10), millis(1), Event::Hear(conn));
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

    /// The server closes a data connection; the client notices as that step.
    pub fn close(&mut self, conn: ConnId, seen_as: Step) {
        let client = self.net.conns[conn].client;
        self.shut(conn, Event::Client(client, seen_as));
    }

    /// The server closes a control connection, or dies.
    pub fn hang_up(&mut self, conn: ConnId, died: bool) {
        self.shut(conn, Event::HungUp { conn, died });
    }

    fn shut(&mut self, conn: ConnId, seen_as: Event) {
        if self.net.conns[conn].place != Place::Gone {
            self.net.conns[conn].place = Place::Gone;
            self.after(micros(10), millis(1), seen_as);
        }
    }

    /// What a process had accepted breaks when it dies; what stands in a backlog does not.
    pub fn net_of_the_dead(&mut self, proc: Proc) {
        for listener in &mut self.net.listeners {
            listener.watchers.retain(|(watcher, _)| *watcher != proc);
        }
        let nobody_holds = !self.processes.iter().any(crate::kernel::Process::is_alive);
        for conn in 0..self.net.conns.len() {
            if self.passes_on(conn, proc) {
                continue;
            }
            let Conn { place, listener, .. } = self.net.conns[conn];
            if place == Place::With(proc) || nobody_holds && place == Place::Backlog {
                match listener {
                    CONTROL => self.hang_up(conn, true),
                    _ => self.close(conn, Step::Broken(conn)),
                }
            }
        }
    }

    /// Of two that have descriptors of a connection one dies: it is the other's.
    fn passes_on(&mut self, conn: ConnId, dead: Proc) -> bool {
        let Conn { place, heir, .. } = self.net.conns[conn];
        if heir == Some(dead) {
            self.net.conns[conn].heir = None;
        }
        if place != Place::With(dead) {
            return false;
        }
        let heir = heir.filter(|heir| self.processes[*heir].is_alive());
        if let Some(heir) = heir {
            self.net.conns[conn].place = Place::With(heir);
            self.net.conns[conn].heir = None;
        }
        self.audit_end_of_connection(conn, dead, heir);
        heir.is_some()
    }
}
