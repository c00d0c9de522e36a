//! Connections whose exchange is over while their client may still send. Where input is left unread,
//! close(2) resets the connection, and the client may lose the last answers: so it is told that
//! nothing more will come, and what it sends is thrown away until it has understood, for a while.

use std::io::Read;
use std::net::Shutdown;
use std::time::Duration;

use mio::Interest;
use mio::net::TcpStream;

use crate::core::timers::TimerId;
use crate::os::reactor::{Handle, Progress, SourceId};
use crate::role::secondary::{Key, Secondary, Timer};

/// So long a client has to understand.
const WITHIN: Duration = Duration::from_secs(1);
/// So much of what it sends meanwhile is thrown away.
const MOST_BYTES: usize = 64 * 1024;
/// So many may linger; then one is closed as it is.
const MOST: usize = 1024;

/// A connection whose exchange is over.
pub struct Closing {
    pub stream: TcpStream,
    pub input_ended: bool,
}

/// A connection that is to be closed.
pub struct Lingering {
    stream: TcpStream,
    id: SourceId,
    timer: TimerId,
    bytes_left: usize,
}

impl Secondary {
    /// Closes a connection as soon as its client has seen the end.
    pub(super) fn linger(&mut self, reactor: &mut Handle<Key>, closing: Closing) {
        let Closing { mut stream, input_ended } = closing;
        if input_ended || self.lingering.len() >= MOST || stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let entry = self.lingering.vacant_entry();
        let key = entry.key();
        if let Ok(id) = reactor.register(&mut stream, Key::Lingering(key), Interest::READABLE) {
            let timer = self.timers.arm(reactor.now() + WITHIN, Timer::Lingering(key));
            entry.insert(Lingering { stream, id, timer, bytes_left: MOST_BYTES });
        }
    }

    /// The client of a connection that is over sends something, or has closed it.
    pub(super) fn on_lingering(&mut self, reactor: &mut Handle<Key>, key: usize) -> Progress {
        let Some(lingering) = self.lingering.get_mut(key) else {
            return Progress::Drained;
        };
        match lingering.stream.read(&mut self.buffer) {
            Ok(length) if 0 < length && length < lingering.bytes_left => {
                lingering.bytes_left -= length;
                return Progress::Again;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Progress::Drained,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Progress::Again,
            Ok(_) | Err(_) => {}
        }
        self.close_lingering(reactor, key);
        Progress::Drained
    }

    pub(super) fn close_lingering(&mut self, reactor: &mut Handle<Key>, key: usize) {
        if let Some(Lingering { mut stream, id, timer, .. }) = self.lingering.try_remove(key) {
            self.timers.cancel(timer);
            reactor.deregister(&mut stream, id);
        }
    }
}
