//! How a server learns who it is: a launch sheet and descriptors under known numbers.
//!
//! | number | what |
//! |---|---|
//! | 3 | the sheet: JSON in an anonymous file ([`Sheet`]) |
//! | 4 | a pidfd of the watchdog |
//! | 5 | `watchdog.page`, to read |
//! | 6 | its orders |
//! | 7 | its own page |
//! | 8.. | principal: its channel to the watchdog (`SOCK_SEQPACKET`), where it is to succeed another the one to that, and the job table of each slot |
//! | | secondary: its job table, `dwtube<n>`, `wdtube<n>` |
//! | | observer: its listening sockets, in the order of `observe` |
//! | then | listening sockets: the principal's own first, in the order of `listen`, then those of each secondary in turn: for each request type that has a port one on every host ([`Listen::hosts`]); a secondary gets only its own |
//!
//! [`Listen::hosts`]: crate::config::Listen::hosts
//!
//! A secondary's files are new for each, and making them takes nearly as long as executing a program, so
//! both are done at once: it finds a socket under the numbers of its sheet, its orders, its page and its tubes, at
//! which it waits for these, and puts them there itself.
//!
//! Nothing is opened by name: a name may be a successor's by now, or may have been removed
//! under the running system.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::core::job::Incarnation;
use crate::core::name::{Name, Role};
use crate::exit::{Code, Failure};
use crate::os::channel::{Channel, Received};
use crate::os::pidfd::Pidfd;
use crate::os::process;
use crate::page::LAYOUT_VERSION;
use crate::wire::client::TypeIndex;
use crate::wire::logline::{Logging, Speaker};
use crate::wire::succession::Word;

const SHEET: RawFd = 3;
const WATCHDOG: RawFd = 4;
const INHERITANCE: RawFd = 5;
const ORDERS: RawFd = 6;
/// The principal's channel to the watchdog, in every version.
const CHANNEL: RawFd = 8;
/// A secondary's own page, and its tubes.
pub const OWN_PAGE: RawFd = 7;
const TABLE: RawFd = 8;
/// `dwtube<n>`.
pub const TO_SECONDARY: RawFd = 9;
/// `wdtube<n>`.
pub const FROM_SECONDARY: RawFd = 10;
const LISTENERS: RawFd = 11;
/// The packet that the descriptors come with: none is without a byte (unix(7)).
const OUTFIT: &[u8] = b".";
/// What comes to a secondary over the socket.
const COMES_LATER: [RawFd; 5] = [SHEET, ORDERS, OWN_PAGE, TO_SECONDARY, FROM_SECONDARY];

/// What a server is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sheet {
    /// The layout of the shared pages: a newer program may want another.
    pub layout: u32,
    /// The principal takes over what another hands over.
    pub succeeds: bool,
    /// What the server is for.
    pub role: Role,
    /// 0 for the principal and the observer; secondaries count from 1.
    pub slot: u16,
    /// Which process in that slot.
    pub incarnation: Incarnation,
    /// Field 22 of its `/proc/<pid>/stat`; 0 where it is to be read there.
    #[serde(default)]
    pub start_time: u64,
    /// The configuration in force, which the file may no longer hold.
    pub config: Config,
    /// Slots, those included that were taken out of service: more than `config.secondaries`.
    pub slots: u16,
    /// Request types, by their places, that are not offered any more.
    pub retired: BTreeSet<TypeIndex>,
    /// So many control listeners, the last of them, are to be emptied and closed.
    pub closing: usize,
    /// For a secondary: the request types for which it has listeners.
    pub kinds: Vec<TypeIndex>,
    /// The secondaries that a predecessor has started are to be replaced, too.
    pub renews: bool,
    /// Request types that those do not serve.
    pub fresh: BTreeSet<TypeIndex>,
    /// The runtime directory, absolute.
    pub rundir: PathBuf,
    /// The pid of the watchdog.
    pub watchdog: u32,
    /// The pid of the parent.
    pub parent: u32,
    /// For the principal: ports, first index slot minus 1, second the request type; zero where there is none.
    pub ports: Vec<Vec<u16>>,
    /// Connections beyond `max_clients` that the principal may accept.
    pub parking_places: usize,
    /// Slots in which no secondary is wanted.
    pub resting: Vec<u16>,
    /// The soft limit of open descriptors that commands start with: what it was before it was
    /// raised for servers.
    pub open_files: u64,
}

/// What every version of a sheet has, and what is to be known of the log before all else.
#[derive(Deserialize)]
struct Layout {
    layout: u32,
    #[serde(default)]
    slot: u16,
    #[serde(default)]
    incarnation: Incarnation,
    #[serde(default)]
    config: Logging,
}

