//! `osps pingpong`: a principal and one secondary, one segment, one FIFO pair.
//!
//! The smallest whole of the system, to be read first: the principal says `ping n`
//! in `dwtube1`, the secondary writes n into the segment and says `pong n` in
//! `wdtube1`; after the last, the principal says `stop`, the secondary ends first and
//! is reaped, then the principal ends. No zombie is left.

use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::moment::Moment;
use crate::exit::{Code, Failure};
use crate::os::fifo::{self, Reader, Writer};
use crate::os::output::print;
use crate::os::pidfd::{Exit, Pidfd};
use crate::os::process;
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::page::{Access, HEADER_WORDS, Kind, Page};
use crate::wire::tube::Command;

/// The word of the segment into which the secondary writes the last number it saw.
const SEEN: usize = HEADER_WORDS;
/// How many exchanges it has made.
const COUNT: usize = HEADER_WORDS + 1;
const WORDS: usize = HEADER_WORDS + 8;
/// A peer that is silent for so long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Key {
    Tube,
    Ended,
}

/// What the principal saw.
struct Principal {
    reader: Reader,
    writer: Writer,
    secondary: Pidfd,
    page: Page,
    count: u64,
    sent: u64,
    sent_at: Moment,
    round_trips: Vec<Duration>,
    give_up_at: Moment,
    exit: Option<Exit>,
    trouble: Option<String>,
}

impl Principal {
    fn ping(&mut self, now: Moment) {
        self.sent += 1;
        self.sent_at = now;
        self.give_up_at = now + PATIENCE;
        self.writer.push(Command::Ping(self.sent));
    }

    fn hear(&mut self, now: Moment, command: Command) {
        match command {
            Command::Ready => self.ping(now),
            Command::Pong(number) if number == self.sent && self.page.get(SEEN) == number => {
                self.round_trips.push(crate::os::clock::now().since(self.sent_at));
                if self.sent < self.count {
                    self.ping(crate::os::clock::now());
                } else {
                    self.writer.push(Command::Stop);
                }
            }
            other => self.trouble = Some(format!("the secondary said {other:?} after ping {}", self.sent)),
        }
    }
}

impl Role for Principal {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, _: Signal) {
        self.trouble = Some("interrupted".to_owned());
        reactor.stop();
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, _: Ready) -> Progress {
        match key {
            Key::Tube => {
                let mut commands = Vec::new();
                let read = self.reader.read(|line| commands.push(Command::parse(line)));
                for command in commands {
                    match command {
                        Ok(command) => self.hear(reactor.now(), command),
                        Err(_) => self.trouble = Some("a line in the tube is no command".to_owned()),
                    }
                }
                read.unwrap_or(Progress::Drained)
            }
            Key::Ended => {
                self.exit = self.secondary.reap().ok().flatten();
                reactor.stop();
                Progress::Drained
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.give_up_at)
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        self.trouble = Some(format!("the secondary was silent for {PATIENCE:?}"));
        reactor.stop();
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        if let Err(error) = self.writer.flush() {
            self.trouble = Some(format!("cannot write to the tube: {error}"));
        }
        if self.trouble.is_some() {
            reactor.stop();
        }
    }
}

struct Secondary {
    reader: Reader,
    writer: Writer,
    page: Page,
}

impl Role for Secondary {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, _: Signal) {
        reactor.stop();
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, _: Key, _: Ready) -> Progress {
        let Self { reader, writer, page } = self;
        let read = reader.read(|line| match Command::parse(line) {
            Ok(Command::Ping(number)) => {
                page.set(SEEN, number);
                page.add(COUNT, 1);
                writer.push(Command::Pong(number));
            }
            Ok(_) | Err(_) => reactor.stop(),
        });
        read.unwrap_or(Progress::Drained)
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }

    fn on_deadline(&mut self, _: &mut Handle<Key>) {}

    fn settle(&mut self, _: &mut Handle<Key>) {
        // A FIFO that holds one line at a time does not fill.
        let _ = self.writer.flush();
    }
}

/// The directory of one run, removed with all that is in it.
struct PrivateDir(PathBuf);

impl PrivateDir {
    fn create() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("osps-pingpong-{}-{}", std::process::id(), crate::os::clock::now().as_nanos());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Failure::new(Code::CannotCreate, format!("cannot create {}: {error}", path.display()))
        })?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the principal's side: `count` exchanges, then a clean end of both.
