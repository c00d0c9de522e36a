//! The client library against a server that a test plays word by word, the program
//! `osps-client`, and both against the real system.
#![allow(clippy::unwrap_used)]

mod command;
#[path = "../common/mod.rs"]
mod common;
mod errors;
mod follow;
mod retry;
mod stage;
mod streams;
mod system;
mod tracked;
