//! Jobs of commands, from their claim to their end: each waits for its turn, then its connection
//! becomes the standard input and output of a program.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use mio::Interest;
use mio::net::TcpStream;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use slab::Slab;

use crate::core::command::{Action, Command};
use crate::core::crowd::Network;
use crate::core::job::{End, Reason};
use crate::core::mark::Start;
use crate::core::moment::Moment;
use crate::core::timers::LazyTimer;
use crate::os::descendants;
use crate::os::pidfd::Exit;
use crate::os::proc;
use crate::os::reactor::{Handle, Progress, SourceId};
use crate::role::secondary::commands::{CommandType, variables};
use crate::role::secondary::errors::Errors;
use crate::role::secondary::{Key, Secondary, Timer};
use crate::wire::client::TypeIndex;
use crate::wire::tube::JobRef;

/// So often is read what a command has said before its end.
const LAST_READS: usize = 8;
/// Children that are reaped in one turn.
const REAPED_PER_TURN: usize = 1024;

/// The commands of a secondary and what they do.
pub struct Runs {
    /// By request type; `None` where no command serves it for each job anew.
    pub types: Vec<Option<CommandType>>,
    all: Slab<Run>,
    /// Runs by the pid of their leader, until that is reaped.
    leaders: HashMap<u32, usize>,
}

impl Runs {
    /// The commands of these types.
    pub fn new(types: Vec<Option<CommandType>>) -> Self {
        Self { types, all: Slab::new(), leaders: HashMap::new() }
    }

    /// The start whose leader a process is, if that was not reaped; it leads the process group of that
    /// number.
    pub fn led_by(&self, pid: u32) -> Option<Start> {
        self.all.get(*self.leaders.get(&pid)?)?.start()
    }

    /// The starts of the commands that are there.
    pub fn starts(&self) -> impl Iterator<Item = Start> {
        self.all.iter().filter_map(|(_, run)| run.start())
    }

    /// How many jobs are there.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}

/// A job of a command.
struct Run {
    job: JobRef,
    kind: TypeIndex,
    peer: SocketAddr,
    stage: Stage,
}

enum Stage {
    /// As many commands of its type run as may.
    Waiting { stream: TcpStream, id: Option<SourceId> },
    /// Its command runs, or is being cleared away.
    Running { command: Command, leader: u32, start: Start, errors: Errors, timer: LazyTimer },
}

/// A job as the log names it.
struct Named<'a>(JobRef, Option<&'a CommandType>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} ({})", self.0.number, self.1.map_or("", |of| of.name.as_str()))
    }
}

impl Secondary {
    /// A job was claimed whose type a command serves.
    pub(super) fn open_run(
        &mut self,
        reactor: &mut Handle<Key>,
        kind: TypeIndex,
        (stream, peer): (TcpStream, SocketAddr),
        job: JobRef,
    ) {
        let key = self.runs.all.insert(Run { job, kind, peer, stage: Stage::Waiting { stream, id: None } });
        let may_start = self.command_type(kind).is_some_and(|of| of.running < of.max_parallel);
        if may_start {
            self.start_run(reactor, key);
        } else {
            self.queue_run(reactor, key);
        }
    }

    fn command_type(&mut self, kind: TypeIndex) -> Option<&mut CommandType> {
        self.runs.types.get_mut(kind)?.as_mut()
    }

    fn queue_run(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let Run { kind, peer, stage, .. } = &mut self.runs.all[key];
        let (kind, network) = (*kind, Network::from(peer.ip()));
        if let Stage::Waiting { stream, id } = stage {
            match reactor.register(stream, Key::Run(key), Interest::READABLE) {
                Ok(registered) => *id = Some(registered),
                Err(error) => log::warn!("cannot watch a data connection: {error}"),
            }
        }
        if let Some(of) = self.command_type(kind) {
            of.waiting.push(network, key);
        }
    }

    /// Something happened to a connection that waits: only a break is of interest now.
    pub(super) fn on_run(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let is_broken = self.runs.all.get(key).is_some_and(|run| match &run.stage {
            Stage::Waiting { stream, .. } => stream.take_error().is_ok_and(|error| error.is_some()),
            Stage::Running { .. } => false,
        });
        if is_broken {
            self.end_run(reactor, key, End::Failed(Reason::ConnectionLost));
        }
    }

    fn start_run(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let now = reactor.now();
        let Run { job, kind, stage: Stage::Waiting { stream, id }, .. } = &mut self.runs.all[key] else {
            return;
        };
        let (job, kind) = (*job, *kind);
        if let Some(id) = id.take() {
            reactor.deregister(stream, id);
        }
        let Some(of) = self.runs.types[kind].as_mut() else {
            return;
        };
        let start = self.strays.next();
        match spawn(of, stream, job, self.strays.owner.limits(start)) {
            Ok((leader, pipe)) => {
                self.service.note_group(job, leader);
                of.running += 1;
                self.runs.leaders.insert(leader, key);
                self.runs.all[key].stage = Stage::Running {
                    command: Command::new(now, of.time_limit),
                    leader,
                    start,
                    errors: Errors::new(pipe),
                    timer: LazyTimer::default(),
                };
                self.watch_errors(reactor, key);
                self.arm_run(key);
            }
            Err(error) => {
                let reason = if error.kind() == io::ErrorKind::NotConnected {
                    Reason::ConnectionLost
                } else {
                    Reason::CannotStart
                };
                if reason == Reason::CannotStart && of.trouble.is_news(now, &error.to_string()) {
                    log::error!("job {} ({}): its command does not start: {error}", job.number, of.name);
                }
                self.remove_run(reactor, key, End::Failed(reason));
            }
        }
    }

