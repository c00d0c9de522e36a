//! The life of one supervised process, as the watchdog sees it.
//!
//! ```text
//!          Started          Ready            Due
//!   Down ----------> Starting ----> Healthy <----> Probed
//!    ^                  |              ^ Answered    | Due
//!    |                  | Due          |             v
//!    |                  v    Condemned +--------- Suspect
//!    +-- Exited --- Killing <-----------------------+
//! ```
//!
//! [`step`] is total: it says for every state what every input does, and the
//! compiler checks that no pair was forgotten.

use std::time::Duration;

use crate::core::moment::Moment;

/// A starved process is forgiven for at most this long.
pub const LONGEST_FORGIVENESS: Duration = Duration::from_secs(60);

/// A process that was sent SIGKILL ends in no time, unless the kernel holds it.
const STUBBORN_AFTER: Duration = Duration::from_secs(1);

/// The supervision times of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Each server is probed once in this time.
    pub period: Duration,
    /// Silence after a probe that makes a server suspect.
    pub suspect_after: Duration,
    /// Silence after a probe that condemns it.
    pub kill_after: Duration,
    /// How long a server may take until it is ready.
    pub start_within: Duration,
    /// How long a draining server may finish its exchanges.
    pub grace: Duration,
}

/// What the watchdog believes of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no process.
    Down,
    /// It runs, but has not declared itself ready; it must not be signalled yet.
    Starting {
        /// When it was started.
        since: Moment,
        /// When to look whether it is stopped.
        look_at: Moment,
    },
    /// It answered its last probe.
    Healthy {
        /// When the next probe is due.
        probe_at: Moment,
    },
    /// A probe is under way.
    Probed {
        /// The number to be answered.
        number: u64,
        /// When the probe was sent, or its silence began anew.
        sent_at: Moment,
        /// Whether a round in which it was silent was void.
        voided: bool,
    },
    /// Silent for `suspect_after`: it gets no more jobs.
    Suspect {
        /// The number to be answered.
        number: u64,
        /// When the probe was sent, or its silence began anew.
        sent_at: Moment,
        /// When to look at the evidence and judge.
        judge_at: Moment,
    },
    /// SIGKILL was sent; its end is awaited.
    Killing {
        /// When it was sent.
        since: Moment,
        /// Whether it was told that the end does not come.
        told: bool,
    },
}

/// What happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It was started.
    Started,
    /// It declared itself ready.
    Ready,
    /// Its record holds this number.
    Answered(u64),
    /// Time has passed: the state's deadline may be over.
    Due,
    /// The evidence speaks for the process: judge again at that moment.
    Spared(Moment),
    /// The watchdog itself was late: the silence so far proves nothing.
    Void,
    /// It must go, whatever state it is in.
    Condemned(Reason),
    /// It has ended.
    Exited,
}

/// Why a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not ready within `start_within`.
    SlowStart,
    /// No answer within `kill_after`.
    NoAnswer,
    /// No answer, and found stopped.
    Stopped,
    /// No answer, and found burning CPU.
    Spinning,
    /// Still not ended when its grace was over.
    GraceOver,
    /// Its principal died before it was ready.
    Orphaned,
    /// It drains, and its place among the supervised is needed.
    Crowded,
    /// The whole system stops at once.
    Stopping,
    /// A handler was still at work when the time of its job was over.
    TimeLimit,
    /// A principal that was to succeed another, which goes on.
    Dismissed,
}

