//! Finding the program of a command, as a shell does: by its path, or in `PATH`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

/// An interpreter may be a script itself, so often (execve(2)).
const MOST_INTERPRETERS: usize = 4;
/// Where programs are looked for if `PATH` is not set (`execvp(3)`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Where a program may stand, by absolute paths. One with a slash is taken as it is, from `directory` on
/// where it is relative.
#[must_use]
pub fn candidates(name: &str, path: Option<&OsStr>, directory: &Path) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![directory.join(name)];
    }
    let places = std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)));
    places.map(|place| directory.join(place).join(name)).collect()
}

/// The first of these programs that can be executed.
///
/// # Errors
/// `NotFound`, `PermissionDenied` where it cannot be executed, and what `stat(2)` says.
pub fn find(candidates: &[PathBuf]) -> io::Result<&Path> {
    let mut why = io::ErrorKind::NotFound.into();
    for program in candidates {
        match executable(program, 0) {
            Ok(()) => return Ok(program),
            Err(error) if candidates.len() == 1 => return Err(error),
            // What stands there but cannot be executed is worth telling, if there is no other.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => why = error,
            Err(_) => {}
        }
    }
    Err(why)
}

/// Whether a directory can be the working directory.
///
/// # Errors
/// What `stat(2)` and `faccessat(2)` say; `NotADirectory`.
pub fn can_be_entered(directory: &Path) -> io::Result<()> {
    if !std::fs::metadata(directory)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(accessat(CWD, directory, Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// Whether a program can be executed, and its interpreter where it names one.
fn executable(program: &Path, depth: usize) -> io::Result<()> {
    if !std::fs::metadata(program)?.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // By whom this process is just now, for whom it may try it.
    accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS)?;
    // One that cannot be read can be executed all the same.
    let Some(head) = head(program) else {
        return Ok(());
    };
    let Some(interpreter) = interpreter(&head) else {
        if head.starts_with(b"\x7fELF") || has_other_formats() {
            return Ok(());
        }
        let what = "it is neither a program nor a script that begins with #!";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let found = if depth < MOST_INTERPRETERS { executable(&interpreter, depth + 1) } else { Ok(()) };
    found.map_err(|error| {
        io::Error::new(error.kind(), format!("its interpreter {}: {error}", interpreter.display()))
    })
}

/// What a program begins with.
fn head(program: &Path) -> Option<Vec<u8>> {
    let mut head = vec![0; 256];
    let length = File::open(program).ok()?.read(&mut head).ok()?;
    head.truncate(length);
    Some(head)
}

/// Whether this kernel was told of other formats of programs (binfmt_misc): beside them there are two files.
fn has_other_formats() -> bool {
    std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.count() > 2)
}

/// What the first line of a script names (execve(2)).
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let word = line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
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
            std::fs::write(place.join("work"), "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(place.join("work"), PermissionsExt::from_mode(mode)).unwrap();
        }
        let both = std::env::join_paths([&first, &second]).unwrap();
        let home = dir.path();
        assert_eq!(find(&candidates("work", Some(&both), home)).unwrap(), second.join("work"));
        assert_eq!(find(&candidates("second/work", None, home)).unwrap(), second.join("work"));
        let kind = |name: &str, path: &Path| {
            find(&candidates(name, Some(path.as_os_str()), home)).unwrap_err().kind()
        };
        assert_eq!(kind("work", &first), io::ErrorKind::PermissionDenied);
        assert_eq!(kind("first/work", &first), io::ErrorKind::PermissionDenied);
        assert_eq!(kind("first", home), io::ErrorKind::PermissionDenied, "a directory");
        assert_eq!(kind("rest", &second), io::ErrorKind::NotFound);
        std::fs::write(second.join("work"), "#! /no/such/interpreter -x\n").unwrap();
        let error = find(&candidates("second/work", None, home)).unwrap_err();
        assert!(error.to_string().contains("/no/such/interpreter"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        if !has_other_formats() {
            std::fs::write(second.join("work"), "echo\n").unwrap();
            let error = find(&candidates("second/work", None, home)).unwrap_err();
            assert!(error.to_string().contains("#!"), "{error}");
        }
        can_be_entered(&second).unwrap();
        assert_eq!(can_be_entered(&second.join("work")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
