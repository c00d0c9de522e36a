//! The event loop on real descriptors: reused tokens, budgets, signal storms, full FIFOs.
//!
//! A loop takes the signals of its own thread, and each test has a thread: signals are sent to threads.

// `allow-unwrap-in-tests` means test functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod stage;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use mio::Interest;
use mio::unix::pipe::Receiver;
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SigSet, Signal, raise};
use osps::os::clock;
use osps::os::fifo::{self, Flushed, Reader, Writer};
use osps::os::reactor::{Handle, Progress, Reactor, Ready, SourceId};
use osps::wire::tube::{Command, JobRef};

use stage::{Line, Nobody, Part, Seen, Stage, reactor, read_some};

/// Of two ready sources the first one handled puts a new one in the other's place.
struct Usurper {
    lines: Vec<Line>,
    deposed: Option<SourceId>,
    /// Otherwise it leaves every source early.
    reads: bool,
}

impl Usurper {
    fn new(reactor: &mut Reactor<char>, reads: bool) -> Self {
        let lines = ['a', 'b'].map(|key| Line::new(reactor.handle(), key)).into();
        Self { lines, deposed: None, reads }
    }

    /// Closes the line before it opens the new one, so that index and descriptor are free.
    fn depose(&mut self, handle: &mut Handle<char>, at: usize) {
        let mut line = self.lines.remove(at);
        handle.deregister(&mut line.near, line.id);
        self.deposed = Some(line.id);
        drop(line);
        self.lines.push(Line::new(handle, 'c'));
    }

    fn line(&mut self, key: char) -> &mut Line {
        self.lines.iter_mut().find(|line| line.key == key).unwrap()
    }
}

impl Part for Usurper {
    fn on_ready(&mut self, handle: &mut Handle<char>, id: SourceId, key: char, ready: Ready) -> Progress {
        assert_eq!((id, ready), (self.line(key).id, fifo::READABLE));
        if !self.reads {
            return Progress::Again;
        }
        let progress = self.line(key).drain();
        if self.deposed.is_none() {
            let other = self.lines.iter().position(|line| line.key != key).unwrap();
            self.depose(handle, other);
        }
        progress
    }
}

#[test]
fn an_event_of_this_turn_never_reaches_the_source_that_took_the_place_of_its_own() {
    let mut reactor = reactor(&[]);
    let mut stage = Stage::new(Usurper::new(&mut reactor, true));
    stage.part.lines.iter_mut().for_each(Line::make_ready);

    let turn = stage.turn(&mut reactor);
    assert!(matches!(turn[..], [Seen::Ready('a' | 'b'), Seen::Settled]), "{turn:?}");
    stage.assert_quiet(&mut reactor);

    // The old name means nothing any more, least of all the new source.
    let deposed = stage.part.deposed.unwrap();
    let line = stage.part.line('c');
    assert_ne!(line.id, deposed);
    reactor.handle().deregister(&mut line.near, deposed);
    reactor.handle().again(deposed, fifo::READABLE);
    line.make_ready();
    assert_eq!(stage.turn(&mut reactor), [Seen::Ready('c'), Seen::Settled]);
    stage.assert_quiet(&mut reactor);
}

#[test]
fn a_source_left_early_and_deregistered_leaves_nothing_to_its_successor() {
    let mut reactor = reactor(&[]);
    let mut stage = Stage::new(Usurper::new(&mut reactor, false));
    stage.part.lines[0].make_ready();
    assert_eq!(stage.turn(&mut reactor), [Seen::Ready('a'), Seen::Settled]);
    assert_eq!(stage.turn(&mut reactor), [Seen::Ready('a'), Seen::Settled], "it said `Again`");

    stage.part.reads = true;
    stage.part.depose(reactor.handle(), 0);
    stage.assert_quiet(&mut reactor);
    stage.part.line('c').make_ready();
    let turn = stage.turn(&mut reactor);
    assert_eq!(turn, [Seen::Ready('c'), Seen::Settled]);
}

/// Reads a bit of a bulk at a time; in the middle of it another source becomes ready.
struct Nibbler {
    bulk: Line,
    other: Line,
    read: Vec<u8>,
}

