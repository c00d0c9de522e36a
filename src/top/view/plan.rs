//! How many rows each part of the screen gets.

/// Parts of the screen, from the top down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What runs, and for how long.
    Title,
    /// The ledger; then refusals and clients.
    Books,
    /// Rate and latency of the last minutes.
    Graphs,
    /// A rule.
    KindsRule,
    /// A heading, then the request types.
    Kinds,
    /// A rule.
    ProcessesRule,
    /// A heading, then the processes.
    Processes,
    /// A rule.
    DeathsRule,
    /// A heading, then the last deaths; or one row that says that there were none.
    Deaths,
    /// What is left.
    Empty,
    /// The keys.
    Keys,
}

const PARTS: usize = 11;
/// Rows for deaths, with their heading, that are kept where there are none yet and all else has its place: nothing
/// jumps when somebody dies.
const SOME_DEATHS: u16 = 5;

/// What there is to show.
#[derive(Clone, Copy, Debug)]
pub struct Contents {
    /// Request types.
    pub kinds: u16,
    /// Processes that the filter lets through.
    pub processes: u16,
    /// Deaths that are remembered.
    pub deaths: u16,
}

/// Rows of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    rows: [u16; PARTS],
    left: u16,
}

impl Plan {
    /// Shares out so many rows, the most important first.
    #[must_use]
    pub fn new(height: u16, contents: Contents) -> Self {
        let Contents { kinds, processes, deaths } = contents;
        let all_kinds = if kinds == 0 { 0 } else { kinds.saturating_add(1) };
        let all_processes = processes.saturating_add(1);
        let all_deaths = deaths.saturating_add(1);
        let mut plan = Self { rows: [0; PARTS], left: height };
        plan.give(Part::Title, 1, 1);
        plan.give(Part::Processes, 2, 2);
        plan.give(Part::Keys, 1, 1);
        plan.give(Part::Processes, 1, all_processes.min(4));
        plan.give(Part::Books, 1, 1);
        // A heading without a row is of no use.
        plan.give(Part::Deaths, all_deaths.min(2), all_deaths.min(2));
        plan.give(Part::Graphs, 1, 1);
        plan.give(Part::Kinds, all_kinds.min(2), all_kinds.min(2));
        plan.give(Part::Books, 1, 2);
        plan.give(Part::Processes, 1, all_processes.min(10));
        plan.give(Part::Kinds, 1, all_kinds.min(5));
        plan.give(Part::Deaths, 1, all_deaths.min(3));
        plan.give(Part::ProcessesRule, 1, 1);
        plan.give(Part::DeathsRule, 1, 1);
        if kinds > 0 {
            plan.give(Part::KindsRule, 1, 1);
        }
        plan.give(Part::Deaths, 1, all_deaths.min(SOME_DEATHS));
        plan.give(Part::Processes, 1, all_processes);
        plan.give(Part::Deaths, 1, SOME_DEATHS);
        plan.give(Part::Kinds, 1, all_kinds.min(20));
        plan.give(Part::Graphs, 1, 6);
        plan.give(Part::Kinds, 1, all_kinds);
        plan.give(Part::Deaths, 1, all_deaths);
        plan.give(Part::Graphs, 1, 16);
        plan.give(Part::Empty, 0, u16::MAX);
        plan
    }

    /// Gives a part more, up to so many rows, where at least so many are left.
    fn give(&mut self, part: Part, at_least: u16, up_to: u16) {
        let has = &mut self.rows[part as usize];
        let more = up_to.saturating_sub(*has).min(self.left);
        if more >= at_least {
            *has += more;
            self.left -= more;
        }
    }

    /// The row at which a part begins, and how many it has.
    #[must_use]
    pub fn rows(&self, part: Part) -> (u16, u16) {
        let above = self.rows[..part as usize].iter().sum();
        (above, self.rows[part as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS_DOWN: [Part; PARTS] = [
        Part::Title,
        Part::Books,
        Part::Graphs,
        Part::KindsRule,
        Part::Kinds,
        Part::ProcessesRule,
        Part::Processes,
        Part::DeathsRule,
        Part::Deaths,
        Part::Empty,
        Part::Keys,
    ];

    fn plan(height: u16, kinds: u16, processes: u16, deaths: u16) -> Plan {
        Plan::new(height, Contents { kinds, processes, deaths })
    }

    #[test]
    fn all_rows_are_given_and_none_twice() {
        for height in 0..120 {
            for (kinds, processes, deaths) in [(0, 0, 0), (3, 6, 0), (3, 6, 5), (64, 66, 64), (1, 1030, 64)] {
                let plan = plan(height, kinds, processes, deaths);
                assert_eq!(plan.rows.iter().sum::<u16>(), height);
                let starts = PARTS_DOWN.map(|part| plan.rows(part).0);
                assert!(starts.is_sorted());
            }
        }
    }

    #[test]
    fn on_a_usual_terminal_everything_has_its_place() {
        let plan = plan(24, 3, 6, 9);
        let of = |part| plan.rows(part).1;
        assert_eq!([Part::Title, Part::Books, Part::Graphs, Part::Keys].map(of), [1, 2, 1, 1]);
        assert_eq!([Part::Kinds, Part::Processes, Part::Deaths].map(of), [4, 7, 5]);
        assert_eq!(
            [Part::KindsRule, Part::ProcessesRule, Part::DeathsRule, Part::Empty].map(of),
            [1, 1, 1, 0]
        );
    }

    #[test]
    fn many_of_one_kind_leave_room_for_the_others() {
        let plan = plan(24, 64, 66, 64);
        let of = |part| plan.rows(part).1;
        assert_eq!([Part::Kinds, Part::Processes, Part::Deaths].map(of), [5, 10, 3]);
    }

    #[test]
    fn in_little_room_the_processes_come_first() {
        let of = |height| {
            let plan = plan(height, 3, 6, 2);
            [Part::Title, Part::Processes, Part::Keys, Part::Deaths].map(|part| plan.rows(part).1)
        };
        assert_eq!(of(1), [1, 0, 0, 0]);
        assert_eq!(of(2), [1, 0, 1, 0]);
        assert_eq!(of(3), [1, 2, 0, 0]);
        assert_eq!(of(5), [1, 3, 1, 0]);
        assert_eq!(of(10), [1, 4, 1, 2]);
    }
}
