//! Control connections, as clients see them: what is asked, the answers, and the news of jobs.
//!
//! Several clients may share one: each asks in its turn, and hears of its own job.

use std::collections::VecDeque;

use osps::wire::jeton::Jeton;

use crate::audit::Rule;
use crate::clients::{Asks, ClientId, Ending, Follows, Standing};
use crate::machine::Machine;
use crate::net::{CONTROL, ConnId, Input};
use crate::plan::{NAMES, port, whose_port};
use crate::sabotage::Sabotage;

/// What clients know of a control connection that is open, as far as they know.
#[derive(Debug)]
pub struct Talk {
    /// No newline is ever said.
    bare: bool,
    /// Those whose answers are still to come.
    askers: VecDeque<ClientId>,
    /// Those who use it.
    family: Vec<ClientId>,
}

/// What an answer says: where to go, and the jeton of a tracked job.
struct Answer {
    slot: usize,
    jeton: Option<Jeton>,
}

impl Machine {
    pub fn ask(&mut self, id: ClientId) {
        let conn = self.clients[id].control.filter(|conn| self.may_be_asked(*conn));
        let conn = conn.or_else(|| self.find_relatives(id));
        if conn.is_none() || conn != self.clients[id].control {
            self.release_control(id);
        }
        self.be(id, Standing::Asking);
        self.clients[id].follows = None;
        let request = self.request(id);
        let conn = match conn {
            Some(conn) => {
                self.speak(conn, &request);
                conn
            }
            None => {
                let conn = self.connect(id, CONTROL, request);
                let bare = self.clients[id].asks == Asks::Bare;
                let talk = Talk { bare, askers: VecDeque::new(), family: Vec::new() };
                self.talks.insert(conn, talk);
                conn
            }
        };
        self.clients[id].control = Some(conn);
        let talk = self.talks.get_mut(&conn).expect("it is open");
        talk.askers.push_back(id);
        if !talk.family.contains(&id) {
            talk.family.push(id);
        }
        self.perhaps_leave(id, conn);
    }

    fn request(&self, id: ClientId) -> Vec<u8> {
        let name = NAMES[self.clients[id].kind];
        let request = match self.clients[id].asks {
            Asks::Bare => name.to_owned(),
            Asks::Line => format!("{name}\r\n"),
            Asks::Address => format!("adresse {name}\n"),
            Asks::Tracked => format!("suivi {name}\n"),
            Asks::Not => unreachable!("it does not ask"),
        };
        request.into_bytes()
    }

    fn may_be_asked(&self, conn: ConnId) -> bool {
        let is_line = self.talks.get(&conn).is_some_and(|talk| !talk.bare);
        is_line && self.net.conns[conn].input == Input::Nothing
    }

    /// A connection that is there already, of somebody at the same address.
    fn find_relatives(&mut self, id: ClientId) -> Option<ConnId> {
        if self.clients[id].asks == Asks::Bare || self.clients[id].tests || !self.dice.chance(300) {
            return None;
        }
        let address = self.clients[id].address;
        let mut talks = self.talks.keys().copied().rev();
        talks.find(|conn| self.may_be_asked(*conn) && self.peer(*conn) == address)
    }

    /// It needs its control connection no longer; the last of a family may leave it open.
    pub fn release_control(&mut self, id: ClientId) {
        let Some(conn) = self.clients[id].control.take() else {
            return;
        };
        let Some(talk) = self.talks.get_mut(&conn) else {
            return;
        };
        talk.family.retain(|member| *member != id);
        if talk.family.is_empty() {
            match self.dice.below(10) {
                0..=3 if !talk.bare && talk.askers.is_empty() => {}
                4 => self.end_talk(conn, Input::Reset),
                _ => self.end_talk(conn, Input::End),
            }
        }
    }

    fn end_talk(&mut self, conn: ConnId, input: Input) {
        self.talks.remove(&conn);
        self.say(conn, input);
    }

    /// It asked, and does not want to wait any longer, whoever else is on that connection.
    pub fn walk_out(&mut self, id: ClientId) {
        let conn = self.clients[id].control.expect("it asks");
        let family = self.talks.get(&conn).map_or(Vec::new(), |talk| talk.family.clone());
        if family.iter().any(|member| self.clients[*member].awaits_report()) {
            self.audit.coverage.count("hung up on a tracked job");
        }
        self.end_talk(conn, Input::Reset);
        self.be(id, Standing::Over(Ending::Left));
        self.lose_control(conn, family);
    }

    fn lose_control(&mut self, conn: ConnId, family: Vec<ClientId>) {
        for member in family {
            if self.clients[member].control.take_if(|control| *control == conn).is_none() {
                continue;
            }
            match self.clients[member].standing {
                Standing::Asking => self.again(member),
                Standing::Following(ending) => self.finish(member, ending),
                Standing::Retrying
                | Standing::Told
                | Standing::Waiting
                | Standing::Exchanging
                | Standing::Over(_) => {}
            }
        }
    }

