//! The configuration: a TOML file over built-in defaults, checked as a whole. Every error names the key, the
//! value, and what would be right.

mod check;
mod check_addresses;
mod check_requests;
mod data_ports;
mod file;
mod listen;
mod look;
mod passed;
mod reload;
mod request;
mod runtime_dir;
mod size;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::supervision::Settings;
use crate::wire::logline::{Format, Logging};

pub use data_ports::DataPorts;
pub use listen::{Address, Listen};
pub use passed::PassedAddresses;
pub use request::{Handler, Landlock, Mode, Registered, Request};
use runtime_dir::default_runtime_dir;
pub use size::Size;

/// Read where no `--config` is given, if it is there.
pub const DEFAULT_FILE: &str = "osps.toml";
/// Ports given to clients are greater than this one.
const LAST_LOW_PORT: u16 = 2222;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not end where a configuration has ended.
    #[error("cannot read the configuration {path}: it is longer than {most}")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How long it may be.
        most: Size,
    },
    /// It is no TOML, or has an unknown key or a value of the wrong type.
    #[error("{path}, line {line}: {text}: {what}{wanted}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What stands there: the key and its value.
        text: String,
        /// What is wrong with it.
        what: String,
        /// What would be right, if that can be told.
        wanted: String,
    },
    /// A value that cannot be.
    #[error("{source_name}: {key} = {value}: {wanted}")]
    Value {
        /// The file, or the built-in defaults.
        source_name: String,
        /// The key, with its table.
        key: String,
        /// Its value.
        value: String,
        /// What would be right.
        wanted: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default = "Config::of_any_machine")]
pub struct Config {
    /// Addresses of the control listeners.
    pub listen: Listen,
    /// Where the observer listens, which shows all to people and programs; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observe: Option<Listen>,
    /// Under which host `adresse` says that secondaries are reached, where clients see it differently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce: Option<String>,
    /// Ports for (secondary, type) pairs.
    pub data_ports: DataPorts,
    /// Number of secondaries.
    #[serde(default = "default_secondaries")]
    pub secondaries: u16,
    /// Where the shared files stand.
    pub runtime_dir: PathBuf,
    /// Who is admitted to a data port.
    pub admission: Admission,
    /// How long a job waits to be claimed.
    #[serde(with = "humantime_serde")]
    pub claim_within: Duration,
    /// Control connections at once; more wait in the backlog.
    pub max_clients: usize,
    /// Control connections at once from one address (IPv6: from one /64 network); 0: no limit.
    pub max_clients_per_address: usize,
    /// Jobs claimed or waiting, per secondary.
    pub max_jobs: u32,
    /// How long a request waits while no secondary can take it.
    #[serde(with = "humantime_serde")]
    pub queue_within: Duration,
    /// How long a client may be silent while nothing is owed to it.
    #[serde(with = "humantime_serde")]
    pub client_idle: Duration,
    /// A secondary that has served about so many jobs is replaced; 0: never.
    pub max_jobs_served: u64,
    /// A secondary that has about so much memory of its own (resident, in bytes) is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<Size>,
    /// As whom all processes run, once the watchdog has bound what is to be bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// With which group; where only `user` is given, that user's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For whom the log is written.
    pub log_format: Format,
    /// The log has a record of each job that has ended.
    pub access_log: bool,
    /// Supervision times.
    pub watchdog: Watchdog,
    /// The request types.
    pub request: Vec<Request>,
}

/// `[watchdog]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watchdog {
    /// Each server is probed once in this time.
    #[serde(with = "humantime_serde")]
    pub period: Duration,
    /// Silence that makes a server suspect.
    #[serde(with = "humantime_serde")]
    pub suspect_after: Duration,
    /// Silence that condemns it.
    #[serde(with = "humantime_serde")]
    pub kill_after: Duration,
    /// How long a start may take.
    #[serde(with = "humantime_serde")]
    pub start_within: Duration,
    /// How long a draining server may finish.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// Who may claim a waiting job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// A connection from the address that asked for it.
    Address,
    /// Anybody: who has no job is given one.
    Open,
}

impl Default for Config {
    fn default() -> Self {
        Self { secondaries: default_secondaries(), ..Self::of_any_machine() }
    }
}

impl Config {
    /// The defaults, without looking at this machine: how many cores there are costs twenty system calls, and
    /// each server reads a configuration at its start, where that number is given.
    fn of_any_machine() -> Self {
        let request = |name: &str, handler, delay: Option<u64>| Request {
            delay: delay.map(Duration::from_millis),
            ..Request::new(name, handler)
        };
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 2222)).into(),
            observe: None,
            announce: None,
            data_ports: DataPorts::Range(2223..=2999),
            secondaries: 0,
            runtime_dir: default_runtime_dir(),
            admission: Admission::Address,
            claim_within: Duration::from_secs(5),
            max_clients: 15_000,
            max_clients_per_address: 0,
            max_jobs: 1024,
            queue_within: Duration::from_secs(1),
            client_idle: Duration::from_secs(60),
            max_jobs_served: 0,
            max_memory: None,
            user: None,
            group: None,
            log_format: Format::Human,
            access_log: false,
            watchdog: Watchdog::default(),
            request: vec![
                request("requetetype1", Handler::Delay, Some(20)),
                request("requetetype2", Handler::Delay, Some(50)),
                request("echo", Handler::Echo, None),
            ],
        }
    }
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            period: Duration::from_millis(250),
            suspect_after: Duration::from_millis(500),
            kill_after: Duration::from_secs(2),
            start_within: Duration::from_secs(10),
            grace: Duration::from_secs(10),
        }
    }
}

