//! The pages that outlive a principal, held open: whoever removes their names takes nothing
//! from the next one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::os::rundir::Rundir;
use crate::page::jobs::JobTable;
use crate::page::principal::PrincipalPage;

/// What a principal inherits of shared memory.
pub struct Heirlooms {
    /// To read only.
    pub watchdog_page: File,
    /// The principal's own.
    pub principal_page: File,
    /// In the order of the slots.
    pub tables: Vec<File>,
    capacity: usize,
    /// All of them, with their names.
    names: Vec<(PathBuf, RawFd)>,
}

impl Heirlooms {
    /// Opens the pages that were just created.
    pub fn open(rundir: &Rundir, slots: u16, capacity: usize) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let watchdog_page = File::open(rundir.watchdog_page())?;
        let principal_page = open(&rundir.principal_page())?;
        let tables = (1..=slots).map(|slot| open(&rundir.jobs(slot))).collect::<io::Result<Vec<_>>>()?;
        let jobs = (1..=slots).map(|slot| rundir.jobs(slot)).zip(tables.iter().map(File::as_raw_fd));
        let mut names: Vec<(PathBuf, RawFd)> = jobs.collect();
        names.push((rundir.watchdog_page(), watchdog_page.as_raw_fd()));
        names.push((rundir.principal_page(), principal_page.as_raw_fd()));
        Ok(Self { watchdog_page, principal_page, tables, capacity, names })
    }

    /// Makes the names again that have been removed, as symbolic links to what is open here: a
    /// file without any name can be given none (linkat(2) says ENOENT).
    /// Returns how many were missing.
    pub fn name_again(&self) -> io::Result<usize> {
        let mut missing = 0;
        for (path, fd) in &self.names {
            match symlink(format!("/proc/{}/fd/{fd}", std::process::id()), path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => {
                    other?;
                    missing += 1;
                }
            }
        }
        Ok(missing)
    }

    /// Makes sure that the next principal recognises its pages, whoever wrote into them.
    pub fn restore_headers(&self, principal_page: &PrincipalPage) -> io::Result<()> {
        principal_page.restore_header();
        self.tables.iter().try_for_each(|table| JobTable::restore(table, self.capacity))
    }
}
