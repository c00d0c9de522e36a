//! A handler that computes: says of each number whether it is prime. A large one takes long, and
//! while it computes, nobody else is served by its process: see what the watchdog does about it.
//!
//! `cargo run --example primes -- --config examples/primes.toml`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;

use osps::handler::{Lines, Session, Turn};
use serde::Deserialize;

/// `settings` in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Greater numbers are refused.
    largest: u64,
    /// What goes wrong when one asks for that number: to see what becomes of such jobs.
    #[serde(default)]
    traps: BTreeMap<String, Trap>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Trap {
    Loop,
    Panic,
}

struct Primes {
    settings: Rc<Settings>,
    lines: Lines,
}

impl Session for Primes {
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.lines.add(input);
        while let Some(line) = self.lines.next() {
            if !self.judge(&line, turn) {
                return turn.fail();
            }
        }
    }

    /// The last line may have no end.
    fn on_end(&mut self, turn: &mut Turn<'_>) {
        if let Some(line) = self.lines.rest()
            && !self.judge(&line, turn)
        {
            turn.fail();
        }
    }
}

impl Primes {
    /// Answers a line. Returns whether it was a number.
    fn judge(&self, line: &str, turn: &mut Turn<'_>) -> bool {
        match line.trim().parse() {
            Ok(number) if number <= self.settings.largest => {
                self.fall_into_trap(number);
                let word = if is_prime(number) { "prime" } else { "not prime" };
                turn.answer(format!("{number} is {word}\n"));
            }
            Ok(number) => turn.answer(format!("{number} is too large\n")),
            Err(error) => {
                turn.answer(format!("{line:?}: {error}\n"));
                return false;
            }
        }
        true
    }

    #[expect(clippy::empty_loop, reason = "to be stuck is what this trap is for")]
    fn fall_into_trap(&self, number: u64) {
        match self.settings.traps.get(&number.to_string()) {
            Some(Trap::Loop) => loop {},
            Some(Trap::Panic) => panic!("somebody asked for {number}"),
            None => {}
        }
    }
}

fn is_prime(number: u64) -> bool {
    let mut divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number > 1 && !divisors.any(|divisor| number.is_multiple_of(divisor))
}

fn main() -> ExitCode {
    osps::Server::new()
        .handler("primes", |setup| {
            let settings = Rc::new(setup.read::<Settings>()?);
            if settings.largest < 2 {
                return Err(format!("largest = {} is below the first prime", settings.largest).into());
            }
            Ok(move |_client| Primes { settings: settings.clone(), lines: Lines::default() })
        })
        .run()
}
