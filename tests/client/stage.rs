//! A principal and a secondary that a test plays itself, word by word, to try what a client does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use osps::client::{Client, Limits, Policy};

use crate::common::{PATIENCE, eventually};

/// Two listeners: of a principal and of a secondary.
pub struct Stage {
    control: TcpListener,
    data: TcpListener,
}

/// One connection of the client, seen from the other side.
pub struct Side {
    stream: BufReader<TcpStream>,
}

/// Plays a server against a client, each in its own thread, and returns what the client does.
/// Whatever the client still had to say when both are through is a failure.
pub fn play<T>(server: impl FnOnce(&Stage) + Send, client: impl FnOnce(&str) -> T) -> T {
    let stage = Stage::new();
    let at = stage.control.local_addr().unwrap().to_string();
    let done = std::thread::scope(|scope| {
        let server = scope.spawn(|| server(&stage));
        let done = client(&at);
        server.join().unwrap();
        done
    });
    for listener in [&stage.control, &stage.data] {
        assert!(listener.accept().is_err(), "a connection that nobody expected");
    }
    done
}

/// A client whose pauses are short and whose limits are never met.
pub fn patient(at: &str) -> Client {
    let mut client = Client::new(at).unwrap();
    client.limits = Limits::each(PATIENCE);
    client.policy = Policy { first_pause: Duration::from_millis(1), within: PATIENCE, ..Policy::default() };
    client
}

/// A client that tries once.
pub fn stubborn(at: &str) -> Client {
    let mut client = patient(at);
    client.policy = Policy::once();
    client
}

/// The jeton with that number.
pub fn jeton(number: u32) -> String {
    format!("{number:032x}")
}

impl Stage {
    fn new() -> Self {
        let listener = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self { control: listener(), data: listener() }
    }

    /// The client's next control connection.
    pub fn control(&self) -> Side {
        Side::accept(&self.control)
    }

    /// The client's next data connection.
    pub fn data(&self) -> Side {
        Side::accept(&self.data)
    }

    /// The port of the secondary.
    pub fn port(&self) -> u16 {
        self.data.local_addr().unwrap().port()
    }

    /// Gives a plain job on a control connection.
    pub fn give(&self, control: &mut Side) {
        control.hears("echo\n");
        control.says(&format!("{}\n", self.port()));
    }

    /// Gives a tracked job on a control connection and takes the client that claims it.
    pub fn give_tracked(&self, control: &mut Side, number: u32) -> Side {
        control.hears("suivi echo\n");
        control.says(&format!("{} {}\n", self.port(), jeton(number)));
        let mut data = self.data();
        data.hears(&format!("jeton {}\n", jeton(number)));
        data
    }
}

impl Side {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = eventually("a connection of the client", || listener.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// The client must say this line next.
    #[track_caller]
    pub fn hears(&mut self, line: &str) {
        let mut heard = String::new();
        self.stream.read_line(&mut heard).unwrap();
        assert_eq!(heard, line);
    }

    /// All that the client sends until it ends its sending side.
    pub fn hears_out(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        self.stream.read_to_end(&mut heard).unwrap();
        heard
    }

    /// So many bytes of the client.
    pub fn takes(&mut self, length: usize) {
        self.stream.read_exact(&mut vec![0; length]).unwrap();
    }

    pub fn says(&mut self, words: &str) {
        self.stream.get_mut().write_all(words.as_bytes()).unwrap();
    }

    /// Reads all, sends it back and closes.
    pub fn echoes(mut self) {
        let heard = self.hears_out();
        self.stream.get_mut().write_all(&heard).unwrap();
    }

    /// Sends back what comes while it comes, then closes.
    pub fn echoes_at_once(self) {
        let mut stream = self.stream.into_inner();
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return,
                length => stream.write_all(&buffer[..length]).unwrap(),
            }
        }
    }

    /// Says lines until the client is gone.
    pub fn says_on_and_on(mut self) {
        while self.stream.get_mut().write_all(b"and on\n").is_ok() {}
    }

    /// Reads all and closes without a word, as one that dies does.
    pub fn echoes_nothing(mut self) {
        self.hears_out();
    }

    /// Ends its own sending side only.
    pub fn half_closes(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// Closes with a reset.
    pub fn resets(self) {
        let stream = self.stream.into_inner();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }

    /// Waits until the client has closed.
    #[track_caller]
    pub fn waits_until_left(mut self) {
        assert_eq!(self.hears_out(), b"");
    }
}
