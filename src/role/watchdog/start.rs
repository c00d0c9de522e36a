//! Before the loop runs: lock, clean up after a crashed run, bind, create the pages.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::Signal;
use slab::Slab;

use crate::config::Config;
use crate::core::mark;
use crate::core::moment::Moment;
use crate::core::tree::Tree;
use crate::exit::{Code, Failure};
use crate::os::log::{KILL, Lines, Recurrence};
use crate::os::pidfd::Pidfd;
use crate::os::process::Identity;
use crate::os::reactor::Handle;
use crate::os::rundir::{Lock, Rundir, RundirError};
use crate::os::{clock, descendants, proc, process};
use crate::page::jobs::JobTable;
use crate::page::observer::ObserverPage;
use crate::page::principal::PrincipalPage;
use crate::page::secondary::SecondaryPage;
use crate::page::watchdog::WatchdogPage;
use crate::page::{Access, PageError};
use crate::role::watchdog::bind::Bound;
use crate::role::watchdog::directory::{listen_for_tools, rundir_failure, write_pid};
use crate::role::watchdog::heirlooms::Heirlooms;
use crate::role::watchdog::manager::ServiceManager;
use crate::role::watchdog::passed::Passed;
use crate::role::watchdog::privileges;
use crate::role::watchdog::reload::{Force, Sources};
use crate::role::watchdog::tasks::Tasks;
use crate::role::watchdog::{Key, Places, Watchdog};

/// How long survivors of a crashed run get to die of SIGKILL.
const SURVIVORS_END_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks for processes of commands that survive.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
/// Descriptors that a watchdog or principal needs for itself, and for each slot.
const SPARE_DESCRIPTORS: u64 = 32;
const DESCRIPTORS_PER_SLOT: u64 = 9;
/// Those who leave for their age may be up to three more in each slot ([`WatchdogPage::has_room`]).
const DESCRIPTORS_OF_RECYCLED: u64 = 9;
/// One address has no more ports than that: its connections cannot hide who else comes.
const MAX_PARKED: usize = 1 << 16;
/// With room for fewer clients than this, a principal had better not start.
const FEWEST_CLIENTS: u64 = 16;

impl Watchdog {
    /// Everything up to the first start of the principal, which the tree asks for.
    pub(super) fn start(
        config: Config,
        sources: Sources,
        passed: Passed,
        reactor: &mut Handle<Key>,
    ) -> Result<Self, Failure> {
        let identity = config.identity().map_err(|error| Failure::new(Code::Config, error))?;
        let user = identity.as_ref().map(|identity| identity.uid);
        let rundir = Rundir::prepare(&config.runtime_dir, user).map_err(rundir_failure)?;
        let lock = take_lock(&rundir)?;
        let before = privileges::take_back(&rundir)?;
        let set_up = Self::set_up_alone((config, sources, passed), identity, &rundir, lock, reactor);
        set_up.inspect_err(|_| {
            // Somebody may still be at work there, or start there again.
            let _ = before.map(|owner| rundir.give(owner));
        })
    }

    fn set_up_alone(
        (mut config, sources, passed): (Config, Sources, Passed),
        identity: Option<Identity>,
        rundir: &Rundir,
        lock: Lock,
        reactor: &mut Handle<Key>,
    ) -> Result<Self, Failure> {
        let (open_files, secondaries) = (process::descriptor_limit(), config.secondaries);
        let max_clients = config.max_clients;
        let places = Places { parking: fit_descriptor_limit(&mut config, secondaries)?, open_files };
        let after_crash = clean_up(rundir)?;
        let bound = Bound::bind(&config, passed, after_crash);
        let set_up = bound.and_then(|bound| {
            let force = Force::first(config, max_clients, places, bound);
            Self::set_up((force, sources), rundir, lock, reactor)
        });
        let set_up = set_up.and_then(|watchdog| {
            identity.map_or(Ok(()), |identity| watchdog.give_up_root(&identity)).map(|()| watchdog)
        });
        set_up.inspect_err(|_| {
            // What was created so far is of no use to anybody.
            let _ = rundir.clean();
        })
    }