impl Nibbler {
    const BITE: usize = 1024;
    const BULK: usize = 50 * Self::BITE;
}

impl Part for Nibbler {
    fn on_ready(&mut self, _: &mut Handle<char>, _: SourceId, key: char, ready: Ready) -> Progress {
        assert!(ready.readable, "readiness is lost when a handler comes back");
        if key == self.other.key {
            return self.other.drain();
        }
        let progress = read_some(&mut self.bulk.near, Self::BITE, &mut self.read);
        if self.read.len() == 3 * Self::BITE {
            self.other.make_ready();
        }
        progress
    }
}

#[test]
fn a_handler_that_stops_early_comes_back_each_turn_and_starves_nobody() {
    let mut reactor = reactor(&[]);
    let [bulk, other] = ['b', 'o'].map(|key| Line::new(reactor.handle(), key));
    let mut stage = Stage::new(Nibbler { bulk, other, read: Vec::new() });
    let sent: Vec<u8> = (0..=250).cycle().take(Nibbler::BULK).collect();
    stage.part.bulk.far.write_all(&sent).unwrap();

    stage.turn_until(&mut reactor, |stage| stage.part.read.len() == Nibbler::BULK);
    assert_eq!(stage.part.read, sent);
    for (number, turn) in (1..).zip(stage.turns()) {
        let served = |key| turn.iter().filter(|&&seen| seen == Seen::Ready(key)).count();
        assert_eq!(served('b'), 1, "turn {number}: {turn:?}");
        assert_eq!(served('o'), usize::from(number == 4), "turn {number}: {turn:?}");
    }

    // One more call finds nothing; after that it takes a new event.
    assert_eq!(stage.turn(&mut reactor), [Seen::Ready('b'), Seen::Settled]);
    stage.assert_quiet(&mut reactor);
    stage.part.bulk.make_ready();
    assert_eq!(stage.turn(&mut reactor)[0], Seen::Ready('b'));
}

/// Sends itself the next signal from the handler of the last one.
struct Echo {
    left: usize,
    line: Line,
}

impl Part for Echo {
    fn on_signal(&mut self, signal: Signal) {
        self.line.make_ready();
        if self.left > 0 {
            self.left -= 1;
            raise(signal).unwrap();
        }
    }

    fn on_ready(&mut self, _: &mut Handle<char>, _: SourceId, _: char, _: Ready) -> Progress {
        self.line.drain()
    }
}

#[test]
fn a_turn_reports_a_signal_once_however_often_it_comes() {
    const ECHOES: usize = 100;
    let mut reactor = reactor(&[Signal::SIGUSR1]);
    let line = Line::new(reactor.handle(), 'd');
    let mut stage = Stage::new(Echo { left: ECHOES, line });
    for _ in 0..5000 {
        raise(Signal::SIGUSR1).unwrap();
    }
    let reports = |log: &[Seen]| log.iter().filter(|&&seen| seen == Seen::Signal(Signal::SIGUSR1)).count();
    stage.turn_until(&mut reactor, |stage| reports(&stage.log) > ECHOES);
    for turn in stage.turns() {
        assert!(reports(turn) <= 1, "one turn, {} reports", reports(turn));
    }
    assert_eq!(stage.turn(&mut reactor), [Seen::Ready('d'), Seen::Settled]);
    stage.assert_quiet(&mut reactor);
}

/// Looks at the number that somebody has written only when its signal says so, and keeps a
/// line busy meanwhile.
struct Doorbell {
    numbers: Receiver,
    text: Vec<u8>,
    busy: Line,
}

impl Doorbell {
    fn last(&self) -> Option<&str> {
        std::str::from_utf8(&self.text).unwrap().lines().last()
    }
}

impl Part for Doorbell {
    fn on_signal(&mut self, _: Signal) {
        while read_some(&mut self.numbers, 4096, &mut self.text) == Progress::Again {}
    }

