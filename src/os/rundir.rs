//! The runtime directory: who may be in it, what stands in it, under which names.

mod names;
mod owner;
mod spares;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use thiserror::Error;

use crate::core::job::Incarnation;

pub use names::is_of_a_run;
use names::{OLD_PAGE, SPARE};
pub use owner::Owner;

/// Why a runtime directory cannot be used.
#[derive(Debug, Error)]
pub enum RundirError {
    /// It could not be created, or something in it.
    #[error("cannot create {path}: {source}")]
    Create {
        /// What could not be created.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It belongs to somebody else, or must not be entered.
    #[error("no permission to use the runtime directory {path}: {why}")]
    Permission {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A directory stands where a run makes a file.
    #[error("cannot clean up: {path} is a directory, and osps makes none there: move it away")]
    Obstacle {
        /// What is in the way.
        path: PathBuf,
    },
    /// What a run has left cannot be removed.
    #[error("cannot remove {path}: {source}")]
    Remove {
        /// What it has left.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A watchdog runs there already.
    #[error("already running in {path}, as pid {pid}")]
    AlreadyRunning {
        /// The directory.
        path: PathBuf,
        /// Its watchdog, as far as it told.
        pid: String,
    },
}

/// A runtime directory, by path.
#[derive(Clone, Debug)]
pub struct Rundir {
    path: PathBuf,
}

/// Held by the running watchdog: a lock of its process (fcntl(2)), which ends with it and can be
/// asked about without being taken. A lock of the open file would be shared with a child that has
/// not executed its program yet, and would outlive a watchdog that is killed just then. On the
/// other hand this one ends when its process closes any descriptor of the file: the watchdog
/// opens it once.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Changes whenever anything in a directory is created, removed or renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// The files of one secondary that are new for every incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PerIncarnation {
    Page,
    ToSecondary,
    FromSecondary,
    Orders,
}

const PER_INCARNATION: [PerIncarnation; 4] = [
    PerIncarnation::Page,
    PerIncarnation::ToSecondary,
    PerIncarnation::FromSecondary,
    PerIncarnation::Orders,
];

impl Rundir {
    /// The directory under that path, which need not exist yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Creates the directory where needed (mode 0700) and makes sure that it is ours, or that of
    /// the user to whom root hands it.
    ///
    /// # Errors
    /// [`RundirError::Create`] or [`RundirError::Permission`].
    pub fn prepare(path: &Path, user: Option<u32>) -> Result<Self, RundirError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => permission(path, &source),
            _ => RundirError::Create { path: path.to_owned(), source },
        })?;
        owner::check(path, user)?;
        let path = fs::canonicalize(path).map_err(|error| permission(path, &error))?;
        Ok(Self { path })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory again, where it was removed under a running system.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn restore(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Whether this lock is the one that others meet: its name may have been removed.
    ///
    /// # Errors
    /// What `stat(2)` says.
    pub fn holds(&self, lock: &Lock) -> io::Result<bool> {
        let own = lock.file.metadata()?;
        match fs::metadata(self.file("lock")) {
            Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the directory is like now.
    ///
    /// # Errors
    /// What `stat(2)` says.
    pub fn seen(&self) -> io::Result<Seen> {
        let found = fs::metadata(&self.path)?;
        let changed = (found.ctime(), found.ctime_nsec());
        Ok(Seen { device: found.dev(), inode: found.ino(), changed })
    }

    /// Takes the lock that makes this process the only watchdog here.
    ///
    /// # Errors
    /// [`RundirError::AlreadyRunning`], [`RundirError::Create`].
    pub fn lock(&self) -> Result<Lock, RundirError> {
        let path = self.file("lock");
        let create = |source| RundirError::Create { path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| match fs::symlink_metadata(&path) {
                Ok(found) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let why = format!("its lock belongs to user {}: remove {}", found.uid(), path.display());
                    permission(&self.path, &why)
                }
                _ => create(error),
            })?;
        let found = file.metadata().map_err(create)?;
        if !found.is_file() || found.nlink() > 1 {
            // Root may hand it to another user, who may have put it there.
            return Err(permission(&self.path, &"its lock is not a file of its own"));
        }
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Lock { file }),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                let pid = self.watchdog_pid().unwrap_or_else(|| "(not yet written)".to_owned());
                Err(RundirError::AlreadyRunning { path: self.path.clone(), pid })
            }
            Err(error) => Err(create(error.into())),
        }
    }

    /// The pid of whoever holds the lock; `None` where nobody does, or it cannot be told.
    #[must_use]
    pub fn lock_holder(&self) -> Option<u32> {
        let file = OpenOptions::new().read(true).write(true).open(self.file("lock")).ok()?;
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).ok()?;
        (i32::from(lock.l_type) != libc::F_UNLCK).then_some(u32::try_from(lock.l_pid).unwrap_or(0))
    }

    /// Whether a watchdog holds the lock. Asks only: a start at the same moment is not disturbed.
    ///
    /// # Errors
    /// What `open(2)` or `fcntl(2)` say, a missing lock apart.
    pub fn is_locked(&self) -> io::Result<bool> {
        let file = match OpenOptions::new().read(true).write(true).open(self.file("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// The pid in `watchdog.pid`, as text.
    #[must_use]
    pub fn watchdog_pid(&self) -> Option<String> {
        let text = fs::read_to_string(self.watchdog_pid_file()).ok()?;
        Some(text.trim().to_owned())
    }

    /// `watchdog.pid`: the watchdog's pid in decimal and a newline.
    #[must_use]
    pub fn watchdog_pid_file(&self) -> PathBuf {
        self.file("watchdog.pid")
    }

    /// `control`: the Unix socket of `osps stop`.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.file("control")
    }

    /// `watchdog.page`.
    #[must_use]
    pub fn watchdog_page(&self) -> PathBuf {
        self.file("watchdog.page")
    }

    /// `principal.page`.
    #[must_use]
    pub fn principal_page(&self) -> PathBuf {
        self.file("principal.page")
    }

    /// `orders.principal`.
    #[must_use]
    pub fn principal_orders(&self) -> PathBuf {
        self.file("orders.principal")
    }

    /// `orders.principal.<incarnation>`: those of a principal that is to succeed the one that serves.
    #[must_use]
    pub fn candidate_orders(&self, incarnation: Incarnation) -> PathBuf {
        self.file(&format!("orders.principal.{incarnation}"))
    }

    /// `observer.page`.
    #[must_use]
    pub fn observer_page(&self) -> PathBuf {
        self.file("observer.page")
    }

    /// `orders.observer`.
    #[must_use]
    pub fn observer_orders(&self) -> PathBuf {
        self.file("orders.observer")
    }

    /// `secondary<n>.jobs`: the job table, which belongs to the slot.
    #[must_use]
    pub fn jobs(&self, slot: u16) -> PathBuf {
        self.file(&format!("secondary{slot}.jobs"))
    }

    /// `secondary<n>.page`.
    #[must_use]
    pub fn secondary_page(&self, slot: u16) -> PathBuf {
        self.secondary_file(slot, PerIncarnation::Page, None)
    }

    /// `dwtube<n>`: from the principal to secondary n.
    #[must_use]
    pub fn to_secondary(&self, slot: u16) -> PathBuf {
        self.secondary_file(slot, PerIncarnation::ToSecondary, None)
    }

    /// `wdtube<n>`: from secondary n to the principal.
    #[must_use]
    pub fn from_secondary(&self, slot: u16) -> PathBuf {
        self.secondary_file(slot, PerIncarnation::FromSecondary, None)
    }

    /// `orders.<n>`: from the watchdog to secondary n.
    #[must_use]
    pub fn secondary_orders(&self, slot: u16) -> PathBuf {
        self.secondary_file(slot, PerIncarnation::Orders, None)
    }

    /// `wdtube<n>.<incarnation>`: the same, of a predecessor that still finishes.
    #[must_use]
    pub fn from_predecessor(&self, slot: u16, incarnation: Incarnation) -> PathBuf {
        self.secondary_file(slot, PerIncarnation::FromSecondary, Some(incarnation))
    }

    /// `secondary<n>.<incarnation>.page`.
    #[must_use]
    pub fn predecessor_page(&self, slot: u16, incarnation: Incarnation) -> PathBuf {
        self.secondary_file(slot, PerIncarnation::Page, Some(incarnation))
    }

    /// Gives the files of a secondary that drains the name of its incarnation, so that
    /// its successor can have theirs. What is not there is passed over.
    ///
    /// # Errors
    /// What `rename(2)` says.
    pub fn retire_secondary(&self, slot: u16, incarnation: Incarnation) -> io::Result<()> {
        for kind in PER_INCARNATION {
            let from = self.secondary_file(slot, kind, None);
            let to = self.secondary_file(slot, kind, Some(incarnation));
            unless_missing(fs::rename(from, to))?;
        }
        Ok(())
    }

    /// Removes the files of a secondary that has ended; `None` means those under the
    /// plain names.
    ///
    /// # Errors
    /// What `unlink(2)` says.
    pub fn remove_secondary(&self, slot: u16, incarnation: Option<Incarnation>) -> io::Result<()> {
        for kind in PER_INCARNATION {
            remove(&self.secondary_file(slot, kind, incarnation))?;
        }
        Ok(())
    }

    /// Puts the page of a dead watchdog out of sight of tools while its run is cleaned up.
    ///
    /// # Errors
    /// What `rename(2)` says.
    pub fn retire_watchdog_page(&self) -> io::Result<()> {
        unless_missing(fs::rename(self.watchdog_page(), self.file(OLD_PAGE)))
    }

    /// The paths of all pages that stand here, to find out who is left of a crashed run.
    ///
    /// # Errors
    /// What `readdir(3)` says.
    pub fn pages(&self) -> io::Result<Vec<PathBuf>> {
        let mut pages = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            // A link of a watchdog that is no more leads nowhere, or to a stranger's descriptor.
            let is_file = entry.file_type()?.is_file();
            let is_spare = entry.file_name().to_str().is_some_and(|name| name.starts_with(SPARE));
            if is_file && !is_spare && path.extension().is_some_and(|extension| extension == "page") {
                pages.push(path);
            }
        }
        Ok(pages)
    }

    fn secondary_file(&self, slot: u16, kind: PerIncarnation, of: Option<Incarnation>) -> PathBuf {
        let incarnation = of.map(|incarnation| format!(".{incarnation}")).unwrap_or_default();
        self.file(&match kind {
            PerIncarnation::Page => format!("secondary{slot}{incarnation}.page"),
            PerIncarnation::ToSecondary => format!("dwtube{slot}{incarnation}"),
            PerIncarnation::FromSecondary => format!("wdtube{slot}{incarnation}"),
            PerIncarnation::Orders => format!("orders.{slot}{incarnation}"),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Removes a file that may not be there.
///
/// # Errors
/// What `unlink(2)` says, `ENOENT` apart.
pub fn remove(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(path))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn permission(path: &Path, why: &dyn ToString) -> RundirError {
    RundirError::Permission { path: path.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_lock_excludes_a_second_watchdog_and_can_be_asked_about() {
        let dir = tempfile::tempdir().unwrap();
        let rundir = Rundir::prepare(&dir.path().join("deep/run"), None).unwrap();
        assert!(!rundir.is_locked().unwrap());
        // A process never excludes itself: a lock of the open file stands for the other one.
        let other = File::create(dir.path().join("deep/run/lock")).unwrap();
        fcntl(&other, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).unwrap();
        assert!(rundir.is_locked().unwrap());
        fs::write(rundir.watchdog_pid_file(), "4711\n").unwrap();
        let error = rundir.lock().unwrap_err().to_string();
        assert!(error.contains("4711"), "{error}");
        drop(other);
        assert!(!rundir.is_locked().unwrap());
        let lock = rundir.lock().unwrap();
        assert!(rundir.is_locked().unwrap());
        drop(lock);
        assert!(!rundir.is_locked().unwrap());
    }

    #[test]
    fn a_directory_that_is_used_for_other_things_is_not_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let mode = || fs::metadata(dir.path()).unwrap().mode() & 0o777;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = Rundir::prepare(dir.path(), None).unwrap_err();
        assert!(matches!(error, RundirError::Permission { .. }), "{error}");
        assert_eq!(mode(), 0o755);
        fs::remove_file(dir.path().join("thesis.tex")).unwrap();
        Rundir::prepare(dir.path(), None).unwrap();
        assert_eq!(mode(), 0o700);
    }
}
