//! The workers of the request types that have some: joins their state machines to processes.

use std::collections::HashMap;
use std::fmt;

use rustix::process::Signal;
use slab::Slab;

use crate::config::{Config, Size};
use crate::core::job::{End, Reason};
use crate::core::mark::Start;
use crate::core::moment::Moment;
use crate::core::workers::{Action, Place, Seat, Settings, Workers};
use crate::exit::Failure;
use crate::os::descendants;
use crate::os::pidfd::Exit;
use crate::os::proc;
use crate::os::reactor::{Handle, Progress, Ready};
use crate::role::secondary::commands::CommandType;
use crate::role::secondary::messages::Asker;
use crate::role::secondary::worker::{Output, Worker};
use crate::role::secondary::{Key, Secondary};
use crate::wire::client::TypeIndex;
use crate::wire::frame::{LONGEST_PAYLOAD, Wrong};

/// The longest message where the configuration does not tell.
const MAX_MESSAGE: Size = Size(1 << 20);
/// Of a worker that has ended, so many reads: more than any pipe holds.
const LAST_READS: usize = 32;

/// The workers of one request type.
pub struct Crew {
    /// What is started.
    of: CommandType,
    pub(super) pool: Workers,
    /// Who sits where, by place.
    seats: Vec<Option<usize>>,
    /// The longest message in either direction.
    pub(super) max_message: usize,
}

/// All workers of a secondary, and their jobs.
pub struct Crews {
    /// By request type; `None` where no workers serve it.
    types: Vec<Option<Crew>>,
    workers: Slab<Worker>,
    /// Workers that were not reaped, by pid.
    places: HashMap<u32, usize>,
    /// Clients with their jobs.
    pub(super) askers: Slab<Asker>,
    /// The process ends once no worker is left.
    ending: bool,
}

impl Crews {
    /// The crews of a configuration. Nobody is started yet.
    ///
    /// # Errors
    /// See [`CommandType::new`].
    pub fn of(config: &Config, open_files: u64, now: Moment) -> Result<Self, Failure> {
        let mut types = Vec::new();
        for request in &config.request {
            if !request.is_persistent() {
                types.push(None);
                continue;
            }
            let workers = request.max_parallel.unwrap_or(1) as usize;
            let max_message = request.max_message.unwrap_or(MAX_MESSAGE).0;
            types.push(Some(Crew {
                of: CommandType::new(request, open_files)?,
                pool: Workers::new(
                    now,
                    Settings { workers, time_limit: request.time_limit },
                    u64::from(std::process::id()) << 16,
                ),
                seats: vec![None; workers],
                max_message: usize::try_from(max_message).unwrap_or(usize::MAX).min(LONGEST_PAYLOAD),
            }));
        }
        let (workers, askers) = (Slab::new(), Slab::new());
        Ok(Self { types, workers, places: HashMap::new(), askers, ending: false })
    }

    /// The crew of a request type, where it has one.
    pub(super) fn crew(&mut self, kind: TypeIndex) -> Option<&mut Crew> {
        self.types.get_mut(kind)?.as_mut()
    }

    /// The start of the worker that a process is, if it was not reaped; it leads the process group of that
    /// number.
    pub fn led_by(&self, pid: u32) -> Option<Start> {
        Some(self.workers.get(*self.places.get(&pid)?)?.start)
    }

    /// The starts of the workers that are there.
    pub fn starts(&self) -> impl Iterator<Item = Start> {
        self.workers.iter().map(|(_, worker)| worker.start)
    }

    /// When [`Secondary::on_crews_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.types.iter().flatten().filter_map(|crew| crew.pool.poll_timeout()).min()
    }

    /// Whether the process is to end and no worker is left.
    pub fn have_ended(&self) -> bool {
        self.ending && self.types.iter().flatten().all(|crew| crew.pool.has_ended())
    }
}

impl Secondary {
    /// Does what the state machines say, for all types.
    pub(super) fn run_crews(&mut self, reactor: &mut Handle<Key>) {
        for kind in 0..self.crews.types.len() {
            self.run_crew(reactor, kind);
        }
    }

