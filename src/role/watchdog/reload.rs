//! A reload: a new principal, with the configuration and the program as they are now, takes over from the
//! one that serves; then the secondaries are replaced one after another.
//!
//! Until the old principal has written in its page that all is handed over, nothing has changed: whatever goes
//! wrong before ends the new one. From then on, until the new one is ready, its death brings back what was in
//! force before.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::libc::O_PATH;

use crate::config::Config;
use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::slots::Occupied;
use crate::exit::Failure;
use crate::os::channel::{Channel, Received};
use crate::os::pidfd::Exit;
use crate::os::reactor::{Handle, Progress};
use crate::page::principal::Room;
use crate::page::watchdog::Directory;
use crate::role::watchdog::bind::Bound;
use crate::role::watchdog::principals::Born;
use crate::role::watchdog::start::fit_descriptor_limit;
use crate::role::watchdog::{Key, Places, Watchdog};
use crate::wire::succession::Word;

/// Where a reload finds what is to be in force.
pub struct Sources {
    /// Reads and checks the configuration once more.
    pub configuration: Box<dyn Fn() -> Result<Config, Failure>>,
    /// The path of the program.
    pub program: std::io::Result<PathBuf>,
}

/// What principals are started with.
#[derive(Clone)]
pub struct Force {
    pub config: Config,
    pub places: Places,
    /// The program, opened when it was loaded: its path may name a newer one by now. `None`: our own.
    pub program: Option<Rc<OwnedFd>>,
    pub bound: Bound,
    /// Slots, those included that were taken out of service.
    pub slots: u16,
    /// Request types, by their places, that are not offered any more.
    pub retired: BTreeSet<usize>,
    /// The secondaries are to be replaced, too.
    pub renews: bool,
    /// Request types that the secondaries do not serve which were there before.
    pub fresh: BTreeSet<usize>,
    /// What the configuration says of `max_clients`, which descriptors may not allow.
    pub max_clients: usize,
}

/// A reload under way.
pub enum Reload {
    /// The new principal gets ready to take over.
    Preparing(Candidate),
    /// The old one was told to hand over to it.
    HandingOver(Candidate),
    /// The old one has ended, and the new one is not ready yet.
    Promoted {
        /// Who is to be ready.
        principal: Name,
        /// What was in force before, should it die.
        before: Box<Force>,
        /// The secondaries that are to be replaced.
        inherited: Vec<(u16, Incarnation)>,
    },
}

/// A principal that is to take over.
pub struct Candidate {
    name: Name,
    channel: Channel,
    /// The end of the old principal, until it is sent there.
    predecessors: Option<Channel>,
    force: Force,
}

/// How it ended.
pub type Outcome = Result<Reloaded, String>;

/// A new principal serves.
#[derive(Debug)]
pub struct Reloaded {
    pub pid: u32,
    /// The secondaries that it replaces.
    pub inherited: Vec<(u16, Incarnation)>,
}

impl Force {
    /// What a system begins with.
    pub fn first(config: Config, max_clients: usize, places: Places, bound: Bound) -> Self {
        let (slots, retired, fresh) = (config.secondaries, BTreeSet::new(), BTreeSet::new());
        Self { config, places, program: None, bound, slots, retired, renews: true, fresh, max_clients }
    }

    /// What tools are told.
    pub fn directory(&self) -> Directory {
        Directory {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.bound.addresses(),
            requests: self.config.request.iter().map(|request| request.name.clone()).collect(),
            ports: self.bound.ports(),
            secondaries: self.config.secondaries,
            observe: self.bound.observed(),
        }
    }

    /// The device and inode of the program, where it is not our own.
    fn program_id(&self) -> Option<(u64, u64)> {
        let program = self.program.as_ref()?.try_clone().ok()?;
        File::from(program).metadata().ok().map(|program| (program.dev(), program.ino()))
    }
}

impl Watchdog {
    /// Programs that servers of this system run, besides our own.
    pub(super) fn other_programs(&self) -> Vec<(u64, u64)> {
        let candidates = match &self.reload {
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => Some(&candidate.force),
            Some(Reload::Promoted { before, .. }) => Some(&**before),
            None => None,
        };
        candidates.into_iter().chain([&self.force]).filter_map(Force::program_id).collect()
    }

