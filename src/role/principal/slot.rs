//! One slot of the principal: its job table, its ports, and who is in it.

use std::net::TcpListener;
use std::path::Path;

use crate::core::job::{Incarnation, State};
use crate::core::list::{Ends, Links};
use crate::core::moment::Moment;
use crate::core::restart::Restart;
use crate::core::timers::TimerId;
use crate::os::fifo::{Reader, Writer};
use crate::os::pidfd::Pidfd;
use crate::page::jobs::JobTable;
use crate::page::secondary::{Counts, SecondaryPage};
use crate::page::{Access, PageError};

/// A slot, whoever is in it.
pub struct Slot {
    /// Counted from 1, as in names and files.
    pub number: u16,
    /// The truth about its jobs.
    pub table: JobTable,
    /// Entries of the table that hold no job.
    pub free: Vec<u32>,
    /// Jobs that wait to be claimed, oldest first.
    pub waiting: Ends,
    /// The links of that list.
    pub links: Links,
    /// When the oldest of them expires.
    pub expire_timer: Option<TimerId>,
    /// Its listening sockets, by request type, to hand to a successor.
    pub listeners: Vec<TcpListener>,
    /// The server in it.
    pub current: Option<Server>,
    /// Those before it that still finish their exchanges.
    pub predecessors: Vec<Predecessor>,
    /// What its secondaries have counted so far, to go on from.
    pub counts: Counts,
    /// When to start again.
    pub restart: Restart,
    /// Armed while a back-off lasts.
    pub start_timer: Option<TimerId>,
    /// Since when it has had a server that can accept; jobs expire only while it has.
    pub serving_since: Option<Moment>,
}

/// The secondary that serves a slot.
pub struct Server {
    /// Which one.
    pub incarnation: Incarnation,
    /// The process, a child of ours.
    pub pidfd: Pidfd,
    /// `secondary<n>.page`, to look at.
    pub page: SecondaryPage,
    /// `wdtube<n>`.
    pub tube: Reader,
    /// `dwtube<n>`.
    pub writer: Writer,
    /// When it said that its loop runs.
    pub ready_since: Option<Moment>,
    /// The watchdog says that it does not answer.
    pub suspect: bool,
    /// It was told to end.
    pub stop_sent: bool,
}

/// A secondary that drains: it may be another principal's child.
pub struct Predecessor {
    /// Which one.
    pub incarnation: Incarnation,
    /// The process.
    pub pidfd: Pidfd,
    /// Its `wdtube<n>`, where it could be opened.
    pub tube: Option<Reader>,
}

impl Slot {
    /// Maps the slot's job table; nobody is in the slot yet.
    pub fn attach(
        number: u16,
        jobs: &Path,
        listeners: Vec<TcpListener>,
        seed: u64,
    ) -> Result<Self, PageError> {
        let table = JobTable::attach(jobs, Access::ReadWrite)?;
        let links = Links::new(table.capacity() as usize);
        Ok(Self {
            number,
            table,
            free: Vec::new(),
            waiting: Ends::default(),
            links,
            expire_timer: None,
            listeners,
            current: None,
            predecessors: Vec::new(),
            counts: Counts::default(),
            restart: Restart::new(seed << 16 | u64::from(number)),
            start_timer: None,
            serving_since: None,
        })
    }

    /// Whether an incarnation is known to live: what it has claimed is its business.
    pub fn is_living(&self, incarnation: Incarnation) -> bool {
        self.current.as_ref().is_some_and(|server| server.incarnation == incarnation)
            || self.predecessors.iter().any(|predecessor| predecessor.incarnation == incarnation)
    }

    /// Whether any job of the slot waits to be claimed.
    pub fn has_waiting(&self) -> bool {
        self.table
            .indices()
            .any(|index| self.table.state(index).is_ok_and(|word| word.state == State::Waiting))
    }
}
