//! A handler that cannot be made in some secondaries, for the tests: they end before they are ready, to be tried
//! again, or say that it is of no use to start them.
//!
//! `settings = { fails = [2], gives_up = [3] }`

use std::process::ExitCode;

use osps::handler::{Session, Turn};
use serde::Deserialize;

/// Numbers of secondaries.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    fails: Vec<u16>,
    gives_up: Vec<u16>,
}

struct Echo;

impl Session for Echo {
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        turn.answer(input);
    }
}

fn main() -> ExitCode {
    osps::Server::new()
        .handler("reluctant", |setup| {
            let settings: Settings = setup.read()?;
            if settings.gives_up.contains(&setup.slot) {
                std::process::exit(osps::exit::Code::Config as i32);
            }
            if settings.fails.contains(&setup.slot) {
                return Err(format!("not in secondary {}", setup.slot).into());
            }
            Ok(|_client| Echo)
        })
        .run()
}