    /// Does what the state machine of a type says.
    pub(super) fn run_crew(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex) {
        while let Some(crew) = self.crews.crew(kind)
            && let Some(action) = crew.pool.poll_action()
        {
            match action {
                Action::Start(seat) => self.start_worker(reactor, kind, seat),
                Action::Hand { job, seat } => self.hand(reactor, kind, job, seat),
                Action::End { job, end } => self.close_asker(reactor, job, end),
                Action::Kill(seat) => {
                    if let Some(worker) = self.worker_at(kind, seat) {
                        if !std::mem::replace(&mut worker.doomed, true) && worker.job.is_some() {
                            log::warn!("worker {} is killed: its job has taken too long", worker.pid);
                        }
                        let pid = worker.pid;
                        self.with_room(|_| kill_all(pid));
                    }
                }
                Action::Abandon(seat) => self.abandon(reactor, kind, seat),
                Action::Dismiss(seat) => {
                    if let Some(worker) = self.worker_at(kind, seat) {
                        worker.close_input(reactor);
                    }
                }
                Action::Terminate(seat) => {
                    if let Some(worker) = self.worker_at(kind, seat) {
                        let pid = worker.pid;
                        descendants::signal_group(pid, Signal::TERM);
                        self.with_room(|_| descendants::signal(pid, &[std::process::id()], Signal::TERM));
                    }
                }
            }
        }
    }

    fn worker_at(&mut self, kind: TypeIndex, seat: Seat) -> Option<&mut Worker> {
        let place = self.crews.crew(kind)?.seats[seat]?;
        self.crews.workers.get_mut(place)
    }

    fn start_worker(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex, seat: Seat) {
        let now = reactor.now();
        let Some(Crew { of, pool, seats, max_message }) = self.crews.types[kind].as_mut() else {
            return;
        };
        let start = self.strays.next();
        let (mark, at) = (self.strays.owner.limits(start), (kind, seat));
        let mut worker = match Worker::start(&mut of.command, &of.name, (start, mark), at, *max_message) {
            Ok(worker) => worker,
            Err(error) => {
                if of.trouble.is_news(now, &error.to_string()) {
                    log::error!("a worker of \"{}\" does not start: {error}", of.name);
                }
                pool.handle_not_started(now, seat);
                return;
            }
        };
        log::debug!("worker {} ({}) is started", worker.pid, of.name);
        let entry = self.crews.workers.vacant_entry();
        let place = entry.key();
        let watched = worker.watch(reactor, place);
        self.crews.places.insert(worker.pid, place);
        seats[seat] = Some(place);
        entry.insert(worker);
        pool.handle_started(now, seat);
        if let Err(error) = watched {
            log::warn!("cannot watch a worker of \"{}\": {error}", of.name);
            pool.handle_nonsense(now, seat, true);
        }
    }

    /// Gives a worker the message of a job.
    fn hand(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex, job: Place, seat: Seat) {
        let Some(place) = self.crews.crew(kind).and_then(|crew| crew.seats[seat]) else {
            return;
        };
        let Crews { workers, askers, .. } = &mut self.crews;
        let (Some(worker), Some(asker)) = (workers.get_mut(place), askers.get_mut(job)) else {
            return;
        };
        if worker.has_spoken() {
            self.nonsense(reactor, place, &Wrong::Unasked, true);
            return;
        }
        self.service.note_group(asker.job, worker.pid);
        match worker.give((job, asker.job.number), asker.take_message()) {
            Ok(Progress::Drained) => {}
            Ok(Progress::Again) => worker.write_on(reactor),
            Err(_) => self.worker_closed(reactor, place),
        }
    }

    /// There is room in a worker's input, or it was closed.
    pub(super) fn on_worker_input(&mut self, reactor: &mut Handle<Key>, place: usize) -> Progress {
        let Some(worker) = self.crews.workers.get_mut(place) else {
            return Progress::Drained;
        };
        match worker.write() {
            Ok(progress) if worker.hears() => progress,
            // It may answer still; then it is of no more use.
            Ok(_) if worker.job.is_some() && worker.has_taken_message() => {
                worker.deaf = true;
                Progress::Drained
            }
            Ok(_) | Err(_) => {
                self.worker_closed(reactor, place);
                Progress::Drained
            }
        }
    }

