//! The pages that outlive a principal, held open: whoever removes their names takes nothing
//! from the next one.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

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
}

impl Heirlooms {
    /// Opens the pages that were just created.
    pub fn open(rundir: &Rundir, slots: u16, capacity: usize) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        Ok(Self {
            watchdog_page: File::open(rundir.watchdog_page())?,
            principal_page: open(&rundir.principal_page())?,
            tables: (1..=slots).map(|slot| open(&rundir.jobs(slot))).collect::<io::Result<_>>()?,
            capacity,
        })
    }

    /// Makes sure that the next principal recognises its pages, whoever wrote into them.
    pub fn restore_headers(&self, principal_page: &PrincipalPage) -> io::Result<()> {
        principal_page.restore_header();
        self.tables.iter().try_for_each(|table| JobTable::restore(table, self.capacity))
    }
}
