//! The files of secondaries: those of the next ones are made while nobody waits for them.

use std::io;
use std::path::PathBuf;

use crate::os::fifo;
use crate::os::rundir::{self, Rundir};
use crate::page::PageError;
use crate::page::secondary::{Counts, SecondaryPage};
use crate::role::principal::{Principal, number};

/// Sets of files that are kept ready, at most: so many servers may die at once and have their successors soon.
const MOST: usize = 8;

/// Sets of files that need only be given their names, under `.spare<set>...` in the runtime directory. For what a new
/// file takes is the file system's affair: on ext4 0.06 ms, and a millisecond where thousands have just been removed and
/// it has no journal (it passes over each inode of the last minute then, `recently_deleted` in its `ialloc.c`); a
/// name takes 0.01 ms.
///
/// They outlive a principal, which may be killed between any two steps: the page is the first file to be made and to be
/// renamed, the FIFOs are the first to be removed.
#[derive(Debug)]
pub struct Spares {
    /// Which sets there are; the first has number 1.
    ready: Vec<bool>,
    /// Where the search for one that is missing begins: after one that could not be made, for something may be in its way.
    first: usize,
    /// Probes until it is tried again.
    pause: u32,
}

/// Probes that are let pass after a failure.
const PAUSE: u32 = 20;

impl Spares {
    /// Those that another principal has left; as many are kept as there are slots.
    pub fn found(rundir: &Rundir, slots: usize) -> Self {
        let ready = (0..slots.min(MOST)).map(|set| rundir.has_spare(number(set))).collect();
        Self { ready, first: 0, pause: 0 }
    }

    /// Makes one set, if one is missing. Called at each probe; whoever needs files where they cannot be made beforehand
    /// makes its own.
    pub fn make_one(&mut self, rundir: &Rundir) {
        self.pause = self.pause.saturating_sub(1);
        let sets = self.ready.len();
        let mut in_turn = (0..sets).map(|set| (set + self.first) % sets);
        let Some(missing) = in_turn.find(|&set| self.pause == 0 && !self.ready[set]) else {
            return;
        };
        match make(rundir, number(missing)) {
            Ok(()) => self.ready[missing] = true,
            Err(error) => {
                log::debug!("cannot make files for a secondary to come: {error}");
                self.first = missing + 1;
                self.pause = PAUSE;
                // A page without its block, or a FIFO without the others.
                let _ = remove(rundir, number(missing));
            }
        }
    }

    /// Gives a secondary the files of a set, in place of those that are there under its names; if there is a set that is as
    /// it was made.
    fn give(&mut self, rundir: &Rundir, slot: u16, before: Counts) -> Option<SecondaryPage> {
        while let Some(ready) = self.ready.iter().position(|&ready| ready) {
            self.ready[ready] = false;
            if rundir.has_spare(number(ready))
                && rundir.give_spare(number(ready), slot).is_ok()
                && let Ok(page) = SecondaryPage::create_of(&rundir.secondary_page(slot), slot, before)
            {
                return Some(page);
            }
        }
        None
    }

    /// Removes all of them.
    fn remove(&mut self, rundir: &Rundir) -> io::Result<()> {
        self.ready.fill(false);
        let removed = (0..self.ready.len()).map(|set| remove(rundir, number(set)));
        // All, before one is told of that cannot be removed.
        removed.fold(Ok(()), Result::and)
    }
}

/// The FIFOs come last: with them the set is whole.
fn make(rundir: &Rundir, set: u16) -> io::Result<()> {
    remove(rundir, set)?;
    SecondaryPage::prepare(&rundir.spare_page(set))?;
    rundir.spare_fifos(set).iter().try_for_each(|path| fifo::create(path))
}

fn remove(rundir: &Rundir, set: u16) -> io::Result<()> {
    rundir.spare_fifos(set).iter().chain([&rundir.spare_page(set)]).try_for_each(|path| rundir::remove(path))
}

fn fifos(rundir: &Rundir, slot: u16) -> [PathBuf; 3] {
    [rundir.to_secondary(slot), rundir.from_secondary(slot), rundir.secondary_orders(slot)]
}

impl Principal {
    /// New files for a new incarnation: what is left in the FIFOs of another is not read.
    pub(super) fn make_files(&mut self, slot: usize) -> Result<(), PageError> {
        let number = number(slot);
        let Self { core, slots, spares, rundir, .. } = self;
        core.books().tables()[slot].restore_header();
        let counts = slots[slot].counts;
        if spares.give(rundir, number, counts).is_some() {
            return Ok(());
        }
        let rundir = &*rundir;
        let io = |what| move |source| PageError::Io { what, path: rundir.path().to_owned(), source };
        rundir.restore().map_err(io("make again"))?;
        rundir.remove_secondary(number, None).map_err(io("clean"))?;
        SecondaryPage::create(&rundir.secondary_page(number), number, counts)?;
        for fifo in fifos(rundir, number) {
            fifo::create(&fifo).map_err(io("create FIFOs in"))?;
        }
        Ok(())
    }

