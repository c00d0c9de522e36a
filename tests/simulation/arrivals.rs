//! Data connections whose job is not known yet, as `src/role/secondary/arrival.rs` keeps them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use osps::core::arrival::{self, DECIDING_BYTES, Verdict};
use osps::core::moment::Moment;
use osps::core::service::{Undecided, Welcome};
use osps::wire::jeton::Jeton;
use osps::wire::tube::JobRef;

use crate::clients::Step;
use crate::machine::{Key, Machine};
use crate::net::{ConnId, Input};
use crate::sabotage::Sabotage;
use crate::secondary::Secondary;

/// So many connections may be undecided; then the oldest goes.
const MAX_ARRIVALS: usize = 8;

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// It has no jeton, and no job waits for it.
    Plain,
    /// No job has its jeton.
    Jeton(Jeton),
    /// It said that it had a jeton, but that was none.
    Wrong,
    /// It waited for a job that nobody gave.
    Tired,
    /// Too many were undecided.
    Crowded,
    /// It is gone already.
    Broken,
}

impl Turned {
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Jeton(_) => "a jeton of no job",
            Self::Wrong => "no jeton",
            Self::Tired => "waited in vain",
            Self::Crowded => "crowded",
            Self::Broken => "broken",
        }
    }
}

struct Arrival {
    kind: usize,
    client: IpAddr,
    waits: Waits,
    since: Moment,
    timer: Option<Moment>,
}

/// For what it waits.
enum Waits {
    /// For its first bytes, or silence.
    Bytes(arrival::Arrival),
    /// For a job that the principal was asked for on its behalf.
    Job,
}

#[derive(Default)]
pub struct Arrivals(BTreeMap<ConnId, Arrival>);

impl Arrivals {
    pub fn undecided(&self) -> Undecided {
        let asked_for = self.0.values().filter(|arrival| matches!(arrival.waits, Waits::Job));
        Undecided { all: self.0.len(), asked_for: asked_for.count() }
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.0.values().filter_map(|arrival| arrival.timer).min()
    }
}

impl Secondary {
    pub fn admit(&mut self, sys: &mut Machine, kind: usize, conn: ConnId) {
        let (client, now) = (sys.peer(conn), self.now);
        if self.service.is_behind() {
            let _ = self.read_tube(sys);
        }
        match self.service.welcome(kind, client, now) {
            Welcome::Admitted(job) => {
                sys.audit_on_accept(self.slot, kind, conn);
                self.begin(sys, conn, job);
            }
            Welcome::Undecided => {
                let waits = Waits::Bytes(arrival::Arrival::new(now));
                self.add_arrival(sys, conn, Arrival { kind, client, waits, since: now, timer: None });
                self.decide(sys, conn);
            }
            Welcome::Uninvited => self.uninvited(sys, kind, conn, client),
        }
    }

    fn begin(&mut self, sys: &mut Machine, conn: ConnId, job: JobRef) {
        if !self.listens {
            sys.audit.coverage.count("claimed for an undecided connection while draining");
        }
        self.page.count_admitted();
        self.exchanges.insert(conn, job);
        let client = sys.net.conns[conn].client;
        if let Some(limit) = sys.plan.time_limit(sys.clients[client].kind) {
            self.until.insert(conn, self.now + limit);
            sys.audit_limit(job.number, self.now + limit);
        }
        sys.audit_admission(job.number, conn);
        sys.client_step(client, Step::Served(conn));
        // What came before is found when it is read for the first time.
        sys.post(self.me, Key::Conn(conn));
    }

    /// Nobody waits for it: it is let in only where everybody is.
    fn uninvited(&mut self, sys: &mut Machine, kind: usize, conn: ConnId, client: IpAddr) {
        if !sys.plan.open {
            self.turn_away(sys, kind, conn, Turned::Plain);
            return;
        }
        self.service.ask_for_job(kind, client);
        let timer = Some(self.now + sys.plan.queue_within);
        self.add_arrival(sys, conn, Arrival { kind, client, waits: Waits::Job, since: self.now, timer });
    }

    fn turn_away(&self, sys: &mut Machine, kind: usize, conn: ConnId, why: Turned) {
        self.page.count_rejected();
        sys.audit_rejection(self.slot, kind, conn, why);
        sys.system_call();
        sys.close(conn, Step::Rejected(conn));
    }

    fn add_arrival(&mut self, sys: &mut Machine, conn: ConnId, arrival: Arrival) {
        if self.arrivals.0.len() >= MAX_ARRIVALS
            && let Some((&oldest, _)) = self.arrivals.0.iter().min_by_key(|(_, arrival)| arrival.since)
        {
            self.dismiss(sys, oldest, Turned::Crowded);
        }
        self.arrivals.0.insert(conn, arrival);
    }

