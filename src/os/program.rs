//! Finding the program of a command, as a shell does: by its path, or in `PATH`.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

/// Where programs are looked for if `PATH` is not set (`execvp(3)`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The absolute path of a program. One with a slash is taken as it is, from `directory` on where
/// it is relative.
///
/// # Errors
/// `NotFound`, `PermissionDenied` where it cannot be executed, and what `stat(2)` says.
pub fn find(name: &str, path: Option<&OsStr>, directory: &Path) -> io::Result<PathBuf> {
    if name.contains('/') {
        return executable(directory.join(name));
    }
    let mut found = Err(io::ErrorKind::NotFound.into());
    for place in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        match executable(directory.join(place).join(name)) {
            Ok(program) => return Ok(program),
            // What stands there but cannot be executed is worth telling, if there is no other.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found = Err(error),
            Err(_) => {}
        }
    }
    found
}

fn executable(program: PathBuf) -> io::Result<PathBuf> {
    if !std::fs::metadata(&program)?.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // By whom this process is just now, for whom it may try it.
    accessat(CWD, &program, Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_is_found_where_it_can_be_executed() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for (place, mode) in [(&first, 0o600), (&second, 0o700)] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("work"), "").unwrap();
            std::fs::set_permissions(place.join("work"), PermissionsExt::from_mode(mode)).unwrap();
        }
        let both = std::env::join_paths([&first, &second]).unwrap();
        let home = dir.path();
        assert_eq!(find("work", Some(&both), home).unwrap(), second.join("work"));
        assert_eq!(find("second/work", None, home).unwrap(), second.join("work"));
        let kind = |name: &str, path: &Path| find(name, Some(path.as_os_str()), home).unwrap_err().kind();
        assert_eq!(kind("work", &first), io::ErrorKind::PermissionDenied);
        assert_eq!(kind("first/work", &first), io::ErrorKind::PermissionDenied);
        assert_eq!(kind("first", home), io::ErrorKind::PermissionDenied, "a directory");
        assert_eq!(kind("rest", &second), io::ErrorKind::NotFound);
    }
}
