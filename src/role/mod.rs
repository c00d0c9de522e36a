//! The servers: shells that join the pure core to the kernel.

pub mod access;
pub mod launch;
pub mod liveness;
pub mod observer;
pub mod pingpong;
pub mod principal;
pub mod secondary;
pub mod watchdog;
