//! Decisions, as plain state machines: no clock, no descriptor, no syscall.
//!
//! Each takes `now` and an input through `handle_*`, offers what to do through
//! `poll_*`, and says when it wants to be called again. The shells in
//! [`crate::role`] join them to the kernel; the simulator in `tests/` joins them to
//! a made-up world.
#![forbid(unsafe_code)]

pub mod admission;
pub mod allowance;
pub mod arrival;
pub mod command;
pub mod conversation;
pub mod crowd;
pub mod dispatch;
pub mod following;
pub mod job;
pub mod latency;
pub mod ledger;
pub mod list;
pub mod mark;
pub mod moment;
pub mod name;
pub mod notice;
pub mod recycling;
pub mod refused;
pub mod repeats;
pub mod restart;
pub mod service;
pub mod shares;
pub mod slots;
pub mod strays;
pub mod supervision;
pub mod timers;
pub mod tree;
pub mod turns;
pub mod undecided;
pub mod workers;
