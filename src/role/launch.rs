//! How a server learns who it is: a launch sheet and descriptors under known numbers.
//!
//! | number | what |
//! |---|---|
//! | 3 | the sheet: JSON in an anonymous file ([`Sheet`]) |
//! | 4 | a pidfd of the watchdog |
//! | 5 | principal: the descriptor channel (`SOCK_SEQPACKET`), for listeners that come later |
//! | 6.. | listening sockets: the principal's own first, then those of each secondary in turn, one per request type; a secondary gets only its own |

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::core::job::Incarnation;
use crate::core::name::{Name, Role};
use crate::exit::{Code, Failure};
use crate::os::pidfd::Pidfd;
use crate::os::process;

const SHEET: RawFd = 3;
const WATCHDOG: RawFd = 4;
const CHANNEL: RawFd = 5;
const LISTENERS: RawFd = 6;

/// What a server is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sheet {
    /// 0 for the principal; secondaries count from 1.
    pub slot: u16,
    /// Which process in that slot.
    pub incarnation: Incarnation,
    /// The configuration in force, which the file may no longer hold.
    pub config: Config,
    /// The runtime directory, absolute.
    pub rundir: PathBuf,
    /// The pid of the watchdog.
    pub watchdog: u32,
    /// The pid of the parent.
    pub parent: u32,
    /// Ports: first index slot minus 1, second the request type.
    pub ports: Vec<Vec<u16>>,
}

impl Sheet {
    /// The name of the process that this sheet is for.
    #[must_use]
    pub fn name(&self) -> Name {
        match self.slot {
            0 => Name::principal(self.incarnation),
            slot => Name::secondary(slot, self.incarnation),
        }
    }
}

/// A server's inheritance.
#[derive(Debug)]
pub struct Launched {
    /// The sheet.
    pub sheet: Sheet,
    /// The watchdog.
    pub watchdog: Pidfd,
    /// Principal only: held open for descriptors that come later.
    pub channel: Option<OwnedFd>,
    /// The listening sockets, in the order of the table above.
    pub listeners: Vec<OwnedFd>,
}

/// Starts a server.
///
/// # Errors
/// What `memfd_create(2)`, `fcntl(2)` or `clone(2)` say.
pub fn spawn<'a>(
    sheet: &Sheet,
    watchdog: &Pidfd,
    channel: Option<&OwnedFd>,
    listeners: impl Iterator<Item = &'a TcpListener>,
) -> std::io::Result<Pidfd> {
    let json = serde_json::to_vec(sheet)?;
    let file = process::file_of("osps-launch-sheet", &json)?;
    let mut descriptors = vec![(file.as_fd(), SHEET), (watchdog.as_fd(), WATCHDOG)];
    descriptors.extend(channel.map(|channel| (channel.as_fd(), CHANNEL)));
    for (number, listener) in (LISTENERS..).zip(listeners) {
        descriptors.push((listener.as_fd(), number));
    }
    let role = match sheet.name().role {
        Role::Principal => vec!["principal".to_owned()],
        Role::Secondary => vec!["secondary".to_owned(), sheet.slot.to_string()],
    };
    process::spawn(&role, &descriptors)
}

/// Takes what the parent left under the known numbers.
///
/// # Errors
/// A [`Failure`] where this process was not started by a watchdog or principal.
pub fn receive(role: Role) -> Result<Launched, Failure> {
    let sheet = read_sheet().ok_or_else(|| {
        Failure::new(
            Code::Usage,
            "principal and secondaries are started by the watchdog: run \"osps\" without a role",
        )
    })?;
    if sheet.name().role != role {
        return Err(Failure::new(Code::Usage, "the launch sheet is for another role"));
    }
    let take = |number| {
        process::inherited(number)
            .map_err(|error| Failure::internal(&format!("take descriptor {number}"), &error))
    };
    let watchdog = Pidfd::known(take(WATCHDOG)?, sheet.watchdog);
    let (channel, listeners) = match role {
        Role::Principal => {
            let data: usize = sheet.ports.iter().map(Vec::len).sum();
            (Some(take(CHANNEL)?), sheet.config.listen.addresses().len() + data)
        }
        Role::Secondary => (None, sheet.config.request.len()),
    };
    let listeners = (LISTENERS..).take(listeners).map(take).collect::<Result<_, _>>()?;
    parent_lives(&sheet)?;
    Ok(Launched { sheet, watchdog, channel, listeners })
}

/// Makes sure that whoever started this process still is its parent.
///
/// # Errors
/// A [`Failure`] where it has died.
pub fn parent_lives(sheet: &Sheet) -> Result<(), Failure> {
    if process::parent_pid() == sheet.parent {
        return Ok(());
    }
    Err(Failure::new(Code::Unavailable, "the parent died during the start"))
}

fn read_sheet() -> Option<Sheet> {
    let mut json = Vec::new();
    File::from(process::inherited(SHEET).ok()?).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The runtime directory of a sheet.
#[must_use]
pub fn rundir(sheet: &Sheet) -> crate::os::rundir::Rundir {
    crate::os::rundir::Rundir::at(Path::new(&sheet.rundir))
}
