//! What goes over a wire: the client protocol, the tubes, the orders as text, frames for workers, HTTP for the observer;
//! and lines of the log.
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
pub mod frame;
pub mod http;
pub mod jeton;
pub mod lines;
pub mod logline;
pub mod order;
pub mod succession;
pub mod tube;
