//! A watchdog that was started as root and is to run as another user: what needs root is done
//! first, then everything is handed to that user, then root is given up.

use crate::config::Config;
use crate::exit::{Code, Failure};
use crate::os::process::Identity;
use crate::os::rundir::{Owner, Rundir, RundirError};
use crate::os::{account, privileges};
use crate::role::watchdog::Watchdog;
use crate::role::watchdog::directory::rundir_failure;

/// As whom all is to run; `None` where nothing is to be changed. Who is not root has been checked
/// to be that user already.
pub fn wanted(config: &Config) -> Result<Option<Identity>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let (user, group) = (config.user.as_deref(), config.group.as_deref());
    let failure = |key: &str, name: &str, error: &std::io::Error| {
        Failure::new(Code::Config, format!("{key} = \"{name}\": {error}"))
    };
    let gid = |name: &str| account::group(name).map_err(|error| failure("group", name, &error));
    let gid = group.map(gid).transpose()?;
    let identity = match (user, gid) {
        (None, None) => return Ok(None),
        (None, Some(gid)) => Identity { uid: 0, gid, groups: vec![gid] },
        (Some(name), _) => account::identity(name).map_err(|error| failure("user", name, &error))?,
    };
    Ok(Some(match gid {
        // As `initgroups(3)` does it: the group that is asked for, and those that list the user.
        Some(gid) if gid != identity.gid => Identity {
            groups: identity.groups.into_iter().filter(|group| *group != identity.gid).chain([gid]).collect(),
            gid,
            ..identity
        },
        Some(_) | None => identity,
    }))
}

impl Watchdog {
    /// Hands over what was made so far, and gives up root.
    pub(super) fn give_up_root(&self, identity: &Identity) -> Result<(), Failure> {
        let owner = Owner { uid: identity.uid, gid: identity.gid };
        let path = self.rundir.path().to_owned();
        self.rundir
            .hand_over(owner)
            .map_err(|source| rundir_failure(RundirError::Create { path, source }))?;
        self.bound.give_socket_files(owner)?;
        let Identity { uid, gid, .. } = *identity;
        let denied = |what: &str, error: std::io::Error| {
            Failure::new(Code::NoPermission, format!("uid {uid} {what}: {error}"))
        };
        // What it will need again and again had better be found out while this can be undone.
        let path = self.rundir.path().display();
        privileges::try_as(identity, || {
            privileges::can_execute_itself().map_err(|error| denied("cannot execute this program", error))?;
            self.rundir
                .holds(&self.lock)
                .map_err(|error| denied(&format!("cannot reach the runtime directory {path}"), error))
        })
        .map_err(|error| denied("is not to be had", error))??;
        privileges::assume(identity).map_err(|error| denied("is not to be had", error))?;
        log::info!("root is given up: all runs as uid {uid}, gid {gid}");
        Ok(())
    }
}

/// Takes a directory that was handed over by an earlier run. Returns whose it was.
pub fn take_back(rundir: &Rundir) -> Result<Option<Owner>, Failure> {
    let path = rundir.path().to_owned();
    rundir.take().map_err(|source| rundir_failure(RundirError::Create { path, source }))
}
