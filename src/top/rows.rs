//! The rows of the table of processes, how they are sorted, and which of them are shown.

use std::cmp::Ordering;
use std::time::Duration;

use crate::status::{Server, ServerState, Status};

/// What a process is doing, the most worrying first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A watchdog that is stopped.
    Stopped,
    /// There is none.
    Down,
    /// It does not answer.
    Suspect,
    /// It finishes what it has.
    Draining,
    /// It is not ready yet.
    Starting,
    /// Its loop runs.
    Ready,
    /// A watchdog that is not stopped: nobody probes it.
    Running,
}

impl State {
    /// As in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Down => ServerState::Down.as_str(),
            Self::Suspect => ServerState::Suspect.as_str(),
            Self::Draining => ServerState::Draining.as_str(),
            Self::Starting => ServerState::Starting.as_str(),
            Self::Ready => ServerState::Ready.as_str(),
            Self::Running => "running",
        }
    }

    /// Of a process that nobody probes, by what the kernel says (proc_pid_stat(5), field 3).
    #[must_use]
    pub fn of_letter(letter: char) -> Self {
        match letter {
            'T' | 't' => Self::Stopped,
            _ => Self::Running,
        }
    }
}

impl From<ServerState> for State {
    fn from(state: ServerState) -> Self {
        match state {
            ServerState::Starting => Self::Starting,
            ServerState::Ready => Self::Ready,
            ServerState::Suspect => Self::Suspect,
            ServerState::Draining => Self::Draining,
            ServerState::Down => Self::Down,
        }
    }
}

/// A row of the table; what does not apply, or is not known, is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// `watchdog`, `principal`, `observer`, `secondary`.
    pub role: &'static str,
    /// 0 where a role has no slots.
    pub slot: u16,
    /// What it is doing.
    pub state: State,
    /// The kernel's state letter (proc_pid_stat(5)).
    pub letter: Option<char>,
    /// Its pid.
    pub pid: Option<u32>,
    /// Jobs that end here in a second; of the observer, requests.
    pub rate: Option<f64>,
    /// Jobs open here; of the observer, connections.
    pub open: Option<u64>,
    /// CPU in hundredths of a core.
    pub cpu: Option<f64>,
    /// Resident memory, in bytes.
    pub memory: Option<u64>,
    /// Round trip of the last probe.
    pub round_trip: Option<Duration>,
    /// How long ago it answered last.
    pub answered: Option<Duration>,
    /// How often a successor was started.
    pub restarts: Option<u64>,
    /// How often the watchdog killed one.
    pub kills: Option<u64>,
    /// Jobs done here.
    pub done: Option<u64>,
    /// Jobs failed here.
    pub failed: Option<u64>,
    /// Why it is down for good, or its ports or addresses.
    pub note: String,
}

impl Process {
    /// The row of the watchdog.
    #[must_use]
    pub fn watchdog(status: &Status, letter: Option<char>, cpu: Option<f64>) -> Self {
        Self {
            role: "watchdog",
            slot: 0,
            state: letter.map_or(State::Running, State::of_letter),
            letter,
            pid: Some(status.pid),
            rate: None,
            open: None,
            cpu,
            memory: status.watchdog.memory_bytes,
            round_trip: None,
            answered: None,
            restarts: None,
            kills: None,
            done: None,
            failed: None,
            note: String::new(),
        }
    }

    /// The row of an entry of the status.
    #[must_use]
    pub fn of(server: &Server, letter: Option<char>, cpu: Option<f64>, rate: Option<f64>) -> Self {
        // What was counted in the slot stands in the row of who has it now.
        let is_predecessor = server.state == ServerState::Draining && server.role == "secondary";
        let counted = |value| (!is_predecessor).then_some(value);
        let ports = server.ports.values().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        Self {
            role: server.role,
            slot: server.slot,
            state: server.state.into(),
            letter,
            pid: server.pid,
            rate: rate.filter(|_| !is_predecessor),
            open: Some(server.open),
            cpu,
            memory: server.usage.memory_bytes,
            round_trip: server.rtt_us.map(Duration::from_micros),
            answered: server.answered_ms_ago.map(Duration::from_millis),
            restarts: counted(server.restarts),
            kills: counted(server.kills),
            done: counted(server.done),
            failed: counted(server.failed),
            note: server.reason.map_or(ports, str::to_owned),
        }
    }

