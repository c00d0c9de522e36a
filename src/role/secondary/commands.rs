//! The commands of request types: what each is started with, and how its end is told.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::libc;

use crate::config::{Config, Landlock, Request};
use crate::core::job::{End, Incarnation, JobNumber, Reason};
use crate::core::mark::{Mark, Start, Tree};
use crate::core::turns::Turns;
use crate::exit::Failure;
use crate::os::log::Recurrences;
use crate::os::pidfd::Exit;
use crate::os::process::{Command, Identity, Plan};
use crate::os::{account, landlock};

/// Variables that only we set.
const OWN_VARIABLES: [&str; 2] = ["OSPS_TYPE", "OSPS_JOB"];

/// Of whom a command is.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The tree.
    pub tree: Tree,
    /// The secondary's slot, from 1.
    pub slot: u16,
    /// Which of those that the slot has had.
    pub incarnation: Incarnation,
}

impl Owner {
    /// The soft and the hard limit that mark whatever descends from that start.
    pub fn limits(self, start: Start) -> (u64, u64) {
        let mark = Mark { slot: self.slot, incarnation: self.incarnation, start };
        (mark.soft_limit(), self.tree.hard_limit())
    }
}

/// The command of one request type.
#[derive(Debug)]
pub struct CommandType {
    /// The request type's name.
    pub name: String,
    /// What is started.
    pub command: Command,
    /// How long a job may take.
    pub time_limit: Option<Duration>,
    /// Commands at once.
    pub max_parallel: usize,
    /// Commands that run.
    pub running: usize,
    /// Jobs that wait until fewer run, by their place.
    pub waiting: Turns<usize>,
    /// Starts that failed, for the log.
    pub trouble: Recurrences,
    cpu_time: Option<Duration>,
    limits_file_size: bool,
}

impl CommandType {
    /// The command of that request type.
    ///
    /// # Errors
    /// A [`Failure`] where its user or its paths are no more what they were when they were checked.
    pub fn new(request: &Request, open_files: u64) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::internal(&format!("prepare the command of \"{}\"", request.name), error)
        };
        let plan = Plan {
            // It was there when the system started. Where it has gone meanwhile, jobs fail until it is back.
            programs: request.programs().map_err(|error| failed(&error))?,
            arguments: request.command.clone(),
            environment: environment(request).map_err(|error| failed(&error))?,
            directory: request.directory.clone(),
            limits: limits(request, open_files),
            identity: identity(request).map_err(|error| failed(&error))?,
            no_new_privs: request.no_new_privs,
            ruleset: ruleset(request).map_err(|error| failed(&error))?,
        };
        Ok(Self {
            name: request.name.clone(),
            command: Command::new(plan).map_err(|error| failed(&error))?,
            time_limit: request.time_limit,
            max_parallel: request.max_parallel.map_or(usize::MAX, |parallel| parallel as usize),
            running: 0,
            waiting: Turns::default(),
            trouble: Recurrences::default(),
            cpu_time: request.cpu_time,
            limits_file_size: request.file_size.is_some(),
        })
    }

    /// The commands of all types in a configuration, where they are started for each job.
    ///
    /// # Errors
    /// See [`CommandType::new`].
    pub fn of(config: &Config, open_files: u64) -> Result<Vec<Option<Self>>, Failure> {
        let command = |request: &Request| {
            let is_command = !request.command.is_empty() && !request.is_persistent();
            is_command.then(|| Self::new(request, open_files)).transpose()
        };
        config.request.iter().map(command).collect()
    }

    /// How a job ends whose command has ended so, after so much CPU time.
    pub fn end(&self, exit: Exit, cpu_time: impl FnOnce() -> Duration) -> End {
        let signal = match exit {
            Exit::Code(0) => return End::Done,
            // The kernel keeps the low byte (exit(3)).
            Exit::Code(code) => return End::Failed(Reason::Exit(code.to_le_bytes()[0])),
            Exit::Signal(signal) => signal,
            Exit::Unknown => 0,
        };
        // Beyond the soft limit SIGXCPU comes, a second later SIGKILL (setrlimit(2)), which others may
        // send, too. The kernel counts for the limit by ticks, and tells more exactly.
        let used_up = |limit: Duration| cpu_time() >= limit * 3 / 4;
        End::Failed(match signal {
            libc::SIGXFSZ if self.limits_file_size => Reason::FileSizeLimit,
            libc::SIGXCPU if self.cpu_time.is_some() => Reason::CpuLimit,
            libc::SIGKILL if self.cpu_time.is_some_and(used_up) => Reason::CpuLimit,
            signal => Reason::Signal(signal.to_le_bytes()[0]),
        })
    }
}

