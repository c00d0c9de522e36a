//! Whether a configuration can be, as a whole.

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::config::listen::{covers, is_mapped};
use crate::config::{Address, Config, ConfigError, DataPorts, Handler, Watchdog, printable};
use crate::os::rundir;
use crate::page::principal::{MAX_SLOTS, MAX_TYPES};
use crate::wire::client::{Host, is_type_name};

const MAX_JOBS: u32 = 1 << 16;
/// `sun_path` holds 108 bytes, the closing zero included (unix(7)); `/control` takes 8.
const MAX_RUNTIME_DIR_BYTES: usize = 99;
const MAX_SOCKET_PATH_BYTES: usize = 107;
const MAX_ADDRESSES: usize = 64;
const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

impl Config {
    /// Checks what no single value tells.
    ///
    /// # Errors
    /// The first [`ConfigError::Value`] that is found.
    pub(super) fn check(&self, source_name: &str) -> Result<(), ConfigError> {
        let checks = [
            self.check_listen(),
            self.check_announce(),
            self.check_data_ports(),
            self.check_runtime_dir(),
            self.check_counts(),
            self.check_times(),
            self.check_requests(),
        ];
        match checks.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(Wrong { key, value, wanted }) => {
                Err(ConfigError::Value { source_name: source_name.to_owned(), key, value, wanted })
            }
        }
    }

    fn check_listen(&self) -> Result<(), Wrong> {
        let addresses = self.listen.addresses();
        between("the number of addresses in listen", addresses.len(), 1, MAX_ADDRESSES)?;
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                return wrong("listen", quoted(address), "is there twice");
            }
            match address {
                Address::Tcp(tcp) => self.check_tcp(*tcp)?,
                Address::Unix(path) => self.check_socket_path(address, path)?,
            }
        }
        if self.listen.tcp().next().is_none() {
            let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let wanted =
                "a TCP address is wanted as well, such as \"127.0.0.1:2222\": secondaries have no other";
            return wrong("listen", format!("{listed:?}"), wanted);
        }
        Ok(())
    }

    fn check_tcp(&self, address: SocketAddr) -> Result<(), Wrong> {
        if is_mapped(address) {
            let plain = SocketAddr::new(address.ip().to_canonical(), address.port());
            return wrong("listen", quoted(&address), format!("is written \"{plain}\""));
        }
        let clashes = |other: &SocketAddr| {
            *other != address
                && other.port() == address.port()
                && address.port() != 0
                && covers(*other, address)
        };
        match self.listen.tcp().find(clashes) {
            None => Ok(()),
            Some(other) => {
                wrong("listen", quoted(&address), format!("clashes with \"{other}\", which covers it"))
            }
        }
    }

    fn check_socket_path(&self, address: &Address, path: &Path) -> Result<(), Wrong> {
        let bytes = path.as_os_str().as_encoded_bytes();
        if !path.is_absolute() || path.file_name().is_none() || bytes.contains(&0) {
            let wanted = "must be an absolute path, such as \"unix:/run/osps/principal\"";
            return wrong("listen", format_args!("{:?}", address.to_string()), wanted);
        }
        if bytes.len() > MAX_SOCKET_PATH_BYTES {
            let wanted = format!(
                "its path is {} bytes long; a Unix socket allows {MAX_SOCKET_PATH_BYTES}",
                bytes.len()
            );
            return wrong("listen", quoted(address), wanted);
        }
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let is_taken = name == "lock" || rundir::is_of_a_run(name);
        if is_taken && path.parent() == Some(&self.runtime_dir) {
            let wanted =
                "is a file of osps itself in runtime_dir: choose another name, such as \"principal\"";
            return wrong("listen", quoted(address), wanted);
        }
        Ok(())
    }

    fn check_announce(&self) -> Result<(), Wrong> {
        match &self.announce {
            Some(host) if Host::parse(host).is_none() => {
                let wanted = "must be the name of a host or an IP address, without a port";
                wrong("announce", format_args!("{host:?}"), wanted)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_data_ports(&self) -> Result<(), Wrong> {
        let DataPorts::Range(range) = &self.data_ports else {
            return Ok(());
        };
        if let Some(address) = self.listen.tcp().find(|address| range.contains(&address.port())) {
            let wanted = format!(
                "clashes with listen = \"{address}\": choose a range without port {}",
                address.port()
            );
            return wrong("data_ports", quoted(&self.data_ports), wanted);
        }
        let (have, need) = (range.len(), usize::from(self.secondaries) * self.request.len());
        if have < need {
            let wanted = format!(
                "too small: {} secondaries with {} request types each need {need} ports, the range has {have}",
                self.secondaries,
                self.request.len()
            );
            return wrong("data_ports", quoted(&self.data_ports), wanted);
        }
        Ok(())
    }

    fn check_runtime_dir(&self) -> Result<(), Wrong> {
        let path = self.runtime_dir.as_os_str();
        if path.is_empty() || path.as_encoded_bytes().contains(&0) {
            let wanted = "must be the path of a directory, such as \"/run/osps\"";
            return wrong("runtime_dir", format_args!("{:?}", self.runtime_dir), wanted);
        }
        if path.len() > MAX_RUNTIME_DIR_BYTES {
            let wanted =
                format!("is {} bytes long; a Unix socket in it allows {MAX_RUNTIME_DIR_BYTES}", path.len());
            return wrong("runtime_dir", format_args!("{:?}", self.runtime_dir), wanted);
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<(), Wrong> {
        between("secondaries", usize::from(self.secondaries), 1, MAX_SLOTS)?;
        between("max_clients", self.max_clients, 1, 1 << 20)?;
        between("max_clients_per_address", self.max_clients_per_address, 0, 1 << 20)?;
        between("max_jobs", self.max_jobs as usize, 1, MAX_JOBS as usize)
    }

    fn check_times(&self) -> Result<(), Wrong> {
        let Watchdog { period, suspect_after, kill_after, start_within, grace } = self.watchdog;
        for (key, time, least) in [
            ("watchdog.period", period, 1),
            ("watchdog.suspect_after", suspect_after, 1),
            ("watchdog.kill_after", kill_after, 1),
            ("watchdog.start_within", start_within, 1),
            ("watchdog.grace", grace, 0),
            ("claim_within", self.claim_within, 1),
            ("client_idle", self.client_idle, 1),
            ("queue_within", self.queue_within, 0),
        ] {
            let least = Duration::from_millis(least);
            if !(least..=LONGEST_TIME).contains(&time) {
                let wanted = format!("must be from {least:?} to 365 days");
                return wrong(key, quoted(&humantime_serde::re::humantime::format_duration(time)), wanted);
            }
        }
        if suspect_after >= kill_after {
            let wanted = format!("must be shorter than watchdog.kill_after = {kill_after:?}");
            return wrong("watchdog.suspect_after", format!("{suspect_after:?}"), wanted);
        }
        Ok(())
    }

    fn check_requests(&self) -> Result<(), Wrong> {
        between("the number of [[request]]", self.request.len(), 1, MAX_TYPES)?;
        for (index, request) in self.request.iter().enumerate() {
            let name = &request.name;
            if !is_type_name(name) {
                let wanted = "must be 1 to 64 of A-Z a-z 0-9 _ . - and no word of the protocol";
                return wrong("request.name", quoted(name), wanted);
            }
            if self.request[..index].iter().any(|other| other.name == *name) {
                return wrong("request.name", quoted(name), "is there twice: names must differ");
            }
            match (request.handler, request.delay) {
                (Handler::Delay | Handler::Block, None) => {
                    let wanted =
                        format!("missing in request \"{name}\": its handler needs one, such as \"20ms\"");
                    return wrong("request.delay", "(none)", wanted);
                }
                (Handler::Delay | Handler::Block, Some(delay)) if delay > LONGEST_TIME => {
                    let wanted = format!("in request \"{name}\": must be at most 365 days");
                    return wrong("request.delay", format!("{delay:?}"), wanted);
                }
                (Handler::Echo, Some(delay)) => {
                    let wanted = format!("is of no use in request \"{name}\": echo does not wait");
                    return wrong("request.delay", format!("{delay:?}"), wanted);
                }
                (Handler::Delay | Handler::Block, Some(_)) | (Handler::Echo, None) => {}
            }
        }
        Ok(())
    }
}

/// A value that cannot be.
struct Wrong {
    key: String,
    value: String,
    wanted: String,
}

fn wrong(key: &str, value: impl fmt::Display, wanted: impl Into<String>) -> Result<(), Wrong> {
    Err(Wrong { key: key.to_owned(), value: printable(&value.to_string()), wanted: wanted.into() })
}

fn quoted(value: &dyn fmt::Display) -> String {
    format!("\"{value}\"")
}

fn between(key: &str, value: usize, least: usize, most: usize) -> Result<(), Wrong> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    wrong(key, value, format!("must be from {least} to {most}"))
}