    /// Starts a new principal beside the one that serves: with so many secondaries, or with what configuration and
    /// program say now.
    pub(super) fn begin_reload(
        &mut self,
        reactor: &mut Handle<Key>,
        secondaries: Option<u16>,
    ) -> Result<(), String> {
        self.reload_outcome = None;
        let begun = self.try_to_begin(reactor, secondaries);
        begun.map_err(|why| format!("nothing was changed: {why}"))
    }

    fn try_to_begin(&mut self, reactor: &mut Handle<Key>, secondaries: Option<u16>) -> Result<(), String> {
        if self.tree.serving_principal().is_none() {
            return Err("no principal serves at the moment".to_owned());
        }
        let force = match secondaries {
            Some(secondaries) => self.scaled(secondaries)?,
            None => self.read_force()?,
        };
        let bound = force.bound.clone();
        let begun = self.start_candidate(reactor, force);
        begun.inspect_err(|_| bound.remove_socket_files_but(&self.force.bound))
    }

    fn start_candidate(&mut self, reactor: &mut Handle<Key>, force: Force) -> Result<(), String> {
        self.make_room_for(&force)?;
        let (ours, theirs) = Channel::pair().map_err(|error| error.to_string())?;
        let name = Name::principal(self.tree.next_principal());
        let born = self.spawn_principal(name, &force, Some(&theirs));
        let Born { pidfd, start_time, orders, mut channel } =
            born.map_err(|error| format!("cannot start a new principal: {error}"))?;
        log::info!("reload: {name} (pid {}) is to take over", pidfd.pid());
        if let Err(error) = channel.watch(reactor, Key::Channel(name)) {
            log::error!("cannot listen to {name}: {error}");
        }
        self.reload = Some(Reload::Preparing(Candidate { name, channel, predecessors: Some(ours), force }));
        self.supervise(reactor, name, pidfd, start_time, None, Some(orders));
        self.tree.handle_candidate_started(reactor.now(), name);
        Ok(())
    }

    /// What would be in force by configuration and program as they are now.
    fn read_force(&self) -> Result<Force, String> {
        let before = &self.force;
        let mut config = (self.sources.configuration)().map_err(|failure| failure.to_string())?;
        config.may_follow(&before.config)?;
        let retired = config.take_places(&before.config.request);
        let is_fresh = |kind: &usize| *kind >= before.config.request.len() || before.retired.contains(kind);
        let fresh =
            (0..config.request.len()).filter(|kind| !retired.contains(kind)).filter(is_fresh).collect();
        let max_clients = config.max_clients;
        let path = self.sources.program.as_ref().map_err(|error| format!("where is the program? {error}"))?;
        let program = fs::OpenOptions::new().read(true).custom_flags(O_PATH).open(path);
        let program = program.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        self.bind_for(Force {
            config,
            retired,
            renews: true,
            fresh,
            max_clients,
            program: Some(Rc::new(program.into())),
            ..before.clone()
        })
    }

    /// What is in force, with another number of secondaries.
    fn scaled(&self, secondaries: u16) -> Result<Force, String> {
        let max_clients = self.force.max_clients;
        let config = Config { secondaries, max_clients, ..self.force.config.clone() };
        self.bind_for(Force { config, renews: false, fresh: BTreeSet::new(), ..self.force.clone() })
    }

    /// Binds what it asks for: before anything else changes.
    fn bind_for(&self, mut force: Force) -> Result<Force, String> {
        let secondaries = force.config.secondaries;
        if (1..=secondaries).all(|slot| self.resting.contains(&slot)) {
            return Err(format!(
                "all of the slots 1 to {secondaries} are drained: \"osps restart\" one of them before"
            ));
        }
        let Room { slots, types } = self.principal_page.room();
        force.slots = force.slots.max(force.config.secondaries);
        if usize::from(force.slots) > slots || force.config.request.len() > types {
            return Err(format!(
                "there is room for {slots} secondaries and {types} request types, those included that were \
                 removed: more take a stop and a start"
            ));
        }
        let parking =
            fit_descriptor_limit(&mut force.config, force.slots).map_err(|failure| failure.to_string())?;
        force.places.parking = parking;
        let bound = self.force.bound.bind_more(&force.config, &force.retired, force.slots, Duration::ZERO);
        force.bound = bound.map_err(|failure| failure.to_string())?;
        Ok(force)
    }

    fn make_room_for(&mut self, force: &Force) -> Result<(), String> {
        if !self.page.has_room_for(&force.directory()) {
            return Err(
                "there is no room for so many names and ports: they take a stop and a start".to_owned()
            );
        }
        let pages = (&self.page, &self.principal_page);
        let grown = self.heirlooms.grow(&self.rundir, pages, force.slots, force.config.request.len());
        grown.map_err(|error| format!("cannot make job tables: {error}"))
    }