/// Twice the cores, at most 64.
fn default_secondaries() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from((2 * cores).min(64)).unwrap_or(64)
}

impl Config {
    /// Loads `file`, or `./osps.toml` if it is there, or the defaults; then sets
    /// `runtime_dir` where given, and checks the whole: all that a server needs is there.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(file: Option<&Path>, runtime_dir: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(file, runtime_dir, &[])
    }

    /// As [`Config::load`], where handlers are registered under these names.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load_with(
        file: Option<&Path>,
        runtime_dir: Option<&Path>,
        registered: &[&str],
    ) -> Result<Self, ConfigError> {
        Self::read(file, runtime_dir, Some(Registered::Names(registered)), &PassedAddresses::default())
    }

    /// As [`Config::load`], for who wants to know where to connect: whether users, programs, paths and handlers are there does not
    /// matter.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load_for_tools(file: Option<&Path>, runtime_dir: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(file, runtime_dir, None, &PassedAddresses::default())
    }

    fn read(
        file: Option<&Path>,
        runtime_dir: Option<&Path>,
        to_serve_with: Option<Registered<'_>>,
        passed: &PassedAddresses,
    ) -> Result<Self, ConfigError> {
        let file = Self::file_or_default(file);
        let mut config = match file {
            Some(path) => file::parse(path)?,
            None => Self::default(),
        };
        if let Some(runtime_dir) = runtime_dir {
            config.runtime_dir = runtime_dir.to_owned();
        }
        let name = file.map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string());
        config.adopt(&name, passed)?;
        config.check(&name, to_serve_with)?;
        Ok(config)
    }

    /// That file, or `./osps.toml` if it is there.
    fn file_or_default(file: Option<&Path>) -> Option<&Path> {
        let default = Path::new(DEFAULT_FILE);
        file.or_else(|| default.exists().then_some(default))
    }

    /// The effective configuration as TOML.
    ///
    /// # Errors
    /// Where a value cannot be written as TOML (a path that is no UTF-8).
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// What it says of the log.
    #[must_use]
    pub fn logging(&self) -> Logging {
        Logging { format: self.log_format, access: self.access_log }
    }

    /// The times of supervision, for the core.
    #[must_use]
    pub fn supervision(&self) -> Settings {
        Settings {
            period: self.watchdog.period,
            suspect_after: self.watchdog.suspect_after,
            kill_after: self.watchdog.kill_after,
            start_within: self.watchdog.start_within,
            grace: self.watchdog.grace,
        }
    }
}

