//! The log of the system as a clock that tells order and cause, never time.
//!
//! All processes append to one file. Who reads its length before doing something and
//! after seeing something else has put both in order with every line: a line that stands
//! before the first mark was written before, and what is announced before it is done (a
//! kill) or told after it has happened (an obituary) encloses the death that a client saw.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use osps::core::job::Incarnation;

use crate::plan::Blow;
use crate::striker::Strike;

/// A place in the log.
pub type Mark = u64;

/// Which process: slot (0 for the principal) and incarnation.
pub type Who = (u16, Incarnation);

/// The log, open.
pub struct Journal(File);

/// The watchdog says that it is about to kill.
#[derive(Clone, Debug)]
pub struct Kill {
    pub at: Mark,
    pub who: Who,
    pub reason: String,
    pub line: String,
}

/// Somebody tells how a process has ended.
#[derive(Clone, Debug)]
pub struct Obituary {
    pub at: Mark,
    pub who: Who,
    /// `exit 0`, `signal 9`.
    pub exit: String,
    /// It never answered a probe.
    pub never_answered: bool,
    pub line: String,
}

/// When connections to a slot may have broken, and why.
#[derive(Clone, Debug)]
pub struct Window {
    /// `None` where it is not known.
    pub slot: Option<u16>,
    /// Not before this.
    pub from: Mark,
    /// Its process was known to be dead at this.
    pub to: Mark,
    pub why: String,
}

/// What the log tells in the end.
#[derive(Debug, Default)]
pub struct Chronicle {
    pub kills: Vec<Kill>,
    pub obituaries: Vec<Obituary>,
    /// Exchanges cut off when grace was over, principals that hand over: why, and who.
    pub farewells: Vec<(Mark, Who, &'static str)>,
    /// Orphans of which nobody knows, killed.
    pub orphans: Vec<Mark>,
    /// Lines that nobody wants to see.
    pub errors: Vec<String>,
}

impl Journal {
    pub fn open(log: &Path) -> Self {
        Self(File::open(log).unwrap())
    }

    /// Where the log ends now.
    pub fn mark(&self) -> Mark {
        self.0.metadata().unwrap().len()
    }

    /// Reads all of it.
    pub fn read(&self) -> Chronicle {
        let mut text = String::new();
        (&self.0).read_to_string(&mut text).unwrap();
        Chronicle::of(&text)
    }
}

impl Chronicle {
    /// What a log tells.
    pub fn of(log: &str) -> Self {
        let mut chronicle = Self::default();
        let mut at = 0;
        for line in log.split_inclusive('\n') {
            chronicle.note(at, line.trim_end());
            at += u64::try_from(line.len()).unwrap();
        }
        chronicle
    }

    fn note(&mut self, at: Mark, line: &str) {
        // What is announced comes after its line was written; what is told came before.
        let announced = at + u64::try_from(line.len()).unwrap() + 1;
        // 2026-01-31T12:00:00.000Z WARN  secondary 2.7[4711]: what it says
        let Some((head, text)) = line.split_once("]: ") else {
            // The message of a panic, for instance.
            self.errors.push(line.to_owned());
            return;
        };
        let mut head = head.splitn(3, [' ', '[']);
        let (level, speaker) = (head.nth(1).unwrap_or_default(), head.next().unwrap_or_default());
        if level == "ERROR" {
            self.errors.push(line.to_owned());
        }
        if let Some(rest) = text.strip_prefix("killing ")
            && let (Some(who), Some((_, reason))) = (who(rest), rest.split_once("): "))
        {
            self.kills.push(Kill { at: announced, who, reason: reason.to_owned(), line: line.to_owned() });
        } else if let Some((who, exit)) = deceased(text) {
            let never_answered = text.contains("answered_ms_before=never");
            self.obituaries.push(Obituary { at, who, exit, never_answered, line: line.to_owned() });
        } else if text.contains("is an orphan of which nobody knows") {
            self.orphans.push(announced);
        } else if let Some(who) = who(speaker.trim_start()) {
            if text.ends_with("exchanges are cut off") {
                self.farewells.push((announced, who, "its grace was over"));
            } else if text.starts_with("told to end") {
                self.farewells.push((announced, who, "it handed over"));
            }
        }
    }

    /// Who was killed, by us or by the watchdog, and had no obituary.
    pub fn unsung(&self, strikes: &[Strike]) -> Vec<Who> {
        let struck = strikes.iter().filter(|strike| strike.blow == Blow::Kill);
        let struck = struck.map(|strike| (strike.slot, strike.incarnation));
        let killed = struck.chain(self.kills.iter().map(|kill| kill.who));
        let sung = |who: &Who| self.obituaries.iter().any(|obituary| obituary.who == *who);
        killed.filter(|who| !sung(who)).collect()
    }

    /// When connections may have broken, and why.
    pub fn windows(&self, strikes: &[Strike]) -> Vec<Window> {
        // Not everybody has an obituary: who died unknown to the watchdog, with its principal.
        let gone = |strike: &Strike| Some(((strike.slot, strike.incarnation), strike.gone?));
        let told = self.obituaries.iter().map(|obituary| (obituary.who, obituary.at));
        let mut known_dead: BTreeMap<Who, Mark> = BTreeMap::new();
        for (who, at) in told.chain(strikes.iter().filter_map(gone)) {
            let first = known_dead.entry(who).or_insert(at);
            *first = at.min(*first);
        }
        let killed = strikes.iter().filter(|strike| strike.blow == Blow::Kill);
        let killed = killed.map(|strike| (strike.mark, (strike.slot, strike.incarnation), "killed by us"));
        let judged = self.kills.iter().map(|kill| (kill.at, kill.who, kill.reason.as_str()));
        let by_name = killed.chain(judged).chain(self.farewells.iter().copied()).map(|(from, who, why)| {
            let to = known_dead.get(&who).copied().unwrap_or(Mark::MAX);
            Window { slot: Some(who.0), from, to, why: why.to_owned() }
        });
        let principals = || self.obituaries.iter().filter(|obituary| obituary.who.0 == 0);
        let orphans = self.orphans.iter().map(|&from| {
            let to = principals().filter(|obituary| obituary.at > from).nth(1).map_or(Mark::MAX, |o| o.at);
            Window { slot: None, from, to, why: "an orphan of which nobody knew".to_owned() }
        });
        by_name.chain(orphans).collect()
    }
}

/// `obituary role=secondary slot=2 incarnation=7 pid=4711 cause="signal 9" ...`: who, and of what.
fn deceased(text: &str) -> Option<(Who, String)> {
    let pairs = text.strip_prefix("obituary ")?;
    let value = |key: &str| pairs.split(' ').find_map(|pair| pair.strip_prefix(key)?.parse().ok());
    let (_, cause) = pairs.split_once(" cause=\"")?;
    Some(((value("slot=")?, value("incarnation=")?), cause.split('"').next()?.to_owned()))
}

/// `secondary 2.7 (pid 4711, ...`, `principal.3[4711`: which process that is.
fn who(text: &str) -> Option<Who> {
    let number = |text: &str| {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u16>().ok()
    };
    if let Some(rest) = text.strip_prefix("principal.") {
        return Some((0, number(rest)?));
    }
    let (slot, incarnation) = text.strip_prefix("secondary ")?.split_once('.')?;
    Some((slot.parse().ok()?, number(incarnation)?))
}