    /// A principal says something.
    pub(super) fn on_channel(&mut self, reactor: &mut Handle<Key>, name: Name) -> Progress {
        let candidate = match &self.reload {
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => Some(candidate),
            Some(Reload::Promoted { .. }) | None => None,
        };
        let candidate = candidate.filter(|candidate| candidate.name == name);
        let is_candidate = candidate.is_some();
        let of_principal = self.channel.as_ref().filter(|_| name == self.tree.principal());
        let Some(channel) = candidate.map(|candidate| &candidate.channel).or(of_principal) else {
            return Progress::Drained;
        };
        let packet = match channel.receive(false) {
            Ok(Received::Packet(packet, _)) => packet,
            // Its end is told by its pidfd.
            Ok(Received::End | Received::Nothing) => return Progress::Drained,
            Err(error) => {
                log::warn!("cannot hear {name}: {error}");
                return Progress::Drained;
            }
        };
        match Word::parse(&packet) {
            Some(Word::Prepared) if is_candidate => self.have_handed_over(reactor),
            Some(Word::Refused(why)) if is_candidate => self.give_up_reload(reactor, &why),
            Some(Word::Kept { successor, why }) => {
                // It may speak of one that was given up before.
                let is_meant = matches!(&self.reload, Some(Reload::HandingOver(candidate))
                    if candidate.name.incarnation == successor);
                if is_meant && !is_candidate {
                    self.give_up_reload(reactor, &format!("the principal goes on: {why}"));
                }
            }
            _ => log::warn!("{name} says \"{}\"", packet.escape_ascii()),
        }
        Progress::Again
    }

    /// The candidate can take over: the one that serves is told to whom it hands over.
    fn have_handed_over(&mut self, reactor: &mut Handle<Key>) {
        let Some(Reload::Preparing(mut candidate)) = self.reload.take() else {
            return;
        };
        let principal = self.tree.serving_principal().and_then(|name| self.pid_of(name));
        self.page.set_handing_over(principal);
        let predecessors = candidate.predecessors.take();
        let word = Word::HandOver { successor: candidate.name.incarnation };
        self.reload = Some(Reload::HandingOver(candidate));
        let told = match (principal, &self.channel, &predecessors) {
            (Some(_), Some(channel), Some(end)) => channel.send(word.to_string().as_bytes(), &[end.as_fd()]),
            _ => Err(std::io::Error::other("it does not serve")),
        };
        if let Err(error) = told {
            self.give_up_reload(reactor, &format!("the principal cannot be told to hand over: {error}"));
        }
    }

    /// All stays as it is.
    pub(super) fn give_up_reload(&mut self, reactor: &mut Handle<Key>, why: &str) {
        match self.reload.take() {
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => {
                let Candidate { name, mut channel, force, .. } = candidate;
                channel.unwatch(reactor);
                force.bound.remove_socket_files_but(&self.force.bound);
                self.page.set_handing_over(None);
                self.tree.handle_candidate_dismissed(reactor.now());
                self.remove_candidate_orders(name);
                self.fail_reload(format!("nothing was changed: {why}"));
            }
            // What stops need not go back first: its processes are those of the new state.
            Some(Reload::Promoted { .. }) if self.tree.is_stopping() || self.page.is_stopping() => {
                self.fail_reload(why.to_owned());
            }
            Some(Reload::Promoted { before, .. }) => {
                self.force.bound.remove_socket_files_but(&before.bound);
                self.bring_into_force(reactor.now(), *before);
                self.fail_reload(format!("what was in force before is again: {why}"));
            }
            None => {}
        }
        self.stop_if_that_waits(reactor);
    }

    fn fail_reload(&mut self, why: String) {
        self.note_failed_reload(&why);
        self.reload_outcome = Some(Err(why));
    }

    fn stop_if_that_waits(&mut self, reactor: &mut Handle<Key>) {
        if self.stop_waits {
            self.stop(reactor);
        }
    }

    fn remove_candidate_orders(&self, name: Name) {
        if let Err(error) = crate::os::rundir::remove(&self.rundir.candidate_orders(name.incarnation)) {
            log::warn!("cannot remove the orders of {name}: {error}");
        }
    }

