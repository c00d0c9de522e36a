//! `[[request]]`: what clients can ask for, and who serves it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::Size;

/// `[[request]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What clients ask for.
    pub name: String,
    /// Who serves it.
    pub handler: Handler,
    /// For `delay` and `block`: how long each message takes.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// How long a job may take from its start; then it fails.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<Duration>,
    /// For a handler that the program has registered: whatever it wants to be told.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub settings: toml::Table,
    /// For `exec`: the program, looked for in `PATH`, and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// For `exec`: how the command serves jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// For `exec`: commands of this type at once in one secondary; further jobs wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,
    /// For `mode = "persistent"`: the longest message in either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message: Option<Size>,
    /// For `exec`: its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// For `exec`: more environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// For `exec`: the user that the command runs as; the tree must be root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// For `exec`: CPU time of each of its processes, in whole seconds (`setrlimit(2)`, as the next four).
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<Duration>,
    /// For `exec`: address space of each of its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_space: Option<Size>,
    /// For `exec`: open files of each of its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// For `exec`: the size of any file that it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Size>,
    /// For `exec`: processes of its user at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// For `exec`: it gains no privileges by what it executes (`PR_SET_NO_NEW_PRIVS`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_privs: bool,
    /// For `exec`: below which paths it may read and execute; once `read` or `write` is given, nowhere
    /// else (`landlock(7)`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Vec<PathBuf>>,
    /// For `exec`: below which paths it may read and write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Vec<PathBuf>>,
    /// For `exec`: whether `read` and `write` must be enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Landlock>,
}

impl Request {
    /// A request type with nothing but a name and a handler.
    #[must_use]
    pub fn new(name: &str, handler: Handler) -> Self {
        Self {
            name: name.to_owned(),
            handler,
            delay: None,
            time_limit: None,
            settings: toml::Table::new(),
            command: Vec::new(),
            mode: None,
            max_parallel: None,
            max_message: None,
            directory: None,
            environment: BTreeMap::new(),
            user: None,
            cpu_time: None,
            address_space: None,
            open_files: None,
            file_size: None,
            processes: None,
            no_new_privs: false,
            read: None,
            write: None,
            landlock: None,
        }
    }

    /// How long a session of its handler may take. Commands are looked after otherwise.
    #[must_use]
    pub fn session_limit(&self) -> Option<Duration> {
        self.time_limit.filter(|_| self.handler != Handler::Exec)
    }

    /// Whether its command serves many jobs, one after another.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.mode == Some(Mode::Persistent)
    }
}

/// How a command serves jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One process for each job; the connection is its standard input and output.
    Each,
    /// One process for many jobs, one after another, in frames.
    Persistent,
}

/// Whether paths must be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Landlock {
    /// Without support in the kernel nothing is started.
    Required,
    /// Without support in the kernel the command may read and write what its user may.
    Optional,
}

/// Who serves a request type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Waits on a timer after each message, then answers one line.
    Delay,
    /// Sends back what it gets.
    Echo,
    /// Like `delay`, but blocks its process.
    Block,
    /// A command.
    Exec,
    /// One that the program has registered under this name.
    Registered(String),
}

impl Handler {
    /// Those that come with OSPS.
    pub const BUILT_IN: [Self; 4] = [Self::Delay, Self::Echo, Self::Block, Self::Exec];

    /// As it is written in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Delay => "delay",
            Self::Echo => "echo",
            Self::Block => "block",
            Self::Exec => "exec",
            Self::Registered(name) => name,
        }
    }

    /// What is said of a handler that is none, where handlers of these names are registered.
    pub(crate) fn unknown(registered: &[&str]) -> String {
        let mut known: Vec<&str> = Self::BUILT_IN.iter().map(Self::name).collect();
        known.extend(registered);
        format!("there is no such handler; known: {}", known.join(", "))
    }
}

/// What is known of the handlers that whoever is to serve has registered.
#[derive(Clone, Copy, Debug)]
pub enum Registered<'a> {
    /// These are all.
    Names(&'a [&'a str]),
    /// That is for another program to say, which may be a newer one.
    Unknown,
}

impl Serialize for Handler {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Handler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let built_in = Self::BUILT_IN.into_iter().find(|handler| handler.name() == name);
        Ok(built_in.unwrap_or(Self::Registered(name)))
    }
}
