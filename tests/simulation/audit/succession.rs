//! Rules for reloads: one principal after another, and nobody notices.

use osps::core::moment::Moment;
use osps::core::name::{Name, Role};

use crate::audit::Rule;
use crate::kernel::{Life, Mood, Process};
use crate::machine::{Machine, Proc, WATCHDOG};
use crate::net::{ConnId, Place, is_control};
use crate::plan::TYPES;
use crate::principal::Principal;

/// What is known of reloads.
#[derive(Default)]
pub struct Succession {
    /// Who writes in the books.
    keeper: Option<Proc>,
    /// What stood in the page of the principal after the last word of one that handed over.
    sealed: Option<String>,
    /// A reload is under way.
    under_way: bool,
    /// Something went wrong since it began.
    pub disturbed: bool,
    /// The old principal goes on.
    pub kept: bool,
}

impl Succession {
    /// Something is wrong with a process of that role. With an observer: that excuses nobody.
    pub fn disturbed_by(&mut self, role: Option<Role>) {
        self.disturbed |= role != Some(Role::Observer);
    }
}

impl Machine {
    pub fn audit_reload_begins(&mut self) {
        self.audit.coverage.count("reload: began");
        let is_odd = |proc: Proc| {
            let process = &self.processes[proc];
            process.mood != Mood::Prompt || process.doomed || process.excused
        };
        let is_dead = self.principals().next().is_none();
        let is_odd = self.principals().chain([WATCHDOG]).any(is_odd) || self.now < self.paused_until;
        let disturbed = is_dead || is_odd;
        let succession = &mut self.audit.succession;
        (succession.under_way, succession.disturbed, succession.kept) = (true, disturbed, false);
    }

    pub fn audit_reload_fails(&mut self, why: &str) {
        self.audit.coverage.count(format!("reload: {why}"));
        let disturbed = self.audit.succession.disturbed;
        self.audit.succession.under_way = false;
        self.ensure(disturbed, Rule::ReloadsAreSmooth, || format!("nobody disturbs a reload, yet: {why}"));
    }

    pub fn audit_reload_succeeds(&mut self) {
        self.audit.coverage.count("reload: succeeded");
        self.audit.succession.under_way = false;
        if !self.audit.succession.disturbed {
            self.audit.coverage.count("reload: succeeded, and nobody disturbed it");
        }
    }

    /// Whether there is a reason for which who was to take over is not to any more.
    pub fn is_reload_lost(&self) -> bool {
        let serves = |proc: Proc| !self.processes[proc].is_candidate;
        self.audit.succession.kept
            || !self.audit.stops.is_empty()
            || self.audit.succession.disturbed
            || !self.principals().any(serves)
    }

    /// The watchdog has found the last word of one that has ended; another has its place.
    pub fn audit_promoted(&mut self, now: Moment, old: Name, new: Name, proc: Proc) {
        self.audit.coverage.count("reload: the new principal has the place of the old one");
        self.audit_exited(now, old, false);
        self.audit
            .dossiers
            .entry(new)
            .and_modify(|dossier| (dossier.is_candidate, dossier.started) = (false, now));
        self.processes[proc].is_candidate = false;
    }

    /// A principal has heard that it may proceed.
    pub fn audit_proceeds(&mut self, me: Proc, has_everything: bool) {
        self.ensure(has_everything, Rule::OneKeeper, || {
            format!("{me} takes over, and was not handed everything")
        });
    }

    /// A principal writes from now on, so nobody else does.
    pub fn audit_begins_to_write(&mut self, me: Proc) {
        self.audit_facts();
        let is_other = |proc: &Proc| {
            let process = &self.processes[*proc];
            *proc != me && !(process.is_candidate && process.life == Life::Booting)
        };
        let other = self.principals().find(is_other);
        let is_early = self.processes[me].is_candidate;
        self.ensure(other.is_none() && !is_early, Rule::OneKeeper, || {
            format!("{me} begins to write beside {other:?}")
        });
        if let Some(sealed) = self.audit.succession.sealed.take() {
            let now = self.words_of_principal();
            self.ensure(sealed == now, Rule::OneKeeper, || {
                "something was written after the last word of a principal".into()
            });
        }
        self.audit.succession.keeper = Some(me);
    }

    /// A principal is about to write.
    pub fn audit_writes(&mut self, me: Proc) {
        let keeps = self.audit.succession.keeper == Some(me) && !self.processes[me].handed_over;
        self.ensure(keeps, Rule::OneKeeper, || format!("{me} writes, and has no right to"));
    }

