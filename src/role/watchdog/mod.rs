//! The watchdog: owns every listening socket, starts the principal, probes all
//! servers, kills the frozen, reaps orphans, stops the whole. It never reads a byte
//! from the network.

mod bind;
mod control;
mod directory;
mod heirlooms;
mod manager;
mod meeting;
mod obituaries;
mod observer;
mod passed;
mod principals;
mod privileges;
mod processes;
mod reload;
mod renewal;
mod retired;
mod start;
mod tasks;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use mio::net::UnixListener;
use rustix::process::Signal;
use slab::Slab;

use crate::config::Config;
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::tree::Tree;
use crate::exit::{Code, Failure};
use crate::os::channel::Channel;
use crate::os::fifo::READABLE;
use crate::os::log::{KILL, Lines, Recurrence};
use crate::os::pidfd::{self, Pidfd};
use crate::os::proc;
use crate::os::process;
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::os::rundir::{Lock, Rundir};
use crate::page::obituary::Obituary;
use crate::page::observer::ObserverPage;
use crate::page::principal::PrincipalPage;
use crate::page::watchdog::WatchdogPage;
use crate::wire::logline::Speaker;
use crate::wire::order::Order;

use control::ControlClient;
use directory::Look;
use heirlooms::Heirlooms;
use manager::ServiceManager;
use processes::Process;
use reload::{Force, Outcome, Reload};
use tasks::Tasks;

pub use passed::Passed;
pub use reload::Sources;

/// What the reactor gives back with an event.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// A supervised process has ended.
    Ended(Name),
    /// A principal says something.
    Channel(Name),
    /// The Unix socket `control`.
    Control,
    /// A connection to it, by its place in the slab.
    ControlClient(usize),
}

/// How long a killed orphan may take to end before the watchdog ends without it.
const ORPHANS_END_WITHIN: Duration = Duration::from_secs(1);
/// Signals that ask for a stop and are no further apart are one wish; who presses Ctrl-C twice takes longer.
const SAME_WISH: Duration = Duration::from_millis(20);

/// What descriptors allow.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Connections beyond `max_clients` that a principal may accept.
    parking: usize,
    /// The soft limit that commands start with.
    open_files: u64,
}

struct Watchdog {
    /// What principals are started with.
    force: Force,
    sources: Sources,
    reload: Option<Reload>,
    /// How the last one ended, for whoever asked for it.
    reload_outcome: Option<Outcome>,
    /// A stop was asked for while a principal handed over.
    stop_waits: bool,
    /// When a signal asked for a stop, last.
    stop_signal_at: Option<Moment>,
    rundir: Rundir,
    lock: Lock,
    /// The runtime directory when it was last found whole.
    seen_directory: Option<Look>,
    next_look_at_directory: Moment,
    directory_trouble: Recurrence,
    /// Addresses of Unix sockets whose files were gone at the last look: told once.
    lost_sockets: BTreeSet<String>,
    /// Secondaries could not be taken under supervision.
    meeting_trouble: Recurrence,
    /// No principal could be started.
    start_trouble: Recurrence,
    /// Tools could not be accepted, and wait.
    control_trouble: Recurrence,
    tools_wait: bool,
    page: WatchdogPage,
    principal_page: PrincipalPage,
    /// Of the observer that was started last.
    observer_page: Option<ObserverPage>,
    /// No observer could be started.
    observer_trouble: Recurrence,
    /// The pages, to hand to principals.
    heirlooms: Heirlooms,
    tree: Tree,
    processes: Vec<Process>,
    /// Secondaries that have ended and that their principal is to reap, the last first.
    departed: VecDeque<Obituary>,
    /// A pidfd of this very process, for children to watch.
    me: Pidfd,
    /// Our end of the channel to the principal; new for each of them.
    channel: Option<Channel>,
    /// The state of the principal's table of slots when it was last looked through.
    seen_changes: Option<u64>,
    control: (UnixListener, SourceId),
    control_clients: Slab<ControlClient>,
    tools_so_far: u64,
    tasks: Tasks,
    /// Slots in which no secondary is wanted.
    resting: BTreeSet<u16>,
    announcements: Lines,
    /// Who wants to hear how we are.
    manager: Option<ServiceManager>,
    exit: Code,
}

