//! The observer: what it says over HTTP, from bytes to bytes. Pure, as [`crate::core`] is: it is given the time and
//! what was read of the status.
//!
//! [`conversation`] is one connection; [`Site`] answers its requests; [`history`] remembers the last minutes, and
//! `page` shows it all.
#![forbid(unsafe_code)]

mod chart;
pub mod conversation;
#[cfg(test)]
mod example;
pub mod figures;
pub mod health;
pub mod history;
mod html;
pub mod metrics;
mod page;
mod site;
mod tables;

pub use site::Site;
