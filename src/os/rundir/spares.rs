//! Names of files for secondaries to come, and what becomes of them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use crate::os::rundir::names::SPARE;
use crate::os::rundir::{PER_INCARNATION, PerIncarnation, Rundir};

impl Rundir {
    /// `.spare<set>.page`: the page of a secondary to come.
    #[must_use]
    pub fn spare_page(&self, set: u16) -> PathBuf {
        self.spare_file(set, PerIncarnation::Page)
    }

    /// `.spare<set>.dwtube`, `.spare<set>.wdtube` and `.spare<set>.orders`: its FIFOs.
    #[must_use]
    pub fn spare_fifos(&self, set: u16) -> [PathBuf; 3] {
        [PerIncarnation::ToSecondary, PerIncarnation::FromSecondary, PerIncarnation::Orders]
            .map(|kind| self.spare_file(set, kind))
    }

    /// Whether the files of a set are there and are what they should be: nothing else, a directory least of all, shall get
    /// the names of a secondary's.
    #[must_use]
    pub fn has_spare(&self, set: u16) -> bool {
        PER_INCARNATION.iter().all(|&kind| {
            self.spare_file(set, kind).symlink_metadata().is_ok_and(|found| {
                let is_page = kind == PerIncarnation::Page;
                let is_of_kind = if is_page { found.is_file() } else { found.file_type().is_fifo() };
                is_of_kind && found.nlink() == 1 && found.mode() & 0o077 == 0
            })
        })
    }

    /// Gives the files of a set the names of a secondary's. What stands there under these names is removed by that.
    ///
    /// # Errors
    /// What `rename(2)` says: then some have been given their names, and the others have not.
    pub fn give_spare(&self, set: u16, slot: u16) -> io::Result<()> {
        for kind in PER_INCARNATION {
            fs::rename(self.spare_file(set, kind), self.secondary_file(slot, kind, None))?;
        }
        Ok(())
    }

    fn spare_file(&self, set: u16, kind: PerIncarnation) -> PathBuf {
        self.file(&match kind {
            PerIncarnation::Page => format!("{SPARE}{set}.page"),
            PerIncarnation::ToSecondary => format!("{SPARE}{set}.dwtube"),
            PerIncarnation::FromSecondary => format!("{SPARE}{set}.wdtube"),
            PerIncarnation::Orders => format!("{SPARE}{set}.orders"),
        })
    }
}
