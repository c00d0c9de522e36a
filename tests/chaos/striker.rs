//! Carries the plan out, and writes down whom it struck.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use osps::core::job::Incarnation;
use osps::core::moment::Moment;
use osps::os::pidfd::Pidfd;
use rustix::process::Signal;

use crate::common::{now, pause};
use crate::household::{Household, Server, members, own_memory_kib};
use crate::journal::{Journal, Mark};
use crate::plan::{Addressee, Blow, Fault, Planned};

/// A blow that reached its server.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    /// Taken before the signal was sent.
    pub mark: Mark,
    pub slot: u16,
    pub incarnation: Incarnation,
    pub blow: Blow,
    /// It was seen dead before this.
    pub gone: Option<Mark>,
}

/// What is to be undone later.
enum Later {
    Continue(Pidfd),
    EndHog(Hog),
}

/// A program that burns CPU. It ends by itself even where nobody is left to end it.
struct Hog(Child);

impl Hog {
    fn start() -> Self {
        let burn = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done";
        let mut command = Command::new("sh");
        command.args(["-c", burn]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the storm was in the end.
#[derive(Debug, Default)]
pub struct Report {
    pub strikes: Vec<Strike>,
    pub faults: BTreeMap<&'static str, usize>,
    /// Faults whose server was not there just then.
    pub missed: usize,
    /// The watchdog's own memory in KiB, looked at again and again.
    pub memory_kib: Vec<u64>,
    /// What was wrong at a look during the storm.
    pub wrong: Vec<String>,
}

/// Whoever strikes.
pub struct Striker<'a> {
    household: Household,
    watchdog: Pidfd,
    journal: &'a Journal,
    /// Requests that block for too long, wanted so far: others make them.
    stalls: &'a AtomicUsize,
    later: Vec<(Moment, Later)>,
    /// Who was killed and is not known to be dead, by place among the strikes.
    dying: Vec<(usize, Pidfd)>,
    report: Report,
}

/// How often the storm looks at the system's processes.
const LOOKS: u32 = 20;

impl<'a> Striker<'a> {
    pub fn new(household: Household, watchdog: u32, journal: &'a Journal, stalls: &'a AtomicUsize) -> Self {
        let watchdog = Pidfd::of_child(watchdog).unwrap();
        Self {
            household,
            watchdog,
            journal,
            stalls,
            later: Vec::new(),
            dying: Vec::new(),
            report: Report::default(),
        }
    }

    /// Carries all of it out, then undoes what is left to be undone.
    pub fn carry_out(mut self, plan: &[Planned], length: Duration) -> Report {
        let began = now();
        let mut planned = plan.iter().peekable();
        let mut looks = 0;
        loop {
            let passed = now().since(began);
            if passed >= length / LOOKS * looks && looks <= LOOKS {
                looks += 1;
                self.look();
            }
            self.do_what_is_due();
            match planned.peek() {
                Some(next) if next.at <= passed => {
                    let fault = planned.next().expect("it was peeked at").fault.clone();
                    self.commit(&fault);
                }
                Some(_) => pause(),
                None if passed < length || !self.later.is_empty() || !self.dying.is_empty() => pause(),
                None => return std::mem::take(&mut self.report),
            }
        }
    }

    fn commit(&mut self, fault: &Fault) {
        *self.report.faults.entry(fault.kind()).or_default() += 1;
        match *fault {
            Fault::Strike(slot, blow) => {
                self.strike(blow, 1, |server| server.slot == slot && !server.is_predecessor)
            }
            Fault::StrikePredecessor(slot, blow) => {
                self.strike(blow, 1, |server| server.slot == slot && server.is_predecessor);
            }
            Fault::StrikeAll(blow) => self.strike(blow, usize::MAX, |server| server.slot > 0),
            Fault::StrikePrincipalAnd(secondaries, blow) => {
                self.strike(blow, usize::MAX, |server| server.slot <= secondaries);
            }
            Fault::Forge(to, times) => self.forge(to, times),
            Fault::Hog(time) => self.later.push((now() + time, Later::EndHog(Hog::start()))),
            Fault::Stall => {
                self.stalls.fetch_add(1, Ordering::Relaxed);
            }
            Fault::Reload => {
                let _ = self.watchdog.signal(Signal::HUP);
            }
            Fault::WatchdogSleeps(time) => {
                let _ = self.watchdog.signal(Signal::STOP);
                let watchdog = Pidfd::of_child(self.watchdog.pid()).unwrap();
                self.later.push((now() + time, Later::Continue(watchdog)));
            }
        }
    }

    fn strike(&mut self, blow: Blow, most: usize, whom: impl Fn(&Server) -> bool) {
        let servers: Vec<Server> = self.household.servers().into_iter().filter(whom).take(most).collect();
        self.report.missed += usize::from(servers.is_empty());
        for Server { slot, incarnation, pidfd, .. } in servers {
            let mark = self.journal.mark();
            let signal = match blow {
                Blow::Kill => Signal::KILL,
                Blow::Freeze | Blow::Doze(_) => Signal::STOP,
                Blow::Dismiss => Signal::TERM,
            };
            let _ = pidfd.signal(signal);
            let place = self.report.strikes.len();
            self.report.strikes.push(Strike { mark, slot, incarnation, blow, gone: None });
            match blow {
                Blow::Kill => self.dying.push((place, pidfd)),
                Blow::Doze(time) => self.later.push((now() + time, Later::Continue(pidfd))),
                Blow::Freeze | Blow::Dismiss => {}
            }
        }
    }

    fn forge(&self, to: Addressee, times: u64) {
        let mut addressees: Vec<Pidfd> = Vec::new();
        if matches!(to, Addressee::Watchdog | Addressee::Everybody) {
            addressees.extend(Pidfd::of_child(self.watchdog.pid()));
        }
        let servers = self.household.servers().into_iter().filter(|server| match to {
            Addressee::Watchdog => false,
            Addressee::Slot(slot) => server.slot == slot,
            Addressee::Everybody => true,
        });
        addressees.extend(servers.map(|server| server.pidfd));
        for _ in 0..times {
            for pidfd in &addressees {
                let _ = pidfd.signal(Signal::USR1);
                let _ = pidfd.signal(Signal::USR2);
            }
        }
    }

    fn do_what_is_due(&mut self) {
        let time = now();
        for (_, due) in self.later.extract_if(.., |(at, _)| *at <= time) {
            undo(due);
        }
        for (place, _) in self.dying.extract_if(.., |(_, pidfd)| pidfd.has_ended()) {
            self.report.strikes[place].gone = Some(self.journal.mark());
        }
    }

    /// What holds at any moment, whatever happens.
    fn look(&mut self) {
        self.report.memory_kib.extend(own_memory_kib(self.watchdog.pid()));
        for member in members(self.watchdog.pid()) {
            if member.threads > 1 {
                self.report.wrong.push(format!("not one thread: {member:?}"));
            }
        }
        if self.watchdog.has_ended() {
            self.report.wrong.push("the watchdog has ended".to_owned());
        }
    }
}

impl Drop for Striker<'_> {
    /// Nobody stays stopped by us, also where the storm fails.
    fn drop(&mut self) {
        self.later.drain(..).for_each(|(_, later)| undo(later));
    }
}

fn undo(later: Later) {
    match later {
        Later::Continue(pidfd) => {
            let _ = pidfd.signal(Signal::CONT);
        }
        Later::EndHog(hog) => drop(hog),
    }
}
