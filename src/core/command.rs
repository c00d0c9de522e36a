//! The life of one command that serves one job: when it is told to end, when it is killed, and
//! how its job has ended.
//!
//! A command is a whole family of processes: its leader, the leader's process group, and whoever
//! has left that. The job ends when the leader has, and all others are gone.

use std::time::Duration;

use crate::core::job::{End, Reason};
use crate::core::moment::Moment;

/// From the first word (SIGTERM) to the last (SIGKILL).
pub const TERM_TO_KILL: Duration = Duration::from_secs(1);
/// How often is looked whether processes that were killed are gone.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A process that does not end of SIGKILL for so long is in the hands of the kernel (state D); its
/// job has ended all the same.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(1);

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send SIGTERM to all of the family.
    Terminate,
    /// Send SIGKILL to all of the family that is left, and say whether anybody was
    /// ([`Command::handle_swept`]).
    Sweep,
    /// It is over: end the job.
    End(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The leader serves the job.
    Running {
        /// When that has taken too long.
        until: Option<Moment>,
    },
    /// It was told to end.
    Terminating {
        /// Why, which is why the job fails.
        why: Reason,
        /// When it is killed.
        kill_at: Moment,
    },
    /// SIGKILL was sent, also to the leader; it has not ended yet.
    Killed {
        /// Why, which is why the job fails.
        why: Reason,
        /// When others are looked for that the first sweep did not meet.
        look_at: Moment,
        /// When it is enough: even its leader does not end of it.
        until: Moment,
    },
    /// The leader has ended; what is left of its family is being killed.
    Clearing {
        /// How the job ends.
        end: End,
        /// When is looked again.
        look_at: Moment,
        /// When it is enough.
        until: Moment,
    },
    Over,
}

/// One command.
#[derive(Debug)]
pub struct Command {
    state: State,
    action: Option<Action>,
}

impl Command {
    /// A command that was started just now and may take so long.
    #[must_use]
    pub fn new(now: Moment, time_limit: Option<Duration>) -> Self {
        Self { state: State::Running { until: time_limit.map(|limit| now + limit) }, action: None }
    }

    /// The leader has ended, and its job would end so. To be told before the leader is reaped:
    /// until then its process group cannot be somebody else's.
    pub fn handle_exit(&mut self, now: Moment, end: End) {
        let end = match self.state {
            State::Running { .. } => end,
            State::Terminating { why, .. } | State::Killed { why, .. } => End::Failed(why),
            State::Clearing { .. } | State::Over => return,
        };
        self.state = State::Clearing { end, look_at: now + LOOK_EVERY, until: now + GIVE_UP_AFTER };
        self.action = Some(Action::Sweep);
    }

    /// What [`Action::Sweep`] asked for was done; whether somebody of the family was still there.
    pub fn handle_swept(&mut self, now: Moment, somebody_left: bool) {
        match self.state {
            State::Clearing { end, until, .. } if !somebody_left || until <= now => {
                self.state = State::Over;
                self.action = Some(Action::End(end));
            }
            State::Clearing { end, until, .. } => {
                self.state = State::Clearing { end, look_at: now + LOOK_EVERY, until };
            }
            State::Running { .. } | State::Terminating { .. } | State::Killed { .. } | State::Over => {}
        }
    }

    fn kill(&mut self, now: Moment, why: Reason, until: Moment) {
        if until <= now {
            self.state = State::Over;
            self.action = Some(Action::End(End::Failed(why)));
        } else {
            self.state = State::Killed { why, look_at: now + LOOK_EVERY, until };
            self.action = Some(Action::Sweep);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        match self.state {
            State::Running { until: Some(until) } if until <= now => {
                self.state = State::Terminating { why: Reason::TimeLimit, kill_at: now + TERM_TO_KILL };
                self.action = Some(Action::Terminate);
            }
            State::Terminating { why, kill_at } if kill_at <= now => self.kill(now, why, now + GIVE_UP_AFTER),
            State::Killed { why, look_at, until } if look_at <= now => self.kill(now, why, until),
            State::Clearing { look_at, .. } if look_at <= now => self.action = Some(Action::Sweep),
            State::Running { .. }
            | State::Terminating { .. }
            | State::Killed { .. }
            | State::Clearing { .. }
            | State::Over => {}
        }
    }

    /// What is to be done, if anything.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.action.take()
    }

