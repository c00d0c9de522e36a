//! What a status says. Its JSON form is a contract: fields may be added, none renamed.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::refused::Refused;
use crate::page::obituary::Obituary;
use crate::page::principal::{Connections, Ends, Times};
use crate::status::millis;

/// The whole status.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The version of the watchdog.
    pub version: String,
    /// The pid of the watchdog.
    pub pid: u32,
    /// How long the watchdog has been running, in milliseconds.
    pub uptime_ms: u64,
    /// The control addresses: `IP:PORT`, `[IPv6]:PORT`, `unix:/path`.
    pub listen: Vec<String>,
    /// The addresses of the observer, in the same form; none where there is no observer.
    pub observe: Vec<String>,
    /// Whether a stop was asked for.
    pub stopping: bool,
    /// How jobs ended, by request type.
    pub requests: BTreeMap<String, EndsOf>,
    /// How long jobs took that a secondary has ended, by request type.
    pub times: BTreeMap<String, Times>,
    /// The books.
    pub ledger: Ledger,
    /// Requests answered -1, by why.
    pub refusals: Refusals,
    /// Control connections.
    pub clients: Connections,
    /// The principal, then each slot's secondary, then predecessors that still finish.
    pub servers: Vec<Server>,
    /// What the watchdog itself uses.
    pub watchdog: Usage,
    /// The observer, where there is to be one.
    pub observer: Option<Server>,
    /// The last deaths, the latest first.
    pub obituaries: Vec<Death>,
}

/// An obituary, told from now.
#[derive(Clone, Debug, Serialize)]
pub struct Death {
    /// `principal`, `secondary`, `observer`.
    pub role: &'static str,
    /// Its slot; 0 for the principal and the observer.
    pub slot: u16,
    /// Which process in it.
    pub incarnation: Incarnation,
    /// Its pid.
    pub pid: u32,
    /// How long ago, in milliseconds.
    pub ms_ago: u64,
    /// `exit 3`, `signal 9`.
    pub cause: String,
    /// Why the watchdog, or the principal at the end of a stop, has killed it.
    pub killed: Option<&'static str>,
    /// Its state letter, when it was killed.
    pub state: Option<char>,
    /// The kernel function in which it waited then.
    pub wchan: Option<String>,
    /// How long before its death it answered last.
    pub answered_ms_before: Option<u64>,
    /// Jobs that it had.
    pub jobs: u64,
}

impl Death {
    pub(super) fn new(obituary: Obituary, now: Moment) -> Self {
        let Name { role, slot, incarnation } = obituary.name;
        let killed = obituary.killed.as_ref();
        Self {
            role: role.as_str(),
            slot,
            incarnation,
            pid: obituary.pid,
            ms_ago: millis(now, obituary.at),
            cause: obituary.exit.map_or_else(String::new, |exit| exit.to_string()),
            killed: killed.map(|killed| killed.reason.as_str()),
            state: killed.and_then(|killed| killed.letter),
            answered_ms_before: obituary.answered_ms(),
            jobs: obituary.jobs,
            wchan: obituary.killed.map(|killed| killed.wchan).filter(|wchan| !wchan.is_empty()),
        }
    }
}

/// How jobs of a type ended.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EndsOf {
    /// Served to their end.
    pub done: u64,
    /// Ended badly.
    pub failed: u64,
    /// Never claimed.
    pub expired: u64,
}

impl From<Ends> for EndsOf {
    fn from(Ends { done, failed, expired }: Ends) -> Self {
        Self { done, failed, expired }
    }
}

/// Requests answered -1.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Refusals {
    /// Of no known type.
    pub unknown: u64,
    /// No requests at all, or too long.
    pub malformed: u64,
    /// Nobody had room for them.
    pub busy: u64,
    /// The system stopped.
    pub stopping: u64,
}

impl Refusals {
    pub(super) fn sum(&self) -> u64 {
        let Self { unknown, malformed, busy, stopping } = *self;
        [unknown, malformed, busy, stopping].into_iter().fold(0, u64::wrapping_add)
    }
}

impl From<Refused> for Refusals {
    fn from(Refused { unknown, malformed, busy, stopping }: Refused) -> Self {
        Self { unknown, malformed, busy, stopping }
    }
}

/// The books: `accepted == done + failed + expired + open`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ledger {
    /// Ports given out.
    pub accepted: u64,
    /// Jobs served to their end.
    pub done: u64,
    /// Jobs that ended badly.
    pub failed: u64,
    /// Jobs that nobody claimed.
    pub expired: u64,
    /// Jobs in the tables.
    pub open: u64,
    /// Requests answered -1.
    pub refused: u64,
    /// Data connections nobody was waiting for.
    pub rejected: u64,
}

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// Started, and not ready yet.
    Starting,
    /// Its loop runs.
    Ready,
    /// It does not answer: no jobs for it.
    Suspect,
    /// It finishes what it has, and ends.
    Draining,
    /// There is none.
    Down,
}

impl ServerState {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// What a process uses, as the kernel tells; `None` where there is none, or the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Resident memory in bytes, shared pages included (proc_pid_statm(5)).
    pub memory_bytes: Option<u64>,
    /// CPU time in milliseconds, in the kernel and outside, since it was started (proc_pid_stat(5)).
    pub cpu_ms: Option<u64>,
}

/// One server, or an empty slot.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// `principal`, `secondary`, `observer`.
    pub role: &'static str,
    /// 0 for the principal and the observer.
    pub slot: u16,
    /// Which process in the slot.
    pub incarnation: Incarnation,
    /// `None` when it is down.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: ServerState,
    /// How often a successor was started.
    pub restarts: u64,
    /// How often the watchdog killed one.
    pub kills: u64,
    /// Round trip of the last probe, in microseconds.
    pub rtt_us: Option<u64>,
    /// How long ago it answered last, in milliseconds.
    pub answered_ms_ago: Option<u64>,
    /// Its ports, by request type.
    pub ports: BTreeMap<String, u16>,
    /// Jobs open here.
    pub open: u64,
    /// Jobs done here.
    pub done: u64,
    /// Jobs failed here.
    pub failed: u64,
    /// Restarts because a secondary had served for long enough.
    pub recycled: u64,
    /// What its process uses.
    #[serde(flatten)]
    pub usage: Usage,
    /// Why a slot is down for good; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
}
