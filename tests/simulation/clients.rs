//! Modelled clients: each asks for a port, comes to it or not, exchanges for a while, ends or
//! breaks off; and tries again a few times where a server died under it. Some follow their job;
//! some come without having asked.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use osps::core::moment::Moment;
use osps::wire::jeton::Jeton;

use crate::machine::{Event, Machine};
use crate::net::{ConnId, Input, data_listener};
use crate::plan::{TYPES, micros, millis};

pub type ClientId = usize;

/// More do not come while so many are here: a long outage must not pile up work for hours.
const MOST_AT_ONCE: usize = 200;

/// What a client does or notices; on its data connection, where one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It asks on the control port.
    Ask,
    /// It connects to the port.
    Come(usize),
    /// It says something of what it is about to say.
    Speak(ConnId),
    /// Its exchange has begun; seen at once, for the exchange takes its time anyway.
    Served(ConnId),
    /// It has all that it wanted.
    Finish(ConnId),
    /// It has waited long enough, on either connection.
    Leave(ConnId),
    /// The server closed the connection after all was said.
    Closed(ConnId),
    /// Nobody waited for it.
    Rejected(ConnId),
    /// The server closed the connection before its time, or died.
    Broken(ConnId),
}

/// How a client comes to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Without a newline.
    Bare,
    Line,
    Address,
    Tracked,
    /// It does not ask.
    Not,
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is about to ask.
    Retrying,
    Asking,
    /// It knows its port and takes its time.
    Told,
    /// In the backlog of its port, or undecided.
    Waiting,
    Exchanging,
    /// It was there, with that outcome, and waits to hear how its job ended.
    Following(Ending),
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
    /// It heard that its job was over before it came.
    TooLate,
}

/// A job whose fate a client is told.
#[derive(Clone, Copy, Debug)]
pub struct Follows {
    pub jeton: Jeton,
    pub ended: bool,
}

#[derive(Debug)]
pub struct Client {
    pub address: IpAddr,
    pub kind: usize,
    pub asks: Asks,
    pub standing: Standing,
    pub since: Moment,
    /// One that tests whether all is well: it makes no mistakes.
    pub tests: bool,
    tries: u32,
    /// Its control connection, which others may share.
    pub control: Option<ConnId>,
    data: Option<ConnId>,
    /// The slot whose port it was told, counted from 0.
    pub slot: usize,
    pub follows: Option<Follows>,
}

impl Client {
    /// Whether it is to be told of the end of its job.
    pub fn awaits_report(&self) -> bool {
        self.control.is_some() && self.follows.is_some_and(|follows| !follows.ended)
    }
}

impl Machine {
    /// Somebody comes, and before long somebody else.
    pub fn new_client(&mut self) {
        if self.is_quiet() || self.has_no_listener() {
            return;
        }
        for _ in 0..self.dice.pick(&[1, 1, 1, 1, 5]) {
            if self.here < MOST_AT_ONCE {
                let asks = self.draw_asks();
                self.add_client(false, asks);
            }
        }
        self.soon(self.plan.client_every * 2, Event::NewClient);
    }

    /// Somebody who asks.
    pub fn draw_asks(&mut self) -> Asks {
        if self.dice.chance(self.plan.tracked) {
            Asks::Tracked
        } else if !self.is_quiet() && self.dice.chance(self.plan.uninvited) {
            Asks::Not
        } else {
            self.dice.pick(&[Asks::Bare, Asks::Line, Asks::Address])
        }
    }

    pub fn add_client(&mut self, tests: bool, asks: Asks) {
        let last = u8::try_from(self.dice.below(3)).expect("a few") + 1;
        let kind = self.dice.pick(&[0, 1]);
        debug_assert!(kind < TYPES);
        let client = self.clients.len();
        self.here += 1;
        self.clients.push(Client {
            address: Ipv4Addr::new(127, 0, 0, last).into(),
            kind,
            asks,
            standing: Standing::Retrying,
            since: self.now,
            tests,
            tries: 0,
            control: None,
            data: None,
            slot: 0,
            follows: None,
        });
        if asks == Asks::Not {
            let slots: Vec<usize> =
                (0..self.plan.secondaries.into()).filter(|slot| !tests || !self.is_given_up(*slot)).collect();
            let slot = self.dice.pick(&slots);
            self.be(client, Standing::Told);
            self.client_step(client, Step::Come(slot));
        } else {
            self.client_step(client, Step::Ask);
        }
    }