    /// When [`Command::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        match self.state {
            State::Running { until } => until,
            State::Terminating { kill_at, .. } => Some(kill_at),
            State::Killed { look_at, .. } | State::Clearing { look_at, .. } => Some(look_at),
            State::Over => None,
        }
    }

    /// Whether its leader was not seen to end yet.
    #[must_use]
    pub fn is_led(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Terminating { .. } | State::Killed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn limited() -> Command {
        Command::new(at(0), Some(Duration::from_secs(10)))
    }

    #[test]
    fn a_command_that_ends_by_itself_says_how() {
        let mut command = limited();
        command.handle_exit(at(5), End::Failed(Reason::Exit(3)));
        assert_eq!(command.poll_action(), Some(Action::Sweep));
        command.handle_swept(at(5), false);
        assert_eq!(command.poll_action(), Some(Action::End(End::Failed(Reason::Exit(3)))));
        assert_eq!((command.poll_action(), command.poll_timeout()), (None, None));
    }

    #[test]
    fn who_takes_too_long_is_told_then_killed() {
        let mut command = limited();
        command.handle_timeout(at(9_999));
        assert_eq!(command.poll_action(), None);
        command.handle_timeout(at(10_000));
        assert_eq!(command.poll_action(), Some(Action::Terminate));
        assert_eq!(command.poll_timeout(), Some(at(11_000)));
        command.handle_timeout(at(11_000));
        assert_eq!(command.poll_action(), Some(Action::Sweep));
        command.handle_swept(at(11_000), true);
        command.handle_exit(at(11_001), End::Failed(Reason::Signal(9)));
        command.handle_swept(at(11_001), false);
        assert_eq!(command.poll_action(), Some(Action::End(End::Failed(Reason::TimeLimit))));
    }

    #[test]
    fn when_its_leader_has_ended_the_rest_is_killed_at_once() {
        let mut command = limited();
        command.handle_timeout(at(10_000));
        command.poll_action();
        command.handle_exit(at(10_002), End::Done);
        assert_eq!(command.poll_action(), Some(Action::Sweep));
        command.handle_swept(at(10_002), true);
        assert_eq!(command.poll_action(), None);
        command.handle_timeout(at(10_012));
        assert_eq!(command.poll_action(), Some(Action::Sweep));
        command.handle_swept(at(10_012), false);
        assert_eq!(command.poll_action(), Some(Action::End(End::Failed(Reason::TimeLimit))));
    }

    #[test]
    fn who_does_not_end_of_sigkill_holds_up_no_job_for_ever() {
        for (leader_ends, over_at) in [(true, 1_001), (false, 12_000)] {
            let mut command = limited();
            if leader_ends {
                command.handle_exit(at(1), End::Done);
            }
            let mut now = 1;
            while !matches!(command.poll_action(), Some(Action::End(_))) {
                now = command.poll_timeout().unwrap().as_nanos() / 1_000_000;
                command.handle_timeout(at(now));
                command.handle_swept(at(now), true);
            }
            assert_eq!(now, over_at);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Exit,
        Swept(bool),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Exit),
            any::<bool>().prop_map(Step::Swept),
            (0..3_000_u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..40)
    }

    proptest! {
        /// Whatever happens, a job ends once at most, never before its leader has, and at last
        /// where its leader ends.
        #[test]
        fn a_job_ends_once(steps in steps()) {
            let (mut command, mut now, mut ends, mut exited) = (limited(), 0, 0, false);
            let rest = [Step::Exit, Step::Wait(2_000), Step::Swept(true), Step::Wait(2_000), Step::Swept(true)];
            for step in steps.into_iter().chain(rest) {
                match step {
                    Step::Exit => {
                        exited = true;
                        command.handle_exit(at(now), End::Done);
                    }
                    Step::Swept(left) => command.handle_swept(at(now), left),
                    Step::Wait(millis) => {
                        now += millis;
                        command.handle_timeout(at(now));
                        prop_assert!(command.action.is_some() || command.poll_timeout() > Some(at(now)) || command.state == State::Over);
                    }
                }
                if let Some(Action::End(_)) = command.poll_action() {
                    ends += 1;
                    prop_assert!(exited || now >= 12_000);
                }
            }
            prop_assert_eq!(ends, 1);
        }
    }
}