    fn set_up(
        (force, sources): (Force, Sources),
        rundir: &Rundir,
        lock: Lock,
        reactor: &mut Handle<Key>,
    ) -> Result<Self, Failure> {
        let config = &force.config;
        let now = reactor.now();
        let pid = std::process::id();
        let stat = proc::stat(pid).map_err(|error| Failure::internal("read /proc/self/stat", &error))?;
        write_pid(rundir)?;
        let (page, principal_page) =
            create_pages(&force, rundir).map_err(|error| Failure::new(Code::CannotCreate, error))?;
        let heirlooms = Heirlooms::open(rundir, force.slots, config.request.len(), config.max_jobs as usize)
            .map_err(|error| Failure::new(Code::CannotCreate, format!("cannot open the pages: {error}")))?;
        page.introduce(pid, stat.start_time, now);
        page.set_logging(config.logging());
        let control = listen_for_tools(rundir, reactor)?;
        let me = Pidfd::of_child(pid).map_err(|error| Failure::internal("open a pidfd of itself", &error))?;
        let stop_within = config.watchdog.grace + config.claim_within;
        let mut tree = Tree::new(now, config.secondaries, config.supervision(), stop_within, seed(now, pid));
        tree.handle_observed(now, config.observe.is_some());
        let mut watchdog = Self {
            rundir: rundir.clone(),
            lock,
            seen_directory: None,
            lost_sockets: BTreeSet::new(),
            next_look_at_directory: now,
            directory_trouble: Recurrence::default(),
            meeting_trouble: Recurrence::default(),
            control_trouble: Recurrence::default(),
            start_trouble: Recurrence::default(),
            tools_wait: false,
            page,
            principal_page,
            observer_page: None,
            observer_trouble: Recurrence::default(),
            heirlooms,
            tree,
            processes: Vec::new(),
            departed: VecDeque::new(),
            me,
            channel: None,
            seen_changes: None,
            control,
            control_clients: Slab::new(),
            tools_so_far: 0,
            tasks: Tasks::default(),
            resting: BTreeSet::new(),
            announcements: Lines::stdout(),
            manager: ServiceManager::from_environment(now),
            exit: Code::Ok,
            force,
            sources,
            reload: None,
            reload_outcome: None,
            stop_waits: false,
            stop_signal_at: None,
        };
        let version = env!("CARGO_PKG_VERSION");
        let directory = watchdog.rundir.path().display().to_string();
        watchdog.announce(&format!("osps {version}: watchdog pid {pid}, runtime directory {directory}"));
        Ok(watchdog)
    }

    /// Says something to whoever started us, on standard output.
    pub(super) fn announce(&mut self, line: &str) {
        self.announcements.line(format!("{line}\n").as_bytes());
    }
}

