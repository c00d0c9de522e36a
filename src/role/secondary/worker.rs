//! A worker: a process that stays, with its three pipes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::Interest;
use mio::unix::SourceFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::ioctl_fionread;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::core::job::JobNumber;
use crate::core::mark::Start;
use crate::core::workers::{Place, Seat};
use crate::os::process::{Command, NotStarted};
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::os::stream::{Received, Unread, WRITE_BUDGET, write_some};
use crate::role::secondary::Key;
use crate::role::secondary::errors::Errors;
use crate::wire::client::TypeIndex;
use crate::wire::frame::{Answer, Decoder, Wrong};

/// A worker that was not reaped yet.
pub struct Worker {
    /// Its pid, and the number of its process group.
    pub pid: u32,
    /// Marks what it has started.
    pub start: Start,
    /// It has closed its input, with a message that it has read.
    pub deaf: bool,
    /// It was told why it is killed.
    pub doomed: bool,
    /// What it serves.
    pub kind: TypeIndex,
    /// Where it stands among those of its type.
    pub seat: Seat,
    /// The job whose message it has.
    pub job: Option<(Place, JobNumber)>,
    /// `None` once it was dismissed, or has closed its end.
    input: Option<Pipe>,
    output: Pipe,
    /// Its standard error.
    pub errors: Errors,
    /// The message that it was given last, as far as it was not answered.
    frame: Vec<u8>,
    /// As much of that is in the pipe.
    written: usize,
    decoder: Decoder,
    unread: Unread,
}

/// Our end of a pipe.
struct Pipe {
    file: File,
    id: Option<SourceId>,
}

/// What came out of a worker.
#[derive(Debug)]
pub enum Output {
    /// An answer.
    Answer(Answer),
    /// Part of one.
    More,
    /// What there was is taken.
    Nothing,
    /// It has closed its output.
    End,
    /// It broke the rules.
    Wrong(Wrong),
}

impl Worker {
    /// Starts one for that seat, whose answers may be so long.
    ///
    /// # Errors
    /// [`NotStarted`].
    pub fn start(
        command: &mut Command,
        name: &str,
        (start, mark): (Start, (u64, u64)),
        (kind, seat): (TypeIndex, Seat),
        max_message: usize,
    ) -> Result<Self, NotStarted> {
        let not_started = |source| NotStarted { step: "create its pipes", source };
        let (its_input, input) = pipe().map_err(not_started)?;
        let (output, its_output) = pipe().map_err(not_started)?;
        let (errors, its_errors) = pipe().map_err(not_started)?;
        let ours = |fd: OwnedFd| {
            // Of our end alone: the worker's stays as programs expect it.
            fcntl_setfl(&fd, OFlags::NONBLOCK)?;
            Ok(Pipe { file: File::from(fd), id: None })
        };
        let (input, output) = (ours(input).map_err(not_started)?, ours(output).map_err(not_started)?);
        let errors = ours(errors).map_err(not_started)?;
        let streams = [its_input.as_fd(), its_output.as_fd(), its_errors.as_fd()];
        let pid = command.start(streams, &[("OSPS_TYPE", name.to_owned())], mark)?;
        Ok(Self {
            pid,
            start,
            kind,
            seat,
            deaf: false,
            doomed: false,
            job: None,
            input: Some(input),
            output,
            errors: Errors::new(OwnedFd::from(errors.file)),
            frame: Vec::new(),
            written: 0,
            decoder: Decoder::new(max_message),
            unread: Unread::default(),
        })
    }

