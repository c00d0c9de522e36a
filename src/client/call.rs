//! Whole calls: ask, exchange, and try again where that is safe.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::time::Duration;

use crate::client::control::{Control, Limits, Tracked, check_kind};
use crate::client::data::{Data, closed_early};
use crate::client::error::{ClientError, Peer};
use crate::client::input::{Input, Output};
use crate::client::news::{Fate, News};
use crate::client::pump::{Ending, Exchanged, Listener, Pump};
use crate::client::retry::{Evidence, Policy};
use crate::client::socket::{Endpoint, pause};
use crate::os::clock;

/// How long the end of a tracked job is waited for whose data connection broke before its start was
/// told: if nobody has claimed it, that would be told only when it expires.
const UNCLAIMED: Duration = Duration::from_millis(200);

/// What a [`Client`] tells whoever observes it.
#[derive(Debug)]
pub enum Event<'a> {
    /// News of a tracked job.
    News(&'a News),
    /// A try has failed, and there will be another.
    Retry {
        /// How it failed.
        error: &'a ClientError,
        /// How many have failed so far.
        failed: u32,
        /// The time until the next.
        pause: Duration,
    },
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// All that the secondary said.
    pub bytes: Vec<u8>,
    /// How many tries it took.
    pub tries: u32,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// Bytes received.
    pub answered: u64,
    /// How many tries it took.
    pub tries: u32,
}

/// How work is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A plain job (`TYPE`): it ends well when the secondary closes the connection.
    #[default]
    Plain,
    /// A tracked job (`suivi TYPE`): it ends well when the principal says so.
    Tracked,
    /// A plain job where the principal names the host as well (`adresse TYPE`).
    Addressed,
}

