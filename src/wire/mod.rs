//! What goes over a wire, as text: the client protocol, the tubes, the orders.
#![forbid(unsafe_code)]

pub mod client;
pub mod jeton;
pub mod lines;
pub mod order;
pub mod tube;
