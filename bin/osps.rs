//! `osps`: the watchdog, and by a role argument the principal and the secondaries.
#![cfg_attr(all(target_env = "gnu", not(test)), no_main)]

osps::main!(osps::Server::new());
