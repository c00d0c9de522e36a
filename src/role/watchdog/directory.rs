//! What somebody removed from the runtime directory under the running system is made again:
//! tools, and people, look for it by name.

use mio::Interest;
use mio::net::UnixListener;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::core::moment::Moment;
use crate::exit::{Code, Failure};
use crate::os::reactor::{Handle, SourceId};
use crate::os::rundir::{Rundir, RundirError, Seen};
use crate::role::watchdog::{Key, Watchdog};

/// How long a file system may give the same time to all that changes (a tick of the kernel): what
/// was removed right after a look is seen by another one later only.
const COARSEST_TIME: Duration = Duration::from_millis(20);

/// A look at the directory that found nothing missing, or mended it.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    seen: Seen,
    /// When the directory was found like that first.
    at: Moment,
    /// Whether a change since would show.
    is_final: bool,
}

impl Watchdog {
    /// One look at the directory in each period; more only where anything in it has changed.
    pub(super) fn tend_directory(&mut self, reactor: &mut Handle<Key>) {
        let now = reactor.now();
        if now < self.next_look_at_directory {
            return;
        }
        self.close_what_is_retired();
        self.next_look_at_directory = now + self.force.config.watchdog.period;
        if self.tree.is_stopping() {
            return;
        }
        self.tell_of_lost_sockets();
        let seen = self.rundir.seen().ok();
        let same = self.seen_directory.filter(|looked| Some(looked.seen) == seen);
        if same.is_some_and(|looked| looked.is_final) {
            return;
        }
        match self.mend_directory(reactor) {
            Ok(()) => {
                let after = self.rundir.seen().ok();
                let at = same.map_or(now, |looked| looked.at);
                let is_final = now.since(at) > COARSEST_TIME;
                self.seen_directory = after.map(|seen| Look { seen, at, is_final });
            }
            Err(error) if self.directory_trouble.is_news(reactor.now()) => {
                log::error!("the runtime directory was changed and cannot be mended: {error}");
            }
            Err(_) => {}
        }
    }

    /// Sockets of `listen` and `observe` may stand anywhere. A principal cannot be given another one while it serves:
    /// that takes a reload, which is for whoever has removed the file to ask for.
    fn tell_of_lost_sockets(&mut self) {
        let lost = self.force.bound.lost();
        for address in lost.difference(&self.lost_sockets) {
            log::warn!(
                "{address}: somebody removed its file, nobody can come by it: \"osps reload\" makes it again"
            );
        }
        self.lost_sockets = lost;
    }

    fn mend_directory(&mut self, reactor: &mut Handle<Key>) -> Result<(), Failure> {
        let path = self.rundir.path().to_owned();
        let failure = |source| rundir_failure(RundirError::Create { path: path.clone(), source });
        self.rundir.restore().map_err(failure)?;
        if !self.rundir.holds(&self.lock).map_err(failure)? {
            self.lock = self.rundir.lock().map_err(rundir_failure)?;
            log::warn!("{}: the lock was removed and is made again", path.display());
        }
        let mut missed = self.heirlooms.name_again().map_err(failure)?;
        if !self.rundir.watchdog_pid_file().exists() {
            write_pid(&self.rundir)?;
            missed += 1;
        }
        if !self.rundir.control().exists() {
            let (mut old, id) =
                std::mem::replace(&mut self.control, listen_for_tools(&self.rundir, reactor)?);
            reactor.deregister(&mut old, id);
            missed += 1;
        }
        if missed > 0 {
            log::warn!("{}: {missed} files were removed and are made again", path.display());
        }
        Ok(())
    }
}

/// The exit code of each error.
pub fn rundir_failure(error: RundirError) -> Failure {
    let code = match &error {
        RundirError::Create { .. } | RundirError::Obstacle { .. } | RundirError::Remove { .. } => {
            Code::CannotCreate
        }
        RundirError::Permission { .. } => Code::NoPermission,
        RundirError::AlreadyRunning { .. } => Code::AlreadyRunning,
    };
    Failure::new(code, error)
}

/// Writes `watchdog.pid`.
pub fn write_pid(rundir: &Rundir) -> Result<(), Failure> {
    create_file(&rundir.watchdog_pid_file(), format!("{}\n", std::process::id()).as_bytes())
}

fn create_file(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let write = || {
        fs::write(path, contents)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    };
    write().map_err(|source| {
        Failure::new(Code::CannotCreate, RundirError::Create { path: path.to_owned(), source })
    })
}

/// Binds and watches the socket `control`.
pub fn listen_for_tools(
    rundir: &Rundir,
    reactor: &mut Handle<Key>,
) -> Result<(UnixListener, SourceId), Failure> {
    let path = rundir.control();
    let mut listen = || {
        let mut listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let id = reactor.register(&mut listener, Key::Control, Interest::READABLE)?;
        Ok((listener, id))
    };
    listen().map_err(|source| {
        Failure::new(Code::CannotCreate, RundirError::Create { path: path.clone(), source })
    })
}