    /// Somebody has written in a table.
    pub fn audit_keeper_of(&mut self, by: Proc) {
        if self.role_of(by) == Some(Role::Principal) {
            self.audit_writes(by);
        }
    }

    /// A principal is about to write that it has handed over.
    pub fn audit_last_word(&mut self, me: Proc) {
        self.audit_facts();
        self.audit_writes(me);
    }

    /// It has written that.
    pub fn audit_is_sealed(&mut self, me: Proc) {
        self.processes[me].handed_over = true;
        self.audit.succession.sealed = Some(self.words_of_principal());
    }

    /// All that a principal may write in its page.
    fn words_of_principal(&self) -> String {
        let page = &self.audit.page;
        let ends: Vec<_> = (0..TYPES).map(|kind| page.ends(kind)).collect();
        let slots: Vec<_> = (1..=page.slots()).map(|slot| page.slot(slot)).collect();
        let counts = (page.accepted(), page.refused(), page.changes());
        format!("{:?} {counts:?} {ends:?} {slots:?}", page.record())
    }

    /// A principal takes over a secondary that goes on serving.
    pub fn audit_adopts(&mut self, me: Proc, secondary: Proc) {
        self.processes[secondary].belongs_to = me;
    }

    /// Secondaries of a principal that live, whoever has started them.
    pub fn household(&self, of: Proc) -> Vec<Proc> {
        let is_of = |proc: &Proc| self.processes[*proc].is_alive() && self.processes[*proc].belongs_to == of;
        (0..self.processes.len()).filter(is_of).collect()
    }

    /// The death of a principal is a reason to drain, unless all goes on under another.
    pub fn excuse_household(&mut self, of: Proc) {
        let Process { handed_over, pid, .. } = self.processes[of];
        if !handed_over || !self.watchdog_page.is_handing_over(pid) {
            for process in self.processes.iter_mut().filter(|process| process.belongs_to == of) {
                process.excused = true;
            }
        }
    }

    /// Nobody takes over any more, whatever a principal has said before its end.
    pub fn excuse_households_left(&mut self) {
        for principal in 1..self.processes.len() {
            if self.has_ended(principal) {
                self.excuse_household(principal);
            }
        }
    }

    /// Of two that had descriptors of a connection one has died; or the only one that had.
    pub fn audit_end_of_connection(&mut self, conn: ConnId, dead: Proc, heir: Option<Proc>) {
        if !is_control(&self.net.conns[conn]) {
            return;
        }
        let handed_over = self.processes[dead].handed_over;
        if heir.is_some() && !handed_over {
            self.audit
                .coverage
                .count("died before its last word, but after its connections were handed over");
        }
        let succeeds = |proc: &Proc| *proc != dead && self.processes[*proc].is_candidate;
        let successor = self.principals().find(succeeds);
        let forgotten = handed_over && heir.is_none() && successor.is_some();
        let succession = &self.audit.succession;
        let unasked = heir.is_none() && succession.under_way && !succession.disturbed;
        self.ensure(!forgotten && !unasked, Rule::ReloadsAreSmooth, || {
            format!("connection {conn} ends with {dead}, {successor:?} is to take over")
        });
    }

    /// Who takes over attends to all connections that are its own.
    pub fn audit_clients_are_taken(&mut self, principal: &Principal) {
        let is_its = |conn: &ConnId| {
            let known = &self.net.conns[*conn];
            is_control(known) && known.place == Place::With(principal.me)
        };
        let mut its = (0..self.net.conns.len()).filter(is_its);
        let forgotten = its.find(|conn| !principal.clients.is_known(*conn));
        self.ensure(forgotten.is_none(), Rule::ReloadsAreSmooth, || {
            format!("{} forgets connection {forgotten:?}", principal.me)
        });
    }

    /// A secondary that serves, and that another principal than ours has started; where one does not
    /// start, the others stay as they are.
    pub fn is_to_be_replaced(&self) -> Option<Name> {
        let mut slots = 0..usize::from(self.plan.secondaries);
        let sheet = |proc: Proc| self.processes[proc].sheet.as_ref();
        if !self.principals().filter_map(sheet).all(|sheet| sheet.renews) {
            return None;
        }
        if slots.any(|slot| self.is_given_up(slot)) {
            return None;
        }
        let inherited =
            |process: &&Process| process.is_alive() && process.parent == WATCHDOG && !process.dismissed;
        let mut processes = self.processes[1..].iter().filter(inherited).filter_map(Process::name);
        processes.find(|name| name.role == Role::Secondary)
    }
}