    /// Whether there is nobody any more who would hold the listeners.
    fn has_no_listener(&self) -> bool {
        !self.processes[crate::machine::WATCHDOG].is_alive()
    }

    pub fn client_step(&mut self, id: ClientId, step: Step) {
        let Client { control, data, standing, .. } = self.clients[id];
        let is_due = match step {
            Step::Ask => standing == Standing::Retrying,
            Step::Come(_) => standing == Standing::Told,
            Step::Leave(conn) => data.or(control) == Some(conn),
            Step::Speak(conn)
            | Step::Served(conn)
            | Step::Finish(conn)
            | Step::Closed(conn)
            | Step::Rejected(conn)
            | Step::Broken(conn) => data == Some(conn),
        };
        if !is_due || matches!(standing, Standing::Over(_)) {
            return;
        }
        self.trace.note(self.now, || format!("client {id}: {step:?}"));
        match step {
            Step::Ask | Step::Come(_) if self.has_no_listener() => self.finish(id, Ending::Left),
            Step::Ask => self.ask(id),
            Step::Come(slot) => self.come(id, slot),
            Step::Speak(conn) => self.speak_on(id, conn),
            Step::Served(conn) => self.begin_exchange(id, conn),
            Step::Finish(conn) => {
                let resets = !self.clients[id].tests && self.dice.chance(100);
                self.say(conn, if resets { Input::Reset } else { Input::End });
            }
            Step::Leave(conn) => self.leave(id, conn),
            Step::Closed(_) => self.finish(id, Ending::Served),
            Step::Rejected(_) => self.finish(id, Ending::Rejected),
            Step::Broken(_) => self.broken(id),
        }
    }

    pub fn be(&mut self, id: ClientId, standing: Standing) {
        self.clients[id].standing = standing;
        self.clients[id].since = self.now;
        if let Standing::Over(ending) = standing {
            self.here -= 1;
            self.audit.coverage.count(format!("client: {ending:?}"));
            self.clients[id].data = None;
            self.release_control(id);
        }
    }

    /// It has done what it came for, or cannot; now it may have to hear how its job ended.
    pub fn finish(&mut self, id: ClientId, ending: Ending) {
        self.clients[id].data = None;
        if self.clients[id].awaits_report() {
            self.be(id, Standing::Following(ending));
        } else if ending == Ending::Broken {
            self.again(id);
        } else {
            self.be(id, Standing::Over(ending));
        }
    }

    fn leave(&mut self, id: ClientId, conn: ConnId) {
        match self.clients[id].standing {
            Standing::Asking => self.walk_out(id),
            Standing::Waiting => {
                self.say(conn, Input::Reset);
                self.finish(id, Ending::Left);
            }
            Standing::Retrying
            | Standing::Told
            | Standing::Exchanging
            | Standing::Following(_)
            | Standing::Over(_) => {}
        }
    }

    pub fn drop_data(&mut self, id: ClientId) {
        if let Some(conn) = self.clients[id].data.take() {
            self.say(conn, Input::Reset);
        }
    }

    pub fn perhaps_leave(&mut self, id: ClientId, conn: ConnId) {
        if !self.clients[id].tests && self.dice.chance(50) {
            self.soon(self.plan.claim_within, Event::Client(id, Step::Leave(conn)));
        }
    }

    /// It knows its port: it comes at once, late, too late, or not at all.
    pub fn told(&mut self, id: ClientId, slot: usize) {
        self.be(id, Standing::Told);
        let fate = if self.clients[id].tests { 0 } else { self.dice.below(20) };
        let wait = match fate {
            0..=13 => self.dice.up_to(millis(3)),
            14..=16 => self.dice.up_to(self.plan.claim_within),
            17..=18 => self.dice.up_to(3 * self.plan.claim_within),
            _ => return self.finish(id, Ending::Left),
        };
        self.at(self.now + wait, Event::Client(id, Step::Come(slot)));
    }

