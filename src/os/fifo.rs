//! Named FIFOs that carry one command per line (fifo(7), pipe(7)).
//!
//! Both ends are opened read-write and non-blocking: opening never fails for want of
//! a peer (`ENXIO`), and a reader sees no end of file while no writer is there. A
//! write is never longer than `PIPE_BUF`, hence atomic. A FIFO may fill: then the
//! lines that do not fit are dropped and one [`Command::Resync`] takes their place.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use mio::Interest;
use mio::unix::SourceFd;
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};

use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::wire::lines::Lines;
use crate::wire::tube::Command;

/// POSIX: writes of at most this many bytes are atomic on Linux (pipe(7)).
const PIPE_BUF: usize = 4096;
/// What is kept for a FIFO that is full, before it is given up for a `resync`.
const PENDING_LIMIT: usize = 16 * 1024;
/// What is read in one turn before others get theirs.
const READ_BUDGET: usize = 16 * 1024;

/// Creates a FIFO with mode 0600.
///
/// # Errors
/// What `mkfifo(3)` says, `AlreadyExists` included.
pub fn create(path: &Path) -> io::Result<()> {
    Ok(mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?)
}

/// Opens one end; which end it is, is a matter of use.
///
/// # Errors
/// What `open(2)` says.
pub fn open_end(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(open(path, flags, Mode::empty())?))
}

/// The reading end.
#[derive(Debug)]
pub struct Reader {
    file: File,
    watched: Option<SourceId>,
    lines: Lines,
}

impl Reader {
    /// Opens a FIFO for reading.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(open_end(path)?.into())
    }

    /// Runs `with` on the mio source of this end, to register or deregister it.
    pub fn with_source<T>(&self, with: impl FnOnce(&mut SourceFd<'_>) -> T) -> T {
        with(&mut SourceFd(&self.file.as_raw_fd()))
    }

    /// Has the reactor call `key` when there are lines.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch<K: Copy>(&mut self, reactor: &mut Handle<K>, key: K) -> io::Result<()> {
        self.watched = Some(self.with_source(|source| reactor.register(source, key, Interest::READABLE))?);
        Ok(())
    }

    /// Ends that; must come before it is dropped.
    pub fn unwatch<K: Copy>(&mut self, reactor: &mut Handle<K>) {
        if let Some(id) = self.watched.take() {
            self.with_source(|source| reactor.deregister(source, id));
        }
    }

    /// Hands on every complete line that is there, within the budget of one turn.
    ///
    /// # Errors
    /// What `read(2)` says.
    pub fn read(&mut self, mut line: impl FnMut(&[u8])) -> io::Result<Progress> {
        let mut buffer = [0; PIPE_BUF];
        let mut taken = 0;
        while taken < READ_BUDGET {
            match self.file.read(&mut buffer) {
                Ok(length) => {
                    self.lines.feed(&buffer[..length], &mut line);
                    taken += length;
                    // A short read has emptied the pipe: the next write makes a new edge.
                    if length < buffer.len() {
                        return Ok(Progress::Drained);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Drained);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Again)
    }
}

/// One end, as [`open_end`] gives it.
impl From<File> for Reader {
    fn from(file: File) -> Self {
        Self { file, watched: None, lines: Lines::default() }
    }
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is in the FIFO.
    All,
    /// The FIFO is full: flush again when it is writable.
    Full,
}

/// The writing end.
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// Registered once the FIFO was full.
    watched: Option<SourceId>,
    pending: Vec<u8>,
    overflowed: bool,
}

/// One end, as [`open_end`] gives it.
impl From<File> for Writer {
    fn from(file: File) -> Self {
        Self { file, watched: None, pending: Vec::new(), overflowed: false }
    }
}

