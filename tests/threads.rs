//! A server has one thread. What if a library that is loaded into it has started another?
#![allow(clippy::unwrap_used)]

use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use osps::os::reactor::Reactor;

#[path = "reactor/stage.rs"]
#[allow(dead_code, reason = "the tests of the loop use the rest")]
mod stage;

use stage::{Nobody, Seen, Stage, reactor};

/// The kernel gives a signal for the process to any thread that does not block it, and by default that would be the end
/// of all.
#[test]
#[expect(clippy::disallowed_methods, reason = "the other thread")]
fn a_signal_that_another_thread_is_given_reaches_the_loop() {
    let (end, ended) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || ended.recv());
    let mut reactor: Reactor<char> = reactor(&[Signal::SIGUSR1, Signal::SIGCHLD]);
    let mut stage = Stage::new(Nobody);
    for signal in [Signal::SIGUSR1, Signal::SIGCHLD].repeat(50) {
        kill(Pid::this(), signal).unwrap();
        stage.turn_until(&mut reactor, |stage| stage.log.contains(&Seen::Signal(signal)));
        stage.log.clear();
    }
    end.send(()).unwrap();
    other.join().unwrap().unwrap();
}