    /// Has the reactor tell of its pipes, by its place.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch(&mut self, reactor: &mut Handle<Key>, place: usize) -> io::Result<()> {
        if let Some(input) = &mut self.input {
            input.watch(reactor, Key::WorkerInput(place), Interest::WRITABLE)?;
        }
        self.output.watch(reactor, Key::WorkerOutput(place), Interest::READABLE)?;
        self.errors.watch(reactor, Key::WorkerErrors(place))
    }

    /// Ends that; must come before it is dropped.
    pub fn unwatch(&mut self, reactor: &mut Handle<Key>) {
        self.close_input(reactor);
        self.output.unwatch(reactor);
        self.errors.unwatch(reactor);
    }

    /// It finds the end of its input.
    pub fn close_input(&mut self, reactor: &mut Handle<Key>) {
        if let Some(mut input) = self.input.take() {
            input.unwatch(reactor);
        }
    }

    /// Gives it the message of a job, framed.
    ///
    /// # Errors
    /// It has closed its input.
    pub fn give(&mut self, job: (Place, JobNumber), frame: Vec<u8>) -> io::Result<Progress> {
        debug_assert!(self.frame.is_empty(), "one job at a time");
        (self.job, self.frame, self.written) = (Some(job), frame, 0);
        self.write()
    }

    /// Writes of the message what the pipe takes now, within the budget of one turn.
    ///
    /// # Errors
    /// It has closed its input.
    pub fn write(&mut self) -> io::Result<Progress> {
        let end = self.frame.len().min(self.written + WRITE_BUDGET);
        if self.written < end {
            let input = self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            self.written += write_some(&mut input.file, &self.frame[self.written..end])?;
        }
        let is_cut = self.written == end && end < self.frame.len();
        Ok(if is_cut { Progress::Again } else { Progress::Drained })
    }

    /// Whether it has its input open still, or was dismissed: who has closed it will read no message.
    pub fn hears(&self) -> bool {
        let Some(input) = &self.input else {
            return true;
        };
        // Of a pipe without a reader POLLERR is told, wanted or not (poll(2)).
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&input.file, PollFlags::empty())];
        !(poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR))
    }

    /// Has the reactor come back to its input.
    pub fn write_on(&self, reactor: &mut Handle<Key>) {
        if let Some(id) = self.input.as_ref().and_then(|input| input.id) {
            reactor.again(id, Ready::default());
        }
    }

    /// Takes back the message that it was given, if it has not begun to read it: all that was
    /// written stands in the pipe.
    pub fn take_back(&mut self) -> Option<((Place, JobNumber), Vec<u8>)> {
        let unread = match &self.input {
            Some(input) => ioctl_fionread(&input.file).ok()?,
            None => return None,
        };
        if unread != self.written as u64 {
            return None;
        }
        let job = self.job.take()?;
        self.written = 0;
        Some((job, std::mem::take(&mut self.frame)))
    }

    /// Takes note that there is output.
    pub fn note(&mut self, ready: Ready) {
        self.unread.note(ready);
    }

    /// Whether there may be more output.
    pub fn has_more(&self) -> bool {
        self.unread.is_likely()
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) -> Output {
        if !self.unread.is_likely() {
            return Output::Nothing;
        }
        match self.unread.read(&mut self.output.file, buffer) {
            Ok(Received::Bytes(length)) => match self.decoder.feed(&buffer[..length]) {
                Ok(Some(_)) if !self.has_taken_message() => Output::Wrong(Wrong::Unasked),
                Ok(Some(answer)) => {
                    self.frame = Vec::new();
                    self.written = 0;
                    Output::Answer(answer)
                }
                Ok(None) => Output::More,
                Err(wrong) => Output::Wrong(wrong),
            },
            Ok(Received::Nothing) => Output::Nothing,
            Ok(Received::End) | Err(_) => Output::End,
        }
    }

    /// Whether it has read all of the message that it was given: who answers before that, answers
    /// something else.
    pub fn has_taken_message(&self) -> bool {
        let is_empty = |input: &Pipe| ioctl_fionread(&input.file).is_ok_and(|unread| unread == 0);
        self.written == self.frame.len() && self.input.as_ref().is_none_or(is_empty)
    }

    /// Whether it has written something while it had no job: what stands in the pipe now must not be
    /// taken for an answer to the next one.
    pub fn has_spoken(&self) -> bool {
        ioctl_fionread(&self.output.file).is_ok_and(|unread| unread > 0)
    }
}

impl Pipe {
    fn watch(&mut self, reactor: &mut Handle<Key>, key: Key, interest: Interest) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        self.id = Some(reactor.register(&mut SourceFd(&fd), key, interest)?);
        Ok(())
    }

    fn unwatch(&mut self, reactor: &mut Handle<Key>) {
        if let Some(id) = self.id.take() {
            reactor.deregister(&mut SourceFd(&self.file.as_raw_fd()), id);
        }
    }
}

/// A pipe: the end to read from, the end to write to.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}
