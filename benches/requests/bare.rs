//! The bare servers: the same protocol, one mio loop a process, nothing else. No limits, no time-outs, no
//! books, no supervision.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Child, Command, Stdio};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Tells this program that it is a bare server, and of which kind.
pub const ROLE: &str = "OSPS_BENCH_BARE";
const LISTENER: Token = Token(0);
const DATA_LISTENER: Token = Token(1);
const PIPE: usize = 2;
/// Workers of the dispatcher: as many as OSPS has secondaries.
pub const WORKERS: usize = 4;
const FIRST_CONNECTION: usize = PIPE + WORKERS;

/// A bare server, killed and reaped at the end.
pub struct Bare {
    child: Child,
    pub address: SocketAddr,
}

impl Bare {
    /// Starts one on the first core.
    pub fn start(role: &str) -> io::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(env::current_exe()?).env(ROLE, role);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut port = [0; 2];
        child.stdout.take().ok_or(ErrorKind::BrokenPipe)?.read_exact(&mut port)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::from_le_bytes(port)));
        Ok(Self { child, address })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the bare server that the environment names.
pub fn run(role: &str) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match role {
        "loop" => Server::new(Vec::new(), true)?.announce()?.serve(),
        "dispatcher" => dispatch(),
        "worker" => work(),
        _ => Err(ErrorKind::InvalidInput.into()),
    }
}

/// Its workers are this program again, with two pipes each.
fn dispatch() -> io::Result<()> {
    let (mut pipes, mut ports) = (Vec::new(), Vec::new());
    for _ in 0..WORKERS {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        let (our_input, their_output) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = Command::new(env::current_exe()?);
        command.env(ROLE, "worker").stdin(theirs).stdout(their_output);
        // It dies with us; whoever measures finds it as our child.
        command.spawn()?;
        let mut input = File::from(our_input);
        let mut port = [0; 2];
        input.read_exact(&mut port)?;
        ports.push(u16::from_le_bytes(port));
        pipes.push((input, File::from(ours)));
    }
    let mut server = Server::new(pipes, true)?;
    server.ports = ports;
    server.announce()?.serve()
}

/// A worker: accepts on a port of its own, hears of jobs on its standard input, tells of ends on its
/// standard output.
fn work() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let take = |fd: RawFd| -> io::Result<File> {
        let path = format!("/proc/self/fd/{fd}");
        File::options().read(fd == 0).write(fd == 1).open(path)
    };
    let mut server = Server::new(Vec::new(), false)?;
    let mut output = take(1)?;
    output.write_all(&server.data.local_addr()?.port().to_le_bytes())?;
    server.pipes.push((take(0)?, output));
    server.serve()
}

enum Connection {
    Control(TcpStream),
    Data(TcpStream),
}

struct Server {
    poll: Poll,
    control: Option<TcpListener>,
    data: TcpListener,
    /// To each worker, from and to; or of a worker, to its dispatcher.
    pipes: Vec<(File, File)>,
    /// Its own data port.
    port: u16,
    /// Ports of the workers.
    ports: Vec<u16>,
    next_worker: usize,
    connections: HashMap<usize, Connection>,
    free: Vec<usize>,
    jobs: u64,
    told: Vec<u8>,
}

impl Server {
    fn new(pipes: Vec<(File, File)>, with_control: bool) -> io::Result<Self> {
        let any = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        // What is set here is inherited by the connections (tcp(7)).
        let bind = || {
            let listener = TcpListener::bind(any)?;
            setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
            Ok::<_, io::Error>(listener)
        };
        let control = with_control.then(bind).transpose()?;
        let data = bind()?;
        Ok(Self {
            poll: Poll::new()?,
            control,
            port: data.local_addr()?.port(),
            data,
            pipes,
            ports: Vec::new(),
            next_worker: 0,
            connections: HashMap::new(),
            free: Vec::new(),
            jobs: 0,
            told: Vec::new(),
        })
    }

    /// Says on which port it listens.
    fn announce(self) -> io::Result<Self> {
        if let Some(control) = &self.control {
            io::stdout().write_all(&control.local_addr()?.port().to_le_bytes())?;
            io::stdout().flush()?;
        }
        Ok(self)
    }

    fn serve(mut self) -> io::Result<()> {
        let registry = self.poll.registry().try_clone()?;
        if let Some(control) = &mut self.control {
            registry.register(control, LISTENER, Interest::READABLE)?;
        }
        registry.register(&mut self.data, DATA_LISTENER, Interest::READABLE)?;
        for (index, (input, output)) in self.pipes.iter().enumerate() {
            for pipe in [input, output] {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            let token = Token(PIPE + index);
            registry.register(&mut SourceFd(&input.as_raw_fd()), token, Interest::READABLE)?;
        }
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, None) {
                // By a stop, or a tracer that comes.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER | DATA_LISTENER => self.accept(event.token())?,
                    Token(token) if token < FIRST_CONNECTION => self.hear(token - PIPE)?,
                    Token(token) => self.ready(token)?,
                }
            }
            self.tell()?;
        }
    }

    fn accept(&mut self, listener: Token) -> io::Result<()> {
        let is_control = listener == LISTENER;
        loop {
            let from = if is_control { self.control.as_ref() } else { Some(&self.data) };
            let accepted = from.ok_or(ErrorKind::NotFound)?.accept();
            let mut stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let token = self.free.pop().unwrap_or(FIRST_CONNECTION + self.connections.len());
            self.poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            let connection = if is_control { Connection::Control(stream) } else { Connection::Data(stream) };
            self.connections.insert(token, connection);
        }
    }

    fn ready(&mut self, token: usize) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let Some(Connection::Control(stream) | Connection::Data(stream)) =
                self.connections.get_mut(&token)
            else {
                return Ok(());
            };
            let length = match stream.read(&mut buffer) {
                Ok(0) => {
                    self.close(token);
                    return Ok(());
                }
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    self.close(token);
                    return Ok(());
                }
            };
            match self.connections.get_mut(&token) {
                Some(Connection::Data(stream)) => stream.write_all(&buffer[..length])?,
                Some(Connection::Control(_)) => self.answer(token, &buffer[..length])?,
                None => {}
            }
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// A port for each line.
    fn answer(&mut self, token: usize, lines: &[u8]) -> io::Result<()> {
        for _ in lines.iter().filter(|&&byte| byte == b'\n') {
            let port = if self.ports.is_empty() {
                self.port
            } else {
                self.next_worker = (self.next_worker + 1) % self.ports.len();
                self.jobs += 1;
                let line = format!("job {}\n", self.jobs);
                self.pipes[self.next_worker].1.write_all(line.as_bytes())?;
                self.ports[self.next_worker]
            };
            if let Some(Connection::Control(stream)) = self.connections.get_mut(&token) {
                stream.write_all(format!("{port}\n").as_bytes())?;
            }
        }
        Ok(())
    }

    fn close(&mut self, token: usize) {
        if let Some(Connection::Data(_)) = self.connections.remove(&token)
            && self.control.is_none()
        {
            self.jobs += 1;
            self.told.extend_from_slice(format!("end {}\n", self.jobs).as_bytes());
        }
        self.free.push(token);
    }

    /// What came through a pipe is counted; nobody keeps books.
    fn hear(&mut self, index: usize) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.pipes[index].0.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::BrokenPipe.into()),
                Ok(length) if length < buffer.len() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The ends of a turn, in one write.
    fn tell(&mut self) -> io::Result<()> {
        if !self.told.is_empty() {
            self.pipes[0].1.write_all(&self.told)?;
            self.told.clear();
        }
        Ok(())
    }
}
