//! `block`: like `delay`, but it blocks its process, and with it every other exchange
//! there: to see what the watchdog does about it.

use std::time::Duration;

use crate::handler::{MAX_WAITING, Messages, Session, Turn};

/// A session of `block`.
#[derive(Debug)]
pub struct Block {
    delay: Duration,
    slot: u16,
    messages: Messages,
}

impl Block {
    /// A session in that slot that blocks for `delay` at each message.
    #[must_use]
    pub fn new(delay: Duration, slot: u16) -> Self {
        Self { delay, slot, messages: Messages::default() }
    }
}

impl Session for Block {
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.messages.take(input);
        if self.owes_answer() {
            turn.wake_at(turn.now());
        }
    }

    /// One message a turn: many short ones are no reason to miss a probe.
    #[expect(clippy::disallowed_methods, reason = "to block is what this handler is for")]
    fn on_timer(&mut self, turn: &mut Turn<'_>) {
        std::thread::sleep(self.delay);
        self.messages.answer(self.slot, turn);
        if self.owes_answer() {
            turn.wake_at(turn.now());
        }
    }

    fn owes_answer(&self) -> bool {
        self.messages.waiting > 0
    }

    fn wants_input(&self) -> bool {
        self.messages.waiting < MAX_WAITING
    }
}
