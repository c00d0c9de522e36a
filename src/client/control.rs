//! The control connection: requests and their answers, and news of tracked jobs.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::PollFlags;

use crate::client::data::Data;
use crate::client::error::{ClientError, Peer};
use crate::client::news::{Fate, Followed, Line, Lines, MAX_FOLLOWED, News};
use crate::client::socket::{Endpoint, Socket, wait};
use crate::os::clock;
use crate::wire::jeton::Jeton;

/// How long each step may take. A step that takes longer fails with `TimedOut`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connecting, all addresses of a name together. Default: 10 s. Looking a name up is not in
    /// it: that has limits of its own (resolv.conf(5)).
    pub connect: Duration,
    /// From a request to its answer. Default: 30 s.
    pub answer: Duration,
    /// The longest silence of a secondary that is to answer, or to take what is sent to it.
    /// Default: 30 s. While input is waited for, no time counts.
    pub silence: Duration,
    /// The longest wait for the next news of a tracked job. Default: 30 s.
    pub news: Duration,
    /// The longest answer in bytes that is kept in memory. Default: 64 MiB.
    pub answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), ..Self::each(Duration::from_secs(30)) }
    }
}

impl Limits {
    /// The same time for each step.
    #[must_use]
    pub fn each(time: Duration) -> Self {
        Self { connect: time, answer: time, silence: time, news: time, answer_bytes: 64 * 1024 * 1024 }
    }
}

/// Where work will be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the first of these addresses that accepts.
    Addresses(Vec<SocketAddr>),
    /// At `HOST:PORT`, as the principal named it.
    Named(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(addresses) => addresses.first().map_or(Ok(()), |address| write!(f, "{address}")),
            Self::Named(at) => f.write_str(at),
        }
    }
}

/// A tracked job that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Where it will be done.
    pub place: Place,
    /// What to claim it with.
    pub jeton: Jeton,
}

/// A control connection. It may be used for any number of requests, one at a time, until one of
/// them fails otherwise than by [`ClientError::Refused`].
#[derive(Debug)]
pub struct Control {
    socket: Socket,
    peer: Peer,
    /// The hosts of the secondaries.
    hosts: Vec<SocketAddr>,
    limits: Limits,
    lines: Lines,
    followed: Followed,
    /// Why it is of no use any more.
    broken: Option<&'static str>,
}

impl Control {
    /// Connects to a principal.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(at: &Endpoint, limits: &Limits) -> Result<Self, ClientError> {
        let peer = Peer::Principal(at.to_string());
        let connect = || {
            let socket = Socket::connect(at, limits.connect)?;
            let hosts = match &socket {
                Socket::Tcp(stream) => vec![stream.peer_addr()?],
                // A client of a Unix socket counts as one of this machine.
                Socket::Unix(_) => {
                    [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(at_no_port).to_vec()
                }
            };
            Ok((socket, hosts))
        };
        match connect() {
            Ok((socket, hosts)) => Ok(Self {
                socket,
                peer,
                hosts,
                limits: *limits,
                lines: Lines::default(),
                followed: Followed::default(),
                broken: None,
            }),
            Err(source) => Err(ClientError::Connect { peer, source }),
        }
    }

    /// Asks for a type of work (`TYPE`): where it will be done. Whoever asked connects there from
    /// the same address within the server's `claim_within`.
    ///
    /// # Errors
    /// [`ClientError::Kind`], [`ClientError::Request`], [`ClientError::Refused`].
    pub fn request(&mut self, kind: &str) -> Result<Place, ClientError> {
        let answer = self.ask("", kind)?;
        let place = port(&answer).map(|port| self.place(port));
        place.ok_or_else(|| self.nonsense(kind, &answer))
    }

    /// Asks for a job that is reported (`suivi TYPE`).
    ///
    /// # Errors
    /// As [`Control::request`], and where as many jobs are followed as may be.
    pub fn track(&mut self, kind: &str) -> Result<Tracked, ClientError> {
        if !self.followed.has_room() {
            let words = format!("{MAX_FOLLOWED} jobs are followed already");
            return Err(self.unanswered(kind, io::Error::new(io::ErrorKind::InvalidData, words)));
        }
        let answer = self.ask("suivi ", kind)?;
        let understood = answer
            .split_once(' ')
            .and_then(|(digits, jeton)| Some((port(digits)?, Jeton::parse(jeton.as_bytes())?)));
        let Some((port, jeton)) = understood else {
            return Err(self.nonsense(kind, &answer));
        };
        if self.followed.open(jeton).is_err() {
            return Err(self.nonsense(kind, "a jeton given twice"));
        }
        Ok(Tracked { place: self.place(port), jeton })
    }