impl Writer {
    /// Opens a FIFO for writing.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(open_end(path)?.into())
    }

    /// Runs `with` on the mio source of this end, to register or deregister it.
    pub fn with_source<T>(&self, with: impl FnOnce(&mut SourceFd<'_>) -> T) -> T {
        with(&mut SourceFd(&self.file.as_raw_fd()))
    }

    /// Queues a command for the next flush. Where too much is queued already, the lines about
    /// jobs are dropped for one `resync`: the table tells what they would have told.
    pub fn push(&mut self, command: Command) {
        if self.pending.len() > PENDING_LIMIT {
            self.overflow();
        }
        if self.pending.is_empty() {
            self.pending.push(b'\n');
        }
        command.write_to(&mut self.pending);
    }

    /// Keeps only what the table does not tell.
    fn overflow(&mut self) {
        self.overflowed = true;
        let dropped = std::mem::take(&mut self.pending);
        Command::Resync.write_to(&mut self.pending);
        for command in dropped.split(|&byte| byte == b'\n').filter_map(|line| Command::parse(line).ok()) {
            match command {
                Command::Ready | Command::Draining | Command::Recycling | Command::Stop | Command::Leave => {
                    command.write_to(&mut self.pending);
                }
                Command::Job(_)
                | Command::Resync
                | Command::Debut(_)
                | Command::Fin(_)
                | Command::Err(_)
                | Command::Uninvited { .. }
                | Command::Ping(_)
                | Command::Pong(_) => {}
            }
        }
    }

    /// Whether something waits to be flushed.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether lines were dropped since the last call.
    pub fn take_overflowed(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }

    /// Writes what is queued; where the FIFO is full, has the reactor call `key` when there
    /// is room. What goes wrong is logged: the table has what the lines would have told.
    pub fn flush_or_watch<K: Copy>(&mut self, reactor: &mut Handle<K>, key: K) {
        match self.flush() {
            Ok(Flushed::Full) if self.watched.is_none() => {
                let registered = self.with_source(|source| reactor.register(source, key, Interest::WRITABLE));
                self.watched =
                    registered.inspect_err(|error| log::warn!("cannot watch a tube: {error}")).ok();
            }
            Ok(Flushed::All | Flushed::Full) => {}
            Err(error) => log::warn!("cannot write to a tube: {error}"),
        }
    }

    /// Ends the watching; must come before it is dropped.
    pub fn unwatch<K: Copy>(&mut self, reactor: &mut Handle<K>) {
        if let Some(id) = self.watched.take() {
            self.with_source(|source| reactor.deregister(source, id));
        }
    }

    /// Writes what is queued, whole lines at a time.
    ///
    /// # Errors
    /// What `write(2)` says.
    pub fn flush(&mut self) -> io::Result<Flushed> {
        while !self.pending.is_empty() {
            let chunk = whole_lines(&self.pending);
            match self.file.write(&self.pending[..chunk]) {
                Ok(written) => {
                    self.pending.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Full),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Flushed::All)
    }
}

/// A FIFO is ready for whatever it is asked: used to come back to one that was left early.
pub const READABLE: Ready = Ready { readable: true, writable: false, read_closed: false };

/// How many bytes of whole lines fit into one atomic write.
fn whole_lines(pending: &[u8]) -> usize {
    if pending.len() <= PIPE_BUF {
        return pending.len();
    }
    pending[..PIPE_BUF].iter().rposition(|&byte| byte == b'\n').map_or(PIPE_BUF, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tube::JobRef;

    fn pair() -> (tempfile::TempDir, Reader, Writer) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tube");
        create(&path).unwrap();
        let (reader, writer) = (Reader::open(&path).unwrap(), Writer::open(&path).unwrap());
        (dir, reader, writer)
    }

    fn read_all(reader: &mut Reader) -> Vec<Command> {
        let mut commands = Vec::new();
        while reader.read(|line| commands.push(Command::parse(line).unwrap())).unwrap() == Progress::Again {}
        commands
    }

    fn job(number: u64) -> Command {
        Command::Job(JobRef { index: 7, number })
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (_dir, mut reader, mut writer) = pair();
        for number in 0..1000 {
            writer.push(job(number));
        }
        assert_eq!(writer.flush().unwrap(), Flushed::All);
        assert_eq!(read_all(&mut reader), (0..1000).map(job).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_fifo_keeps_what_fits_and_says_resync_for_the_rest() {
        let (_dir, mut reader, mut writer) = pair();
        let mut number = 0;
        while !writer.take_overflowed() {
            writer.push(job(number));
            writer.flush().unwrap();
            number += 1;
            assert!(number < 1_000_000, "the FIFO never filled");
        }
        assert_eq!(writer.flush().unwrap(), Flushed::Full);
        let before = read_all(&mut reader);
        assert_eq!(before, (0..before.len() as u64).map(job).collect::<Vec<_>>());
        assert_eq!(writer.flush().unwrap(), Flushed::All);
        assert_eq!(read_all(&mut reader), [Command::Resync, job(number - 1)]);
    }

    #[test]
    fn what_the_table_does_not_tell_survives_an_overflow() {
        let (_dir, mut reader, mut writer) = pair();
        while writer.flush().unwrap() == Flushed::All {
            writer.push(job(1));
        }
        writer.push(Command::Draining);
        while !writer.take_overflowed() {
            writer.push(job(2));
        }
        read_all(&mut reader);
        assert_eq!(writer.flush().unwrap(), Flushed::All);
        assert_eq!(read_all(&mut reader), [Command::Resync, Command::Draining, job(2)]);
    }

    #[test]
    fn an_end_opens_without_its_peer_and_an_empty_fifo_is_no_end_of_file() {
        let (_dir, mut reader, writer) = pair();
        drop(writer);
        assert_eq!(read_all(&mut reader), []);
    }
}
