//! A reload, as the watchdog sees it: `src/role/watchdog/reload.rs`.

use osps::core::name::Name;
use osps::wire::order::Order;

use crate::fifo::FifoName;
use crate::kernel::Sheet;
use crate::machine::{Machine, Proc, Progress, WATCHDOG};
use crate::reload::Word;
use crate::sabotage::Sabotage;
use crate::watchdog::Watchdog;

/// A reload under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The new principal gets ready to take over.
    Preparing(Candidate),
    /// The old one was told to hand over to it.
    HandingOver(Candidate),
    /// The old one has ended, and the new one is not ready yet. `before`: whether there was to be an observer.
    Promoted { principal: Name, before: bool },
}

/// A principal that is to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    name: Name,
    proc: Proc,
    /// Whether there is to be an observer from then on.
    observed: bool,
}

impl Reload {
    /// Who is to take over.
    fn candidate(self) -> Option<Candidate> {
        match self {
            Self::Preparing(candidate) | Self::HandingOver(candidate) => Some(candidate),
            Self::Promoted { .. } => None,
        }
    }
}

impl Watchdog {
    /// Starts a new principal beside the one that serves.
    pub fn begin_reload(&mut self, sys: &mut Machine) {
        if self.reload.is_some() || self.tree.is_stopping() {
            return;
        }
        if self.tree.serving_principal().is_none() || self.tree.has_candidate() {
            sys.audit.coverage.count("a reload was refused");
            return;
        }
        sys.audit_reload_begins();
        let name = Name::principal(self.tree.next_principal());
        let orders = FifoName::Orders(0, Some(name.incarnation));
        assert!(sys.mkfifo(orders), "nobody had that name");
        let fifo = sys.open_fifo(orders).expect("it was created");
        let renews = sys.dice.chance(800);
        let observed = if renews { sys.dice.chance(sys.plan.observed_later) } else { self.observed };
        let sheet = Sheet { succeeds: true, renews, ..Sheet::of(name, fifo, None) };
        let Some(pidfd) = sys.spawn(WATCHDOG, sheet) else {
            sys.unlink_fifo(orders);
            sys.audit_reload_fails("nobody was started");
            return;
        };
        // From now on people who want something of a slot tell it, too.
        let resting = sys.rested.clone();
        sys.processes[pidfd].sheet.iter_mut().for_each(|sheet| sheet.resting.clone_from(&resting));
        self.reload = Some(Reload::Preparing(Candidate { name, proc: pidfd, observed }));
        self.supervise(sys, name, pidfd, None, fifo);
    }

    /// A principal says something.
    pub fn on_channel(&mut self, sys: &mut Machine, who: Proc) -> Progress {
        let Some(word) = sys.hear_principal(who) else {
            return Progress::Drained;
        };
        let candidate = self.reload.and_then(Reload::candidate);
        let is_candidate = candidate.is_some_and(|candidate| candidate.proc == who);
        let is_principal = sys.processes[who].name() == Some(self.tree.principal());
        let is_meant = |successor| candidate.is_some_and(|candidate| candidate.proc == successor);
        match word {
            Word::Prepared if is_candidate => self.have_handed_over(sys),
            Word::Refused if is_candidate => self.give_up_reload(sys, "refused"),
            Word::Kept(successor) if is_principal && is_meant(successor) => self.give_up_reload(sys, "kept"),
            _ => sys.audit.coverage.count("a word came too late"),
        }
        Progress::Again
    }

    /// The candidate can take over: the one that serves is told to whom it hands over.
    fn have_handed_over(&mut self, sys: &mut Machine) {
        let Some(Reload::Preparing(candidate)) = self.reload else {
            return;
        };
        let principal = self.tree.serving_principal().and_then(|name| self.position(name));
        let principal = principal.map(|index| (self.processes[index].pid, self.processes[index].pidfd));
        self.page.set_handing_over(principal.map(|(pid, _)| pid));
        self.reload = Some(Reload::HandingOver(candidate));
        let word = Word::HandOver(candidate.proc);
        let told = principal.is_some_and(|(_, pidfd)| sys.tell_principal(pidfd, word));
        if !told {
            sys.audit.succession.disturbed = true;
            self.give_up_reload(sys, "it does not serve");
        }
    }

    /// All stays as it is.
    pub fn give_up_reload(&mut self, sys: &mut Machine, why: &str) {
        match self.reload.take() {
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => {
                sys.audit_reload_fails(why);
                self.page.set_handing_over(None);
                sys.excuse_households_left();
                self.tree.handle_candidate_dismissed(self.now);
                sys.unlink_fifo(FifoName::Orders(0, Some(candidate.name.incarnation)));
            }
            Some(Reload::Promoted { before, .. }) => {
                sys.audit_reload_fails("the new principal ended before it served");
                if !self.page.is_stopping() {
                    self.bring_into_force(sys, before);
                }
            }
            None => {}
        }
    }

    /// A principal has ended: whether another has its place already.
    pub fn is_succeeded(&mut self, sys: &mut Machine, name: Name, who: Proc) -> bool {
        // What it said before it ended tells why.
        while self.on_channel(sys, who) == Progress::Again {}
        let candidate = match self.reload {
            None => return false,
            Some(Reload::Promoted { principal, .. }) => {
                if principal == name {
                    self.give_up_reload(sys, "");
                }
                return false;
            }
            Some(Reload::Preparing(candidate) | Reload::HandingOver(candidate)) => candidate,
        };
        if candidate.name == name {
            self.give_up_reload(sys, "the new principal ended");
            return false;
        }
        if self.tree.principal() != name {
            // One that was dismissed before.
            return false;
        }
        let has_handed_over =
            self.principal_page.has_handed_over(name.incarnation) || sys.sabotage == Sabotage::PromoteUnasked;
        if has_handed_over && self.tree.handle_succeeded(self.now, name) {
            self.promote(sys, name);
            return true;
        }
        self.give_up_reload(sys, "the old principal ended before it had handed over");
        false
    }

    /// The new principal has the place of the old one.
    fn promote(&mut self, sys: &mut Machine, old: Name) {
        let Some(Candidate { name, proc, observed }) = self.reload.and_then(Reload::candidate) else {
            return;
        };
        sys.audit_promoted(self.now, old, name, proc);
        sys.rename_fifo(FifoName::Orders(0, Some(name.incarnation)), FifoName::Orders(0, None));
        let before = self.observed;
        self.bring_into_force(sys, observed);
        sys.tell_principal(proc, Word::Proceed);
        self.reload = Some(Reload::Promoted { principal: name, before });
        if sys.sabotage == Sabotage::DrainAtPromotion {
            for index in 0..self.processes.len() {
                if self.processes[index].page.is_some() {
                    self.order(sys, index, Order::Drain);
                }
            }
        }
    }

    /// A principal is ready: perhaps the new one.
    pub fn reload_has_come_true(&mut self, sys: &mut Machine, name: Name) {
        if matches!(self.reload, Some(Reload::Promoted { principal, .. }) if principal == name) {
            self.reload = None;
            sys.audit_reload_succeeds();
        }
    }
}