impl Sheet {
    /// A principal's sheet, for one of its secondaries. Ports are none of its business, and many.
    #[must_use]
    pub fn for_secondary(
        &self,
        slot: u16,
        incarnation: Incarnation,
        start_time: u64,
        kinds: Vec<TypeIndex>,
    ) -> Self {
        let (role, parent, ports, succeeds) = (Role::Secondary, std::process::id(), Vec::new(), false);
        let config = self.config.clone().only_with(|kind| kinds.contains(&kind));
        Self { role, config, slot, incarnation, start_time, parent, ports, succeeds, kinds, ..self.clone() }
    }

    /// A principal's sheet, for an observer, which serves nobody.
    #[must_use]
    pub fn for_observer(self, incarnation: Incarnation) -> Self {
        let config = self.config.only_with(|_| false);
        Self { role: Role::Observer, config, slot: 0, incarnation, ports: Vec::new(), ..self }
    }

    fn to_file(&self) -> io::Result<OwnedFd> {
        process::file_of("osps-launch-sheet", &serde_json::to_vec(self)?)
    }

    /// The name of the process that this sheet is for.
    #[must_use]
    pub fn name(&self) -> Name {
        Name { role: self.role, slot: self.slot, incarnation: self.incarnation }
    }
}

/// What a server was started with.
#[derive(Debug)]
pub struct Launched {
    /// The sheet.
    pub sheet: Sheet,
    /// The watchdog.
    pub watchdog: Pidfd,
    /// All other descriptors.
    pub inheritance: Inheritance,
}

/// The descriptors of the table above, to be taken in their order.
#[derive(Debug)]
pub struct Inheritance {
    next: RawFd,
}

impl Inheritance {
    /// The next descriptor.
    ///
    /// # Errors
    /// A [`Failure`] where there is none.
    pub fn take(&mut self) -> Result<OwnedFd, Failure> {
        let number = self.next;
        self.next += 1;
        process::inherited(number)
            .map_err(|error| Failure::internal(&format!("take descriptor {number}"), &error))
    }

    /// The next descriptor, where it is a file.
    ///
    /// # Errors
    /// A [`Failure`] where there is none.
    pub fn take_file(&mut self) -> Result<File, Failure> {
        self.take().map(File::from)
    }
}

/// Starts a principal or an observer, by another program than this where one is open; `inheritance` has the numbers
/// of the table above, from 5.
///
/// # Errors
/// What `memfd_create(2)`, `fcntl(2)` or `clone(2)` say.
pub fn spawn(
    program: Option<BorrowedFd<'_>>,
    sheet: &Sheet,
    watchdog: &Pidfd,
    inheritance: &[BorrowedFd<'_>],
) -> io::Result<Pidfd> {
    let file = sheet.to_file()?;
    let mut descriptors = vec![(file.as_fd(), SHEET), (watchdog.as_fd(), WATCHDOG)];
    descriptors.extend(inheritance.iter().copied().zip(INHERITANCE..));
    process::spawn(program, &[sheet.role.as_str().to_owned()], &descriptors)
}

/// A secondary that executes its program, and waits until it is [told](Self::tell) who it is.
#[derive(Debug)]
#[must_use]
pub struct Nascent {
    socket: Channel,
    pidfd: Pidfd,
}

/// What a secondary is given that was made for it alone.
#[derive(Clone, Copy, Debug)]
pub struct Outfit<'a> {
    /// The watchdog's orders.
    pub orders: BorrowedFd<'a>,
    /// Its page.
    pub page: BorrowedFd<'a>,
    /// `dwtube<n>`.
    pub to_secondary: BorrowedFd<'a>,
    /// `wdtube<n>`.
    pub from_secondary: BorrowedFd<'a>,
}

impl Nascent {
    /// Starts a secondary with what is there before it.
    ///
    /// # Errors
    /// What `socketpair(2)`, `fcntl(2)` or `clone(2)` say.
    pub fn start(
        slot: u16,
        watchdog: &Pidfd,
        watchdog_page: BorrowedFd<'_>,
        table: BorrowedFd<'_>,
        listeners: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        let (socket, theirs) = Channel::pair()?;
        // Under all these numbers, so that nothing else gets them meanwhile.
        let mut descriptors = COMES_LATER.map(|number| (theirs.as_fd(), number)).to_vec();
        descriptors.extend([(watchdog.as_fd(), WATCHDOG), (watchdog_page, INHERITANCE), (table, TABLE)]);
        descriptors.extend(listeners.iter().copied().zip(LISTENERS..));
        let arguments = [Role::Secondary.as_str().to_owned(), slot.to_string()];
        let pidfd = process::spawn(None, &arguments, &descriptors)?;
        Ok(Self { socket, pidfd })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pidfd.pid()
    }

    /// The process, once it was told.
    #[must_use]
    pub fn into_pidfd(self) -> Pidfd {
        self.pidfd
    }

    /// Kills it, for it will not be told. It is to be reaped.
    #[must_use]
    pub fn give_up(self) -> Pidfd {
        // It may have died already.
        let _ = self.pidfd.signal(Signal::KILL);
        self.pidfd
    }