    /// The same, with another note.
    #[must_use]
    pub fn noting(self, note: String) -> Self {
        Self { note, ..self }
    }

    /// `principal`, `secondary 3`.
    #[must_use]
    pub fn name(&self) -> String {
        name(self.role, self.slot)
    }

    /// Where it stands when nothing else decides: those who have no slot, then slot by slot, who leaves below who
    /// has it.
    #[must_use]
    pub fn place(&self) -> (u8, u16, bool) {
        let rank = match self.role {
            "watchdog" => 0,
            "principal" => 1,
            "observer" => 2,
            _ => 3,
        };
        (rank, self.slot, self.state == State::Draining)
    }

    /// Whether a filter lets it through: each word of it is part of the role or of the state, or, where it is a
    /// number, the slot or the pid.
    #[must_use]
    pub fn matches(&self, filter: &str) -> bool {
        filter.split_ascii_whitespace().all(|word| match word.parse::<u32>() {
            Ok(number) => self.pid == Some(number) || self.slot > 0 && u32::from(self.slot) == number,
            Err(_) => {
                let word = word.to_ascii_lowercase();
                self.role.contains(&word) || self.state.as_str().contains(&word)
            }
        })
    }
}

/// The principal, the watchdog and the observer need no number.
#[must_use]
pub fn name(role: &str, slot: u16) -> String {
    match slot {
        0 => role.to_owned(),
        slot => format!("{role} {slot}"),
    }
}

/// What the table can be sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The watchdog, the principal, then slot by slot.
    #[default]
    Slot,
    /// The most worrying first.
    State,
    /// By pid.
    Pid,
    /// The fastest first.
    Rate,
    /// Who has most jobs first.
    Open,
    /// Who uses most first.
    Cpu,
    /// Who uses most first.
    Memory,
    /// The slowest first.
    RoundTrip,
    /// Who has been silent for longest first.
    Answered,
    /// The most first.
    Restarts,
    /// The most first.
    Kills,
    /// The most first.
    Done,
    /// The most first.
    Failed,
}

impl Order {
    /// All, as the columns of the table stand.
    pub const ALL: [Self; 13] = [
        Self::Slot,
        Self::State,
        Self::Pid,
        Self::Rate,
        Self::Open,
        Self::Cpu,
        Self::Memory,
        Self::RoundTrip,
        Self::Answered,
        Self::Restarts,
        Self::Kills,
        Self::Done,
        Self::Failed,
    ];

    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::State => "state",
            Self::Pid => "pid",
            Self::Rate => "jobs/s",
            Self::Open => "open",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::RoundTrip => "round trip",
            Self::Answered => "answered",
            Self::Restarts => "restarts",
            Self::Kills => "kills",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// The one that many places on, round and round.
    #[must_use]
    pub fn moved(self, by: isize) -> Self {
        let place = Self::ALL.iter().position(|&order| order == self).unwrap_or(0);
        let place = place.cast_signed() + by;
        Self::ALL[place.rem_euclid(Self::ALL.len().cast_signed()).cast_unsigned()]
    }

    /// How two rows stand to each other; what is not known comes last, either way round. Rows that are equal keep
    /// their places.
    fn compare(self, one: &Process, two: &Process, reversed: bool) -> Ordering {
        let turned = |order: Ordering| if reversed { order.reverse() } else { order };
        match self {
            Self::Slot => turned(one.place().cmp(&two.place())),
            Self::State => turned(one.state.cmp(&two.state)),
            Self::Pid => known(one.pid, two.pid, |one, two| turned(one.cmp(two))),
            Self::Rate => known(one.rate, two.rate, |one, two| turned(two.total_cmp(one))),
            Self::Cpu => known(one.cpu, two.cpu, |one, two| turned(two.total_cmp(one))),
            Self::Open => most(one.open, two.open, turned),
            Self::Memory => most(one.memory, two.memory, turned),
            Self::RoundTrip => most(one.round_trip, two.round_trip, turned),
            Self::Answered => most(one.answered, two.answered, turned),
            Self::Restarts => most(one.restarts, two.restarts, turned),
            Self::Kills => most(one.kills, two.kills, turned),
            Self::Done => most(one.done, two.done, turned),
            Self::Failed => most(one.failed, two.failed, turned),
        }
    }
}

