//! What is sent: bytes, a file, or a stream, of which the beginning is kept for a while.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};

use crate::client::socket::poll_until;

/// So much of a stream is read ahead, and so much of it is kept to be sent once more.
pub const REPLAY_BYTES: usize = 256 * 1024;

/// Something that can be read and waited for: standard input, a pipe, a socket.
pub trait Source: Read + AsFd {}

impl<T: Read + AsFd> Source for T {}

/// What a client sends.
///
/// After a try that failed, bytes and files are sent again from their beginning. A stream
/// can be sent again as long as no more than [`REPLAY_BYTES`] were taken from it and no byte
/// was answered: until then they are kept.
pub struct Input<'a> {
    origin: Origin<'a>,
    /// What was read: `sent` bytes of it were sent, `filled` are there in all.
    buffer: Vec<u8>,
    sent: usize,
    filled: usize,
    /// The buffer holds all that was taken since the beginning.
    complete: bool,
    ended: bool,
}

enum Origin<'a> {
    Bytes(&'a [u8]),
    File { file: File, start: u64 },
    Stream(Box<dyn Source + 'a>),
}

impl<'a> Input<'a> {
    fn new(origin: Origin<'a>) -> Self {
        Self { origin, buffer: Vec::new(), sent: 0, filled: 0, complete: true, ended: false }
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Self { ended: true, ..Self::new(Origin::Bytes(bytes)) }
    }

    /// A file that can be read from any position: what follows from where it stands now.
    ///
    /// # Errors
    /// Where it cannot.
    pub fn file(mut file: File) -> io::Result<Self> {
        let start = file.stream_position()?;
        Ok(Self::new(Origin::File { file, start }))
    }

    /// A stream, read as it comes. Nothing may be buffered between its descriptor and its reads:
    /// it is waited for by its descriptor.
    #[must_use]
    pub fn stream(source: impl Source + 'a) -> Self {
        Self::new(Origin::Stream(Box::new(source)))
    }

    /// What was read and not sent yet.
    pub(super) fn pending(&self) -> &[u8] {
        match self.origin {
            Origin::Bytes(bytes) => &bytes[self.sent..],
            Origin::File { .. } | Origin::Stream(_) => &self.buffer[self.sent..self.filled],
        }
    }

    /// So much of [`Input::pending`] was sent.
    pub(super) fn advance(&mut self, sent: usize) {
        self.sent += sent;
    }

    /// Whether nothing will be pending any more, besides what is now.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether anything was sent.
    pub(super) fn is_begun(&self) -> bool {
        self.sent > 0 || !self.complete
    }

    /// What to wait for before [`Input::refill`].
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.origin {
            Origin::Bytes(_) => None,
            Origin::File { file, .. } => Some(file.as_fd()),
            Origin::Stream(stream) => Some(stream.as_fd()),
        }
    }

    /// Reads once, where nothing is pending.
    pub(super) fn refill(&mut self) -> io::Result<()> {
        debug_assert!(self.pending().is_empty(), "what is pending would be lost");
        if self.ended {
            return Ok(());
        }
        // One more than is kept: what just fits is still complete when its end is found.
        self.buffer.resize(REPLAY_BYTES + 1, 0);
        if !self.complete || self.filled > REPLAY_BYTES {
            self.complete = false;
            (self.sent, self.filled) = (0, 0);
        }
        let room = &mut self.buffer[self.filled..];
        let read = match &mut self.origin {
            Origin::Bytes(_) => Ok(0),
            Origin::File { file, .. } => file.read(room),
            Origin::Stream(stream) => stream.read(room),
        };
        match read {
            Ok(length) => {
                self.filled += length;
                self.ended = length == 0;
                Ok(())
            }
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// It is not needed again: a byte was answered.
    pub(super) fn release(&mut self) {
        self.complete = false;
    }

    /// Whether all that was taken can be sent once more.
    pub(super) fn is_replayable(&self) -> bool {
        self.complete || !matches!(self.origin, Origin::Stream(_))
    }

    /// Begins again, where it [is replayable](Input::is_replayable).
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.sent = 0;
        if let Origin::File { file, start } = &mut self.origin
            && !self.complete
        {
            file.seek(SeekFrom::Start(*start))?;
            self.filled = 0;
            (self.complete, self.ended) = (true, false);
        }
        Ok(())
    }
}

/// Whether a read is just to be tried again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("pending", &self.pending().len()).finish_non_exhaustive()
    }
}

/// Where the answer goes.
pub struct Output<'a> {
    write: &'a mut dyn Write,
    watched: Option<BorrowedFd<'a>>,
}

impl<'a> Output<'a> {
    /// Anything that can be written to. It is flushed after each write.
    pub fn new(write: &'a mut dyn Write) -> Self {
        Self { write, watched: None }
    }

    /// Something whose descriptor tells when nobody reads it any more: standard output, a pipe. Then
    /// the exchange ends with the error `BrokenPipe` at once, not when the next byte is written.
    pub fn watched(write: &'a mut dyn Write, descriptor: BorrowedFd<'a>) -> Self {
        Self { write, watched: Some(descriptor) }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.wait_for_room(error)?,
            }
        }
        self.write.flush()
    }

    /// Standard output does not block where somebody who shares it has said so (fcntl(2)).
    fn wait_for_room(&self, error: io::Error) -> io::Result<()> {
        match self.watched {
            Some(descriptor) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_until(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::OUT)], None).map(drop)
            }
            Some(_) | None => Err(error),
        }
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'a>> {
        self.watched
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("watched", &self.watched).finish_non_exhaustive()
    }
}