    fn come(&mut self, id: ClientId, slot: usize) {
        self.be(id, Standing::Waiting);
        self.clients[id].slot = slot;
        let (words, jeton) = self.first_words(id);
        let conn = self.connect(id, data_listener(slot, self.clients[id].kind), Vec::new());
        self.clients[id].data = Some(conn);
        self.net.conns[conn].jeton = jeton;
        self.net.conns[conn].unsaid = words;
        match self.dice.below(10) {
            0..=4 => self.speak_on(id, conn),
            9 if !self.clients[id].tests => self.soon(millis(120), Event::Client(id, Step::Speak(conn))),
            _ => self.soon(millis(3), Event::Client(id, Step::Speak(conn))),
        }
        self.perhaps_leave(id, conn);
    }

    /// What it says first, and the jeton in it.
    fn first_words(&mut self, id: ClientId) -> (Vec<u8>, Option<Jeton>) {
        let Client { follows, tests, asks, .. } = self.clients[id];
        let Some(Follows { jeton, .. }) = follows else {
            let words: &[&str] = &["", "", "bonjour", "jet", "jeton", "jetons\n"];
            let words = if asks == Asks::Not { &["", "bonjour", "jeton 12\n"] } else { words };
            return (self.dice.pick(words).into(), None);
        };
        let lies = !tests && self.dice.chance(40);
        let jeton = if lies { self.new_jeton() } else { jeton };
        let mut words = format!("jeton {jeton}");
        words += self.dice.pick(&["\n", "\r\n", "\nbonjour"]);
        (words.into_bytes(), Some(jeton))
    }

    fn speak_on(&mut self, id: ClientId, conn: ConnId) {
        let mut words = std::mem::take(&mut self.net.conns[conn].unsaid);
        if words.is_empty() || self.net.conns[conn].input != Input::Nothing {
            return;
        }
        if !self.clients[id].tests && self.dice.chance(300) {
            let all = u64::try_from(words.len()).expect("a few");
            let now = usize::try_from(self.dice.below(all)).expect("a few");
            self.net.conns[conn].unsaid = words.split_off(now);
            let pause = if self.dice.chance(200) { millis(80) } else { millis(3) };
            self.soon(pause, Event::Client(id, Step::Speak(conn)));
        }
        self.speak(conn, &words);
    }

    fn begin_exchange(&mut self, id: ClientId, conn: ConnId) {
        self.be(id, Standing::Exchanging);
        let longest = match self.dice.below(20) {
            _ if self.clients[id].tests => millis(5),
            0..=9 => millis(2),
            10..=17 => millis(100),
            18 => self.plan.settings.grace / 2,
            _ => self.plan.settings.grace * 3,
        };
        let exchange: Duration = self.dice.between(micros(50), longest);
        self.at(self.now + exchange, Event::Client(id, Step::Finish(conn)));
    }

    /// The server died under it, or closed the connection before its time. Who follows a job
    /// that may still wait can come for it once more.
    fn broken(&mut self, id: ClientId) {
        let Client { standing, slot, asks, .. } = self.clients[id];
        if standing == Standing::Waiting && self.clients[id].awaits_report() && self.dice.chance(500) {
            self.audit.coverage.count("came again with its jeton");
            self.clients[id].data = None;
            self.be(id, Standing::Told);
            self.soon(millis(20), Event::Client(id, Step::Come(slot)));
        } else if asks == Asks::Not {
            self.be(id, Standing::Over(Ending::Broken));
        } else {
            self.finish(id, Ending::Broken);
        }
    }

    pub fn again(&mut self, id: ClientId) {
        let client = &mut self.clients[id];
        (client.data, client.follows) = (None, None);
        client.tries += 1;
        if client.tries > 3 {
            return self.be(id, Standing::Over(Ending::Broken));
        }
        self.be(id, Standing::Retrying);
        self.soon(millis(20), Event::Client(id, Step::Ask));
    }
}
