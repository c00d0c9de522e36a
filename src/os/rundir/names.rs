//! Which files of a runtime directory are of a run, and go with it.

use std::fs::{self, DirEntry};
use std::io;

use crate::os::rundir::{Rundir, RundirError, remove};

/// What a dead watchdog's page is called while its run is cleaned up.
pub(super) const OLD_PAGE: &str = "watchdog.old.page";

/// What the names of files begin with that are nobody's yet.
pub(super) const SPARE: &str = ".spare";

/// Names that every run makes.
const NAMES: [&str; 8] = [
    "watchdog.pid",
    "control",
    "watchdog.page",
    "principal.page",
    "observer.page",
    "orders.principal",
    "orders.observer",
    OLD_PAGE,
];

/// Whether a run of osps makes files of that name (the lock apart, which stays).
#[must_use]
pub fn is_of_a_run(name: &str) -> bool {
    let numbered = |prefix: &str, suffix: &str| {
        name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix)).is_some_and(|middle| {
            !middle.is_empty() && middle.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
    };
    NAMES.contains(&name)
        || numbered("secondary", ".page")
        || numbered("secondary", ".jobs")
        || numbered("dwtube", "")
        || numbered("wdtube", "")
        || numbered("orders.", "")
        || numbered("orders.principal.", "")
        || [".page", ".dwtube", ".wdtube", ".orders"].iter().any(|suffix| numbered(SPARE, suffix))
}

impl Rundir {
    /// Whether all that bears the name of a file of a run can be removed as one. To be asked before anything is
    /// changed: a directory there holds what somebody else has put into it.
    ///
    /// # Errors
    /// [`RundirError::Obstacle`], [`RundirError::Remove`] where that cannot be found out.
    pub fn refuse_obstacles(&self) -> Result<(), RundirError> {
        let failed = |source| RundirError::Remove { path: self.path().to_owned(), source };
        for entry in self.of_runs().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                return Err(RundirError::Obstacle { path: entry.path() });
            }
        }
        Ok(())
    }

    /// Removes whatever a run leaves, the lock and strangers' files apart.
    ///
    /// # Errors
    /// [`RundirError::Remove`] names what cannot be removed.
    pub fn clean(&self) -> Result<(), RundirError> {
        let failed = |path, source| RundirError::Remove { path, source };
        for entry in self.of_runs().map_err(|error| failed(self.path().to_owned(), error))? {
            let path = entry.map_err(|error| failed(self.path().to_owned(), error))?.path();
            remove(&path).map_err(|error| failed(path, error))?;
        }
        Ok(())
    }

    /// What stands there under the name of a file of a run.
    fn of_runs(&self) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
        let is_of_a_run = |entry: &DirEntry| entry.file_name().to_str().is_some_and(is_of_a_run);
        Ok(fs::read_dir(self.path())?.filter(move |entry| entry.as_ref().map_or(true, is_of_a_run)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_removes_what_a_run_makes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let rundir = Rundir::prepare(dir.path(), None).unwrap();
        let ours = [
            "control",
            "watchdog.pid",
            "watchdog.page",
            "principal.page",
            "orders.principal",
            "observer.page",
            "orders.observer",
            "orders.1",
            "orders.1.7",
            "secondary1.page",
            "secondary1.7.page",
            "secondary12.jobs",
            "dwtube1",
            "wdtube1.7",
            ".spare1.page",
            ".spare8.dwtube",
            ".spare8.wdtube",
            ".spare12.orders",
        ];
        let others = [
            "lock",
            "notes.txt",
            "dwtube",
            "secondary.page",
            "secondaryx.page",
            "osps.toml",
            ".spare",
            ".spare.page",
            ".spare1",
            ".spare1.jobs",
        ];
        for name in ours.iter().chain(&others) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        rundir.refuse_obstacles().unwrap();
        rundir.clean().unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = others.map(str::to_owned);
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let rundir = Rundir::prepare(dir.path(), None).unwrap();
        fs::create_dir(dir.path().join("pages")).unwrap();
        rundir.refuse_obstacles().unwrap();
        let obstacle = rundir.path().join("wdtube1.7");
        fs::create_dir(&obstacle).unwrap();
        let refused = rundir.refuse_obstacles().unwrap_err().to_string();
        let failed = rundir.clean().unwrap_err().to_string();
        for error in [refused, failed] {
            assert!(error.contains(obstacle.to_str().unwrap()), "{error}");
        }
    }
}
