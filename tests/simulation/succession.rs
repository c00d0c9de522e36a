//! A principal that takes over from another on purpose, as in `src/role/principal/succession.rs`.

use osps::core::job::{ClientId, Incarnation, State, Table as _};
use osps::core::slots::{Books as _, Followed, Household, Occupied};
use osps::page::Access;
use osps::page::record::Condition;
use osps::page::secondary::{Introduced, SecondaryPage, introduced};

use crate::fifo::{FifoName, Writer};
use crate::machine::{Key, Machine, Proc};
use crate::net::ConnId;
use crate::principal::Principal;
use crate::reload::HandedOver;
use crate::servers::{Server, ended, number};

/// Whether a predecessor has a limit. Another takes as long as it takes.
fn drains(sys: &mut Machine, slot: usize, incarnation: Incarnation) -> bool {
    sys.system_call();
    let path = sys.rundir.predecessor_page(number(slot), incarnation);
    let record = SecondaryPage::attach(&path, Access::ReadOnly).map(|page| page.record());
    record.is_ok_and(|record| record.incarnation == incarnation && record.condition == Condition::Draining)
}

impl Principal {
    /// Goes on where a predecessor has stopped: with its clients, and its secondaries.
    pub fn succeed(&mut self, sys: &mut Machine, estate: Vec<(ConnId, HandedOver)>, renews: bool) {
        sys.system_call();
        let introduced = introduced(sys.rundir.pages().expect("our own directory")).expect("our own pages");
        let mut households = Vec::new();
        for slot in 0..self.slots.len() {
            households.push(self.take_over_slot(sys, slot, &introduced));
        }
        let (mut followed, mut taken) = (Vec::new(), Vec::new());
        for (conn, handed_over) in estate {
            taken.push(self.take_over_client(sys, conn, handed_over, &mut followed));
        }
        sys.audit_clients_are_taken(self);
        self.audit_what_happened_meanwhile(sys, &followed);
        self.core.handle_succession(self.now, households, &followed, renews);
        sys.books_were_recovered();
        self.carry_out(sys);
        self.resume_all(sys, taken);
    }

    /// Who serves the slot goes on, and who drains there is watched.
    fn take_over_slot(&mut self, sys: &mut Machine, slot: usize, introduced: &[Introduced]) -> Household {
        let last = self.page().slot(number(slot));
        let serves = matches!(last.occupied, Occupied::Starting | Occupied::Ready);
        let pidfd = sys.pidfd(last.pid, last.start_time).filter(|_| serves);
        let current = pidfd.map(|pidfd| {
            let server = self.adopt_server(sys, slot, last.incarnation, pidfd);
            self.slots[slot].counts = server.page.counts();
            let ready_at = server.page.record().ready_at.unwrap_or(self.now);
            self.slots[slot].current = Some(server);
            (last.incarnation, (last.occupied == Occupied::Ready).then_some(ready_at))
        });
        self.adopt_living(sys, slot, introduced);
        let predecessors = self.slots[slot].predecessors.iter();
        let predecessors = predecessors.map(|known| known.incarnation).collect::<Vec<_>>().into_iter();
        let predecessors = predecessors.map(|incarnation| (incarnation, drains(sys, slot, incarnation)));
        Household { current, predecessors: predecessors.collect() }
    }

    fn adopt_server(&self, sys: &mut Machine, slot: usize, incarnation: Incarnation, pidfd: Proc) -> Server {
        let number = number(slot);
        sys.audit_adopts(self.me, pidfd);
        let tube = sys.open_fifo(FifoName::FromSecondary(number, None)).expect("it serves");
        let to_them = sys.open_fifo(FifoName::ToSecondary(number, None)).expect("it serves");
        sys.system_call();
        let page = SecondaryPage::attach(&sys.rundir.secondary_page(number), Access::ReadOnly);
        let page = page.expect("it serves");
        sys.watch_end(pidfd, self.me, ended(slot, incarnation));
        sys.watch_fifo(tube, self.me, Key::Tube(slot, incarnation));
        Server { incarnation, pidfd, page, tube, writer: Writer::new(to_them) }
    }

    /// Counts what its clients follow that has gone on while nobody kept the books.
    fn audit_what_happened_meanwhile(&self, sys: &mut Machine, followed: &[(ClientId, Followed)]) {
        for (_, known) in followed {
            let word = self.core.books().table(known.slot).state(known.entry);
            sys.audit.coverage.count(match word.map(|word| word.state) {
                Ok(State::Waiting) => "handed over with a job that waited",
                Ok(State::Claimed) if known.claimed => "handed over with a job under way",
                Ok(State::Claimed) => "a job was claimed while nobody kept the books",
                _ => "a job ended while nobody kept the books",
            });
        }
    }
}
