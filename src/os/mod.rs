//! The only code that talks to the kernel.
//!
//! `unsafe` stands in [`segment`] (mapped atomics) and [`process`] (child set-up,
//! inherited descriptors, signal dispositions) and nowhere else.

pub mod account;
pub mod activation;
pub mod alarm;
pub mod channel;
pub mod clock;
pub mod connect;
pub mod descendants;
pub mod fifo;
pub mod landlock;
pub mod listener;
pub mod log;
pub mod notify;
pub mod output;
pub mod pidfd;
pub mod privileges;
pub mod proc;
pub mod process;
pub mod program;
pub mod random;
pub mod reactor;
pub mod reserve;
pub mod rundir;
pub mod segment;
pub mod signals;
pub mod socket_file;
pub mod stream;
