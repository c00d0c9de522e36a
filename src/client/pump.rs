//! Moves bytes both ways at once, within bounds, and listens to the control connection meanwhile.

use std::fmt;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::client::control::{Control, Limits};
use crate::client::error::ClientError;
use crate::client::input::{Input, Output};
use crate::client::news::{Fate, News};
use crate::client::socket::{poll_until, send, too_late, would_block};
use crate::core::moment::Moment;
use crate::os::clock;
use crate::wire::jeton::Jeton;

/// So much is read from the secondary at once.
const READ_BYTES: usize = 256 * 1024;

/// What an exchange came to.
#[derive(Debug)]
pub struct Exchanged {
    /// Bytes received and written to the output.
    pub answered: u64,
    /// How it ended.
    pub ending: Ending,
}

/// How an exchange ended.
#[derive(Debug)]
pub enum Ending {
    /// All was sent, the sending side ended, and then the secondary closed.
    Complete,
    /// The secondary closed before that.
    Early,
    /// The connection was reset, or silent for too long (`TimedOut`).
    Broken(io::Error),
    /// The input cannot be read.
    Input(io::Error),
    /// The output cannot be written.
    Output(io::Error),
    /// No byte was answered, and the control connection told that the job has failed, or broke.
    Told,
}

/// Who listens to the news of a tracked job during its exchange.
pub struct Listener<'a> {
    /// Where they come from.
    pub control: &'a mut Control,
    /// The job.
    pub jeton: Jeton,
    /// Called with each line.
    pub told: &'a mut dyn FnMut(&News),
    /// Its start was told.
    pub began: bool,
    /// Its end, once it was told.
    pub end: Option<Fate>,
    /// Why no news will come any more.
    pub broken: Option<io::Error>,
}

impl Listener<'_> {
    /// Takes the news that are there.
    fn listen(&mut self) {
        if let Err(error) = self.control.listen() {
            self.broken = Some(error);
        }
        while let Some(news) = self.control.told(self.jeton) {
            (self.told)(&news);
            match news.fate {
                Fate::Began => self.began = true,
                end @ (Fate::Done | Fate::Failed(_)) => self.end = Some(end),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.end.is_some() || self.broken.is_some()
    }

    /// The end of the job, waited for within `limit` where it was not told yet.
    pub fn wait_for_end(&mut self, limit: Duration) -> io::Result<Fate> {
        match (self.end.take(), self.broken.take()) {
            (Some(end), _) => Ok(end),
            (None, Some(error)) => Err(error),
            (None, None) => self.control.end_of(self.jeton, limit, self.told),
        }
    }

    /// Wants to hear no more of the job, because of an error.
    pub fn give_up(&mut self, error: ClientError) -> ClientError {
        self.control.forget(self.jeton);
        error
    }
}

impl fmt::Debug for Listener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("end", &self.end).finish_non_exhaustive()
    }
}

/// An exchange under way.
pub struct Pump<'a, 'i, 'o> {
    stream: &'a TcpStream,
    limits: &'a Limits,
    input: &'a mut Input<'i>,
    output: &'a mut Output<'o>,
    buffer: Vec<u8>,
    answered: u64,
    /// Our sending side is open.
    sending: bool,
    /// The secondary takes nothing any more; what it said before is still to be read.
    refused: bool,
    /// When a byte went over the connection last.
    moved_at: Moment,
    watches_output: bool,
}

/// What can be done without blocking.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    data: bool,
    input: bool,
    news: bool,
    unread: bool,
}

impl<'a, 'i, 'o> Pump<'a, 'i, 'o> {
    /// An exchange of which nothing was sent yet.
    pub fn new(
        stream: &'a TcpStream,
        limits: &'a Limits,
        input: &'a mut Input<'i>,
        output: &'a mut Output<'o>,
    ) -> Self {
        Self {
            stream,
            limits,
            input,
            output,
            buffer: Vec::new(),
            answered: 0,
            sending: true,
            refused: false,
            moved_at: clock::now(),
            watches_output: true,
        }
    }

    /// Runs it to its end; the listener hears the news of its job meanwhile.
    pub fn run(mut self, mut listener: Option<&mut Listener<'_>>) -> Exchanged {
        self.buffer.resize(READ_BYTES, 0);
        let started = self.stream.set_nonblocking(true).map_err(Ending::Broken);
        let mut turn = started.and_then(|()| self.send());
        // What came with the jeton stands in the buffer: no wait would end for it.
        if let (Ok(()), Some(listener)) = (&turn, listener.as_deref_mut()) {
            turn = self.listen(listener);
        }
        let ending = loop {
            match turn {
                Ok(()) => turn = self.turn(listener.as_deref_mut()),
                Err(ending) => break ending,
            }
        };
        Exchanged { answered: self.answered, ending }
    }