    /// Tells it who it is. That it may have died is nothing new to whoever watches it.
    ///
    /// # Errors
    /// What `memfd_create(2)` or `sendmsg(2)` say.
    pub fn tell(&self, sheet: &Sheet, outfit: Outfit<'_>) -> io::Result<()> {
        let file = sheet.to_file()?;
        let Outfit { orders, page, to_secondary, from_secondary } = outfit;
        let sent = self.socket.send(OUTFIT, &[file.as_fd(), orders, page, to_secondary, from_secondary]);
        sent.or_else(|error| match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused => Ok(()),
            ErrorKind::WouldBlock => {
                let many =
                    "too many descriptors of this user are on their way to others (ETOOMANYREFS, unix(7))";
                Err(io::Error::other(many))
            }
            _ => Err(error),
        })
    }
}

/// Takes what the parent left under the known numbers, and begins the log.
///
/// # Errors
/// A [`Failure`] where this process was not started by a watchdog or principal.
pub fn receive(role: Role) -> Result<Launched, Failure> {
    // A parent that was short of descriptors when it started us has handed down its limit.
    let _ = process::raise_descriptor_limit();
    let sheet = read_sheet(role).inspect_err(|failure| refuse(role, failure))?;
    if sheet.name().role != role {
        return Err(Failure::new(Code::Usage, "the launch sheet is for another role"));
    }
    let mut inheritance = Inheritance { next: WATCHDOG };
    let watchdog = Pidfd::known(inheritance.take()?, sheet.watchdog);
    parent_lives(&sheet)?;
    Ok(Launched { sheet, watchdog, inheritance })
}

/// A program that is too new, or too old, to be a principal here says so to the watchdog.
fn refuse(role: Role, failure: &Failure) {
    if role == Role::Principal
        && let Ok(channel) = process::inherited(CHANNEL)
    {
        let word = Word::Refused(failure.to_string());
        let _ = Channel::from(channel).send(word.to_string().as_bytes(), &[]);
    }
}

/// Makes sure that whoever started this process still is its parent.
///
/// # Errors
/// A [`Failure`] where it has died.
fn parent_lives(sheet: &Sheet) -> Result<(), Failure> {
    if process::parent_pid() == sheet.parent { Ok(()) } else { Err(orphan()) }
}

fn orphan() -> Failure {
    Failure::new(Code::Unavailable, "the parent died during the start")
}

/// Waits for what comes over the socket, and puts it under its numbers.
fn receive_outfit() -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::internal("receive the launch sheet", &error);
    let socket = Channel::from(process::inherited(SHEET).map_err(|_| by_hand())?);
    let received = socket.receive_within(OUTFIT.len(), true);
    drop(socket);
    match received {
        Ok(Received::Packet(_, outfit)) if outfit.len() == COMES_LATER.len() => {
            process::place(outfit, &COMES_LATER).map_err(cannot)
        }
        Ok(Received::End) => Err(orphan()),
        Err(error) if error.raw_os_error() != Some(Errno::NOTSOCK.raw_os_error()) => Err(cannot(error)),
        Ok(_) | Err(_) => Err(by_hand()),
    }
}

fn by_hand() -> Failure {
    let message = "principal and secondaries are started by the watchdog: run \"osps\" without a role";
    Failure::new(Code::Usage, message)
}

fn read_sheet(role: Role) -> Result<Sheet, Failure> {
    if role == Role::Secondary {
        receive_outfit()?;
    }
    let mut json = Vec::new();
    let mut file = File::from(process::inherited(SHEET).map_err(|_| by_hand())?);
    // What fails for want of something is no reason to say that this server cannot start.
    file.read_to_end(&mut json).map_err(|error| Failure::internal("read the launch sheet", &error))?;
    let sheet: Result<Sheet, _> = serde_json::from_slice(&json);
    let (layout, name, logging) = match &sheet {
        Ok(sheet) => (sheet.layout, sheet.name(), sheet.config.logging()),
        Err(_) => {
            let Layout { layout, slot, incarnation, config } =
                serde_json::from_slice(&json).map_err(|_| by_hand())?;
            (layout, Name { role, slot, incarnation }, config)
        }
    };
    crate::os::log::init(Speaker { name: Some(name), pid: std::process::id() }, logging);
    if layout != LAYOUT_VERSION {
        let other =
            format!("its pages have layout {LAYOUT_VERSION}, those of the running system layout {layout}");
        return Err(Failure::new(Code::Config, other));
    }
    sheet.map_err(|error| Failure::internal("understand the launch sheet", &error))
}

/// The runtime directory of a sheet.
#[must_use]
pub fn rundir(sheet: &Sheet) -> crate::os::rundir::Rundir {
    crate::os::rundir::Rundir::at(Path::new(&sheet.rundir))
}
