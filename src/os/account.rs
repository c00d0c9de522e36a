//! Users and groups by name, as the system knows them (`getpwnam(3)`, `getgrnam(3)`).

use std::ffi::{CString, OsString};
use std::io;

use nix::unistd::{Group, User, getgrouplist};

use crate::os::process::Identity;

/// A user, with the group that it has by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
}

/// A user by its name, or by its number where that has an entry.
///
/// # Errors
/// `NotFound`, or what the system's databases say.
pub fn user(name: &str) -> io::Result<Account> {
    let by_number = |name: &str| name.parse().ok().map(|number: u32| User::from_uid(number.into()));
    let found = match User::from_name(name)? {
        Some(user) => Some(user),
        None => by_number(name).transpose()?.flatten(),
    };
    let found = found.ok_or(io::ErrorKind::NotFound)?;
    Ok(Account { uid: found.uid.as_raw(), gid: found.gid.as_raw() })
}

/// A user with all its groups, as `initgroups(3)` finds them.
///
/// # Errors
/// As [`user`].
pub fn identity(name: &str) -> io::Result<Identity> {
    let Account { uid, gid } = user(name)?;
    let entry = User::from_uid(uid.into())?.ok_or(io::ErrorKind::NotFound)?;
    let groups = getgrouplist(&CString::new(entry.name)?, gid.into())?;
    Ok(Identity { uid, gid, groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect() })
}

/// What `login(1)` tells a user's programs of the user: `HOME`, `USER`, `LOGNAME`, `SHELL`.
///
/// # Errors
/// As [`user`].
pub fn variables(name: &str) -> io::Result<[(&'static str, OsString); 4]> {
    let Account { uid, .. } = user(name)?;
    let entry = User::from_uid(uid.into())?.ok_or(io::ErrorKind::NotFound)?;
    let name = OsString::from(entry.name);
    Ok([("HOME", entry.dir.into()), ("USER", name.clone()), ("LOGNAME", name), ("SHELL", entry.shell.into())])
}

/// The number of a group by its name, or by its number where that has an entry.
///
/// # Errors
/// `NotFound`, or what the system's databases say.
pub fn group(name: &str) -> io::Result<u32> {
    let by_number = |name: &str| name.parse().ok().map(|number: u32| Group::from_gid(number.into()));
    let found = match Group::from_name(name)? {
        Some(group) => Some(group),
        None => by_number(name).transpose()?.flatten(),
    };
    Ok(found.ok_or(io::ErrorKind::NotFound)?.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_everywhere() {
        assert_eq!(user("root").unwrap(), Account { uid: 0, gid: 0 });
        assert_eq!(user("0").unwrap().uid, 0);
        assert_eq!(group("root").unwrap(), 0);
        assert_eq!(user("nobody at all").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(group("no such group").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
