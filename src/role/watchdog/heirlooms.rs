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
use crate::page::watchdog::WatchdogPage;

/// What a principal inherits of shared memory.
pub struct Heirlooms {
    /// To read only.
    pub watchdog_page: File,
    /// The principal's own.
    pub principal_page: File,
    /// In the order of the slots.
    pub tables: Vec<File>,
    capacity: usize,
    /// Request types that were ever known.
    types: usize,
    /// All of them, with their names.
    names: Vec<(PathBuf, RawFd)>,
}

impl Heirlooms {
    /// Opens the pages that were just created.
    pub fn open(rundir: &Rundir, slots: u16, types: usize, capacity: usize) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let watchdog_page = File::open(rundir.watchdog_page())?;
        let principal_page = open(&rundir.principal_page())?;
        let tables = (1..=slots).map(|slot| open(&rundir.jobs(slot))).collect::<io::Result<Vec<_>>>()?;
        let jobs = (1..=slots).map(|slot| rundir.jobs(slot)).zip(tables.iter().map(File::as_raw_fd));
        let mut names: Vec<(PathBuf, RawFd)> = jobs.collect();
        names.push((rundir.watchdog_page(), watchdog_page.as_raw_fd()));
        names.push((rundir.principal_page(), principal_page.as_raw_fd()));
        Ok(Self { watchdog_page, principal_page, tables, capacity, types, names })
    }

    /// How many slots there were ever.
    pub fn slots(&self) -> usize {
        self.tables.len()
    }

    /// Makes the job tables of more slots, and says in the pages that there are so many slots and types. Whoever has
    /// mapped them sees it.
    pub fn grow(
        &mut self,
        rundir: &Rundir,
        pages: (&WatchdogPage, &PrincipalPage),
        slots: u16,
        types: usize,
    ) -> io::Result<()> {
        while self.tables.len() < usize::from(slots) {
            let slot = u16::try_from(self.tables.len() + 1).map_err(io::Error::other)?;
            let path = rundir.jobs(slot);
            crate::os::rundir::remove(&path)?;
            JobTable::create(&path, self.capacity).map_err(io::Error::other)?;
            let table = OpenOptions::new().read(true).write(true).open(&path)?;
            self.names.push((path, table.as_raw_fd()));
            self.tables.push(table);
        }
        self.types = self.types.max(types);
        pages.0.grow(self.slots());
        pages.1.grow(self.slots(), self.types);
        Ok(())
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
        principal_page.restore_header(self.slots(), self.types);
        self.tables.iter().try_for_each(|table| JobTable::restore(table, self.capacity))
    }
}
