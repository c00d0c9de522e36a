//! A pair of sockets that carries packets with descriptors: `SOCK_SEQPACKET` and `SCM_RIGHTS` (unix(7)).
//!
//! A packet arrives whole or not at all. A *frame* is a message of any length with descriptors, cut into
//! packets: each begins with a byte that says whether more follow, and the descriptors come with the first.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::Interest;
use mio::unix::SourceFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::os::reactor::{Handle, SourceId};

/// So many descriptors at most go with one packet; the kernel takes 253 (`SCM_MAX_FD`).
pub const DESCRIPTORS_PER_PACKET: usize = 64;
/// A packet has to fit into the send buffer of any machine (`net.core.wmem_default` is 208 KiB).
const PACKET_BYTES: usize = 32 * 1024;
const MORE: u8 = b'+';
const LAST: u8 = b'.';

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    id: Option<SourceId>,
}

/// What one read came to.
#[derive(Debug)]
pub enum Received {
    /// A packet, and what came with it.
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// The other end is closed.
    End,
    /// Nothing is there now.
    Nothing,
}

impl Channel {
    /// Two ends, neither inherited by children.
    ///
    /// # Errors
    /// What `socketpair(2)` says.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((one.into(), other.into()))
    }

    /// Has the reactor tell when a packet is there, or room for one.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch<K: Copy>(&mut self, reactor: &mut Handle<K>, key: K) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.id = Some(reactor.register(&mut SourceFd(&self.socket.as_raw_fd()), key, interest)?);
        Ok(())
    }

    /// Ends that; must come before it is dropped.
    pub fn unwatch<K: Copy>(&mut self, reactor: &mut Handle<K>) {
        if let Some(id) = self.id.take() {
            reactor.deregister(&mut SourceFd(&self.socket.as_raw_fd()), id);
        }
    }

    /// Sends one packet, with at most [`DESCRIPTORS_PER_PACKET`] descriptors; never waits.
    ///
    /// # Errors
    /// What `sendmsg(2)` says: `WouldBlock` also where too many descriptors are under way
    /// (`ETOOMANYREFS`).
    pub fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_PACKET))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
        }
        match sendmsg(
            &self.socket,
            &[IoSlice::new(packet)],
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) => Ok(()),
            Err(Errno::TOOMANYREFS | Errno::NOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one packet; with `wait`, waits for it.
    ///
    /// # Errors
    /// What `recvmsg(2)` says; also where descriptors were lost because none was free here.
    pub fn receive(&self, wait: bool) -> io::Result<Received> {
        self.receive_within(PACKET_BYTES, wait)
    }

    /// The same for a packet of so many bytes at most.
    ///
    /// # Errors
    /// As [`Channel::receive`], and where it is longer.
    pub fn receive_within(&self, length: usize, wait: bool) -> io::Result<Received> {
        let mut bytes = vec![0; length + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_PACKET))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        let message = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET) => return Ok(Received::End),
                Err(error) => return Err(error.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
            return Err(io::Error::other("no descriptor was free for what another process has sent"));
        }
        if message.bytes == 0 {
            return Ok(Received::End);
        }
        bytes.truncate(message.bytes);
        Ok(Received::Packet(bytes, descriptors))
    }

    /// Waits for a whole frame; `None` where the other end is closed before.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_frame(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let (mut frame, mut descriptors) = (Vec::new(), Vec::new());
        loop {
            match self.receive(true)? {
                Received::Packet(packet, more) => {
                    descriptors.extend(more);
                    let Some((&mark, rest)) = packet.split_first() else {
                        return Ok(None);
                    };
                    frame.extend_from_slice(rest);
                    if mark == LAST {
                        return Ok(Some((frame, descriptors)));
                    }
                }
                Received::End | Received::Nothing => return Ok(None),
            }
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, id: None }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A frame that is being sent.
#[derive(Debug)]
pub struct Frame {
    packets: VecDeque<Vec<u8>>,
    /// Its descriptors are out.
    is_begun: bool,
}

impl Frame {
    /// A frame with this text.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let count = text.len().div_ceil(PACKET_BYTES).max(1);
        let packet = |index: usize| {
            let rest = &text[index * PACKET_BYTES..];
            let mark = if index + 1 == count { LAST } else { MORE };
            [&[mark], &rest[..rest.len().min(PACKET_BYTES)]].concat()
        };
        Self { packets: (0..count).map(packet).collect(), is_begun: false }
    }

    /// Sends what can be sent now; the descriptors, of which there are at most
    /// [`DESCRIPTORS_PER_PACKET`], are the same at each call. Returns whether all is out.
    ///
    /// # Errors
    /// As [`Channel::send`], waiting apart.
    pub fn send(&mut self, channel: &Channel, descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        while let Some(packet) = self.packets.front() {
            let with_it = if self.is_begun { &[] } else { descriptors };
            match channel.send(packet, with_it) {
                Ok(()) => self.is_begun = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            self.packets.pop_front();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_frame_of_any_length_arrives_whole_with_its_descriptors() {
        let (here, there) = Channel::pair().unwrap();
        for length in [0, 1, PACKET_BYTES - 1, PACKET_BYTES, PACKET_BYTES + 1, 3 * PACKET_BYTES] {
            let text = vec![b'x'; length];
            let (mut reader, writer) = std::io::pipe().unwrap();
            let mut frame = Frame::new(&text);
            assert!(frame.send(&here, &[writer.as_fd()]).unwrap());
            drop(writer);
            let (arrived, mut descriptors) = there.receive_frame().unwrap().unwrap();
            assert!(arrived == text, "{length}");
            File::from(descriptors.pop().unwrap()).write_all(b"through").unwrap();
            assert!(descriptors.is_empty());
            let mut said = String::new();
            reader.read_to_string(&mut said).unwrap();
            assert_eq!(said, "through");
        }
    }

    #[test]
    fn nothing_more_comes_from_an_end_that_is_closed() {
        let (here, there) = Channel::pair().unwrap();
        assert!(matches!(there.receive(false).unwrap(), Received::Nothing));
        here.send(b"a", &[]).unwrap();
        drop(here);
        assert!(matches!(there.receive(false).unwrap(), Received::Packet(bytes, _) if bytes == b"a"));
        assert!(matches!(there.receive(false).unwrap(), Received::End));
        assert!(there.receive_frame().unwrap().is_none());
        assert_eq!(there.send(b"b", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn who_sends_more_than_is_read_is_told_to_wait() {
        let (here, there) = Channel::pair().unwrap();
        let mut sent = 0;
        while here.send(&[b'x'; PACKET_BYTES], &[]).is_ok() {
            sent += 1;
            assert!(sent < 1000, "nothing is ever full");
        }
        let mut frame = Frame::new(b"late");
        assert!(!frame.send(&here, &[]).unwrap());
        for _ in 0..sent {
            assert!(matches!(there.receive(false).unwrap(), Received::Packet(..)));
        }
        assert!(frame.send(&here, &[]).unwrap());
    }
}
