//! The observer: what it says over HTTP, from bytes to bytes. Pure, as [`crate::core`] is: it is given the time and
//! what was read of the status.
//!
//! [`conversation`] is one connection.
#![forbid(unsafe_code)]

pub mod conversation;
