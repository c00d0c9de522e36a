//! A reload: a new principal, with the configuration and the program as they are now, takes over from the
//! one that serves; then the secondaries are replaced one after another.
//!
//! Until the old principal has written in its page that all is handed over, nothing has changed: whatever goes
//! wrong before ends the new one. From then on, until the new one is ready, its death brings back what was in
//! force before.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;

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

    /// Starts a new principal beside the one that serves.
    pub(super) fn begin_reload(&mut self, reactor: &mut Handle<Key>) -> Result<(), String> {
        let changes_nothing = |why: String| format!("nothing was changed: {why}");
        self.reload_outcome = None;
        if self.tree.serving_principal().is_none() {
            return Err(changes_nothing("no principal serves at the moment".to_owned()));
        }
        let force = self.read_force().map_err(changes_nothing)?;
        let (ours, theirs) = Channel::pair().map_err(|error| changes_nothing(error.to_string()))?;
        let name = Name::principal(self.tree.next_principal());
        let born = self.spawn_principal(name, &force, Some(&theirs));
        let Born { pidfd, start_time, orders, mut channel } =
            born.map_err(|error| changes_nothing(format!("cannot start a new principal: {error}")))?;
        log::info!("reload: {name} (pid {}) is to take over", pidfd.pid());
        if let Err(error) = channel.watch(reactor, Key::Channel(name)) {
            log::error!("cannot listen to {name}: {error}");
        }
        self.reload = Some(Reload::Preparing(Candidate { name, channel, predecessors: Some(ours), force }));
        self.supervise(reactor, name, pidfd, start_time, None, Some(orders));
        self.tree.handle_candidate_started(reactor.now(), name);
        Ok(())
    }

    /// What would be in force now.
    fn read_force(&self) -> Result<Force, String> {
        let mut config = (self.sources.configuration)().map_err(|failure| failure.to_string())?;
        config.may_follow(&self.force.config)?;
        let parking = fit_descriptor_limit(&mut config).map_err(|failure| failure.to_string())?;
        let path = self.sources.program.as_ref().map_err(|error| format!("where is the program? {error}"))?;
        let program = fs::OpenOptions::new().read(true).custom_flags(O_PATH).open(path);
        let program = program.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        let places = Places { parking, ..self.force.places };
        Ok(Force { config, places, program: Some(Rc::new(program.into())) })
    }

    /// A principal says something.
    pub(super) fn on_channel(&mut self, reactor: &mut Handle<Key>, name: Name) -> Progress {
        let candidate = match &self.reload {
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => Some(candidate),
            Some(Reload::Promoted { .. }) | None => None,
        };
        let candidate = candidate.filter(|candidate| candidate.name == name);
        let is_candidate = candidate.is_some();
        let Some(channel) = candidate.map(|candidate| &candidate.channel).or(self.channel.as_ref()) else {
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
            Some(Word::Kept(why)) if name == self.tree.principal() => {
                self.give_up_reload(reactor, &format!("the principal goes on: {why}"));
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
        self.reload = Some(Reload::HandingOver(candidate));
        let told = match (principal, &self.channel, &predecessors) {
            (Some(_), Some(channel), Some(end)) => {
                channel.send(Word::HandOver.to_string().as_bytes(), &[std::os::fd::AsFd::as_fd(end)])
            }
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
                let Candidate { name, mut channel, .. } = candidate;
                channel.unwatch(reactor);
                self.page.set_handing_over(None);
                self.tree.handle_candidate_dismissed(reactor.now());
                self.remove_candidate_orders(name);
                self.reload_outcome = Some(Err(format!("nothing was changed: {why}")));
            }
            Some(Reload::Promoted { before, .. }) => {
                self.bring_into_force(*before);
                self.reload_outcome = Some(Err(format!("what was in force before is again: {why}")));
            }
            None => {}
        }
    }

    fn remove_candidate_orders(&self, name: Name) {
        if let Err(error) = crate::os::rundir::remove(&self.rundir.candidate_orders(name.incarnation)) {
            log::warn!("cannot remove the orders of {name}: {error}");
        }
    }

    /// A principal has ended: whether another has its place already.
    pub(super) fn is_succeeded(&mut self, reactor: &mut Handle<Key>, name: Name, exit: Exit) -> bool {
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
                    self.give_up_reload(reactor, &format!("the new principal ended: {exit}"));
                    return false;
                }
            }
        }
        let has_handed_over = self.principal_page.has_handed_over(name.incarnation);
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
        let inherited = (1..=self.force.config.secondaries).filter_map(|number| {
            let slot = self.principal_page.slot(number);
            let is_there = matches!(slot.occupied, Occupied::Starting | Occupied::Ready);
            is_there.then_some((number, slot.incarnation))
        });
        let inherited = inherited.collect();
        let before = Box::new(self.force.clone());
        self.bring_into_force(force);
        if let Err(error) = channel.send(Word::Proceed.to_string().as_bytes(), &[]) {
            log::warn!("cannot tell {name} to proceed: {error}");
        }
        if let Some(mut old) = self.channel.replace(channel) {
            old.unwatch(reactor);
        }
        self.page.count_principal_restart();
        self.reload = Some(Reload::Promoted { principal: name, before, inherited });
    }

    fn bring_into_force(&mut self, force: Force) {
        let config = &force.config;
        self.tree.handle_settings(config.supervision(), config.watchdog.grace + config.claim_within);
        self.force = force;
    }

    /// A principal is ready: perhaps the new one.
    pub(super) fn reload_has_come_true(&mut self, name: Name, pid: u32) {
        match self.reload.take() {
            Some(Reload::Promoted { principal, inherited, .. }) if principal == name => {
                self.reload_outcome = Some(Ok(Reloaded { pid, inherited }));
            }
            other => self.reload = other,
        }
    }

    /// Those of them that serve, or are started again, as before.
    pub(super) fn not_replaced(&self, inherited: &mut Vec<(u16, Incarnation)>) {
        inherited.retain(|&(number, before)| {
            let slot = self.principal_page.slot(number);
            let is_done = match slot.occupied {
                Occupied::Ready => slot.incarnation != before,
                Occupied::Resting => true,
                Occupied::Down | Occupied::Starting | Occupied::GivenUp => false,
            };
            !is_done
        });
    }

    /// The first of them that says that it cannot start.
    pub(super) fn given_up(&self, inherited: &[(u16, Incarnation)]) -> Option<u16> {
        let mut numbers = inherited.iter().map(|&(number, _)| number);
        numbers.find(|&number| self.principal_page.slot(number).occupied == Occupied::GivenUp)
    }

    /// Whether something else than a look at the log has to wait.
    pub(super) fn is_reloading(&self) -> bool {
        self.reload.is_some()
    }

    /// How long one secondary after another may take to be replaced.
    pub(super) fn replaced_until(&self, now: Moment) -> Moment {
        let times = &self.force.config.watchdog;
        now + times.kill_after + times.period * 2 + times.start_within + super::tasks::START_MARGIN
    }
}