    /// Asks for a type of work (`adresse TYPE`), to be done where the principal says: under
    /// another address than its own, where secondaries are announced so.
    ///
    /// # Errors
    /// As [`Control::request`].
    pub fn address(&mut self, kind: &str) -> Result<Place, ClientError> {
        let answer = self.ask("adresse ", kind)?;
        match answer.parse() {
            Ok(Endpoint::Tcp(at)) => Ok(Place::Named(at)),
            Ok(Endpoint::Unix(_)) | Err(_) => Err(self.nonsense(kind, &answer)),
        }
    }

    /// Asks for a type of work and connects to whom the principal names.
    ///
    /// # Errors
    /// Those of [`Control::request`] and [`Data::connect`].
    pub fn open(&mut self, kind: &str) -> Result<Data, ClientError> {
        let place = self.request(kind)?;
        Data::connect(&place, None, &self.limits)
    }

    /// Asks for a job that is reported and claims it.
    ///
    /// # Errors
    /// Those of [`Control::track`] and [`Data::connect`].
    pub fn open_tracked(&mut self, kind: &str) -> Result<(Data, Jeton), ClientError> {
        let Tracked { place, jeton } = self.track(kind)?;
        let data = Data::connect(&place, Some(jeton), &self.limits);
        if data.is_err() {
            self.forget(jeton);
        }
        Ok((data?, jeton))
    }

    /// Waits for the next news: of that job, or of any that was given here. `None` where no
    /// news are to come any more.
    ///
    /// # Errors
    /// [`ClientError::Follow`].
    pub fn news(&mut self, of: Option<Jeton>) -> Result<Option<News>, ClientError> {
        self.news_within(of, self.limits.news).map_err(|source| self.unfollowed(source))
    }

    /// Waits for the end of a job; each line of news goes through `told` first. Returns
    /// [`Fate::Done`] or [`Fate::Failed`].
    ///
    /// # Errors
    /// [`ClientError::Follow`].
    pub fn follow(&mut self, jeton: Jeton, told: &mut dyn FnMut(&News)) -> Result<Fate, ClientError> {
        self.end_of(jeton, self.limits.news, told).map_err(|source| self.unfollowed(source))
    }

    /// As [`Control::follow`], with a limit for each line of news.
    pub(super) fn end_of(
        &mut self,
        jeton: Jeton,
        limit: Duration,
        told: &mut dyn FnMut(&News),
    ) -> io::Result<Fate> {
        while let Some(news) = self.news_within(Some(jeton), limit)? {
            told(&news);
            if news.fate != Fate::Began {
                return Ok(news.fate);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "no such job is open"))
    }

    fn news_within(&mut self, of: Option<Jeton>, limit: Duration) -> io::Result<Option<News>> {
        let deadline = clock::now() + limit;
        loop {
            // What came with an answer stands in the buffer: no wait would end for it.
            if let Err(error) = self.listen() {
                return self.followed.next(of).map(Some).ok_or(error);
            }
            if let Some(news) = self.followed.next(of) {
                return Ok(Some(news));
            }
            if !self.followed.expects(of) {
                return Ok(None);
            }
            wait(self.socket.as_fd(), PollFlags::IN, deadline, limit)?;
        }
    }

    /// Wants to hear nothing more of a job.
    pub fn forget(&mut self, jeton: Jeton) {
        self.followed.forget(jeton);
    }

    /// The principal.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether a further request may succeed: nothing is known to the contrary now.
    pub fn is_usable(&mut self) -> bool {
        self.broken.is_none() && self.listen().is_ok()
    }