///
/// # Errors
/// A [`Failure`] where something did not go as it should.
pub fn run(count: u64) -> Result<Code, Failure> {
    if count == 0 {
        return Err(Failure::new(Code::Usage, "--count 0: must be at least 1"));
    }
    let dir = PrivateDir::create()?;
    let mut reactor = Reactor::new(&[Signal::TERM, Signal::INT])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    let mut principal = start(&dir, count, reactor.handle())?;
    print(&format!(
        "principal pid {}: one segment, one FIFO pair in {}\nsecondary pid {}: started\n",
        std::process::id(),
        dir.0.display(),
        principal.secondary.pid()
    ))?;
    reactor.run(&mut principal).map_err(|error| Failure::internal("run the event loop", &error))?;
    if principal.exit.is_none() {
        let _ = principal.secondary.signal(rustix::process::Signal::KILL);
        let _ = principal.secondary.ends_within(PATIENCE);
        let _ = principal.secondary.reap();
    }
    report(&principal)
}

fn start(dir: &PrivateDir, count: u64, reactor: &mut Handle<Key>) -> Result<Principal, Failure> {
    let cannot = |what: &'static str| move |error: std::io::Error| Failure::internal(what, &error);
    let page = Page::create(&dir.file("secondary1.jobs"), Kind::Jobs, WORDS, &[0])
        .map_err(|error| Failure::new(Code::CannotCreate, error))?;
    for tube in ["dwtube1", "wdtube1"] {
        fifo::create(&dir.file(tube)).map_err(cannot("create the tubes"))?;
    }
    let mut reader = Reader::open(&dir.file("wdtube1")).map_err(cannot("open wdtube1"))?;
    let writer = Writer::open(&dir.file("dwtube1")).map_err(cannot("open dwtube1"))?;
    let arguments = vec!["pingpong-secondary".to_owned(), dir.0.display().to_string()];
    let mut secondary = process::spawn(None, &arguments, &[]).map_err(cannot("start the secondary"))?;
    reader.watch(reactor, Key::Tube).map_err(cannot("watch wdtube1"))?;
    secondary.watch(reactor, Key::Ended).map_err(cannot("watch the secondary"))?;
    let now = reactor.now();
    Ok(Principal {
        reader,
        writer,
        secondary,
        page,
        count,
        sent: 0,
        sent_at: now,
        round_trips: Vec::new(),
        give_up_at: now + PATIENCE,
        exit: None,
        trouble: None,
    })
}

fn report(principal: &Principal) -> Result<Code, Failure> {
    let exchanges = principal.round_trips.len();
    let complete = u64::try_from(exchanges).is_ok_and(|exchanges| exchanges == principal.count);
    if let Some(trouble) = &principal.trouble {
        return Err(Failure::new(Code::Internal, format!("{trouble}, after {exchanges} exchanges")));
    }
    if !complete || principal.exit != Some(Exit::Code(0)) {
        let ended = principal.exit.map_or_else(|| "not reaped".to_owned(), |exit| exit.to_string());
        return Err(Failure::new(
            Code::Internal,
            format!("the secondary: {ended}, after {exchanges} exchanges"),
        ));
    }
    let mut sorted = principal.round_trips.clone();
    sorted.sort_unstable();
    let at = |percent: usize| sorted[(exchanges - 1) * percent / 100].as_nanos() as f64 / 1000.0;
    print(&format!(
        "secondary saw {} pings, the last was number {}\n\
         principal saw {exchanges} pongs, the last was number {}\n\
         round trip in microseconds: min {:.1}, median {:.1}, 99% {:.1}, max {:.1}\n\
         secondary ended first (exit 0) and was reaped; the principal ends now\n",
        principal.page.get(COUNT),
        principal.page.get(SEEN),
        principal.sent,
        at(0),
        at(50),
        at(99),
        at(100)
    ))?;
    Ok(Code::Ok)
}

/// Runs the secondary's side in the directory that the principal made.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run_secondary(dir: &Path) -> Result<Code, Failure> {
    process::set_name(c"osps-secondary");
    let cannot = |what: &'static str| move |error: std::io::Error| Failure::internal(what, &error);
    let mut reactor = Reactor::new(&[Signal::TERM]).map_err(cannot("create the event loop"))?;
    let path = dir.join("secondary1.jobs");
    let (page, ()) =
        Page::attach(path.as_path().into(), Kind::Jobs, Access::ReadWrite, |_| Some(((), WORDS)))
            .map_err(|error| Failure::internal("attach", &error))?;
    let mut reader = Reader::open(&dir.join("dwtube1")).map_err(cannot("open dwtube1"))?;
    let mut writer = Writer::open(&dir.join("wdtube1")).map_err(cannot("open wdtube1"))?;
    reader.watch(reactor.handle(), Key::Tube).map_err(cannot("watch dwtube1"))?;
    writer.push(Command::Ready);
    writer.flush().map_err(cannot("write to wdtube1"))?;
    let mut secondary = Secondary { reader, writer, page };
    reactor.run(&mut secondary).map_err(cannot("run the event loop"))?;
    Ok(Code::Ok)
}