    fn turn(&mut self, listener: Option<&mut Listener<'_>>) -> Result<(), Ending> {
        let ready = self.wait(listener.as_deref())?;
        // Answers come first: they may be all that keeps the secondary from taking more.
        if ready.data {
            self.receive()?;
        }
        if let Some(listener) = listener
            && ready.news
        {
            self.listen(listener)?;
        }
        if ready.unread {
            return Err(Ending::Output(io::ErrorKind::BrokenPipe.into()));
        }
        if ready.input {
            self.input.refill().map_err(Ending::Input)?;
        }
        self.send()
    }

    fn wait(&mut self, listener: Option<&Listener<'_>>) -> Result<Ready, Ending> {
        let has_pending = !self.input.pending().is_empty();
        let wants_input = self.sending && !has_pending && !self.input.has_ended();
        let room = if self.sending && has_pending { PollFlags::OUT } else { PollFlags::empty() };
        let input = self.input.descriptor().filter(|_| wants_input);
        let control = listener.filter(|listener| !listener.is_over());
        let output = self.output.descriptor().filter(|_| self.watches_output);
        // Where there is nothing to wait for, the stream stands in, and is not looked at.
        let unused = || PollFd::new(self.stream, PollFlags::empty());
        let mut fds = [
            PollFd::new(self.stream, PollFlags::IN | room),
            input.map_or_else(unused, |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            control.map_or_else(unused, |listener| PollFd::new(&*listener.control, PollFlags::IN)),
            output.map_or_else(unused, |fd| PollFd::from_borrowed_fd(fd, PollFlags::empty())),
        ];
        // Whoever types may take his time: only the secondary's silence is timed.
        let deadline = (!wants_input).then(|| self.moved_at + self.limits.silence);
        let in_time = poll_until(&mut fds, deadline).map_err(Ending::Broken)?;
        if !in_time {
            return Err(Ending::Broken(too_late("no byte was moved", self.limits.silence)));
        }
        let [data, on_input, on_control, on_output] = [0, 1, 2, 3].map(|index: usize| fds[index].revents());
        let ready = Ready {
            data: !data.difference(PollFlags::OUT).is_empty(),
            input: input.is_some() && !on_input.is_empty(),
            news: control.is_some() && !on_control.is_empty(),
            unread: output.is_some() && on_output.contains(PollFlags::ERR),
        };
        // A hang-up that is no error would be reported again and again.
        self.watches_output &= output.is_none() || on_output.is_empty();
        Ok(ready)
    }

    fn receive(&mut self) -> Result<(), Ending> {
        match would_block(self.stream.read(&mut self.buffer)).map_err(Ending::Broken)? {
            Some(0) => Err(self.closed()),
            Some(length) => {
                if self.answered == 0 {
                    self.input.release();
                }
                self.answered += length as u64;
                let written = self.output.write(&self.buffer[..length]);
                // Whoever reads the output may take his time, too.
                self.moved_at = clock::now();
                written.map_err(Ending::Output)
            }
            None => Ok(()),
        }
    }

    /// The secondary has closed its side. Whether it had taken all, as far as can be told: bytes
    /// that reach a closed socket are answered by a reset.
    fn closed(&self) -> Ending {
        match self.stream.take_error() {
            Ok(Some(error)) | Err(error) => Ending::Broken(error),
            Ok(None) if self.sending || self.refused => Ending::Early,
            Ok(None) => Ending::Complete,
        }
    }

    fn send(&mut self) -> Result<(), Ending> {
        while self.sending {
            let pending = self.input.pending();
            if pending.is_empty() {
                if self.input.has_ended() {
                    self.sending = false;
                    // Where it fails the connection is broken; what was answered is still read.
                    self.refused = self.stream.shutdown(Shutdown::Write).is_err();
                }
                break;
            }
            match would_block(send(self.stream, pending, self.input.has_ended())) {
                Ok(Some(length)) => {
                    self.input.advance(length);
                    self.moved_at = clock::now();
                }
                Ok(None) => break,
                Err(_) => (self.sending, self.refused) = (false, true),
            }
        }
        Ok(())
    }

    /// Hears the news. An exchange without an answer ends where they say that none will come.
    fn listen(&mut self, listener: &mut Listener<'_>) -> Result<(), Ending> {
        listener.listen();
        let failed = matches!(listener.end, Some(Fate::Failed(_)));
        let alone = listener.end.is_none() && listener.broken.is_some() && self.input.is_replayable();
        if self.answered > 0 || !(failed || alone) {
            return Ok(());
        }
        // The answer may have come meanwhile.
        self.receive()?;
        if self.answered > 0 { Ok(()) } else { Err(Ending::Told) }
    }
}

impl fmt::Debug for Pump<'_, '_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").field("answered", &self.answered).finish_non_exhaustive()
    }
}
