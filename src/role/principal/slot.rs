//! What the kernel gives us for each slot: sockets, processes, tubes.

use std::fs::File;
use std::net::TcpListener;

use crate::core::job::Incarnation;
use crate::os::fifo::{Reader, Writer};
use crate::os::log::Recurrence;
use crate::os::pidfd::Pidfd;
use crate::page::obituary::Condition;
use crate::page::record;
use crate::page::secondary::{Counts, SecondaryPage};

/// A slot, whoever is in it.
pub struct Slot {
    /// Its job table, to hand to a successor.
    pub table: File,
    /// Its listening sockets, by request type, on every host, to hand to a successor; none where they are closed.
    pub listeners: Vec<Vec<TcpListener>>,
    /// The server in it.
    pub current: Option<Server>,
    /// Those before it that still finish their exchanges.
    pub predecessors: Vec<Predecessor>,
    /// What its secondaries have counted so far, to go on from.
    pub counts: Counts,
    /// No process could be started.
    pub start_trouble: Recurrence,
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
    /// Why we have killed it, if we have.
    pub killed: Option<Condition>,
}

/// A secondary that drains: it may be another principal's child.
pub struct Predecessor {
    /// Which one.
    pub incarnation: Incarnation,
    /// The process.
    pub pidfd: Pidfd,
    /// Its `wdtube<n>`, where it could be opened.
    pub tube: Option<Reader>,
    /// Its page, where it could be found.
    pub page: Option<SecondaryPage>,
    /// Why we have killed it, if we have.
    pub killed: Option<Condition>,
}

impl Predecessor {
    /// Whether it drains: it ends when its grace is over. Another takes as long as it takes.
    pub fn has_limit(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.record().condition == record::Condition::Draining)
    }
}

impl Slot {
    /// A slot with nobody in it.
    pub fn new(table: File) -> Self {
        Self {
            table,
            listeners: Vec::new(),
            current: None,
            predecessors: Vec::new(),
            counts: Counts::default(),
            start_trouble: Recurrence::default(),
        }
    }

    /// Whether that incarnation serves or drains here.
    pub fn is_home_of(&self, incarnation: Incarnation) -> bool {
        self.current.iter().any(|server| server.incarnation == incarnation)
            || self.predecessors.iter().any(|server| server.incarnation == incarnation)
    }

    /// Whether that incarnation has told in its page that it leaves for its age.
    pub fn has_recycled(&self, incarnation: Incarnation) -> bool {
        let current = self.current.iter().map(|server| (server.incarnation, &server.page));
        let predecessors = self.predecessors.iter();
        let predecessors =
            predecessors.filter_map(|server| Some((server.incarnation, server.page.as_ref()?)));
        current.chain(predecessors).filter(|(known, _)| *known == incarnation).any(|(_, page)| {
            let record = page.record();
            record.incarnation == incarnation && record.condition == record::Condition::Recycling
        })
    }

    /// The page of that incarnation, whether it serves or drains.
    pub fn page(&self, incarnation: Incarnation) -> Option<&SecondaryPage> {
        let current = self.current.iter().map(|server| (server.incarnation, Some(&server.page)));
        let predecessors =
            self.predecessors.iter().map(|predecessor| (predecessor.incarnation, predecessor.page.as_ref()));
        current.chain(predecessors).find(|(known, _)| *known == incarnation)?.1
    }

    /// The process of that incarnation, and where it is noted why it was killed.
    pub fn process(&mut self, incarnation: Incarnation) -> Option<(&Pidfd, &mut Option<Condition>)> {
        let current =
            self.current.iter_mut().map(|known| (known.incarnation, &known.pidfd, &mut known.killed));
        let predecessors =
            self.predecessors.iter_mut().map(|known| (known.incarnation, &known.pidfd, &mut known.killed));
        let mut all = current.chain(predecessors);
        all.find(|(known, ..)| *known == incarnation).map(|(_, pidfd, killed)| (pidfd, killed))
    }

    /// The tube in which that incarnation speaks, whether it serves or drains.
    pub fn tube(&mut self, incarnation: Incarnation) -> Option<&mut Reader> {
        match self.current.as_mut() {
            Some(server) if server.incarnation == incarnation => Some(&mut server.tube),
            _ => self
                .predecessors
                .iter_mut()
                .find(|predecessor| predecessor.incarnation == incarnation)
                .and_then(|predecessor| predecessor.tube.as_mut()),
        }
    }
}
