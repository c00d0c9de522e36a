//! A well-behaved client: it asks for a job, exchanges a word, and leaves. Whatever others do, it
//! is served, and every byte it gets is right.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use osps::core::arrival::SILENCE;
use rustix::net::{AddressFamily, SocketType, bind, socket};

use crate::common::{PATIENCE, now};

/// Where another well-behaved client comes from.
pub const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// Where enemies come from.
pub const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// The enemy's many addresses, for more connections in a minute than one has ports.
pub fn hostile(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 66, u8::try_from(number / 8192 % 256).unwrap())
}

/// A connection from one of the loopback addresses, with patience for reads and writes.
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Closes by reset (SO_LINGER of zero, socket(7)).
pub fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

/// Well-behaved clients of this process so far.
static CLIENTS: AtomicU8 = AtomicU8::new(0);

/// Where a well-behaved client comes from.
fn home(number: u8, move_number: u64) -> Ipv4Addr {
    let [process, ..] = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 64 | (move_number % 64).to_le_bytes()[0], process, number)
}

/// Exchanges from one address: then it takes another, for each leaves a port in TIME_WAIT.
const EXCHANGES_EACH: u64 = 4096;

/// The client and its control connection.
pub struct Honest {
    address: SocketAddr,
    /// It was the client of that number in this process.
    number: u8,
    from: Ipv4Addr,
    control: BufReader<TcpStream>,
    served: u64,
    /// How often it was rejected because it had not spoken in time.
    pub hesitations: u64,
}

impl Honest {
    pub fn new(address: SocketAddr) -> Self {
        let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let from = home(number, 0);
        let control = BufReader::new(connect_from(from, address));
        Self { address, number, from, control, served: 0, hesitations: 0 }
    }

    /// One whole exchange: every other is tracked, and every fourth begins with a new control
    /// connection.
    pub fn work(&mut self) {
        if self.served.is_multiple_of(4) {
            self.from = home(self.number, self.served / EXCHANGES_EACH);
            self.control = BufReader::new(connect_from(self.from, self.address));
        }
        if self.served.is_multiple_of(2) {
            self.plain();
        } else {
            self.tracked();
        }
        self.served += 1;
    }

    /// A request, then an exchange.
    pub fn plain(&mut self) {
        let answer = self.ask("echo");
        self.exchange(&answer, "");
    }

    fn tracked(&mut self) {
        let answer = self.ask("suivi echo");
        let (port, jeton) = answer.split_once(' ').unwrap_or_else(|| panic!("suivi is answered {answer:?}"));
        let before = format!("jeton {jeton}\n");
        let mut begun = now();
        while let Err(error) = self.try_exchange(port, &before) {
            // Who says nothing for 50 ms is taken for a plain client, and a loaded machine may silence
            // anybody for so long. The job still waits.
            assert!(now().since(begun) >= SILENCE, "a tracked exchange breaks off: {error}");
            self.hesitations += 1;
            begun = now();
        }
        assert_eq!(self.line(), format!("debuttraitement {jeton}"));
        assert_eq!(self.line(), format!("fintraitement {jeton}"));
    }

    fn exchange(&self, port: &str, before: &str) {
        self.try_exchange(port, before).unwrap();
    }

    fn try_exchange(&self, port: &str, before: &str) -> std::io::Result<()> {
        let port: u16 = port.parse().unwrap_or_else(|_| panic!("a request is answered {port:?}"));
        let word = format!("word {}", self.served);
        let mut data = connect_from(self.from, SocketAddr::new(self.address.ip(), port));
        data.write_all(format!("{before}{word}").as_bytes())?;
        data.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        data.read_to_string(&mut answer)?;
        if answer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        assert_eq!(answer, word);
        Ok(())
    }

    fn ask(&mut self, request: &str) -> String {
        self.control.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        line.strip_suffix('\n')
            .unwrap_or_else(|| panic!("the control connection ends after {line:?}"))
            .to_owned()
    }
}
