//! The socket on which a service manager wants to hear of its service (sd_notify(3)).
//!
//! Own code, for the crate `sd-notify` (0.5) sends on a socket that blocks: a service manager that does not read
//! would stop the watchdog. Nor does it know abstract addresses (unix(7)).

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

/// A datagram socket and the address of the service manager. It is not connected to it: a manager that is started
/// again has another socket under the same address.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    manager: SocketAddrUnix,
}

impl NotifySocket {
    /// A socket to send to that address: an absolute path, or `@` and an abstract name.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where it is no such address; what `socket(2)` says.
    pub fn to(address: &OsStr) -> io::Result<Self> {
        let manager = match address.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(address)?,
            [b'@', name @ ..] if !name.is_empty() => SocketAddrUnix::new_abstract_name(name)?,
            _ => {
                let wanted = "an absolute path, or @ and a name, is wanted";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, wanted));
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self { socket, manager })
    }

    /// Sends a message, whole or not at all; never waits.
    ///
    /// # Errors
    /// What `sendto(2)` says: [`io::ErrorKind::WouldBlock`] where the manager has not read those before.
    pub fn send(&self, message: &str) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendto(&self.socket, message.as_bytes(), flags, &self.manager)?;
        Ok(())
    }
}

/// How soon a service manager that watches this process wants to hear from it again each time: what
/// `WATCHDOG_USEC` and `WATCHDOG_PID` mean for this pid (sd_watchdog_enabled(3)). `None` where it does not watch.
///
/// # Errors
/// Which variable is not understood.
pub fn watched_within(
    usec: Option<&OsStr>,
    pid: Option<&OsStr>,
    own: u32,
) -> Result<Option<Duration>, String> {
    fn number(name: &str, value: &OsStr) -> Result<u64, String> {
        let wrong = || format!("{name} = {value:?}: a whole number above 0 is wanted");
        value.to_str().and_then(|text| text.parse().ok()).filter(|&number| number > 0).ok_or_else(wrong)
    }
    let Some(usec) = usec else {
        return Ok(None);
    };
    if let Some(pid) = pid
        && number("WATCHDOG_PID", pid)? != u64::from(own)
    {
        return Ok(None);
    }
    number("WATCHDOG_USEC", usec).map(|usec| Some(Duration::from_micros(usec)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn received(manager: &UnixDatagram) -> String {
        let mut message = [0; 100];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_under_a_path_and_under_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        NotifySocket::to(path.as_os_str()).unwrap().send("READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
        let name = format!("osps-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        NotifySocket::to(OsStr::new(&format!("@{name}"))).unwrap().send("READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for_and_one_that_is_started_again_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let socket = NotifySocket::to(path.as_os_str()).unwrap();
        let full = (0..1 << 20).find_map(|_| socket.send("WATCHDOG=1").err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(manager);
        assert_eq!(socket.send("READY=1").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        let manager = UnixDatagram::bind(&path).unwrap();
        socket.send("READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for address in ["", "@", "notify", "vsock:2:1234"] {
            let error = NotifySocket::to(OsStr::new(address)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{address:?}");
        }
    }

    #[test]
    fn it_is_watched_where_the_variables_say_so_of_its_pid() {
        let within = |usec: Option<&str>, pid: Option<&str>| {
            watched_within(usec.map(OsStr::new), pid.map(OsStr::new), 7)
        };
        let two_seconds = Ok(Some(Duration::from_secs(2)));
        assert_eq!(within(Some("2000000"), None), two_seconds);
        assert_eq!(within(Some("2000000"), Some("7")), two_seconds);
        assert_eq!(within(Some("2000000"), Some("8")), Ok(None));
        assert_eq!(within(None, Some("7")), Ok(None));
        for (usec, pid, name) in
            [("0", None, "WATCHDOG_USEC"), ("2s", None, "WATCHDOG_USEC"), ("5", Some("x"), "WATCHDOG_PID")]
        {
            assert!(within(Some(usec), pid).unwrap_err().contains(name));
        }
    }
}