/// Runs the whole system until it is stopped. Sockets that were passed have to be those of addresses in `listen` or
/// `observe` of the configuration.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run(config: Config, sources: Sources, passed: Passed) -> Result<Code, Failure> {
    crate::os::log::init(Speaker { name: None, pid: std::process::id() }, config.logging());
    process::set_name(c"osps-watchdog");
    process::ignore_strangers().map_err(|error| Failure::internal("ignore signals", &error))?;
    process::ignore_real_time();
    let mut reactor = Reactor::new(&[Signal::USR2, Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    process::become_subreaper().map_err(|error| Failure::internal("become a subreaper", &error))?;
    let mut watchdog = Watchdog::start(config, sources, passed, reactor.handle())?;
    reactor.run(&mut watchdog).map_err(|error| Failure::internal("run the event loop", &error))?;
    watchdog.finish();
    Ok(watchdog.exit)
}

impl Watchdog {
    /// Reaps every child that has ended: servers, and whatever orphans came to us.
    fn reap_children(&mut self, reactor: &mut Handle<Key>) {
        while let Some((pid, exit)) = pidfd::reap_any_child() {
            let name = self.processes.iter().find(|process| process.pid() == pid).map(Process::name);
            match name {
                Some(name) => self.bury(reactor, name, exit),
                None => self.remember_orphan(pid, exit),
            }
        }
    }

    /// Kills children of ours that stand in no table: a principal that dies while it starts a
    /// secondary leaves one of which nobody knows, and which may be stopped.
    fn kill_unknown_children(&self) -> Vec<Pidfd> {
        let known = |pid: &u32| self.processes.iter().any(|process| process.pid() == *pid);
        let unknown =
            proc::children_of_same_program(&self.other_programs()).into_iter().filter(|pid| !known(pid));
        let orphans: Vec<Pidfd> = unknown.filter_map(|pid| Pidfd::of_child(pid).ok()).collect();
        for orphan in &orphans {
            if !orphan.has_ended() {
                log::warn!(target: KILL, "pid {} is an orphan of which nobody knows: killed", orphan.pid());
            }
            if let Err(error) = orphan.signal(Signal::KILL) {
                log::warn!("cannot kill pid {}: {error}", orphan.pid());
            }
        }
        orphans
    }

    /// A signal asks. Some send one twice in the same breath, to a process and to its group, as timeout(1) does: that
    /// is one wish.
    fn stop_by_signal(&mut self, reactor: &mut Handle<Key>, signal: &str) {
        let now = reactor.now();
        let last = self.stop_signal_at.replace(now);
        if last.is_none_or(|last| now.since(last) > SAME_WISH) {
            self.ask_to_stop(reactor, signal);
        }
    }

    fn ask_to_stop(&mut self, reactor: &mut Handle<Key>, who: &str) {
        let how = if self.tree.is_stopping() { "at once" } else { "gracefully" };
        log::info!("stopping {how}: {who}");
        self.page.set_stopping(true);
        if matches!(self.reload, Some(Reload::HandingOver(_))) && !self.stop_waits {
            // Perhaps its clients are the new principal's by now. It ends, or says that it goes on: then all stops.
            self.stop_waits = true;
            self.order_principal(Order::Stop);
            return;
        }
        if self.stop_waits {
            // Asked again: that does not wait.
            self.stop(reactor);
        }
        self.stop(reactor);
    }

    /// Begins, or hurries, a stop that was asked for.
    fn stop(&mut self, reactor: &mut Handle<Key>) {
        self.stop_waits = false;
        self.give_up_reload(reactor, "the system stops");
        self.tree.handle_stop(reactor.now());
    }

    /// Nothing is left but us: removes the files, tells whoever waits for it.
    fn finish(&mut self) {
        // A pidfd may tell of a death a moment before SIGCHLD does, and a dead principal leaves
        // us the zombies that it did not reap.
        for orphan in self.kill_unknown_children() {
            if !orphan.ends_within(ORPHANS_END_WITHIN) {
                log::warn!("pid {} does not end", orphan.pid());
            }
        }
        while pidfd::reap_any_child().is_some() {}
        self.force.bound.remove_socket_files();
        if let Err(error) = self.rundir.clean() {
            log::warn!("cannot clean {}: {error}", self.rundir.path().display());
        }
        self.tell_control_clients("stopped\n");
    }
}

impl Role for Watchdog {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, signal: Signal) {
        match signal {
            Signal::USR2 => self.look(reactor),
            Signal::CHILD => self.reap_children(reactor),
            Signal::TERM => self.stop_by_signal(reactor, "SIGTERM"),
            Signal::INT => self.stop_by_signal(reactor, "SIGINT"),
            Signal::HUP => self.reload_by_signal(),
            _ => {}
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, _: Ready) -> Progress {
        match key {
            Key::Ended(name) => {
                self.on_ended(reactor, name);
                Progress::Drained
            }
            Key::Channel(name) => self.on_channel(reactor, name),
            Key::Control => self.accept_control(reactor),
            Key::ControlClient(key) => self.on_control_client(reactor, key),
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let notice = self.manager.as_ref().and_then(ServiceManager::deadline);
        self.tree.poll_timeout().into_iter().chain(notice).min()
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        self.tend_directory(reactor);
        if std::mem::take(&mut self.tools_wait) {
            reactor.again(self.control.1, READABLE);
        }
        // Memory is the truth: an answer whose signal is late is an answer.
        self.look(reactor);
        self.tree.handle_timeout(reactor.now());
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        while let Some(action) = self.tree.poll_action() {
            self.carry_out(reactor, action);
        }
        self.tend_tasks(reactor);
        self.tell_manager(reactor.now());
    }
}