    /// The server has closed it, or has died; what it said before comes first.
    pub fn hung_up(&mut self, conn: ConnId, died: bool) {
        self.trace.note(self.now, || format!("control {conn}: closed, died: {died}"));
        self.hear(conn);
        let Some(Talk { family, .. }) = self.talks.remove(&conn) else {
            return;
        };
        let betrayed = family.iter().find(|member| self.clients[**member].awaits_report());
        if let Some(member) = betrayed.filter(|_| !died) {
            let words = format!("client {member} never hears of the end of its job");
            self.complain(Rule::Reported, words);
        }
        self.lose_control(conn, family);
    }

    /// Bytes have come.
    pub fn hear(&mut self, conn: ConnId) {
        let bytes = std::mem::take(&mut self.net.conns[conn].answers);
        let Some(talk) = self.talks.get(&conn) else {
            return;
        };
        if bytes.is_empty() {
            return;
        }
        let text = String::from_utf8(bytes).expect("ASCII");
        self.trace.note(self.now, || format!("control {conn}: {text:?}"));
        if talk.bare {
            return self.hear_answer(conn, &text);
        }
        for line in text.split_terminator('\n') {
            let is_news = line.split(' ').next().is_some_and(|word| word.ends_with("traitement"));
            if is_news {
                self.hear_news(conn, line);
            } else {
                self.hear_answer(conn, line);
            }
        }
    }

    fn hear_answer(&mut self, conn: ConnId, line: &str) {
        let Some(talk) = self.talks.get_mut(&conn) else {
            return;
        };
        let Some(id) = talk.askers.pop_front() else {
            return self.complain(Rule::Assertion, format!("{line:?} answers nothing"));
        };
        let Some(Answer { slot, jeton }) = self.understand(id, line) else {
            if self.clients[id].standing == Standing::Asking {
                self.be(id, Standing::Over(Ending::Refused));
            }
            return;
        };
        if let Some(jeton) = jeton {
            self.audit_told(conn, jeton);
            self.clients[id].follows = Some(Follows { jeton, ended: false });
        } else if self.dice.chance(700) {
            // It knows all that it wants to know.
            self.release_control(id);
        }
        self.told(id, slot);
        let alone = self.talks.get(&conn).is_some_and(|talk| talk.family == [id]);
        if alone && self.clients[id].awaits_report() && self.dice.chance(150) {
            self.audit.coverage.count("ended its input, and followed on");
            self.say(conn, Input::End);
        }
    }

    /// `PORT`, `HOST:PORT` or `PORT JETON`; `None` where it is a refusal.
    fn understand(&mut self, id: ClientId, line: &str) -> Option<Answer> {
        if line.starts_with('-') {
            return None;
        }
        let (place, jeton) = match line.split_once(' ') {
            Some((place, jeton)) => (place, Some(Jeton::parse(jeton.as_bytes()).expect("a jeton"))),
            None => (line, None),
        };
        let told = place.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let (slot, kind) = whose_port(told);
        debug_assert_eq!(port(slot, kind), told);
        let of_its_type = self.clients[id].kind == kind;
        let as_asked = jeton.is_some() == (self.clients[id].asks == Asks::Tracked);
        self.ensure(of_its_type && as_asked, Rule::ItsOwnJob, || format!("client {id} is told {line:?}"));
        Some(Answer { slot, jeton })
    }

    fn hear_news(&mut self, conn: ConnId, line: &str) {
        let Some((jeton, is_end)) = self.audit_news(conn, line) else {
            return;
        };
        let family = self.talks.get(&conn).map_or(Vec::new(), |talk| talk.family.clone());
        let follows =
            |member: &ClientId| self.clients[*member].follows.is_some_and(|follows| follows.jeton == jeton);
        let Some(id) = family.into_iter().find(follows) else {
            // Whoever asked for that has gone home meanwhile.
            return;
        };
        if is_end {
            self.clients[id].follows = Some(Follows { jeton, ended: true });
            self.end_was_reported(id);
        }
    }

    fn end_was_reported(&mut self, id: ClientId) {
        match self.clients[id].standing {
            Standing::Following(ending) => self.finish(id, ending),
            Standing::Told => self.be(id, Standing::Over(Ending::TooLate)),
            Standing::Waiting => {
                self.drop_data(id);
                self.be(id, Standing::Over(Ending::TooLate));
            }
            Standing::Retrying | Standing::Asking | Standing::Exchanging | Standing::Over(_) => {}
        }
    }

    /// 128 bits; many begin alike.
    pub fn new_jeton(&mut self) -> Jeton {
        let first = if self.dice.chance(500) { 7 << 32 } else { self.dice.roll() };
        Jeton::from_words([first, self.dice.roll() | 1]).expect("it is not zero")
    }
    /// The jeton by which a secondary looks for a job.
    pub fn jeton_to_take(&self, slot: usize, kind: usize, said: Jeton) -> Jeton {
        match self.sabotage {
            Sabotage::IgnoreJetons => {
                self.waiting_jobs(slot, kind).find_map(|(_, job)| job.jeton).unwrap_or(said)
            }
            _ => said,
        }
    }
}
