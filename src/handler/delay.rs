//! `delay`: after each message waits on a timer, then answers one line. Others go on
//! meanwhile.

use std::time::Duration;

use crate::handler::{MAX_WAITING, Messages, Session, Turn};

/// A session of `delay`.
#[derive(Debug)]
pub struct Delay {
    delay: Duration,
    slot: u16,
    messages: Messages,
}

impl Delay {
    /// A session in that slot that waits `delay` for each message.
    #[must_use]
    pub fn new(delay: Duration, slot: u16) -> Self {
        Self { delay, slot, messages: Messages::default() }
    }
}

impl Session for Delay {
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.messages.take(input);
        if self.owes_answer() && !turn.will_wake() {
            turn.wake_in(self.delay);
        }
    }

    fn on_timer(&mut self, turn: &mut Turn<'_>) {
        self.messages.answer(self.slot, turn);
        if self.owes_answer() {
            turn.wake_in(self.delay);
        }
    }

    fn owes_answer(&self) -> bool {
        self.messages.waiting > 0
    }

    fn wants_input(&self) -> bool {
        self.messages.waiting < MAX_WAITING
    }
}