fn most<T: Ord>(one: Option<T>, two: Option<T>, turned: impl Fn(Ordering) -> Ordering) -> Ordering {
    known(one, two, |one, two| turned(two.cmp(one)))
}

fn known<T>(one: Option<T>, two: Option<T>, compare: impl Fn(&T, &T) -> Ordering) -> Ordering {
    match (one, two) {
        (Some(one), Some(two)) => compare(&one, &two),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

/// The rows that a filter lets through, sorted.
#[must_use]
pub fn select(mut processes: Vec<Process>, filter: &str, order: Order, reversed: bool) -> Vec<Process> {
    processes.retain(|process| process.matches(filter));
    processes.sort_by(|one, two| order.compare(one, two, reversed));
    processes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::fake;

    fn processes() -> Vec<Process> {
        let model = fake::model_at_work(3, |status| {
            status.servers[2].state = ServerState::Suspect;
            status.servers[3].state = ServerState::Down;
            status.servers[3].pid = None;
            status.servers[2].restarts = 5;
            status.servers.push(fake::predecessor(1));
        });
        model.processes()
    }

    fn names(rows: &[Process]) -> Vec<String> {
        rows.iter().map(Process::name).collect()
    }

    #[test]
    fn whatever_they_are_sorted_by_what_is_not_known_comes_last() {
        for order in Order::ALL {
            for reversed in [false, true] {
                let rows = select(processes(), "", order, reversed);
                assert_eq!(rows.len(), 6);
                if order == Order::Rate {
                    let none = rows.iter().map(|row| row.rate.is_none()).collect::<Vec<_>>();
                    assert!(none.is_sorted(), "{none:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_row_is_the_one_to_look_at() {
        let first = |order| select(processes(), "", order, false)[0].name();
        assert_eq!(first(Order::Slot), "watchdog");
        assert_eq!(first(Order::State), "secondary 3");
        assert_eq!(first(Order::Cpu), "secondary 1");
        assert_eq!(first(Order::Restarts), "secondary 2");
        let by_state = select(processes(), "", Order::State, true);
        assert_eq!(by_state.last().unwrap().name(), "secondary 3");
        let by_slot = names(&select(processes(), "", Order::Slot, false));
        let expected = ["watchdog", "principal", "secondary 1", "secondary 1", "secondary 2", "secondary 3"];
        assert_eq!(by_slot, expected);
    }

    #[test]
    fn rows_that_are_equal_keep_their_places() {
        let rows = names(&select(processes(), "", Order::Kills, false));
        assert_eq!(
            rows,
            ["principal", "secondary 1", "secondary 2", "secondary 3", "watchdog", "secondary 1"]
        );
    }

    #[test]
    fn a_filter_is_words_and_numbers() {
        let named = |filter| names(&select(processes(), filter, Order::Slot, false));
        assert_eq!(named("princ"), ["principal"]);
        assert_eq!(named("1"), ["secondary 1", "secondary 1"]);
        assert_eq!(named("1001"), ["principal"], "a pid");
        assert_eq!(named("100"), [] as [&str; 0], "half a pid");
        assert_eq!(named("secondary 2"), ["secondary 2"]);
        assert_eq!(named("SUSP"), ["secondary 2"]);
        assert_eq!(named("drain 1"), ["secondary 1"]);
        assert_eq!(named("  ").len(), 6);
        assert_eq!(named("0"), [] as [&str; 0], "who has no slot is not in slot 0");
    }
}