    fn on_ready(&mut self, _: &mut Handle<char>, _: SourceId, _: char, _: Ready) -> Progress {
        let progress = self.busy.drain();
        self.busy.make_ready();
        progress
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "somebody must send the signals meanwhile")]
fn a_storm_neither_loses_its_last_signal_nor_starves_descriptors() {
    let mut reactor = reactor(&[Signal::SIGUSR2]);
    let mut busy = Line::new(reactor.handle(), 'd');
    busy.make_ready();
    let (numbers, mut numbers_out) = io::pipe().unwrap();
    let waiter = pthread_self();
    // For this very thread: others would die of it.
    let storm = std::thread::spawn(move || {
        for number in 0..5000 {
            writeln!(numbers_out, "{number}").unwrap();
            pthread_kill(waiter, Signal::SIGUSR2).unwrap();
        }
        writeln!(numbers_out, "end").unwrap();
        pthread_kill(waiter, Signal::SIGUSR2).unwrap();
    });
    let numbers = Receiver::from(OwnedFd::from(numbers));
    numbers.set_nonblocking(true).unwrap();
    let mut stage = Stage::new(Doorbell { numbers, text: Vec::new(), busy });

    stage.turn_until(&mut reactor, |stage| stage.part.last() == Some("end"));
    storm.join().unwrap();
    for turn in stage.turns() {
        let calm = [Seen::Ready('d'), Seen::Settled];
        let stormy = [Seen::Signal(Signal::SIGUSR2), Seen::Ready('d'), Seen::Settled];
        assert!(turn == calm || turn == stormy, "{turn:?}");
    }
}

#[test]
fn signals_come_before_descriptors_and_these_before_a_deadline_that_is_due() {
    let mut reactor = reactor(&[Signal::SIGWINCH]);
    let mut line = Line::new(reactor.handle(), 'd');
    line.make_ready();
    let mut stage = Stage::new(Echo { left: 0, line });
    stage.deadline = Some(clock::now());
    raise(Signal::SIGWINCH).unwrap();
    assert_eq!(
        stage.turn(&mut reactor),
        [Seen::Signal(Signal::SIGWINCH), Seen::Ready('d'), Seen::Deadline, Seen::Settled]
    );
}

/// A stop and its end interrupt `epoll_wait(2)` (signal(7)): it tells nothing, and a turn that left it at that
/// could let a deadline go before what is ready.
#[test]
#[expect(clippy::disallowed_methods, reason = "somebody must interrupt while this thread waits")]
fn the_turn_that_is_interrupted_is_the_turn_that_reports_what_is_ready() {
    let mut reactor = reactor(&[Signal::SIGURG]);
    // A handler that the loop does not know of interrupts like a stop.
    signal_hook_mio::v1_0::Signals::new([Signal::SIGCONT as i32]).unwrap();
    let mut stage = Stage::new(Nobody);
    // The signals of other tests may go to any thread, and would interrupt this one's wait, too.
    let mut others = SigSet::all();
    others.remove(Signal::SIGCONT);
    others.thread_block().unwrap();
    for _ in 0..5 {
        let waiter = pthread_self();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            pthread_kill(waiter, Signal::SIGCONT).unwrap();
            pthread_kill(waiter, Signal::SIGURG).unwrap();
        });
        stage.turn_until(&mut reactor, |stage| stage.log.contains(&Seen::Signal(Signal::SIGURG)));
        assert!(!stage.log.contains(&Seen::Deadline));
        stage.log.clear();
        sender.join().unwrap();
    }
}

/// Flushes when there is room; reads into `arrived`.
struct Tube {
    writer: Writer,
    reader: Reader,
    arrived: Vec<Command>,
    flushed: Flushed,
}

impl Tube {
    /// A tube that holds all it can, and how many jobs were pushed before it was full.
    fn full(path: &std::path::Path) -> (Self, u64) {
        fifo::create(path).unwrap();
        let (mut writer, reader) = (Writer::open(path).unwrap(), Reader::open(path).unwrap());
        let mut pushed = 0;
        while writer.flush().unwrap() == Flushed::All {
            writer.push(job(pushed));
            pushed += 1;
        }
        (Self { writer, reader, arrived: Vec::new(), flushed: Flushed::Full }, pushed)
    }

    fn read(&mut self) -> Progress {
        let arrived = &mut self.arrived;
        self.reader.read(|line| arrived.push(Command::parse(line).unwrap())).unwrap()
    }

    fn watch_writer(&self, handle: &mut Handle<char>) {
        self.writer.with_source(|source| handle.register(source, 'w', Interest::WRITABLE)).unwrap();
    }