    /// Takes news that are there, without waiting for any.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        loop {
            match self.next_line()? {
                Some(Line::News(news)) => self.take(news)?,
                // It is told before it is asked, that there are too many connections already.
                Some(Line::Answer(answer)) if answer.starts_with("-1") => {
                    return Err(self.broke(io::ErrorKind::ConnectionAborted, "it had refused to serve"));
                }
                Some(Line::Answer(_)) => {
                    return Err(self.broke(io::ErrorKind::InvalidData, "an answer to no request"));
                }
                None if self.read()? => {}
                None => return Ok(()),
            }
        }
    }

    /// News of that job which were taken already.
    pub(super) fn told(&mut self, of: Jeton) -> Option<News> {
        self.followed.next(Some(of))
    }

    fn ask(&mut self, word: &str, kind: &str) -> Result<String, ClientError> {
        check_kind(kind)?;
        let answer = self.exchange_lines(&format!("{word}{kind}\n"));
        let answer = answer.map_err(|source| self.unanswered(kind, source))?;
        match answer.strip_prefix("-1") {
            Some(reason) => {
                let (peer, reason) = (self.peer.clone(), reason.trim().to_owned());
                Err(ClientError::Refused { peer, kind: kind.to_owned(), reason })
            }
            None => Ok(answer),
        }
    }

    /// Sends a request and waits for its answer; news that come before are kept.
    fn exchange_lines(&mut self, request: &str) -> io::Result<String> {
        if let Some(why) = self.broken {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
        }
        let limit = self.limits.answer;
        let deadline = clock::now() + limit;
        // Whoever closes may have said why: that is read first.
        let sent = self.socket.write_all(request.as_bytes(), limit);
        loop {
            match self.next_line()? {
                Some(Line::News(news)) => self.take(news)?,
                Some(Line::Answer(answer)) => return Ok(answer),
                None if self.read()? => {}
                None => {
                    let waited = match &sent {
                        Ok(()) => wait(self.socket.as_fd(), PollFlags::IN, deadline, limit),
                        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                    };
                    // Its answer, should it come, must not be taken for the next one's.
                    waited.inspect_err(|_| self.broken = Some("an earlier request was not answered"))?;
                }
            }
        }
    }

    fn next_line(&mut self) -> io::Result<Option<Line>> {
        let line = match self.lines.next() {
            Ok(None) => return Ok(None),
            Ok(Some(line)) => Line::parse(line).map_err(|_| "a line that is no news"),
            Err(what) => Err(what),
        };
        line.map(Some).map_err(|what| self.broke(io::ErrorKind::InvalidData, what))
    }

    fn take(&mut self, news: News) -> io::Result<()> {
        self.followed.take(news).map_err(|what| self.broke(io::ErrorKind::InvalidData, what))
    }

    /// Reads what is there; whether anything was.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer) {
            Ok(Some(0)) => Err(self.broke(io::ErrorKind::UnexpectedEof, "the control connection was closed")),
            Ok(Some(length)) => {
                self.lines.feed(&buffer[..length]);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.broken = Some("the control connection broke");
                Err(error)
            }
        }
    }

    fn broke(&mut self, kind: io::ErrorKind, why: &'static str) -> io::Error {
        self.broken = Some(why);
        io::Error::new(kind, why)
    }

    fn place(&self, port: u16) -> Place {
        let with_port = |mut address: SocketAddr| {
            address.set_port(port);
            address
        };
        Place::Addresses(self.hosts.iter().copied().map(with_port).collect())
    }

    fn unfollowed(&self, source: io::Error) -> ClientError {
        ClientError::Follow { peer: self.peer.clone(), answered: 0, source }
    }

    fn unanswered(&self, kind: &str, source: io::Error) -> ClientError {
        ClientError::Request { peer: self.peer.clone(), kind: kind.to_owned(), source }
    }

    fn nonsense(&mut self, kind: &str, answer: &str) -> ClientError {
        self.broken = Some("it said nonsense");
        let shown: String = answer.chars().take(64).collect();
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("{shown:?} is no answer"));
        self.unanswered(kind, source)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether the name of a type of work can stand in a request; what else is wrong with it is for the
/// principal to say.
///
/// # Errors
/// [`ClientError::Kind`].
pub fn check_kind(kind: &str) -> Result<(), ClientError> {
    if kind.is_empty() || kind.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(ClientError::Kind { kind: kind.to_owned() });
    }
    Ok(())
}

fn at_no_port(host: IpAddr) -> SocketAddr {
    SocketAddr::new(host, 0)
}

fn port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&port| plain && port > 0)
}
