//! The load: many clients around one event loop.

use rustix::process::Signal;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::moment::Moment;
use crate::core::timers::Timers;
use crate::os::alarm::Alarm;
use crate::os::clock;
use crate::os::proc::CpuClock;
use crate::os::reactor::{Handle, Progress as Turn, Reactor, Ready, Role, SourceId};
use crate::stress::client::{Client, Failure, Progress};
use crate::stress::mix::Mix;
use crate::stress::pace::Pace;
use crate::stress::record::{Failed, Record};
use crate::stress::watch::Watch;
use crate::stress::{Plan, Until};

/// After a failure a client of a closed loop waits so long: a server that refuses at once must not be asked
/// as fast as this machine can.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// Where the principal listens.
#[derive(Clone, Debug)]
pub enum Target {
    /// An address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Whether it is reached under what a server of this machine says that it listens on: `IP:PORT`, `unix:PATH`.
    #[must_use]
    pub fn is_at(&self, listen: &str) -> bool {
        match self {
            Self::Unix(path) => listen.strip_prefix("unix:").is_some_and(|known| Path::new(known) == path),
            Self::Tcp(address) => listen.parse().is_ok_and(|known: SocketAddr| {
                known.port() == address.port() && (known.ip().is_unspecified() || known.ip() == address.ip())
            }),
        }
    }