    fn watch_errors(&mut self, reactor: &mut Handle<Key>, key: usize) {
        if let Stage::Running { errors, .. } = &mut self.runs.all[key].stage
            && let Err(error) = errors.watch(reactor, Key::Errors(key))
        {
            log::warn!("cannot watch the standard error of a command: {error}");
        }
    }

    /// A command has written to its standard error.
    pub(super) fn read_errors(&mut self, now: Moment, key: usize) -> Progress {
        let Runs { types, all, .. } = &mut self.runs;
        let Some(Run { job, kind, stage: Stage::Running { errors, .. }, .. }) = all.get_mut(key) else {
            return Progress::Drained;
        };
        errors.read(now, &Named(*job, types[*kind].as_ref()))
    }

    /// SIGCHLD: some children have ended, leaders of commands or those that came to us as orphans.
    pub(super) fn reap(&mut self, reactor: &mut Handle<Key>) {
        let (mut strays, mut workers) = (false, false);
        for reaped in 0.. {
            if reaped == REAPED_PER_TURN {
                // SIGCHLD does not come again for those that have ended before.
                self.timers.arm(reactor.now(), Timer::Reap);
                break;
            }
            let Ok(Some((pid, exit))) = descendants::ended_child() else {
                break;
            };
            if self.worker_ended(reactor, pid, exit) {
                workers = true;
            } else if let Some(&key) = self.runs.leaders.get(&pid) {
                self.leader_ended(reactor, key, pid, exit);
                self.runs.leaders.remove(&pid);
            } else {
                strays = true;
            }
            descendants::reap(pid);
            self.strays.reaped(pid);
        }
        if workers {
            self.run_crews(reactor);
        }
        if workers || strays {
            self.look_for_strays(reactor);
        }
        if strays {
            // Perhaps somebody waits for just those.
            let waits = |(key, run): (usize, &Run)| {
                let is_led = matches!(&run.stage, Stage::Running { command, .. } if !command.is_led());
                is_led.then_some(key)
            };
            let clearing: Vec<usize> = self.runs.all.iter().filter_map(waits).collect();
            for key in clearing {
                self.sweep_again(reactor, key);
            }
        }
    }

    fn leader_ended(&mut self, reactor: &mut Handle<Key>, key: usize, leader: u32, exit: Exit) {
        let run = &mut self.runs.all[key];
        let Some(of) = &self.runs.types[run.kind] else {
            return;
        };
        let end = of.end(exit, || proc::cpu_time(leader).unwrap_or_default());
        if let Stage::Running { command, .. } = &mut run.stage {
            command.handle_exit(reactor.now(), end);
        }
        self.carry_out_run(reactor, key);
    }

    fn sweep_again(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let left = self.sweep(key, Signal::KILL);
        if let Some(Run { stage: Stage::Running { command, .. }, .. }) = self.runs.all.get_mut(key) {
            command.handle_swept(reactor.now(), left);
        }
        self.carry_out_run(reactor, key);
    }

    pub(super) fn on_run_timer(&mut self, reactor: &mut Handle<Key>, key: usize) {
        if let Some(Run { stage: Stage::Running { command, timer, .. }, .. }) = self.runs.all.get_mut(key) {
            timer.fired();
            command.handle_timeout(reactor.now());
            self.carry_out_run(reactor, key);
        }
    }

    fn carry_out_run(&mut self, reactor: &mut Handle<Key>, key: usize) {
        while let Some(Run { stage: Stage::Running { command, .. }, .. }) = self.runs.all.get_mut(key)
            && let Some(action) = command.poll_action()
        {
            match action {
                Action::Terminate => {
                    let Run { job, kind, .. } = &self.runs.all[key];
                    let of = self.runs.types[*kind].as_ref();
                    let limit = of.and_then(|of| of.time_limit).unwrap_or_default();
                    log::warn!("{}: its command has taken longer than {limit:?}: SIGTERM", Named(*job, of));
                    self.sweep(key, Signal::TERM);
                }
                Action::Sweep => {
                    let left = self.sweep(key, Signal::KILL);
                    if let Stage::Running { command, .. } = &mut self.runs.all[key].stage {
                        command.handle_swept(reactor.now(), left);
                    }
                }
                Action::End(end) => {
                    self.end_run(reactor, key, end);
                    return;
                }
            }
        }
        self.arm_run(key);
    }

