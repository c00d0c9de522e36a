//! A handler that never blocks: greets, counts what it is sent, and says so when a client has been
//! silent for a while. An empty line ends it.
//!
//! `cargo run --example lines -- --config examples/lines.toml`

use std::process::ExitCode;
use std::time::Duration;

use osps::handler::{Lines, Session, Turn};

struct Counter {
    remind_after: Duration,
    input: Lines,
    lines: usize,
    bytes: usize,
}

impl Counter {
    fn sum(&self) -> String {
        format!("{} lines, {} bytes", self.lines, self.bytes)
    }
}

impl Session for Counter {
    fn on_open(&mut self, turn: &mut Turn<'_>) {
        turn.answer("say something\n");
        turn.wake_in(self.remind_after);
    }

    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        turn.wake_in(self.remind_after);
        self.bytes += input.len();
        self.input.add(input);
        while let Some(line) = self.input.next() {
            if line.is_empty() {
                turn.answer(format!("goodbye: {}\n", self.sum()));
                return turn.close();
            }
            self.lines += 1;
        }
    }

    /// The client has ended its input, and waits for the sum.
    fn on_end(&mut self, turn: &mut Turn<'_>) {
        self.lines += usize::from(self.input.rest().is_some());
        turn.answer(format!("{}\n", self.sum()));
    }

    fn on_timer(&mut self, turn: &mut Turn<'_>) {
        turn.answer(format!("still there? {} so far\n", self.sum()));
        turn.wake_in(self.remind_after);
    }
}

fn main() -> ExitCode {
    osps::Server::new()
        .handler("lines", |setup| {
            let millis = setup.settings.get("remind_after_ms").and_then(|value| value.as_integer());
            let millis = millis.ok_or("remind_after_ms is missing: a number of milliseconds")?;
            let remind_after = Duration::from_millis(u64::try_from(millis)?);
            Ok(move |_client| Counter { remind_after, input: Lines::default(), lines: 0, bytes: 0 })
        })
        .run()
}