    /// Where secondaries are, if the control connection does not tell.
    #[must_use]
    pub fn host(&self) -> IpAddr {
        match self {
            Self::Tcp(address) => address.ip(),
            Self::Unix(_) => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl Target {
    /// Whether clients may come from any address of 127.0.0.0/8. One of a Unix socket counts as 127.0.0.1,
    /// and so has to come from there.
    #[must_use]
    pub fn has_spare_sources(&self) -> bool {
        matches!(self, Self::Tcp(SocketAddr::V4(address)) if address.ip().is_loopback())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the reactor gives back with an event.
#[derive(Clone, Copy, Debug)]
pub enum Key {
    /// The control connection of a client.
    Control(usize),
    /// Its data connection.
    Data(usize),
    /// The next request of an open loop is due.
    Due,
}

#[derive(Clone, Copy, Debug)]
enum Timer {
    /// A client begins, or goes on after a failure.
    Client(usize),
    /// A request has taken too long.
    Timeout(usize),
    /// No request begins after this.
    End,
    /// Show how it goes.
    Watch,
}

/// The clients and what has become of their requests.
pub struct Load<'a> {
    plan: &'a Plan,
    target: &'a Target,
    clients: Vec<Client>,
    /// Clients without a request, in an open loop; the one that has rested longest first.
    idle: VecDeque<usize>,
    /// Clients that begin their next request in this turn, in a closed loop.
    next: VecDeque<usize>,
    pace: Option<Pace>,
    alarm: Option<Alarm>,
    mix: Mix,
    record: Record,
    watch: Watch,
    timers: Timers<Timer>,
    start: Moment,
    begun: u64,
    under_way: usize,
    /// No request begins any more.
    over: bool,
    interrupted: bool,
    /// Every client had a request when this turn began.
    all_were_busy: bool,
}

impl<'a> Load<'a> {
    /// All is ready to begin at `start`.
    pub fn new(plan: &'a Plan, target: &'a Target, watch: Watch, start: Moment) -> Self {
        let mut load = Self {
            plan,
            target,
            clients: (0..plan.clients).map(|place| Client::new(place, plan.source(place))).collect(),
            idle: VecDeque::new(),
            next: VecDeque::new(),
            pace: plan.rate.map(|rate| Pace::new(start + plan.offset, rate, plan.ramp)),
            alarm: None,
            mix: Mix::new(&plan.shares),
            record: Record::new(plan.shares.iter().map(|share| share.kind.as_str())),
            watch,
            timers: Timers::default(),
            start,
            begun: 0,
            under_way: 0,
            over: matches!(plan.until, Until::Count(0)),
            interrupted: false,
            all_were_busy: false,
        };
        load.timers.arm(start, Timer::Watch);
        if let Until::Time(duration) = plan.until {
            load.timers.arm(start + duration, Timer::End);
        }
        if load.pace.is_some() {
            load.idle.extend(0..plan.clients);
        } else {
            let between = plan.ramp.as_secs_f64() / plan.clients.max(1) as f64;
            for place in 0..plan.clients {
                let at = start + Duration::from_secs_f64(between * place as f64);
                load.timers.arm(at, Timer::Client(place));
            }
        }
        load
    }

    /// Runs until all requests have ended. Returns what became of them, and how long it took.
    ///
    /// # Errors
    /// What the event loop says.
    pub fn run(mut self) -> io::Result<(Record, Watch, Duration)> {
        let mut reactor = Reactor::new(&[Signal::INT, Signal::TERM])?;
        if self.pace.is_some() {
            self.alarm = Some(Alarm::new(reactor.handle(), Key::Due)?);
        }
        let cpu = || CpuClock::of(std::process::id()).read().unwrap_or_default();
        let used_before = cpu();
        reactor.run(&mut self)?;
        let now = clock::now();
        self.count_the_rest(now);
        let took = now.since(self.start);
        self.record.end(took);
        let used = cpu().saturating_sub(used_before);
        self.record.busy = used.as_secs_f64() / took.as_secs_f64().max(1e-9);
        Ok((self.record, self.watch, took))
    }

    /// The run was interrupted: what was under way, and what should have begun, has failed.
    fn count_the_rest(&mut self, now: Moment) {
        let at = now.since(self.start);
        for client in &self.clients {
            if let Some(work) = &client.work {
                let waited = now.since(work.intended);
                let example = || format!("had waited for {waited:.1?} when the run was interrupted");
                self.record.fail(work.kind, Failed::Unfinished, example, at);
            }
        }
        if let Some(pace) = self.pace {
            let due = match self.plan.until {
                Until::Time(duration) => pace.due_by(now.min(self.start + duration)),
                Until::Count(count) => pace.due_by(now).min(count.max(pace.taken())),
            };
            // The one that was due this very moment is no stall.
            if due > pace.taken() + 1 {
                self.record.not_begun(due - pace.taken(), at);
            }
        }
    }

    fn begin(&mut self, reactor: &mut Handle<Key>, place: usize, intended: Moment) {
        if let Until::Count(count) = self.plan.until {
            self.over |= self.begun + 1 >= count;
        }
        self.begun += 1;
        self.under_way += 1;
        let kind = self.mix.deal();
        let timer = self.timers.arm(reactor.now() + self.plan.timeout, Timer::Timeout(place));
        let done = self.clients[place].begin(reactor, self.plan, self.target, (kind, intended, timer));
        self.settle_client(reactor, place, done);
    }

    fn settle_client(&mut self, reactor: &mut Handle<Key>, place: usize, done: Result<Progress, Failure>) {
        match done {
            Ok(Progress::Goes) => {}
            Ok(Progress::Served) => self.finish(reactor, place, None),
            Err(failure) => self.finish(reactor, place, Some(failure)),
        }
    }

    /// A request has ended, well or badly.
    fn finish(&mut self, reactor: &mut Handle<Key>, place: usize, failure: Option<Failure>) {
        let Some(work) = self.clients[place].finish(reactor) else {
            return;
        };
        self.timers.cancel(work.timer);
        self.under_way -= 1;
        // Not the time of the turn, which may be long: what is measured is when the answer was there for us.
        let (now, has_failed) = (clock::now(), failure.is_some());
        let at = now.since(self.start);
        match failure {
            None => {
                let latency = now.since(work.intended);
                self.record.serve(work.kind, latency, at);
                self.watch.served(latency);
            }
            Some((failed, example)) => {
                self.record.fail(work.kind, failed, || example, at);
                self.watch.failed();
            }
        }
        if self.pace.is_some() {
            self.idle.push_back(place);
        } else if has_failed {
            self.timers.arm(now + PAUSE_AFTER_FAILURE, Timer::Client(place));
        } else {
            self.next.push_back(place);
        }
    }

    /// Gives the requests that are due to clients that have none.
    fn begin_due(&mut self, reactor: &mut Handle<Key>) {
        while !self.over
            && let Some(place) = self.idle.pop_front()
        {
            match self.take_due() {
                Some(intended) => {
                    self.record.late.note(clock::now().since(intended), self.all_were_busy);
                    self.begin(reactor, place, intended);
                }
                None => {
                    self.idle.push_front(place);
                    break;
                }
            }
        }
    }

    /// The next request of an open loop, if it is due, and before the end: when it should begin.
    fn take_due(&mut self) -> Option<Moment> {
        let is_in_time = matches!(self.plan.until, Until::Count(_)) || self.is_behind();
        self.pace.as_mut().filter(|_| is_in_time)?.take(clock::now())
    }

    /// Where no client is free, the one that becomes so takes what is due.
    fn set_alarm(&mut self) {
        let waits = !self.over && !self.idle.is_empty();
        let at = self.pace.filter(|_| waits).map(|pace| pace.at());
        if let Some(alarm) = &mut self.alarm
            && let Err(error) = alarm.set(at)
        {
            log::error!("cannot set a timer: {error}");
            self.over = true;
        }
    }

    /// Whether requests are left that are to begin before the end: they begin still, however late.
    fn is_behind(&self) -> bool {
        match (self.pace, self.plan.until) {
            (Some(pace), Until::Time(duration)) => pace.at() < self.start + duration,
            _ => false,
        }
    }

    fn on_timer(&mut self, reactor: &mut Handle<Key>, timer: Timer) {
        match timer {
            Timer::Client(place) => self.next.push_back(place),
            Timer::Timeout(place) => {
                let what = format!("no answer within {:?}", self.plan.timeout);
                self.finish(reactor, place, Some((Failed::Timeout, what)));
            }
            Timer::End => self.over |= !self.is_behind(),
            Timer::Watch => {
                let at = reactor.now().since(self.start);
                // Who was served in this turn asks again at its end.
                let next = self.watch.show(at, self.plan, self.under_way + self.next.len());
                self.timers.arm(reactor.now() + next, Timer::Watch);
            }
        }
    }
}

impl Role for Load<'_> {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, _: Signal) {
        // The first time as if it were the end; again: at once.
        self.over = true;
        if std::mem::replace(&mut self.interrupted, true) {
            reactor.stop();
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, ready: Ready) -> Turn {
        let (place, done) = match key {
            Key::Control(place) => {
                (place, self.clients[place].on_control(reactor, self.plan, self.target, ready))
            }
            Key::Data(place) => (place, self.clients[place].on_data(self.plan, ready)),
            Key::Due => {
                self.alarm.iter_mut().for_each(Alarm::rang);
                return Turn::Drained;
            }
        };
        self.settle_client(reactor, place, done);
        Turn::Drained
    }

    fn deadline(&self) -> Option<Moment> {
        self.timers.next()
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        for _ in 0..self.timers.len() {
            let Some(timer) = self.timers.pop_due(reactor.now()) else {
                break;
            };
            self.on_timer(reactor, timer);
        }
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        if self.pace.is_some() {
            self.begin_due(reactor);
            if let Until::Time(duration) = self.plan.until {
                let is_late = self.start + duration <= reactor.now();
                self.over |= is_late && !self.is_behind();
            }
            self.set_alarm();
        }
        // Those that fail at once wait for their timers, so this ends.
        while !self.over
            && let Some(place) = self.next.pop_front()
        {
            self.begin(reactor, place, clock::now());
        }
        if self.over && self.under_way == 0 {
            reactor.stop();
        }
        self.all_were_busy = self.idle.is_empty();
    }
}