/// Takes the lock; waits for it where its holder was killed and is only being taken apart.
fn take_lock(rundir: &Rundir) -> Result<Lock, Failure> {
    let give_up_at = clock::now() + SURVIVORS_END_WITHIN;
    loop {
        match rundir.lock() {
            Err(RundirError::AlreadyRunning { .. })
                if clock::now() < give_up_at && rundir.lock_holder().is_none_or(proc::is_dying) =>
            {
                pause(Duration::from_millis(5));
            }
            other => return other.map_err(rundir_failure),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "before the loop runs there is nobody to keep waiting")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Ends what survives of a crashed run and removes what it left. Returns whether there
/// was anything.
fn clean_up(rundir: &Rundir) -> Result<bool, Failure> {
    let failure = |error: io::Error| {
        Failure::new(Code::CannotCreate, format!("cannot clean up {}: {error}", rundir.path().display()))
    };
    // Those of each page, with the user to whom the page belongs.
    let mut processes: Vec<(u32, u64, u32)> = Vec::new();
    let mut trees = Vec::new();
    let pages = rundir.pages().map_err(failure)?;
    for path in &pages {
        // Survivors of the crash may be at their own clean-up.
        let Ok(owner) = path.symlink_metadata().map(|found| found.uid()) else {
            continue;
        };
        if let Ok(page) = WatchdogPage::attach(path, Access::ReadOnly) {
            refuse_if_alive(rundir, page.watchdog())?;
            processes.extend(page.watched().map(|watched| (watched.pid, watched.start_time, owner)));
            trees.push((page.tree(), owner));
        }
        if let Ok(page) = PrincipalPage::attach(path, Access::ReadOnly) {
            let record = page.record();
            processes.push((record.pid, record.start_time, owner));
            let slots = (1..=page.slots()).map(|slot| page.slot(slot));
            processes.extend(slots.map(|slot| (slot.pid, slot.start_time, owner)));
        }
        if let Ok(page) = ObserverPage::attach(path, Access::ReadOnly) {
            let record = page.record();
            processes.push((record.pid, record.start_time, owner));
        }
        if let Ok(page) = SecondaryPage::attach(path, Access::ReadOnly) {
            let record = page.record();
            processes.push((record.pid, record.start_time, owner));
        }
    }
    rundir.refuse_obstacles().map_err(rundir_failure)?;
    // From here on nobody is misled about who lives.
    rundir.retire_watchdog_page().map_err(failure)?;
    processes.sort_unstable();
    processes.dedup();
    let me = std::process::id();
    let mut survivors = Vec::new();
    for (pid, start_time, owner) in processes.into_iter().filter(|&(pid, ..)| pid != me) {
        match Pidfd::of_process(pid, start_time) {
            Ok(pidfd) if pidfd.has_ended() || !may_end(pid, owner) => {}
            Ok(pidfd) => survivors.push(pidfd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failure(error)),
        }
    }
    for survivor in &survivors {
        log::warn!(target: KILL, "pid {} survives of a run that crashed: killed", survivor.pid());
        if let Err(error) = survivor.signal(Signal::KILL) {
            log::warn!("cannot kill pid {}: {error}", survivor.pid());
        }
    }
    for survivor in &survivors {
        if !survivor.ends_within(SURVIVORS_END_WITHIN) {
            log::warn!("pid {} does not end", survivor.pid());
        }
    }
    for (tree, owner) in trees {
        end_commands_of(tree, owner).map_err(failure)?;
    }
    rundir.clean().map_err(rundir_failure)?;
    Ok(!pages.is_empty())
}

/// Ends what the commands of a crashed run have left behind, which may be anybody's child by now. One look
/// may miss who is just being born, so there are more until two have found nobody.
fn end_commands_of(tree: mark::Tree, owner: u32) -> io::Result<()> {
    let (until, mut quiet) = (clock::now() + SURVIVORS_END_WITHIN, 0);
    while quiet < 2 && clock::now() < until {
        let mut found = false;
        for (pid, start_time) in descendants::of_tree(tree)? {
            if let Ok(pidfd) = Pidfd::of_process(pid, start_time)
                && !pidfd.has_ended()
                && may_end(pid, owner)
            {
                found = true;
                log::debug!("pid {pid} is of a command of a run that crashed: killed");
                let _ = pidfd.signal(Signal::KILL);
            }
        }
        quiet = if found { 0 } else { quiet + 1 };
        pause(BETWEEN_LOOKS);
    }
    if quiet < 2 {
        log::warn!("processes of commands of a run that crashed do not end");
    }
    Ok(())
}

/// What root does because a page says so is done to processes of the page's owner only.
fn may_end(pid: u32, owner: u32) -> bool {
    owner == 0 || proc::user(pid).is_ok_and(|user| user == owner)
}

/// A watchdog whose lock file was removed still is the watchdog.
fn refuse_if_alive(rundir: &Rundir, (pid, start_time): (u32, u64)) -> Result<(), Failure> {
    match Pidfd::of_process(pid, start_time) {
        Ok(other) if pid != std::process::id() && !other.has_ended() => {
            if proc::is_dying(pid) && other.ends_within(SURVIVORS_END_WITHIN) {
                return Ok(());
            }
            let path = rundir.path().to_owned();
            Err(rundir_failure(RundirError::AlreadyRunning { path, pid: pid.to_string() }))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::internal(&format!("look for pid {pid}"), &error)),
    }
}

fn create_pages(force: &Force, rundir: &Rundir) -> Result<(WatchdogPage, PrincipalPage), PageError> {
    let (config, directory) = (&force.config, force.directory());
    let slots = usize::from(config.secondaries);
    let page = WatchdogPage::create(&rundir.watchdog_page(), slots, &directory)?;
    let principal = PrincipalPage::create(&rundir.principal_page(), slots, config.request.len())?;
    for slot in 1..=config.secondaries {
        JobTable::create(&rundir.jobs(slot), config.max_jobs as usize)?;
    }
    Ok((page, principal))
}

/// Raises the descriptor limit, lowers `max_clients` where it does not suffice for all of
/// them and so many slots, and refuses to start where it does not even suffice for the servers. Returns how many
/// connections beyond `max_clients` a principal may accept.
pub(super) fn fit_descriptor_limit(config: &mut Config, slots: u16) -> Result<usize, Failure> {
    let limit = process::raise_descriptor_limit();
    let slots = u64::from(slots);
    let types = config.request.len() as u64;
    let hosts = config.listen.hosts().len() as u64;
    let of_slot = types * hosts;
    let listeners = config.listen.addresses().len() as u64 + slots * of_slot;
    // Each listener once more while a child is started; a predecessor beside each server.
    let recycles = config.max_jobs_served > 0 || config.max_memory.is_some();
    let each = DESCRIPTORS_PER_SLOT + if recycles { DESCRIPTORS_OF_RECYCLED } else { 0 };
    let watchdog = 2 * listeners + slots * each + SPARE_DESCRIPTORS;
    let principal = listeners + of_slot + slots * each + SPARE_DESCRIPTORS;
    let needed = watchdog.max(principal + FEWEST_CLIENTS);
    if limit < needed {
        let message = format!(
            "the limit of open descriptors is {limit}; {slots} secondaries with {types} request types on {hosts} hosts need {needed}: \
             raise it (ulimit -n) or configure fewer"
        );
        return Err(Failure::new(Code::Unavailable, message));
    }
    let room = usize::try_from(limit - principal).unwrap_or(usize::MAX);
    // Some places are left to see who comes when all others are taken.
    let fitting = room - room / 16;
    if config.max_clients > fitting {
        log::warn!(
            "max_clients = {} is lowered to {fitting}: the limit of open descriptors is {limit}",
            config.max_clients
        );
        config.max_clients = fitting;
    }
    Ok((room - config.max_clients).min(MAX_PARKED))
}

fn seed(now: Moment, pid: u32) -> u64 {
    now.as_nanos() ^ u64::from(pid) << 32
}
