//! Giving up root, for good (credentials(7)).

use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{
    AccessFlags, Gid, Uid, eaccess, getegid, geteuid, getgroups, getresgid, getresuid, setegid, seteuid,
    setgroups, setresgid, setresuid,
};

use crate::os::process::Identity;

/// Makes this process another user's: all its groups, then its group, then its user, each where
/// the kernel keeps it, and makes sure that there is no way back.
///
/// A change of user clears the parent-death signal (prctl(2)): whoever started us may have set one.
/// It also makes this process one that cannot be traced or dumped, which stays so: it was root's.
/// Programs that it executes are not concerned.
///
/// # Errors
/// `PermissionDenied`, or what the system calls say.
pub fn assume(identity: &Identity) -> io::Result<()> {
    let death_signal = prctl::get_pdeathsig()?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_pdeathsig(death_signal)?;
    let (users, group) = (getresuid()?, getresgid()?);
    let mut has = getgroups()?;
    let mut wanted = groups;
    for list in [&mut has, &mut wanted] {
        list.sort_by_key(|group| group.as_raw());
        list.dedup();
    }
    let is_it = [users.real, users.effective, users.saved] == [uid; 3]
        && [group.real, group.effective, group.saved] == [gid; 3]
        && has == wanted;
    let root = Uid::from_raw(0);
    if !is_it || !uid.is_root() && setresuid(root, root, root).is_ok() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "root was not given up"));
    }
    Ok(())
}

/// Does something as another user, then goes on as root. The parent-death signal and whether this
/// process can be dumped are left as they were, both of which such a change takes away (prctl(2)).
///
/// # Errors
/// What the system calls say on the way there. Where there is no way back the process ends: it must not
/// go on as half of somebody else.
pub fn try_as<T>(identity: &Identity, what: impl FnOnce() -> T) -> io::Result<T> {
    let _back = WayBack {
        user: geteuid(),
        group: getegid(),
        groups: getgroups()?,
        death_signal: prctl::get_pdeathsig()?,
        dumpable: prctl::get_dumpable()?,
    };
    let theirs: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&theirs)?;
    setegid(Gid::from_raw(identity.gid))?;
    seteuid(Uid::from_raw(identity.uid))?;
    Ok(what())
}

/// Who this process was.
struct WayBack {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
    death_signal: Option<Signal>,
    dumpable: bool,
}

impl Drop for WayBack {
    fn drop(&mut self) {
        // What was not changed need not be allowed.
        let _ = seteuid(self.user);
        let _ = setegid(self.group);
        let _ = setgroups(&self.groups);
        let is_back = (geteuid(), getegid()) == (self.user, self.group)
            && getgroups().is_ok_and(|groups| groups == self.groups)
            && prctl::set_dumpable(self.dumpable).is_ok()
            && prctl::set_pdeathsig(self.death_signal).is_ok();
        if !is_back {
            std::process::abort();
        }
    }
}

/// Whether this program can be executed again: each server is.
///
/// # Errors
/// What `faccessat(2)` says.
pub fn can_execute_itself() -> io::Result<()> {
    Ok(eaccess("/proc/self/exe", AccessFlags::X_OK)?)
}