type Observer = Box<dyn FnMut(Event<'_>)>;

/// A client of one principal. It keeps its control connection from call to call.
pub struct Client {
    at: Endpoint,
    /// How long each step may take.
    pub limits: Limits,
    /// How often and how long a call is tried.
    pub policy: Policy,
    control: Option<Control>,
    observer: Option<Observer>,
    dice: RandomState,
}

impl Client {
    /// A client of the principal at `HOST:PORT` or `unix:PATH`. It connects with the first call.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn new(at: &str) -> Result<Self, ClientError> {
        at.parse().map(Self::at)
    }

    /// A client of the principal at that endpoint. It connects with the first call.
    #[must_use]
    pub fn at(at: Endpoint) -> Self {
        Self {
            at,
            limits: Limits::default(),
            policy: Policy::default(),
            control: None,
            observer: None,
            dice: RandomState::new(),
        }
    }

    /// Has each [`Event`] of the calls to come told to `observer`.
    pub fn observe(&mut self, observer: impl FnMut(Event<'_>) + 'static) {
        self.observer = Some(Box::new(observer));
    }

    /// Sends `bytes` to a secondary that does this kind of work and returns its answer.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn call(&mut self, kind: &str, bytes: &[u8]) -> Result<Reply, ClientError> {
        self.call_as(Mode::Plain, kind, bytes)
    }

    /// As [`Client::call`], with a tracked job: the answer counts only if the principal says that
    /// the job came to a good end.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn call_tracked(&mut self, kind: &str, bytes: &[u8]) -> Result<Reply, ClientError> {
        self.call_as(Mode::Tracked, kind, bytes)
    }

    /// As [`Client::call`], in any mode.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn call_as(&mut self, mode: Mode, kind: &str, bytes: &[u8]) -> Result<Reply, ClientError> {
        let mut kept = Kept { bytes: Vec::new(), limit: self.limits.answer_bytes };
        let streamed = self.stream(mode, kind, &mut Input::bytes(bytes), &mut Output::new(&mut kept))?;
        Ok(Reply { bytes: kept.bytes, tries: streamed.tries })
    }

    /// Sends all of `input`, and writes what comes back to `output` while it comes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn stream(
        &mut self,
        mode: Mode,
        kind: &str,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<Streamed, ClientError> {
        check_kind(kind)?;
        let began = clock::now();
        let mut failed = 0;
        loop {
            let error = match self.attempt(mode, kind, input, output) {
                Ok(answered) => return Ok(Streamed { answered, tries: failed + 1 }),
                Err(error) => error,
            };
            failed += 1;
            let evidence = Evidence {
                trouble: error.trouble(),
                answered: error.answered() > 0,
                replayable: input.is_replayable(),
            };
            let wait = self.policy.pause(failed, clock::now().since(began), self.throw());
            let Some(wait) = wait.filter(|_| evidence.allows_retry()) else {
                return Err(match failed {
                    1 => error,
                    tries => ClientError::Tried { tries, last: Box::new(error) },
                });
            };
            self.tell(Event::Retry { error: &error, failed, pause: wait });
            input.rewind().map_err(ClientError::Input)?;
            pause(wait);
        }
    }

    /// One try. A control connection that may be used again is kept.
    fn attempt(
        &mut self,
        mode: Mode,
        kind: &str,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<u64, ClientError> {
        // The last one may have been closed meanwhile, for idleness or with its principal.
        let kept = self.control.take().and_then(|mut control| control.is_usable().then_some(control));
        let mut control = match kept {
            Some(control) => control,
            None => Control::connect(&self.at, &self.limits)?,
        };
        let done = match mode {
            Mode::Plain => {
                let place = control.request(kind);
                place.and_then(|place| Data::connect(&place, None, &self.limits)?.exchange(input, output))
            }
            Mode::Addressed => {
                let place = control.address(kind);
                place.and_then(|place| Data::connect(&place, None, &self.limits)?.exchange(input, output))
            }
            Mode::Tracked => self.attempt_tracked(&mut control, kind, input, output),
        };
        self.control = Some(control);
        done
    }

    fn attempt_tracked(
        &mut self,
        control: &mut Control,
        kind: &str,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<u64, ClientError> {
        let Tracked { place, jeton } = control.track(kind)?;
        let is_input_at_hand = input.has_ended() || !input.pending().is_empty();
        let data = match Data::connect_for(&place, Some(jeton), &self.limits, is_input_at_hand) {
            Ok(data) => data,
            Err(error) => {
                // It will expire: nobody waits for that.
                control.forget(jeton);
                return Err(error);
            }
        };
        let Data { stream, peer, limits } = data;
        let mut told = |news: &News| tell(&mut self.observer, Event::News(news));
        let mut listener =
            Listener { control, jeton, told: &mut told, began: false, end: None, broken: None };
        let exchanged = Pump::new(&stream, &limits, input, output).run(Some(&mut listener));
        drop(stream);
        judge(exchanged, listener, peer, &limits, input.is_replayable())
    }

    fn tell(&mut self, event: Event<'_>) {
        tell(&mut self.observer, event);
    }

    fn throw(&self) -> u64 {
        let mut hasher = self.dice.build_hasher();
        hasher.write_u64(clock::now().as_nanos());
        hasher.finish()
    }
}

fn tell(observer: &mut Option<Observer>, event: Event<'_>) {
    if let Some(observer) = observer {
        observer(event);
    }
}

/// What a tracked job came to: the principal's word counts, and is waited for where the
/// exchange leaves it open.
fn judge(
    exchanged: Exchanged,
    mut listener: Listener<'_>,
    peer: Peer,
    limits: &Limits,
    replayable: bool,
) -> Result<u64, ClientError> {
    let Exchanged { answered, ending } = exchanged;
    let principal = listener.control.peer().clone();
    let jeton = listener.jeton;
    let failed = |source| ClientError::Exchange { peer: peer.clone(), answered, source };
    let is_lost = matches!(&ending, Ending::Early | Ending::Broken(_));
    let is_unclaimed = is_lost && answered == 0 && replayable && !listener.began;
    let limit = if is_unclaimed { UNCLAIMED } else { limits.news };
    let broken = match ending {
        Ending::Complete => None,
        // Its end may be a good one in the books, such as that of a client that was idle; but who
        // has not sent all has not been served.
        Ending::Told | Ending::Early => Some(failed(closed_early(answered))),
        // Nobody waits for its end: it may be at work for long.
        Ending::Broken(source) if source.kind() == io::ErrorKind::TimedOut => {
            return Err(listener.give_up(failed(source)));
        }
        Ending::Broken(source) => Some(failed(source)),
        Ending::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Some(ClientError::Output(error))
        }
        Ending::Output(error) => return Err(listener.give_up(ClientError::Output(error))),
        Ending::Input(error) => return Err(listener.give_up(ClientError::Input(error))),
    };
    match (listener.wait_for_end(limit), broken) {
        // Nobody reads the answer any more, and all is well nonetheless.
        (Ok(Fate::Began | Fate::Done), None | Some(ClientError::Output(_))) => Ok(answered),
        (Ok(Fate::Failed(_)), Some(error @ ClientError::Output(_))) => Err(error),
        (Ok(Fate::Failed(reason)), _) => Err(ClientError::Job { peer, jeton, answered, reason }),
        (Ok(Fate::Began | Fate::Done), Some(error)) => Err(error),
        (Err(late), broken) if is_unclaimed && late.kind() == io::ErrorKind::TimedOut => {
            Err(listener.give_up(broken.unwrap_or_else(|| failed(closed_early(answered)))))
        }
        (Err(source), _) => Err(ClientError::Follow { peer: principal, answered, source }),
    }
}

/// An answer in memory, of bounded length.
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            let words = format!("it is longer than {} bytes", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, words));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("at", &self.at).field("policy", &self.policy).finish_non_exhaustive()
    }
}