impl Reason {
    /// The reason in words, for logs and obituaries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SlowStart => "not ready within start_within",
            Self::NoAnswer => "no answer within kill_after",
            Self::Stopped => "stopped, no answer within kill_after",
            Self::Spinning => "spinning, no answer within kill_after",
            Self::GraceOver => "grace is over",
            Self::Orphaned => "not ready when its principal died",
            Self::Crowded => "too many predecessors drain",
            Self::Stopping => "the system stops at once",
            Self::TimeLimit => "a handler blocked beyond time_limit",
            Self::Dismissed => "it is not to take over",
        }
    }
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Write this number into the process's probe record, then send SIGUSR1.
    Probe(u64),
    /// Take it out of dispatch.
    Suspect,
    /// Put it back into dispatch.
    Trust,
    /// Look at `/proc` and report the evidence.
    Examine,
    /// Send SIGKILL.
    Kill(Reason),
    /// Tell that it was sent SIGKILL and does not end: the kernel holds it (state D). There is
    /// nothing to do about that but to wait.
    TellStubborn,
}

/// What a step may need to know besides the state.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The time.
    pub now: Moment,
    /// When this process's next turn to be probed comes.
    pub next_probe: Moment,
    /// A probe number that was never used before.
    pub fresh: u64,
    /// The configured times.
    pub settings: &'a Settings,
}

impl State {
    /// When `Input::Due` will change something.
    #[must_use]
    pub fn deadline(self, settings: &Settings) -> Option<Moment> {
        match self {
            Self::Down | Self::Killing { told: true, .. } => None,
            Self::Killing { since, told: false } => Some(since + STUBBORN_AFTER),
            Self::Starting { since, look_at } => Some(look_at.min(since + settings.start_within)),
            Self::Healthy { probe_at } => Some(probe_at),
            Self::Probed { sent_at, .. } => Some(sent_at + settings.suspect_after),
            Self::Suspect { judge_at, .. } => Some(judge_at),
        }
    }

    /// Whether the process answers, as far as is known.
    #[must_use]
    pub fn is_healthy(self) -> bool {
        match self {
            Self::Healthy { .. } | Self::Probed { .. } => true,
            Self::Down | Self::Starting { .. } | Self::Suspect { .. } | Self::Killing { .. } => false,
        }
    }
}

/// The next state, and what has to be done to get there.
#[must_use]
pub fn step(state: State, input: Input, turn: Turn<'_>) -> (State, Option<Act>) {
    use Input::{Answered, Condemned, Due, Exited, Ready, Spared, Started, Void};
    use State::{Down, Healthy, Killing, Probed, Starting, Suspect};

    let Turn { now, settings, .. } = turn;
    let due = state.deadline(settings).is_some_and(|deadline| deadline <= now);
    let healthy = Healthy { probe_at: turn.next_probe };
    let judge_at = now + settings.kill_after;
    match (state, input) {
        (Down, Started) => (Starting { since: now, look_at: judge_at }, None),
        (Starting { .. }, Ready) => (healthy, None),
        (Starting { since, .. }, Due) if since + settings.start_within <= now => kill(now, Reason::SlowStart),
        (Starting { since, .. }, Due) if due => (Starting { since, look_at: judge_at }, Some(Act::Examine)),
        (Starting { .. }, Void) => (Starting { since: now, look_at: judge_at }, Some(Act::Examine)),
        (Healthy { .. }, Due) if due => {
            let probed = Probed { number: turn.fresh, sent_at: now, voided: false };
            (probed, Some(Act::Probe(turn.fresh)))
        }
        (Probed { number, .. }, Answered(answer)) if answer == number => (healthy, None),
        (Probed { number, sent_at, .. }, Due) if due => {
            let judge_at = sent_at + settings.kill_after;
            (Suspect { number, sent_at, judge_at }, Some(Act::Suspect))
        }
        // A watchdog that is always late must still find out who stays silent.
        (Probed { number, voided: true, .. }, Void) => {
            (Suspect { number, sent_at: now, judge_at }, Some(Act::Suspect))
        }
        (Probed { number, .. }, Void) => (Probed { number, sent_at: now, voided: true }, None),
        (Suspect { number, .. }, Answered(answer)) if answer == number => (healthy, Some(Act::Trust)),
        (Suspect { .. }, Due) if due => (state, Some(Act::Examine)),
        (Suspect { number, sent_at, .. }, Spared(judge_at)) => (Suspect { number, sent_at, judge_at }, None),
        (Suspect { number, .. }, Void) => (Suspect { number, sent_at: now, judge_at }, Some(Act::Examine)),
        (Killing { since, .. }, Due) if due => (Killing { since, told: true }, Some(Act::TellStubborn)),
        (Starting { .. } | Healthy { .. } | Probed { .. } | Suspect { .. }, Condemned(reason)) => {
            kill(now, reason)
        }
        (Starting { .. } | Healthy { .. } | Probed { .. } | Suspect { .. } | Killing { .. }, Exited) => {
            (Down, None)
        }

        // What changes nothing: it comes too early, too late, twice, or not from the one it names.
        (Down, Ready | Answered(_) | Due | Spared(_) | Void | Condemned(_) | Exited)
        | (Starting { .. }, Started | Answered(_) | Due | Spared(_))
        | (Healthy { .. }, Started | Ready | Answered(_) | Due | Spared(_) | Void)
        | (Probed { .. }, Started | Ready | Answered(_) | Due | Spared(_))
        | (Suspect { .. }, Started | Ready | Answered(_) | Due)
        | (Killing { .. }, Started | Ready | Answered(_) | Due | Spared(_) | Void | Condemned(_)) => {
            (state, None)
        }
    }
}