/// What a file says, safe to show on one line of a terminal.
pub(crate) fn printable(text: &str) -> String {
    let shown = |char: char| if char.is_control() { char.escape_default().to_string() } else { char.into() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osps.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), None).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_right_and_survive_being_printed() {
        let config = Config::default();
        assert!(config.check("defaults", Some(Registered::Names(&[]))).is_ok());
        assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
        assert_eq!(parse("").unwrap(), config);
    }

    #[test]
    fn what_the_file_says_goes_over_the_defaults() {
        let config = parse(
            "listen = [\"0.0.0.0:4000\"]\ndata_ports = \"5000-5010\"\nsecondaries = 2\n\
             [watchdog]\nkill_after = \"1s\"\n\
             [[request]]\nname = \"block\"\nhandler = \"block\"\ndelay = \"20ms\"\n",
        )
        .unwrap();
        assert_eq!(config.listen.addresses(), [Address::Tcp("0.0.0.0:4000".parse().unwrap())]);
        assert_eq!(config.watchdog.kill_after, Duration::from_secs(1));
        assert_eq!(config.watchdog.period, Duration::from_millis(250));
        assert_eq!(config.request.len(), 1);
    }

    #[test]
    fn several_addresses_survive_being_printed() {
        for text in [
            "listen = \"[::]:2222\"",
            "announce = \"work.example.org\"\nmax_clients_per_address = 8\n\
             listen = [\"0.0.0.0:2222\", \"[::]:2222\", \"unix:/run/osps/principal\"]",
        ] {
            let config = parse(text).unwrap();
            assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn a_path_that_no_unix_socket_can_have_is_refused() {
        let longest = "x".repeat(106);
        let with = |path: &str| parse(&format!("listen = [\"127.0.0.1:5\", \"unix:/{path}\"]"));
        assert!(with(&longest).is_ok());
        let error = with(&format!("{longest}x")).unwrap_err();
        assert!(error.contains("108 bytes") && error.contains("107"), "{error}");
    }

    #[test]
    fn each_error_names_the_key_the_value_and_what_would_be_right() {
        for (text, wanted) in [
            ("secundaries = 4", &["secundaries", "secondaries"][..]),
            ("secondaries = \"four\"", &["secondaries", "four"]),
            ("secondaries = 0", &["secondaries = 0", "from 1 to 1024"]),
            ("claim_within = \"soon\"", &["claim_within", "soon"]),
            ("claim_within = \"0s\"", &["claim_within", "0s", "from 1ms"]),
            ("listen = \"localhost\"", &["listen", "localhost", "127.0.0.1:2222"]),
            ("listen = 2222", &["listen", "2222", "127.0.0.1:2222"]),
            ("listen = [\"127.0.0.1:1\", \"here\"]", &["listen", "\"here\"", "127.0.0.1:2222"]),
            ("listen = []", &["listen", "from 1 to 64"]),
            ("listen = \"unix:/run/x\"", &["listen", "unix:/run/x", "TCP"]),
            ("listen = [\"[::1]:0\", \"[::1]:0\"]", &["listen", "[::1]:0", "twice"]),
            ("listen = [\"127.0.0.1:5\", \"unix:/a\", \"unix:/a\"]", &["listen", "unix:/a", "twice"]),
            ("listen = [\"127.0.0.1:5\", \"0.0.0.0:5\"]", &["listen", "0.0.0.0:5", "127.0.0.1:5"]),
            ("listen = [\"[::]:5\", \"[::1]:5\"]", &["listen", "[::1]:5", "[::]:5"]),
            ("listen = \"[::ffff:127.0.0.1]:5\"", &["listen", "[::ffff:127.0.0.1]:5", "\"127.0.0.1:5\""]),
            ("listen = [\"127.0.0.1:5\", \"unix:x\"]", &["listen", "unix:x", "absolute"]),
            ("listen = [\"127.0.0.1:5\", \"unix:/a\\u0000\"]", &["listen", "unix:/a", "absolute"]),
            (
                "runtime_dir = \"/run/o\"\nlisten = [\"127.0.0.1:5\", \"unix:/run/o/control\"]",
                &["listen", "unix:/run/o/control", "another name"],
            ),
            ("listen = [\"127.0.0.1:5\", \"[::1]:2300\"]", &["data_ports", "2223-2999", "[::1]:2300"]),
            ("announce = \"host:2222\"", &["announce", "host:2222", "without a port"]),
            ("max_clients_per_address = -1", &["max_clients_per_address = -1", "0 for no limit"]),
            ("listen = \"127.0.0.1:2300\"", &["data_ports", "2223-2999", "2300"]),
            ("data_ports = \"100-200\"", &["data_ports", "100-200", "2223-2999"]),
            ("data_ports = \"3000-3001\"\nsecondaries = 4", &["data_ports", "3000-3001", "12 ports"]),
            ("[watchdog]\nsuspect_after = \"3s\"", &["suspect_after", "3s", "kill_after"]),
            ("[watchdog]\nperiode = \"3s\"", &["periode", "period"]),
            ("[[request]]\nname = \"a b\"\nhandler = \"echo\"", &["request.name", "a b"]),
            ("[[request]]\nname = \"a\"\nhandler = \"exek\"", &["request.handler", "exek", "exec", "delay"]),
            ("[[request]]\nname = \"a\"\nhandler = \"delay\"", &["request.delay", "\"a\"", "20ms"]),
            ("log_format = \"xml\"", &["log_format", "xml", "\"human\"", "\"json\""]),
            ("access_log = 1", &["access_log = 1", "true or false"]),
            ("admission = \"all\"", &["admission", "all", "address", "open"]),
            ("listen = ", &["line 1"]),
            ("\nclaim_within = \"5\"", &["line 2", "claim_within", "\"5\"", "10s"]),
            ("secondaries = -1", &["secondaries = -1", "1 to 1024"]),
            ("data_ports = 5", &["data_ports = 5", "2223-2999"]),
            ("runtime_dir = \"\"", &["runtime_dir", "/run/osps"]),
            ("runtime_dir = \"/a\\u0000b\"", &["runtime_dir", "directory"]),
            (
                "[[request]]\nname = \"a\\n\\u001b[2J\"\nhandler = \"echo\"",
                &["request.name", r"a\n\u{1b}[2J"],
            ),
            ("\u{1b}[2J", &[r"\u{1b}[2J"]),
            (
                "[[request]]\nname = \"a\"\nhandler = \"delay\"\ndelay = \"9years\"",
                &["request.delay", "365 days"],
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains(char::is_control), "{text:?}: {error:?} is more than a plain line");
            for part in wanted {
                assert!(error.contains(part), "{text:?}: {error:?} does not name {part:?}");
            }
        }
        let missing = Config::load(Some(Path::new("/nonexistent.toml")), None).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent.toml"));
    }
}