    /// A principal has ended: whether another has its place already.
    pub(super) fn is_succeeded(&mut self, reactor: &mut Handle<Key>, name: Name, exit: Exit) -> bool {
        // What it said before it ended tells why.
        while self.on_channel(reactor, name) == Progress::Again {}
        match &self.reload {
            None => return false,
            Some(Reload::Promoted { principal, .. }) => {
                if *principal == name {
                    self.give_up_reload(
                        reactor,
                        &format!("the new principal ended before it served: {exit}"),
                    );
                }
                return false;
            }
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => {
                if candidate.name == name {
                    let program = self.sources.program.as_ref().map(|path| path.display().to_string());
                    let program = program.unwrap_or_default();
                    self.give_up_reload(reactor, &format!("the new principal ended: {exit} ({program})"));
                    return false;
                }
                if self.tree.principal() != name {
                    // One that was dismissed before.
                    return false;
                }
            }
        }
        // To this candidate, that is: another may have died when it had taken all.
        let was_told = matches!(self.reload, Some(Reload::HandingOver(_)));
        let has_handed_over = was_told && self.principal_page.has_handed_over(name.incarnation);
        if has_handed_over && self.tree.handle_succeeded(reactor.now(), name) {
            self.promote(reactor);
            return true;
        }
        self.give_up_reload(reactor, &format!("the old principal ended before it had handed over: {exit}"));
        false
    }

    /// The new principal has the place of the old one.
    fn promote(&mut self, reactor: &mut Handle<Key>) {
        let Some(Reload::HandingOver(candidate)) = self.reload.take() else {
            return;
        };
        let Candidate { name, channel, force, .. } = candidate;
        let orders = self.rundir.candidate_orders(name.incarnation);
        if let Err(error) = fs::rename(orders, self.rundir.principal_orders()) {
            log::warn!("cannot name the orders of {name}: {error}");
        }
        let inherited = (1..=force.slots).filter_map(|number| {
            let slot = self.principal_page.slot(number);
            let is_there = matches!(slot.occupied, Occupied::Starting | Occupied::Ready);
            let is_wanted = number <= force.config.secondaries && !self.resting.contains(&number);
            match (is_there, is_wanted) {
                (true, true) => force.renews.then_some((number, slot.incarnation)),
                (true, false) => Some((number, slot.incarnation)),
                // Whatever is started there will do.
                (false, true) => Some((number, 0)),
                (false, false) => None,
            }
        });
        let inherited = inherited.collect();
        let before = Box::new(self.force.clone());
        self.bring_into_force(reactor.now(), force);
        if let Err(error) = self.heirlooms.restore_headers(&self.principal_page) {
            log::warn!("cannot write the headers of the pages again: {error}");
        }
        if let Err(error) = channel.send(Word::Proceed.to_string().as_bytes(), &[]) {
            log::warn!("cannot tell {name} to proceed: {error}");
        }
        if let Some(mut old) = self.channel.replace(channel) {
            old.unwatch(reactor);
        }
        self.page.count_principal_restart();
        self.reload = Some(Reload::Promoted { principal: name, before, inherited });
        self.stop_if_that_waits(reactor);
    }

    fn bring_into_force(&mut self, now: Moment, force: Force) {
        let config = &force.config;
        self.tree.handle_settings(config.supervision(), config.watchdog.grace + config.claim_within);
        self.tree.handle_slots(force.slots);
        crate::os::log::set_logging(config.logging());
        self.page.set_logging(config.logging());
        let observed = config.observe.is_some();
        self.force = force;
        // Its sockets may be others: what happens to them is news.
        self.lost_sockets.clear();
        self.write_directory();
        self.tree.handle_observed(now, observed);
    }

    /// A principal is ready: perhaps the new one.
    pub(super) fn reload_has_come_true(&mut self, name: Name, pid: u32) {
        match self.reload.take() {
            Some(Reload::Promoted { principal, inherited, before }) if principal == name => {
                before.bound.remove_observer_files_but(&self.force.bound);
                self.force.bound.close_what_was_replaced();
                let secondaries = self.force.config.secondaries;
                self.resting.retain(|slot| *slot <= secondaries);
                self.reload_outcome = Some(Ok(Reloaded { pid, inherited }));
            }
            other => self.reload = other,
        }
    }

    /// Whether something else than a look at the log has to wait.
    pub(super) fn is_reloading(&self) -> bool {
        self.reload.is_some() || self.tree.has_candidate()
    }
}
