//! What a session may do when it is called.

use std::fmt;
use std::time::Duration;

use crate::core::moment::Moment;

/// A session's turn: it says here what it wants.
#[derive(Debug)]
pub struct Turn<'a> {
    now: Moment,
    output: &'a mut Vec<u8>,
    wishes: &'a mut Wishes,
}

/// What a session wants besides answering; it lasts from turn to turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// When it is to be woken.
    pub wake_at: Option<Moment>,
    /// Whether the exchange is over, as soon as the answers are sent.
    pub over: Option<Over>,
}

/// How a session has ended its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The job is done.
    Closed,
    /// The job has failed.
    Failed,
}

impl<'a> Turn<'a> {
    /// A turn that begins now; what the session says is added to `output` and `wishes`.
    #[must_use]
    pub fn new(now: Moment, output: &'a mut Vec<u8>, wishes: &'a mut Wishes) -> Self {
        Self { now, output, wishes }
    }

    /// The time when this turn of the process began.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Sends this to the client, after all that was answered before.
    pub fn answer(&mut self, bytes: impl AsRef<[u8]>) {
        self.output.extend_from_slice(bytes.as_ref());
    }

    /// As [`Turn::answer`], without a string in between: `turn.answer_fmt(format_args!("{n}\n"))`.
    pub fn answer_fmt(&mut self, words: fmt::Arguments<'_>) {
        // Writing to a Vec does not fail; what a Display says wrongly costs no more than its words.
        let _ = std::io::Write::write_fmt(self.output, words);
    }

    /// Calls [`Session::on_timer`](crate::handler::Session::on_timer) at that moment, and no more
    /// at the one that was asked for before.
    pub fn wake_at(&mut self, at: Moment) {
        self.wishes.wake_at = Some(at);
    }

    /// As [`Turn::wake_at`], so much later than now.
    pub fn wake_in(&mut self, time: Duration) {
        self.wake_at(self.now + time);
    }

    /// Forgets the timer.
    pub fn sleep(&mut self) {
        self.wishes.wake_at = None;
    }

    /// Whether the timer is set.
    #[must_use]
    pub fn will_wake(&self) -> bool {
        self.wishes.wake_at.is_some()
    }

    /// Ends the exchange: what was answered is sent, then the connection is closed, and the job is
    /// done. The session is not called any more.
    pub fn close(&mut self) {
        self.wishes.over.get_or_insert(Over::Closed);
    }

    /// As [`Turn::close`], but the job has failed (`errtraitement JETON handler error`).
    pub fn fail(&mut self) {
        self.wishes.over = Some(Over::Failed);
    }
}

impl Wishes {
    /// Whether it is time to wake the session: then the timer is not set any more.
    pub fn take_wake(&mut self, now: Moment) -> bool {
        self.wake_at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_says_is_there_when_its_turn_is_over() {
        let (mut output, mut wishes) = (b"before, ".to_vec(), Wishes::default());
        let now = Moment::from_nanos(5);
        let mut turn = Turn::new(now, &mut output, &mut wishes);
        turn.answer("a");
        turn.answer_fmt(format_args!(" and {}", 'b'));
        turn.wake_in(Duration::from_nanos(2));
        assert!(turn.will_wake());
        turn.close();
        turn.fail();
        turn.close();
        assert_eq!(output, b"before, a and b");
        assert_eq!(wishes.over, Some(Over::Failed), "a job that has failed is not done");
        assert!(!wishes.take_wake(Moment::from_nanos(6)));
        assert!(wishes.take_wake(Moment::from_nanos(7)) && !wishes.take_wake(Moment::from_nanos(7)));
        let mut turn = Turn::new(now, &mut output, &mut wishes);
        turn.wake_at(now);
        turn.sleep();
        assert!(!turn.will_wake());
    }
}
