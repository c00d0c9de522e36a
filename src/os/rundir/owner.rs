//! Whose a runtime directory is. Root makes it and may hand it to the user that the servers run as;
//! a later start of root's takes it back first: what is done by name in there must be done where
//! nobody else can put another file under that name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::Path;

use nix::libc;

use super::{Rundir, RundirError, is_of_a_run, permission, unless_missing};

/// A user and a group that files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Makes sure that a path, which others may have planted (as under `/tmp`), leads to a directory
/// that is ours to use: our own; for root also that of the user its servers run as, or one that
/// stands where only root can put anything.
pub(super) fn check(path: &Path, user: Option<u32>) -> Result<(), RundirError> {
    let denied = |error: io::Error| permission(path, &error);
    let found = fs::symlink_metadata(path).map_err(denied)?;
    let own = rustix::process::geteuid().as_raw();
    if found.is_symlink() && found.uid() != own {
        return Err(permission(path, &"a symbolic link of another user"));
    }
    let target = fs::metadata(path).map_err(denied)?;
    let handed_over = || own == 0 && (user == Some(target.uid()) || only_root_writes_beside(path));
    if target.uid() != own && !handed_over() {
        return Err(permission(path, &format!("it belongs to uid {}, not {own}", target.uid())));
    }
    let absolute = fs::canonicalize(path).map_err(denied)?;
    if target.mode() & 0o077 != 0 {
        close_to_others(&absolute)?;
    }
    Ok(())
}

fn only_root_writes_beside(path: &Path) -> bool {
    let parent = fs::canonicalize(path).ok().and_then(|path| fs::metadata(path.parent()?).ok());
    parent.is_some_and(|parent| parent.uid() == 0 && parent.mode() & 0o022 == 0)
}

/// Takes a directory that others may enter for ourselves, unless it is used for other things
/// already: nobody wants `/tmp` or a home closed by a slip in the configuration.
fn close_to_others(path: &Path) -> Result<(), RundirError> {
    let failed = |error: io::Error| permission(path, &error);
    let entries = fs::read_dir(path).map_err(failed)?;
    let names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    let is_ours = names.is_empty() || names.iter().any(|name| name == "lock");
    if !is_ours {
        return Err(permission(path, &"others may enter it and it holds other files: choose one of its own"));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}

impl Rundir {
    /// Takes the directory for ourselves. Returns whose it was, where it was another's.
    ///
    /// # Errors
    /// What `open(2)` or `fchown(2)` say.
    pub fn take(&self) -> io::Result<Option<Owner>> {
        let (directory, found) = self.open_directory()?;
        let own = rustix::process::geteuid().as_raw();
        if found.uid == own {
            return Ok(None);
        }
        fchown(&directory, Some(own), Some(rustix::process::getegid().as_raw()))?;
        Ok(Some(found))
    }

    /// Gives the directory and the lock to another user: it may still be at work there, or start
    /// again. The directory goes last: until then nobody else can exchange anything in it.
    ///
    /// # Errors
    /// What `open(2)` or `chown(2)` say.
    pub fn give(&self, owner: Owner) -> io::Result<()> {
        let (directory, _) = self.open_directory()?;
        unless_missing(lchown(self.file("lock"), Some(owner.uid), Some(owner.gid)))?;
        fchown(&directory, Some(owner.uid), Some(owner.gid))
    }

    /// Hands the directory to another user, with what this run has made in it.
    ///
    /// # Errors
    /// What `readdir(3)` or `chown(2)` say.
    pub fn hand_over(&self, owner: Owner) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_of_a_run) {
                unless_missing(lchown(entry.path(), Some(owner.uid), Some(owner.gid)))?;
            }
        }
        self.give(owner)
    }

    fn open_directory(&self) -> io::Result<(File, Owner)> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(&self.path)?;
        let found = directory.metadata()?;
        Ok((directory, Owner { uid: found.uid(), gid: found.gid() }))
    }
}
