//! Whether a configuration can be, as a whole.

use std::fmt;
use std::time::Duration;

use humantime_serde::re::humantime::format_duration;

use crate::config::{
    Config, ConfigError, DataPorts, Listen, Registered, Size, Watchdog, printable, runtime_dir,
};
use crate::os::account;
use crate::os::process::Identity;
use crate::page::principal::MAX_SLOTS;
use crate::wire::client::Host;

const MAX_JOBS: u32 = 1 << 16;
/// Less than a secondary needs for itself.
const LEAST_MEMORY: Size = Size(16 << 20);
pub(super) const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

impl Config {
    /// Checks what no single value tells; `to_serve_with` what handlers there are: also users, programs and paths, which a
    /// server needs to start.
    ///
    /// # Errors
    /// The first [`ConfigError::Value`] that is found.
    pub(super) fn check(
        &self,
        source_name: &str,
        to_serve_with: Option<Registered<'_>>,
    ) -> Result<(), ConfigError> {
        let checks = [
            self.check_listen(),
            self.check_observe(),
            self.check_announce(),
            self.check_data_ports(),
            runtime_dir::check(&self.runtime_dir),
            self.check_counts(),
            self.check_times(),
            self.check_recycling(),
            self.check_requests(to_serve_with),
        ];
        let wrong = checks.into_iter().find_map(Result::err);
        let on_machine = || self.look_for_accounts().and_then(|()| self.look_for_commands());
        match wrong.or_else(|| to_serve_with.map(|_| on_machine())?.err()) {
            None => Ok(()),
            Some(wrong) => Err(wrong.of(source_name)),
        }
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
        let keyed = |key: &'static str, listen: &Listen| -> Vec<_> {
            listen.tcp().map(move |address| (key, address)).collect()
        };
        let mut taken = keyed("listen", &self.listen);
        taken.extend(self.observe.iter().flat_map(|observe| keyed("observe", observe)));
        if let Some((key, address)) = taken.iter().find(|(_, address)| range.contains(&address.port())) {
            let wanted =
                format!("clashes with {key} = \"{address}\": choose a range without port {}", address.port());
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
                let wanted = format!("must be from {} to 365 days", format_duration(least));
                return wrong(key, written(time), wanted);
            }
        }
        if suspect_after >= kill_after {
            let wanted =
                format!("must be shorter than watchdog.kill_after = {}", format_duration(kill_after));
            return wrong("watchdog.suspect_after", written(suspect_after), wanted);
        }
        Ok(())
    }

    fn check_recycling(&self) -> Result<(), Wrong> {
        match self.max_memory {
            Some(size) if size < LEAST_MEMORY => {
                wrong("max_memory", quoted(&size), format!("must be at least {LEAST_MEMORY}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// As whom all is to run; `None` where nothing is to be changed: who is not root was found to be
    /// that user already.
    ///
    /// # Errors
    /// Which user or group is not to be had, and why.
    pub fn identity(&self) -> Result<Option<Identity>, String> {
        let wrong = |key: &str, name: &str, error: &std::io::Error| format!("{key} = \"{name}\": {error}");
        let user = |name: &str| account::identity(name).map_err(|error| wrong("user", name, &error));
        let group = |name: &str| account::group(name).map_err(|error| wrong("group", name, &error));
        let user = self.user.as_deref().map(user).transpose()?;
        let group = self.group.as_deref().map(group).transpose()?;
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Ok(match (user, group) {
            (None, None) => None,
            (None, Some(gid)) => Some(Identity { uid: 0, gid, groups: vec![gid] }),
            (Some(user), Some(gid)) if gid != user.gid => {
                // As `initgroups(3)` does it: the group that is asked for, and those that list the user.
                let others = user.groups.into_iter().filter(|group| *group != user.gid);
                Some(Identity { gid, groups: others.chain([gid]).collect(), ..user })
            }
            (Some(user), _) => Some(user),
        })
    }

    /// Users and groups exist, and this process may become them.
    fn look_for_accounts(&self) -> Result<(), Wrong> {
        let user = known("user", self.user.as_deref(), account::user)?;
        let group = known("group", self.group.as_deref(), account::group)?;
        let (own_user, own_group) = (rustix::process::geteuid(), rustix::process::getegid());
        if own_user.is_root() {
            return Ok(());
        }
        if let Some((name, account)) = user
            && account.uid != own_user.as_raw()
        {
            return wrong("user", quoted(&name), "only root can become another user");
        }
        match group {
            Some((name, gid)) if gid != own_group.as_raw() => {
                wrong("group", quoted(&name), "only root can take another group")
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Looks a user or group up, where one is named.
pub(super) fn known<'a, T>(
    key: &str,
    name: Option<&'a str>,
    find: impl FnOnce(&str) -> std::io::Result<T>,
) -> Result<Option<(&'a str, T)>, Wrong> {
    let Some(name) = name else {
        return Ok(None);
    };
    match find(name) {
        Ok(found) => Ok(Some((name, found))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            wrong(key, quoted(&name), "is not known to this system")
        }
        Err(error) => wrong(key, quoted(&name), format!("cannot be looked up: {error}")),
    }
}

/// A value that cannot be.
pub(super) struct Wrong {
    key: String,
    value: String,
    wanted: String,
}

impl Wrong {
    /// What is said of it, where it comes from that file.
    pub(super) fn of(self, source_name: &str) -> ConfigError {
        let Self { key, value, wanted } = self;
        ConfigError::Value { source_name: source_name.to_owned(), key, value, wanted }
    }
}

pub(super) fn wrong<T>(key: &str, value: impl fmt::Display, wanted: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { key: key.to_owned(), value: printable(&value.to_string()), wanted: wanted.into() })
}

pub(super) fn quoted(value: &dyn fmt::Display) -> String {
    format!("\"{value}\"")
}

/// A time as it is written in the configuration.
pub(super) fn written(time: Duration) -> String {
    quoted(&format_duration(time))
}

pub(super) fn between(key: &str, value: usize, least: usize, most: usize) -> Result<(), Wrong> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    wrong(key, value, format!("must be from {least} to {most}"))
}
