//! A watchdog that was started as root and is to run as another user: what needs root is done
//! first, then everything is handed to that user, then root is given up.

use crate::exit::{Code, Failure};
use crate::os::privileges;
use crate::os::process::Identity;
use crate::os::rundir::{Owner, Rundir, RundirError};
use crate::role::watchdog::Watchdog;
use crate::role::watchdog::directory::rundir_failure;

impl Watchdog {
    /// Hands over what was made so far, and gives up root.
    pub(super) fn give_up_root(&self, identity: &Identity) -> Result<(), Failure> {
        let owner = Owner { uid: identity.uid, gid: identity.gid };
        let path = self.rundir.path().to_owned();
        self.rundir
            .hand_over(owner)
            .map_err(|source| rundir_failure(RundirError::Create { path, source }))?;
        self.force.bound.give_socket_files(owner)?;
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
