//! Listening Unix sockets, and the files by which they are found.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::os::listener::BACKLOG;

/// A listening Unix socket. Its file goes with it, unless another stands there by then.
#[derive(Debug)]
pub struct SocketFile {
    socket: OwnedFd,
    path: PathBuf,
    /// The file, by device and inode: as long as the socket is open, no other has that number.
    file: (u64, u64),
}

impl SocketFile {
    /// Binds and listens; the socket is non-blocking and close-on-exec, the mode of its file is
    /// left to the umask. A socket file on which nobody listens any more is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where somebody listens there, [`io::ErrorKind::AlreadyExists`]
    /// where the path is no socket, else what `socket(2)`, `bind(2)` or `listen(2)` say.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = new_socket()?;
        if let Err(error) = bind(&socket, &address) {
            if error != Errno::ADDRINUSE {
                return Err(error.into());
            }
            remove_stale(path, &address)?;
            bind(&socket, &address)?;
        }
        let found = fs::symlink_metadata(path)?;
        let bound = Self { socket, path: path.to_owned(), file: (found.dev(), found.ino()) };
        listen(&bound.socket, BACKLOG)?;
        Ok(bound)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands the file to another user, if it still is that of this socket.
    ///
    /// # Errors
    /// What `lchown(2)` says.
    pub fn give(&self, uid: u32, gid: u32) -> io::Result<()> {
        if self.is_there() { lchown(&self.path, Some(uid), Some(gid)) } else { Ok(()) }
    }

    /// Removes the file, if it still is that of this socket: nobody can connect any more.
    ///
    /// # Errors
    /// What `unlink(2)` says.
    pub fn remove(&self) -> io::Result<()> {
        if self.is_there() { fs::remove_file(&self.path) } else { Ok(()) }
    }

    /// Whether somebody has removed the file, or put another in its place: nobody finds this socket any more. Where
    /// that is not to be known, it is not so.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => !self.is(&found),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| self.is(&found))
    }

    fn is(&self, found: &Metadata) -> bool {
        (found.dev(), found.ino()) == self.file
    }
}

impl AsFd for SocketFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Removes a socket file on which nobody listens: its server has died.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something stands there that is no socket"));
    }
    match connect(&new_socket()?, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        // A socket of another type, or one whose backlog is full, is in use as well.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(Errno::ADDRINUSE.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_socket_file_goes_with_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = SocketFile::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn what_took_the_place_of_a_socket_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = SocketFile::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(bound.is_gone());
        let other = SocketFile::bind(&path).unwrap();
        assert!(bound.is_gone() && !other.is_gone());
        drop(bound);
        UnixStream::connect(&path).unwrap();
        drop(other);
    }

    #[test]
    fn a_socket_that_is_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _live = SocketFile::bind(&path).unwrap();
        assert_eq!(SocketFile::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let datagrams = dir.path().join("d");
        let _live = UnixDatagram::bind(&datagrams).unwrap();
        assert_eq!(SocketFile::bind(&datagrams).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (stale, file, link) = (dir.path().join("s"), dir.path().join("f"), dir.path().join("l"));
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        std::os::unix::fs::symlink(&stale, &link).unwrap();
        fs::write(&file, "mine").unwrap();
        for foreign in [&file, &link, &dir.path().to_owned()] {
            assert_eq!(SocketFile::bind(foreign).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        let bound = SocketFile::bind(&stale).unwrap();
        UnixStream::connect(&stale).unwrap();
        drop(bound);
    }
}
