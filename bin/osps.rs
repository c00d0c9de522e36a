//! `osps`: the watchdog, and by a role argument the principal and the secondaries.

use std::process::ExitCode;

fn main() -> ExitCode {
    osps::Server::new().run()
}