fn kill(now: Moment, reason: Reason) -> (State, Option<Act>) {
    (State::Killing { since: now, told: false }, Some(Act::Kill(reason)))
}

/// What a process does, by the state letter of `/proc/<pid>/stat` (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// R: runs, or wants to.
    Running,
    /// S, D, I: waits for something.
    Waiting,
    /// T, t: stopped by a signal or a tracer.
    Stopped,
    /// Z, X, or no such process: it has ended.
    Gone,
}

/// What `/proc` says of a silent process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What it does now.
    pub run_state: RunState,
    /// CPU time it got since the probe was sent, where the kernel tells.
    pub cpu_since_probe: Option<Duration>,
}

/// What the evidence says about a silent process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is proven to be stuck: it may be killed at once.
    Proven(Reason),
    /// It is silent, and nothing excuses it.
    Unexcused,
    /// It wants to run, but the machine gave it no CPU.
    Starved,
    /// It has ended already.
    Gone,
}

/// Tells a stuck process from one that the machine starves.
#[must_use]
pub fn judge(evidence: Evidence, silent_for: Duration, settings: &Settings) -> Judgement {
    let enough = settings.kill_after / 4;
    match (evidence.run_state, evidence.cpu_since_probe) {
        (RunState::Gone, _) => Judgement::Gone,
        (RunState::Stopped, _) => Judgement::Proven(Reason::Stopped),
        (RunState::Running, Some(cpu)) if cpu >= enough => Judgement::Proven(Reason::Spinning),
        (RunState::Running, Some(_)) if silent_for < LONGEST_FORGIVENESS => Judgement::Starved,
        (RunState::Running, Some(_) | None) | (RunState::Waiting, _) => Judgement::Unexcused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        period: Duration::from_millis(250),
        suspect_after: Duration::from_millis(500),
        kill_after: Duration::from_secs(2),
        start_within: Duration::from_secs(10),
        grace: Duration::from_secs(10),
    };

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn turn(now: Moment) -> Turn<'static> {
        Turn { now, next_probe: now + SETTINGS.period, fresh: 42, settings: &SETTINGS }
    }

    #[test]
    fn a_silent_server_is_suspected_then_judged() {
        let mut state = State::Down;
        let mut acts = Vec::new();
        let story = [
            (0, Input::Started),
            (3, Input::Ready),
            (253, Input::Due),
            (752, Input::Due),
            (753, Input::Due),
            (2252, Input::Due),
            (2253, Input::Due),
            (2253, Input::Condemned(Reason::NoAnswer)),
            (2254, Input::Exited),
        ];
        for (millis, input) in story {
            let (next, act) = step(state, input, turn(at(millis)));
            state = next;
            acts.extend(act.map(|act| (millis, act)));
        }
        assert_eq!(
            acts,
            [
                (253, Act::Probe(42)),
                (753, Act::Suspect),
                (2253, Act::Examine),
                (2253, Act::Kill(Reason::NoAnswer)),
            ]
        );
        assert_eq!(state, State::Down);
    }

    #[test]
    fn only_the_number_of_the_probe_is_an_answer() {
        let probed = State::Probed { number: 7, sent_at: at(0), voided: false };
        assert_eq!(step(probed, Input::Answered(6), turn(at(1))), (probed, None));
        let (healthy, _) = step(probed, Input::Answered(7), turn(at(1)));
        assert!(matches!(healthy, State::Healthy { .. }));
    }

    #[test]
    fn a_late_answer_restores_trust() {
        let suspect = State::Suspect { number: 7, sent_at: at(0), judge_at: at(2000) };
        let (state, act) = step(suspect, Input::Answered(7), turn(at(1999)));
        assert_eq!((state.is_healthy(), act), (true, Some(Act::Trust)));
    }

    #[test]
    fn a_condemned_process_is_killed_once() {
        let (killing, act) = step(
            State::Starting { since: at(0), look_at: at(2000) },
            Input::Condemned(Reason::Stopping),
            turn(at(1)),
        );
        assert_eq!(act, Some(Act::Kill(Reason::Stopping)));
        assert_eq!(step(killing, Input::Condemned(Reason::Stopping), turn(at(2))), (killing, None));
    }

    #[test]
    fn who_was_killed_and_does_not_end_is_told_of_once() {
        let (mut state, mut told) = (State::Killing { since: at(0), told: false }, Vec::new());
        for millis in (100..5000).step_by(100) {
            let (next, act) = step(state, Input::Due, turn(at(millis)));
            state = next;
            told.extend(act.map(|act| (millis, act)));
        }
        assert_eq!(told, [(1000, Act::TellStubborn)]);
        assert_eq!(state.deadline(&SETTINGS), None);
    }

    #[test]
    fn a_silent_server_is_suspected_although_every_round_is_void() {
        let mut state = State::Probed { number: 7, sent_at: at(0), voided: false };
        let mut acts = Vec::new();
        for millis in [600, 1200, 1800] {
            let (next, act) = step(state, Input::Void, turn(at(millis)));
            state = next;
            acts.extend(act);
        }
        assert_eq!(acts, [Act::Suspect, Act::Examine]);
    }

    #[test]
    fn evidence_tells_stuck_from_starved() {
        let judged = |run_state, cpu: Option<u64>| {
            let evidence = Evidence { run_state, cpu_since_probe: cpu.map(Duration::from_millis) };
            judge(evidence, SETTINGS.kill_after, &SETTINGS)
        };
        assert_eq!(judged(RunState::Stopped, Some(0)), Judgement::Proven(Reason::Stopped));
        assert_eq!(judged(RunState::Running, Some(500)), Judgement::Proven(Reason::Spinning));
        assert_eq!(judged(RunState::Running, Some(499)), Judgement::Starved);
        assert_eq!(judged(RunState::Running, None), Judgement::Unexcused);
        assert_eq!(judged(RunState::Waiting, Some(0)), Judgement::Unexcused);
        assert_eq!(judged(RunState::Gone, None), Judgement::Gone);
    }

    #[test]
    fn forgiveness_ends_after_a_minute() {
        let evidence = Evidence { run_state: RunState::Running, cpu_since_probe: Some(Duration::ZERO) };
        assert_eq!(judge(evidence, LONGEST_FORGIVENESS, &SETTINGS), Judgement::Unexcused);
    }
}