    fn arm_run(&mut self, key: usize) {
        if let Some(Run { stage: Stage::Running { command, timer, .. }, .. }) = self.runs.all.get_mut(key)
            && let Some(at) = command.poll_timeout()
        {
            timer.arm(&mut self.timers, at, Timer::Run(key));
        }
    }

    /// Ends a job, and lets the next one of its type begin.
    fn end_run(&mut self, reactor: &mut Handle<Key>, key: usize, end: End) {
        let kind = self.runs.all[key].kind;
        self.remove_run(reactor, key, end);
        self.start_waiting(reactor, kind);
    }

    fn remove_run(&mut self, reactor: &mut Handle<Key>, key: usize, end: End) {
        if let Stage::Running { .. } = self.runs.all[key].stage {
            // What it said last: a pipe holds more than is read in one turn.
            let now = reactor.now();
            let _ = (0..LAST_READS).find(|_| self.read_errors(now, key) == Progress::Drained);
        }
        let Run { job, kind, peer, stage } = self.runs.all.remove(key);
        match stage {
            Stage::Waiting { mut stream, id } => {
                if let Some(id) = id {
                    reactor.deregister(&mut stream, id);
                }
                if let Some(of) = self.command_type(kind) {
                    of.waiting.remove(peer.ip().into(), |&waits| waits == key);
                }
            }
            Stage::Running { mut errors, mut timer, leader, .. } => {
                errors.finish(reactor.now(), &Named(job, self.runs.types[kind].as_ref()));
                errors.unwatch(reactor);
                timer.cancel(&mut self.timers);
                if self.runs.leaders.get(&leader) == Some(&key) {
                    self.runs.leaders.remove(&leader);
                }
                if let Some(of) = self.command_type(kind) {
                    of.running -= 1;
                }
            }
        }
        // Whoever has the connection as its own counts nothing for us.
        self.end_job(job, end, peer, None);
    }

    /// Starts jobs that wait, as far as their number allows. Those that have gone are passed over.
    fn start_waiting(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex) {
        while let Some(of) = self.command_type(kind)
            && of.running < of.max_parallel
            && let Some(key) = of.waiting.pop()
        {
            let waits = self
                .runs
                .all
                .get(key)
                .is_some_and(|run| run.kind == kind && matches!(run.stage, Stage::Waiting { .. }));
            if waits {
                self.start_run(reactor, key);
            }
        }
    }

    /// All commands are killed, and their jobs fail: this process is to end.
    pub(super) fn cut_runs(&mut self, reactor: &mut Handle<Key>) {
        for of in self.runs.types.iter_mut().flatten() {
            of.waiting.drain();
        }
        let open: Vec<usize> = self.runs.all.iter().map(|(key, _)| key).collect();
        for key in open {
            self.sweep(key, Signal::KILL);
            self.remove_run(reactor, key, End::Failed(Reason::Stopping));
        }
        self.sweep_strays(None, Signal::KILL);
    }

    /// Sends a signal to all who belong to a job's command. Returns whether any of them was there
    /// beside its leader and its process group.
    fn sweep(&mut self, key: usize, signal: Signal) -> bool {
        self.with_room(|secondary| secondary.look_for_family(key, signal))
    }

    fn look_for_family(&mut self, key: usize, signal: Signal) -> bool {
        let Some(Run { stage: Stage::Running { leader, command, start, .. }, .. }) = self.runs.all.get(key)
        else {
            return false;
        };
        let (own, start, leader) = (std::process::id(), *start, *leader);
        let mut found = false;
        if self.runs.leaders.get(&leader) == Some(&key) {
            // Before the group: who has lost its parent is harder to find.
            let below = if command.is_led() { descendants::below(leader) } else { Vec::new() };
            for (pid, parent) in below {
                let in_group = proc::stat(pid).is_ok_and(|stat| i64::from(stat.group) == i64::from(leader));
                if !in_group {
                    found |= descendants::signal(pid, &[parent, own], signal);
                }
            }
            descendants::signal_group(leader, signal);
            // It may have left its own group.
            descendants::signal(leader, &[own], signal);
        }
        self.sweep_strays(Some((start, leader)), signal) | found
    }
}

impl Run {
    fn start(&self) -> Option<Start> {
        match self.stage {
            Stage::Running { start, .. } => Some(start),
            Stage::Waiting { .. } => None,
        }
    }
}

/// Starts a command on a connection, which is closed here. Returns its leader, and where its
/// standard error can be read.
fn spawn(
    of: &mut CommandType,
    stream: &TcpStream,
    job: JobRef,
    mark: (u64, u64),
) -> io::Result<(u32, OwnedFd)> {
    let (errors, their_errors) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&errors, true)?;
    // The flag belongs to the connection, not to our descriptor of it (fcntl(2)).
    rustix::io::ioctl_fionbio(stream, false)?;
    let variables = variables(&of.name, job.number, stream.local_addr()?, stream.peer_addr()?);
    let streams = [stream.as_fd(), stream.as_fd(), their_errors.as_fd()];
    let leader = of.command.start(streams, &variables, mark).map_err(io::Error::other)?;
    Ok((leader, errors))
}