    /// A worker does not end of SIGKILL: it is in the hands of the kernel (state D), or of somebody who
    /// traces it. When it does end, it is reaped like any other child.
    fn abandon(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex, seat: Seat) {
        let Some(place) = self.crews.crew(kind).and_then(|crew| crew.seats[seat].take()) else {
            return;
        };
        let mut worker = self.crews.workers.remove(place);
        worker.unwatch(reactor);
        self.crews.places.remove(&worker.pid);
        log::warn!("worker {} does not end of SIGKILL: another takes its place", worker.pid);
        self.look_for_strays(reactor);
    }

    /// A worker has written.
    pub(super) fn on_worker_output(
        &mut self,
        reactor: &mut Handle<Key>,
        place: usize,
        ready: Ready,
    ) -> Progress {
        let Some(worker) = self.crews.workers.get_mut(place) else {
            return Progress::Drained;
        };
        worker.note(ready);
        let (kind, seat) = (worker.kind, worker.seat);
        match worker.read(&mut self.buffer) {
            Output::Answer(_) | Output::More if worker.job.is_none() => {
                self.nonsense(reactor, place, &Wrong::Unasked, false);
            }
            Output::More => return self.output_progress(place),
            Output::Answer(answer) => {
                worker.job = None;
                let is_deaf = worker.deaf;
                let Some(crew) = self.crews.crew(kind) else {
                    return Progress::Drained;
                };
                if is_deaf {
                    crew.pool.handle_closed(reactor.now(), seat, false);
                }
                let job = crew.pool.handle_answer(reactor.now(), seat, answer.failed);
                self.run_crew(reactor, kind);
                if let Some(job) = job {
                    self.answer_asker(reactor, job, answer.payload);
                }
                return self.output_progress(place);
            }
            Output::Nothing => {}
            Output::End => self.worker_closed(reactor, place),
            Output::Wrong(wrong) => {
                let untouched = self.take_back(place);
                self.nonsense(reactor, place, &wrong, untouched);
            }
        }
        Progress::Drained
    }

    fn output_progress(&self, place: usize) -> Progress {
        let has_more = self.crews.workers.get(place).is_some_and(Worker::has_more);
        if has_more { Progress::Again } else { Progress::Drained }
    }

    /// A worker has closed its input or its output.
    fn worker_closed(&mut self, reactor: &mut Handle<Key>, place: usize) {
        let Some(worker) = self.crews.workers.get(place) else {
            return;
        };
        let (kind, seat, hears) = (worker.kind, worker.seat, worker.hears());
        // What stands in an input that is closed will not be read any more.
        let untouched = !hears && self.take_back(place);
        if let Some(crew) = self.crews.crew(kind) {
            crew.pool.handle_closed(reactor.now(), seat, untouched);
            self.run_crew(reactor, kind);
        }
    }

    /// A worker broke the rules; its message, if it has one, may be `untouched`.
    fn nonsense(&mut self, reactor: &mut Handle<Key>, place: usize, wrong: &Wrong, untouched: bool) {
        let Some(worker) = self.crews.workers.get_mut(place) else {
            return;
        };
        let (kind, seat, pid) = (worker.kind, worker.seat, worker.pid);
        let is_told = std::mem::replace(&mut worker.doomed, true);
        if let Some(crew) = self.crews.crew(kind) {
            if !is_told {
                log::warn!("{} is killed: {wrong}", Named(pid, Some(crew)));
            }
            crew.pool.handle_nonsense(reactor.now(), seat, untouched);
            self.run_crew(reactor, kind);
        }
    }

    /// Gives a message that a worker has not begun to read back to its job. Returns whether it has
    /// not.
    fn take_back(&mut self, place: usize) -> bool {
        let Crews { workers, askers, .. } = &mut self.crews;
        let Some(((job, number), message)) = workers.get_mut(place).and_then(Worker::take_back) else {
            return false;
        };
        // Its client may have left, and another have its place.
        if let Some(asker) = askers.get_mut(job).filter(|asker| asker.job.number == number) {
            asker.give_back(message);
        }
        true
    }