/// What a command finds in its environment beside the usual: the convention of ucspi-tcp, and
/// what OSPS adds (`tcp-environ(5)`).
pub fn variables(
    kind: &str,
    number: JobNumber,
    local: SocketAddr,
    remote: SocketAddr,
) -> [(&'static str, String); 7] {
    [
        ("PROTO", "TCP".to_owned()),
        ("TCPLOCALIP", local.ip().to_canonical().to_string()),
        ("TCPLOCALPORT", local.port().to_string()),
        ("TCPREMOTEIP", remote.ip().to_canonical().to_string()),
        ("TCPREMOTEPORT", remote.port().to_string()),
        ("OSPS_TYPE", kind.to_owned()),
        ("OSPS_JOB", number.to_string()),
    ]
}

/// Our own environment, but for what is set anew; what is known of its user; then what the configuration
/// adds.
fn environment(request: &Request) -> io::Result<Vec<(OsString, OsString)>> {
    let user = of_user(request).map(account::variables).transpose()?;
    let is_set_anew = |name: &str| {
        name == "PROTO"
            || name.starts_with("TCPLOCAL")
            || name.starts_with("TCPREMOTE")
            || OWN_VARIABLES.contains(&name)
            || request.environment.contains_key(name)
    };
    let inherited = std::env::vars_os().filter(|(name, _)| !name.to_str().is_some_and(is_set_anew));
    let added = request.environment.iter().filter(|(name, _)| !OWN_VARIABLES.contains(&name.as_str()));
    let mut all: Vec<(OsString, OsString)> = inherited.collect();
    for (name, value) in user.into_iter().flatten() {
        all.retain(|(known, _)| known != name);
        if !request.environment.contains_key(name) {
            all.push((name.into(), value));
        }
    }
    all.extend(added.map(|(name, value)| (name.into(), value.into())));
    Ok(all)
}

/// Descriptors as they were before we raised their limit for ourselves, and what is configured.
fn limits(request: &Request, open_files: u64) -> Vec<(u32, u64, u64)> {
    let both = |resource, limit: Option<u64>| limit.map(|limit| (resource, limit, limit));
    let cpu = request.cpu_time.map(|time| (libc::RLIMIT_CPU, time.as_secs(), time.as_secs() + 1));
    let files = both(libc::RLIMIT_NOFILE, request.open_files);
    let hard = crate::os::process::descriptor_limit();
    [
        Some(files.unwrap_or((libc::RLIMIT_NOFILE, open_files.min(hard), hard))),
        cpu,
        both(libc::RLIMIT_AS, request.address_space.map(|size| size.0)),
        both(libc::RLIMIT_FSIZE, request.file_size.map(|size| size.0)),
        both(libc::RLIMIT_NPROC, request.processes),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn identity(request: &Request) -> io::Result<Option<Identity>> {
    of_user(request).map(account::identity).transpose()
}

/// The user that it has of its own. Only root can change, and only to itself could anybody else.
fn of_user(request: &Request) -> Option<&str> {
    request.user.as_deref().filter(|_| rustix::process::geteuid().is_root())
}

fn ruleset(request: &Request) -> io::Result<Option<OwnedFd>> {
    let is_optional = request.landlock == Some(Landlock::Optional);
    if !request.is_confined() || is_optional && !landlock::is_supported() {
        return Ok(None);
    }
    let paths = |paths: &Option<Vec<_>>| paths.clone().unwrap_or_default();
    landlock::ruleset(&paths(&request.read), &paths(&request.write)).map(Some)
}