    /// Something came on an undecided connection.
    pub fn on_arrival(&mut self, sys: &mut Machine, conn: ConnId) {
        if self.arrivals.0.contains_key(&conn) {
            self.decide(sys, conn);
        }
    }

    pub fn on_arrival_timers(&mut self, sys: &mut Machine) {
        let due = |arrival: &Arrival| arrival.timer.is_some_and(|at| at <= self.now);
        let due: Vec<ConnId> =
            self.arrivals.0.iter().filter(|(_, arrival)| due(arrival)).map(|(conn, _)| *conn).collect();
        for conn in due {
            let Some(arrival) = self.arrivals.0.get_mut(&conn) else {
                continue;
            };
            arrival.timer = None;
            if let Waits::Bytes(_) = arrival.waits {
                self.decide(sys, conn);
            } else if !self.seat_if_given(sys, conn) {
                self.dismiss(sys, conn, Turned::Tired);
            }
        }
    }

    fn decide(&mut self, sys: &mut Machine, conn: ConnId) {
        let now = self.now;
        let arrival = self.arrivals.0.get_mut(&conn).expect("it was asked for");
        let (kind, client) = (arrival.kind, arrival.client);
        let Waits::Bytes(undecided) = &mut arrival.waits else {
            return;
        };
        sys.system_call();
        let known = &sys.net.conns[conn];
        if known.input == Input::Reset {
            self.dismiss(sys, conn, Turned::Broken);
            return;
        }
        let bytes = known.bytes[..known.bytes.len().min(DECIDING_BYTES)].to_vec();
        let ended = known.input == Input::End;
        let verdict = match undecided.judge(now, &bytes, ended, sys.plan.claim_within) {
            Verdict::Wait(_) if sys.sabotage == Sabotage::NeverWait => Verdict::Plain,
            verdict => verdict,
        };
        let (job, why) = match verdict {
            Verdict::Wait(until) => {
                arrival.timer = Some(until);
                return;
            }
            Verdict::Plain | Verdict::Silent(_) => {
                let how = if bytes.is_empty() { "undecided: plain by silence" } else { "undecided: plain" };
                sys.audit.coverage.count(how);
                (self.service.claim_plain(kind, client, now), Turned::Plain)
            }
            Verdict::Tracked { jeton, .. } => {
                sys.audit.coverage.count("undecided: tracked");
                let taken = sys.jeton_to_take(self.slot, kind, jeton);
                (self.service.claim_tracked(kind, taken, now), Turned::Jeton(jeton))
            }
            Verdict::Wrong => (None, Turned::Wrong),
        };
        match (job, verdict) {
            (Some(job), _) => {
                if let Verdict::Tracked { line_bytes, .. } = verdict {
                    sys.system_call();
                    sys.net.conns[conn].bytes.drain(..line_bytes);
                }
                self.arrivals.0.remove(&conn);
                self.begin(sys, conn, job);
            }
            (None, Verdict::Plain | Verdict::Silent(_)) if sys.plan.open => {
                self.arrivals.0.remove(&conn);
                self.uninvited(sys, kind, conn, client);
            }
            (None, Verdict::Silent(until)) => {
                sys.audit.coverage.count("undecided: silent, and no plain job waits");
                self.arrivals.0.get_mut(&conn).expect("it is there").timer = Some(until);
            }
            (None, _) => self.dismiss(sys, conn, why),
        }
    }

    /// Jobs were announced: some may be those that were asked for.
    pub fn seat_uninvited(&mut self, sys: &mut Machine) {
        if !sys.plan.open {
            return;
        }
        let waiting = self.arrivals.0.iter().filter(|(_, arrival)| matches!(arrival.waits, Waits::Job));
        let mut waiting: Vec<(Moment, ConnId)> =
            waiting.map(|(conn, arrival)| (arrival.since, *conn)).collect();
        waiting.sort_unstable();
        for (_, conn) in waiting {
            self.seat_if_given(sys, conn);
        }
    }

    fn seat_if_given(&mut self, sys: &mut Machine, conn: ConnId) -> bool {
        let Arrival { kind, client, .. } = self.arrivals.0[&conn];
        let job = self.service.claim_plain(kind, client, self.now);
        if let Some(job) = job {
            sys.audit.coverage.count("came uninvited and was let in");
            self.arrivals.0.remove(&conn);
            self.begin(sys, conn, job);
        }
        job.is_some()
    }

    /// Closes a connection that nobody waits for.
    fn dismiss(&mut self, sys: &mut Machine, conn: ConnId, why: Turned) {
        let arrival = self.arrivals.0.remove(&conn).expect("it was asked for");
        self.turn_away(sys, arrival.kind, conn, why);
    }
}
