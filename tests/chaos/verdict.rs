//! What must hold after a storm: nothing about time, all about order, cause and number.

use serde_json::Value;

use crate::clients::{Outcome, Record};
use crate::journal::{Chronicle, Kill, Obituary, Window};
use crate::plan::{Blow, Fault};
use crate::striker::Report;

/// Why the watchdog kills a new principal when a reload has failed.
const DISMISSED: &str = "it is not to take over";

/// All that is known when the storm is over.
pub struct Trial<'a> {
    pub types: &'a [String],
    pub records: &'a [Record],
    pub report: &'a Report,
    pub chronicle: &'a Chronicle,
    /// `osps status --json` when all was quiet again.
    pub status: &'a Value,
    /// Requests may wait for a secondary for as long as it takes.
    pub never_busy: bool,
}

impl Trial<'_> {
    /// Everything that was wrong.
    pub fn wrongs(&self) -> Vec<String> {
        let mut wrongs = self.report.wrong.clone();
        wrongs.extend(self.chronicle.errors.iter().map(|line| format!("logged: {line}")));
        wrongs.extend(self.answers());
        wrongs.extend(self.breaks());
        wrongs.extend(self.kills());
        wrongs.extend(self.deaths());
        wrongs.extend(self.counters());
        wrongs.extend(self.books());
        wrongs
    }

    fn answers(&self) -> Vec<String> {
        let wrong = |record: &Record| match &record.outcome {
            Outcome::Wrong(what) => Some(format!("{what}: {record:?}")),
            Outcome::Refused(why) => {
                let fair = why.is_empty() || why == "busy: no secondary is ready";
                (self.never_busy || !fair).then(|| format!("refused: {record:?}"))
            }
            Outcome::Served | Outcome::ControlBroke | Outcome::DataBroke { .. } => None,
        };
        self.records.iter().filter_map(wrong).collect()
    }

    /// A connection breaks only with the server at its other end. Besides, a data connection is
    /// closed without a word where its job had expired before it was accepted.
    fn breaks(&self) -> Vec<String> {
        let (mut turned_away, mut wrongs) = (0, Vec::new());
        for (record, why) in self.broken() {
            match (&record.outcome, why) {
                (_, Some(_)) => {}
                (Outcome::DataBroke { answers: 0 }, None) => turned_away += 1,
                _ => wrongs.push(format!("broke, and nobody had died: {record:?}")),
            }
        }
        let (rejected, expired) = (self.ledger("rejected"), self.ledger("expired"));
        if turned_away > rejected || rejected > expired {
            wrongs.push(format!(
                "{turned_away} turned away without a word; {rejected} were rejected, {expired} jobs expired"
            ));
        }
        wrongs
    }

    /// The requests whose connection broke, and what explains it.
    pub fn broken(&self) -> Vec<(&Record, Option<String>)> {
        let windows = self.chronicle.windows(&self.report.strikes);
        let why =
            |record: &Record| windows.iter().find(|window| explains(window, record)).map(|w| w.why.clone());
        let broken = self
            .records
            .iter()
            .filter(|record| matches!(record.outcome, Outcome::ControlBroke | Outcome::DataBroke { .. }));
        broken.map(|record| (record, why(record))).collect()
    }

    /// The watchdog kills for a reason: a server that we stopped, or that a client blocked.
    fn kills(&self) -> Vec<String> {
        let stopped = |kill: &Kill| {
            let mut strikes = self.report.strikes.iter();
            strikes.any(|strike| {
                (strike.slot, strike.incarnation) == kill.who
                    && strike.mark <= kill.at
                    && matches!(strike.blow, Blow::Freeze | Blow::Doze(_))
            })
        };
        let blocked = |kill: &Kill| {
            let mut blocking = self.records.iter().filter(|record| {
                ["block", "stall"].contains(&self.types[record.kind].as_str()) && record.slot == kill.who.0
            });
            blocking.any(|record| record.since <= kill.at && kill.at <= record.until)
        };
        // It waited for a command's program to be executed (vfork(2)), for which the machine had no time.
        let was_starting_a_command = |kill: &Kill| {
            let mut obituaries = self.chronicle.obituaries.iter();
            obituaries.any(|obituary| obituary.who == kill.who && obituary.line.contains("state=D"))
        };
        let windows = self.chronicle.windows(&self.report.strikes);
        let broken = self
            .records
            .iter()
            .filter(|record| matches!(record.outcome, Outcome::DataBroke { answers } if answers > 0));
        let broken: Vec<&Record> = broken.collect();
        // It broke an exchange under way, and no other death may have done that.
        let served = |kill: &Kill| {
            let this = |window: &Window| window.slot == Some(kill.who.0) && window.from == kill.at;
            broken.iter().any(|record| {
                let mut causes = windows.iter().filter(|window| explains(window, record)).peekable();
                causes.peek().is_some() && causes.all(this)
            })
        };
        let unjust = self.chronicle.kills.iter().filter(|kill| match kill.reason.as_str() {
            "stopped, no answer within kill_after" => !stopped(kill),
            "no answer within kill_after" | "spinning, no answer within kill_after" => {
                !stopped(kill) && !blocked(kill) && !was_starting_a_command(kill)
            }
            // Who was just started serves nobody yet.
            "not ready when its principal died" => served(kill),
            // A new principal, of a reload that failed.
            DISMISSED => kill.who.0 != 0,
            // A machine may be so slow; who drains may take too long, or be one too many.
            "not ready within start_within" | "grace is over" | "too many predecessors drain" => false,
            _ => true,
        });
        unjust
            .map(|kill| format!("killed although nobody had stopped or blocked it: {}", kill.line))
            .collect()
    }

    /// Nobody dies but by our hand, by the watchdog's, or with its principal before it was ready.
    fn deaths(&self) -> Vec<String> {
        let killed =
            |obituary: &Obituary| {
                self.report.strikes.iter().any(|strike| {
                    strike.blow == Blow::Kill && (strike.slot, strike.incarnation) == obituary.who
                }) || self.chronicle.kills.iter().any(|kill| kill.who == obituary.who)
            };
        let of_principals = || self.chronicle.obituaries.iter().filter(|obituary| obituary.who.0 == 0);
        let was_started_in_vain =
            |obituary: &Obituary| obituary.never_answered && of_principals().next().is_some();
        let unexplained = self.chronicle.obituaries.iter().filter(|obituary| match obituary.exit.as_str() {
            "exit 0" | "recycled" => false,
            "signal 9" => !killed(obituary) && !was_started_in_vain(obituary),
            // Its parent died during its start, or it was to succeed somebody who goes on.
            "exit 69" => !was_started_in_vain(obituary) && (obituary.who.0 != 0 || self.reloads() == 0),
            _ => true,
        });
        let unexplained = unexplained.map(|obituary| format!("died of nothing known: {}", obituary.line));
        let twice = self.chronicle.obituaries.iter().enumerate().filter(|(index, obituary)| {
            self.chronicle.obituaries[..*index].iter().any(|before| before.who == obituary.who)
        });
        let twice = twice.map(|(_, obituary)| format!("a second obituary: {}", obituary.line));
        unexplained.chain(twice).collect()
    }

    /// What the status counts is what was logged.
    fn counters(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        for server in self.status["servers"].as_array().unwrap() {
            let slot = server["slot"].as_u64().unwrap();
            let counted = |kill: &&Kill| u64::from(kill.who.0) == slot && kill.reason != DISMISSED;
            let kills = self.chronicle.kills.iter().filter(counted).count();
            if server["kills"].as_u64() != u64::try_from(kills).ok() {
                wrongs.push(format!("{kills} kills were logged in slot {slot}: {server}"));
            }
            let incarnation = server["incarnation"].as_u64().unwrap();
            let restarts = server["restarts"].as_u64().unwrap();
            // All have ended when the log is read, the last ones by the stop.
            let ends = self.chronicle.obituaries.iter().filter(|obituary| obituary.who.0 == 0).count();
            // One that was to take over and did not has an end, but was no restart.
            let (ends, in_vain) = (u64::try_from(ends).unwrap(), self.reloads());
            if slot == 0 && !(restarts + 1..=restarts + 1 + in_vain).contains(&ends) {
                wrongs.push(format!("{ends} ends of principals were logged: {server}"));
            }
            if restarts >= incarnation {
                wrongs.push(format!("more restarts than incarnations: {server}"));
            }
        }
        wrongs
    }

    /// The books against what clients saw, in all and for each type.
    fn books(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        let names = ["accepted", "done", "failed", "expired", "open"];
        let [accepted, done, failed, expired, open] = names.map(|name| self.ledger(name));
        if open != 0 || accepted != done + failed + expired {
            wrongs.push(format!("the books are not exact: {}", self.status["ledger"]));
        }
        let count = |which: &dyn Fn(&Record) -> bool| self.count(which);
        let given = count(&|record| matches!(record.outcome, Outcome::Served | Outcome::DataBroke { .. }));
        let unheard = count(&|record| record.outcome == Outcome::ControlBroke);
        if accepted < given || accepted > given + unheard {
            wrongs.push(format!(
                "{accepted} ports were given; clients got {given} and missed at most {unheard}"
            ));
        }
        let told = count(&|record| matches!(record.outcome, Outcome::Refused(_)));
        let refused = self.ledger("refused");
        if refused < told || refused > told + unheard {
            wrongs
                .push(format!("{refused} were refused; clients were told {told} times and missed {unheard}"));
        }
        for (kind, name) in self.types.iter().enumerate() {
            let ends = &self.status["requests"][name];
            let [done, failed] = ["done", "failed"].map(|end| ends[end].as_u64().unwrap());
            let served = count(&|record| record.kind == kind && record.outcome == Outcome::Served);
            let broken =
                count(&|record| record.kind == kind && matches!(record.outcome, Outcome::DataBroke { .. }));
            // An answer may reach a client just before its server is killed: that job has failed.
            if done > served || done + failed < served || done + failed > served + broken {
                wrongs.push(format!("{name}: {served} served and {broken} broken, but in the books {ends}"));
            }
        }
        wrongs
    }

    fn reloads(&self) -> u64 {
        let reloads = self.report.faults.get(Fault::Reload.kind());
        reloads.map_or(0, |&reloads| u64::try_from(reloads).unwrap())
    }

    fn count(&self, which: &dyn Fn(&Record) -> bool) -> u64 {
        u64::try_from(self.records.iter().filter(|record| which(record)).count()).unwrap()
    }

    fn ledger(&self, name: &str) -> u64 {
        self.status["ledger"][name].as_u64().unwrap()
    }
}

/// Whether a death may be why a request failed: its slot, and the orders of their beginnings
/// and ends.
fn explains(window: &Window, record: &Record) -> bool {
    window.slot.is_none_or(|slot| slot == record.slot)
        && window.from <= record.until
        && window.to >= record.since
}
