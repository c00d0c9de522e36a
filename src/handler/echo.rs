//! `echo`: sends back what it gets.

use crate::handler::{Session, Turn};

/// A session of `echo`; it remembers nothing.
#[derive(Debug)]
pub struct Echo;

impl Session for Echo {
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        turn.answer(input);
    }
}