    /// A worker has written to its standard error.
    pub(super) fn read_worker_errors(&mut self, now: Moment, place: usize) -> Progress {
        let Crews { types, workers, .. } = &mut self.crews;
        let Some(worker) = workers.get_mut(place) else {
            return Progress::Drained;
        };
        let named = Named(worker.pid, types[worker.kind].as_ref());
        worker.errors.read(now, &named)
    }

    /// A child has ended and is about to be reaped. Returns whether it is a worker.
    pub(super) fn worker_ended(&mut self, reactor: &mut Handle<Key>, pid: u32, exit: Exit) -> bool {
        let Some(&place) = self.crews.places.get(&pid) else {
            return false;
        };
        // What it has left behind; until it is reaped the group's number is nobody else's.
        descendants::signal_group(pid, Signal::KILL);
        let start = self.crews.workers[place].start;
        self.sweep_strays(Some((start, pid)), Signal::KILL);
        self.worker_closed(reactor, place);
        for _ in 0..LAST_READS {
            let all = Ready { readable: true, read_closed: true, writable: false };
            if self.on_worker_output(reactor, place, all) == Progress::Drained {
                break;
            }
        }
        let _ = self.read_worker_errors(reactor.now(), place);
        let untouched = self.take_back(place);
        let mut worker = self.crews.workers.remove(place);
        self.crews.places.remove(&pid);
        worker.unwatch(reactor);
        let Some(crew) = self.crews.crew(worker.kind) else {
            return true;
        };
        let named = Named(pid, Some(crew));
        worker.errors.finish(reactor.now(), &named);
        log::info!("{named} has ended: {exit}");
        crew.seats[worker.seat] = None;
        let reason = match crew.of.end(exit, || proc::cpu_time(pid).unwrap_or_default()) {
            End::Failed(reason) => reason,
            End::Done | End::Expired => Reason::Exit(0),
        };
        crew.pool.handle_ended(reactor.now(), worker.seat, reason, untouched);
        // Whoever takes the seat is started once this one was reaped, in the same turn.
        true
    }

    /// Time has passed.
    pub(super) fn on_crews_timeout(&mut self, reactor: &mut Handle<Key>) {
        for crew in self.crews.types.iter_mut().flatten() {
            crew.pool.handle_timeout(reactor.now());
        }
        self.run_crews(reactor);
    }

    /// All jobs of workers fail: this process is to end.
    pub(super) fn cut_askers(&mut self, reactor: &mut Handle<Key>) {
        let open: Vec<(Place, TypeIndex)> =
            self.crews.askers.iter().map(|(key, asker)| (key, asker.kind)).collect();
        for (job, kind) in open {
            if let Some(crew) = self.crews.crew(kind) {
                crew.pool.handle_end(job, End::Failed(Reason::Stopping));
            }
        }
        self.run_crews(reactor);
    }

    /// Ends this process once its workers have ended. They are asked to, and killed soon.
    pub(super) fn end_crews(&mut self, reactor: &mut Handle<Key>) {
        self.crews.ending = true;
        for crew in self.crews.types.iter_mut().flatten() {
            crew.pool.handle_stop(reactor.now());
        }
        self.run_crews(reactor);
        if self.crews.have_ended() {
            reactor.stop();
        }
    }
}

/// A worker as the log names it.
struct Named<'a>(u32, Option<&'a Crew>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} ({})", self.0, self.1.map_or("", |crew| crew.of.name.as_str()))
    }
}

/// Kills a worker with its process group and all that stand below it.
fn kill_all(leader: u32) {
    let own = std::process::id();
    for (pid, parent) in descendants::below(leader) {
        descendants::signal(pid, &[parent, own], Signal::KILL);
    }
    descendants::signal_group(leader, Signal::KILL);
    // It may have left its own group.
    descendants::signal(leader, &[own], Signal::KILL);
}