    fn watch_reader(&self, handle: &mut Handle<char>) {
        self.reader.with_source(|source| handle.register(source, 'r', Interest::READABLE)).unwrap();
    }
}

impl Part for Tube {
    fn on_ready(&mut self, _: &mut Handle<char>, _: SourceId, key: char, ready: Ready) -> Progress {
        match key {
            'w' => {
                assert!(ready.writable);
                self.flushed = self.writer.flush().unwrap();
                Progress::Drained
            }
            'r' => self.read(),
            _ => panic!("nobody registered {key}"),
        }
    }
}

fn job(number: u64) -> Command {
    Command::Job(JobRef { index: 7, number })
}

#[test]
fn the_writer_of_a_full_fifo_is_woken_when_its_reader_has_made_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut reactor = reactor(&[]);
    let (mut tube, mut pushed) = Tube::full(&dir.path().join("tube"));
    for _ in 0..200 {
        tube.writer.push(job(pushed));
        pushed += 1;
    }
    tube.watch_writer(reactor.handle());
    let mut stage = Stage::new(tube);
    stage.assert_quiet(&mut reactor);

    while stage.part.read() == Progress::Again {}
    assert_eq!(stage.turn(&mut reactor)[0], Seen::Ready('w'));
    assert_eq!(stage.part.flushed, Flushed::All);
    stage.part.watch_reader(reactor.handle());
    stage.turn_until(&mut reactor, |stage| stage.part.arrived.last() == Some(&job(pushed - 1)));
    assert_eq!(stage.part.arrived, (0..pushed).map(job).collect::<Vec<_>>());
    assert!(!stage.part.writer.take_overflowed());
}

#[test]
fn a_fifo_that_overflows_says_resync_where_lines_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut reactor = reactor(&[]);
    let (mut tube, mut pushed) = Tube::full(&dir.path().join("tube"));
    while !tube.writer.take_overflowed() {
        tube.writer.push(job(pushed));
        pushed += 1;
    }
    let resumed = pushed - 1;
    tube.watch_writer(reactor.handle());
    let mut stage = Stage::new(tube);
    stage.assert_quiet(&mut reactor);

    stage.part.writer.push(job(pushed));
    stage.part.watch_reader(reactor.handle());
    stage.turn_until(&mut reactor, |stage| stage.part.arrived.last() == Some(&job(pushed)));
    let lost = stage.part.arrived.iter().position(|&command| command == Command::Resync).unwrap();
    let (before, after) = stage.part.arrived.split_at(lost);
    assert_eq!(before, (0..before.len() as u64).map(job).collect::<Vec<_>>());
    assert_eq!(after, [Command::Resync, job(resumed), job(pushed)]);
}

#[test]
fn a_deadline_comes_once_and_not_before_its_time() {
    let mut reactor = reactor(&[]);
    let mut stage = Stage::new(Nobody);
    for micros in [0, 1, 999, 1_001, 20_000] {
        let deadline = clock::now() + Duration::from_micros(micros);
        stage.deadline = Some(deadline);
        stage.turn_until(&mut reactor, |stage| stage.log.contains(&Seen::Deadline));
        assert!(clock::now() >= deadline);
        assert_eq!(stage.log.drain(..).filter(|&seen| seen == Seen::Deadline).count(), 1);
    }
}

/// Stops the loop in the middle of a turn.
struct Stopper;

impl Part for Stopper {
    fn on_ready(&mut self, handle: &mut Handle<char>, _: SourceId, _: char, _: Ready) -> Progress {
        handle.stop();
        Progress::Again
    }
}

#[test]
fn a_run_settles_what_the_start_produced_and_ends_with_the_turn_that_stops_it() {
    let mut reactor = reactor(&[]);
    let mut lines = ['a', 'b'].map(|key| Line::new(reactor.handle(), key));
    lines.iter_mut().for_each(Line::make_ready);
    let mut stage = Stage::new(Stopper);
    reactor.run(&mut stage).unwrap();
    let expected = [Seen::Settled, Seen::Ready('a'), Seen::Ready('b'), Seen::Settled];
    assert!(stage.log == expected || stage.log == [expected[0], expected[2], expected[1], expected[3]]);
}
