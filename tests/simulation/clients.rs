//! Modelled clients: each asks for a port, comes to it or not, exchanges for a while, ends or
//! breaks off; and tries again a few times where a server died under it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use osps::core::moment::Moment;

use crate::machine::{Event, Machine};
use crate::net::{CONTROL, ConnId, Input, data_listener};
use crate::plan::{TYPES, micros, millis};

pub type ClientId = usize;

/// More do not come while so many are here: a long outage must not pile up work for hours.
const MOST_AT_ONCE: usize = 200;

/// What a client does or notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It connects to the control port.
    Ask,
    /// Its request was answered: a port, by slot, or -1.
    Answered(ConnId, Option<usize>),
    /// It connects to the port.
    Come(usize),
    /// Its exchange has begun; seen at once, for the exchange takes its time anyway.
    Served(ConnId),
    /// It has all that it wanted.
    Finish(ConnId),
    /// It has waited long enough.
    Leave(ConnId),
    /// The server closed the connection after all was said.
    Closed(ConnId),
    /// Nobody waited for it.
    Rejected(ConnId),
    /// The server closed the connection before its time, or died.
    Broken(ConnId),
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Asking,
    /// It knows its port and takes its time.
    Told,
    /// In the backlog of its port.
    Waiting,
    Exchanging,
    /// Over, well or not.
    Over(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Served,
    Refused,
    Rejected,
    /// By its own will.
    Left,
    Broken,
}

#[derive(Debug)]
pub struct Client {
    pub address: IpAddr,
    kind: usize,
    pub standing: Standing,
    pub since: Moment,
    /// One that tests whether all is well: it makes no mistakes.
    pub tests: bool,
    tries: u32,
    conn: Option<ConnId>,
    /// The slot whose port it was told, counted from 0.
    pub slot: usize,
}

impl Machine {
    /// Somebody comes, and before long somebody else.
    pub fn new_client(&mut self) {
        if self.is_quiet() || self.has_no_listener() {
            return;
        }
        for _ in 0..self.dice.pick(&[1, 1, 1, 1, 5]) {
            if self.here < MOST_AT_ONCE {
                self.add_client(false);
            }
        }
        self.soon(self.plan.client_every * 2, Event::NewClient);
    }

    pub fn add_client(&mut self, tests: bool) {
        let last = u8::try_from(self.dice.below(3)).expect("a few") + 1;
        let kind = self.dice.pick(&[0, 1]);
        debug_assert!(kind < TYPES);
        let client = self.clients.len();
        self.here += 1;
        self.clients.push(Client {
            address: Ipv4Addr::new(127, 0, 0, last).into(),
            kind,
            standing: Standing::Asking,
            since: self.now,
            tests,
            tries: 0,
            conn: None,
            slot: 0,
        });
        self.client_step(client, Step::Ask);
    }

    /// Whether there is nobody any more who would hold the listeners.
    fn has_no_listener(&self) -> bool {
        !self.processes[crate::machine::WATCHDOG].is_alive()
    }

    pub fn client_step(&mut self, id: ClientId, step: Step) {
        let of_its_own = match step {
            Step::Ask | Step::Come(_) => true,
            Step::Answered(conn, _)
            | Step::Served(conn)
            | Step::Finish(conn)
            | Step::Leave(conn)
            | Step::Closed(conn)
            | Step::Rejected(conn)
            | Step::Broken(conn) => self.clients[id].conn == Some(conn),
        };
        if !of_its_own || matches!(self.clients[id].standing, Standing::Over(_)) {
            return;
        }
        self.trace.note(self.now, || format!("client {id}: {step:?}"));
        match step {
            Step::Ask if self.has_no_listener() => self.be(id, Standing::Over(Ending::Broken)),
            Step::Ask => self.ask(id),
            Step::Answered(_, None) => self.be(id, Standing::Over(Ending::Refused)),
            Step::Answered(_, Some(slot)) => self.told(id, slot),
            Step::Come(_) if self.has_no_listener() => self.be(id, Standing::Over(Ending::Broken)),
            Step::Come(slot) => self.come(id, slot),
            Step::Served(conn) => self.begin_exchange(id, conn),
            Step::Finish(conn) => {
                let resets = !self.clients[id].tests && self.dice.chance(100);
                self.say(conn, if resets { Input::Reset } else { Input::End });
            }
            Step::Leave(conn) => {
                if matches!(self.clients[id].standing, Standing::Asking | Standing::Waiting) {
                    self.say(conn, Input::Reset);
                    self.be(id, Standing::Over(Ending::Left));
                }
            }
            Step::Closed(_) => self.be(id, Standing::Over(Ending::Served)),
            Step::Rejected(_) => self.be(id, Standing::Over(Ending::Rejected)),
            Step::Broken(_) => self.again(id),
        }
    }

    fn be(&mut self, id: ClientId, standing: Standing) {
        self.clients[id].standing = standing;
        self.clients[id].since = self.now;
        if let Standing::Over(ending) = standing {
            self.here -= 1;
            self.audit.coverage.count(format!("client: {ending:?}"));
        }
    }

    fn ask(&mut self, id: ClientId) {
        let kind = self.clients[id].kind;
        self.be(id, Standing::Asking);
        let conn = self.connect(id, CONTROL, Input::Request(kind));
        self.clients[id].conn = Some(conn);
        self.perhaps_leave(id, conn);
    }

    fn perhaps_leave(&mut self, id: ClientId, conn: ConnId) {
        if !self.clients[id].tests && self.dice.chance(50) {
            self.soon(self.plan.claim_within, Event::Client(id, Step::Leave(conn)));
        }
    }

    /// It knows its port: it comes at once, late, too late, or not at all.
    fn told(&mut self, id: ClientId, slot: usize) {
        self.be(id, Standing::Told);
        self.clients[id].conn = None;
        let fate = if self.clients[id].tests { 0 } else { self.dice.below(20) };
        let wait = match fate {
            0..=13 => self.dice.up_to(millis(3)),
            14..=16 => self.dice.up_to(self.plan.claim_within),
            17..=18 => self.dice.up_to(3 * self.plan.claim_within),
            _ => return self.be(id, Standing::Over(Ending::Left)),
        };
        self.at(self.now + wait, Event::Client(id, Step::Come(slot)));
    }

    fn come(&mut self, id: ClientId, slot: usize) {
        self.be(id, Standing::Waiting);
        self.clients[id].slot = slot;
        let conn = self.connect(id, data_listener(slot, self.clients[id].kind), Input::Nothing);
        self.clients[id].conn = Some(conn);
        self.perhaps_leave(id, conn);
    }

    fn begin_exchange(&mut self, id: ClientId, conn: ConnId) {
        self.be(id, Standing::Exchanging);
        let longest = match self.dice.below(20) {
            _ if self.clients[id].tests => millis(5),
            0..=9 => millis(2),
            10..=17 => millis(100),
            18 => self.plan.settings.grace / 2,
            _ => self.plan.settings.grace * 3 / 2,
        };
        let exchange: Duration = self.dice.between(micros(50), longest);
        self.at(self.now + exchange, Event::Client(id, Step::Finish(conn)));
    }

    /// The server died under it.
    fn again(&mut self, id: ClientId) {
        let client = &mut self.clients[id];
        client.conn = None;
        client.tries += 1;
        if client.tries > 3 {
            return self.be(id, Standing::Over(Ending::Broken));
        }
        self.be(id, Standing::Asking);
        self.soon(millis(20), Event::Client(id, Step::Ask));
    }
}