    /// Removes what the last incarnations leave, when all have ended, and what was made for the next.
    pub(super) fn remove_files(&mut self) {
        for number in (0..self.slots.len()).map(number) {
            if let Err(error) = self.rundir.remove_secondary(number, None) {
                log::warn!("secondary {number}: cannot remove its files: {error}");
            }
            if let Err(error) = rundir::remove(&self.rundir.jobs(number)) {
                log::warn!("secondary {number}: cannot remove its job table: {error}");
            }
        }
        if let Err(error) = self.spares.remove(&self.rundir) {
            log::warn!("cannot remove the files of secondaries to come: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Access;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    fn rundir() -> (tempfile::TempDir, Rundir) {
        let dir = tempfile::tempdir().unwrap();
        let rundir = Rundir::prepare(dir.path(), None).unwrap();
        (dir, rundir)
    }

    const BEFORE: Counts = Counts { rejected: 1, admitted: 2, malformed: 3, recycled: 4 };

    fn files(dir: &tempfile::TempDir) -> usize {
        fs::read_dir(dir.path()).unwrap().count()
    }

    #[test]
    fn a_set_is_made_at_a_time_and_given_once() {
        let (dir, rundir) = rundir();
        let mut spares = Spares::found(&rundir, 2);
        assert!(spares.give(&rundir, 7, BEFORE).is_none());
        for made in [4, 8, 8] {
            spares.make_one(&rundir);
            assert_eq!(files(&dir), made);
        }
        fs::write(rundir.to_secondary(7), "a stale byte").unwrap();
        let inode = fs::metadata(rundir.spare_fifos(1)[0].clone()).unwrap().ino();
        assert_eq!(spares.give(&rundir, 7, BEFORE).unwrap().counts(), BEFORE);
        let tube = fs::metadata(rundir.to_secondary(7)).unwrap();
        assert!(tube.file_type().is_fifo() && tube.ino() == inode);
        for fifo in [rundir.from_secondary(7), rundir.secondary_orders(7)] {
            assert!(fs::metadata(fifo).unwrap().file_type().is_fifo());
        }
        let page = SecondaryPage::attach(&rundir.secondary_page(7), Access::ReadOnly).unwrap();
        assert_eq!((page.counts(), page.introduced()), (BEFORE, None));
        // Whoever comes after finds what is left.
        let mut next = Spares::found(&rundir, 2);
        assert_eq!(next.ready, [false, true]);
        next.give(&rundir, 8, BEFORE).unwrap();
        assert!(next.give(&rundir, 9, BEFORE).is_none() && spares.give(&rundir, 9, BEFORE).is_none());
        next.make_one(&rundir);
        next.remove(&rundir).unwrap();
        assert_eq!(files(&dir), 8, "those of two secondaries");
    }

    #[test]
    fn a_set_that_is_not_as_it_was_made_is_passed_over_and_made_again() {
        let (_dir, rundir) = rundir();
        let mut spares = Spares::found(&rundir, 5);
        (0..5).for_each(|_| spares.make_one(&rundir));
        fs::remove_file(rundir.spare_page(1)).unwrap();
        fs::remove_file(&rundir.spare_fifos(2)[2]).unwrap();
        fs::write(rundir.spare_page(3), "").unwrap();
        let length = usize::try_from(fs::metadata(rundir.spare_page(4)).unwrap().len()).unwrap();
        fs::write(rundir.spare_page(4), vec![1; length]).unwrap();
        let inode = fs::metadata(rundir.spare_page(5)).unwrap().ino();
        spares.give(&rundir, 1, BEFORE).unwrap();
        assert_eq!(fs::metadata(rundir.secondary_page(1)).unwrap().ino(), inode);
        assert!(spares.ready.iter().all(|ready| !ready));
        fs::write(rundir.spare_page(1), "in the way").unwrap();
        spares.make_one(&rundir);
        fs::remove_file(&rundir.spare_fifos(1)[0]).unwrap();
        fs::write(&rundir.spare_fifos(1)[0], "no FIFO").unwrap();
        assert!(!Spares::found(&rundir, 5).ready[0] && spares.give(&rundir, 1, BEFORE).is_none());
    }

    #[test]
    fn what_is_no_file_of_ours_never_gets_the_name_of_a_secondarys() {
        let (dir, rundir) = rundir();
        let mut spares = Spares::found(&rundir, 4);
        (0..4).for_each(|_| spares.make_one(&rundir));
        let [page, fifo] = [rundir.spare_page(1), rundir.spare_fifos(2)[2].clone()];
        for path in [&page, &fifo] {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }
        fs::rename(rundir.spare_page(3), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", rundir.spare_page(3)).unwrap();
        fs::set_permissions(&rundir.spare_fifos(4)[0], fs::Permissions::from_mode(0o666)).unwrap();
        // Nothing has its names: rename(2) would move anything there.
        assert!(spares.give(&rundir, 1, BEFORE).is_none());
        assert!(page.is_dir() && fifo.is_dir() && !rundir.secondary_page(1).exists());
    }

    #[test]
    fn one_that_cannot_be_made_is_no_obstacle_to_the_others() {
        let (dir, rundir) = rundir();
        fs::create_dir(rundir.spare_page(1)).unwrap();
        let mut spares = Spares::found(&rundir, 3);
        spares.make_one(&rundir);
        assert_eq!(files(&dir), 1);
        (0..PAUSE + 1).for_each(|_| spares.make_one(&rundir));
        assert_eq!(spares.ready, [false, true, true]);
        assert!(spares.remove(&rundir).is_err());
        assert_eq!(files(&dir), 1);
    }

    #[test]
    fn where_none_can_be_made_there_is_none() {
        let (dir, rundir) = rundir();
        let mut spares = Spares::found(&rundir, 1);
        drop(dir);
        spares.make_one(&rundir);
        assert!(spares.give(&rundir, 1, BEFORE).is_none());
        assert!(spares.remove(&rundir).is_ok());
    }
}
