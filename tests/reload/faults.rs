//! Whoever dies, or freezes, at whatever moment of a reload: the system serves, with the old or the new, and
//! the books are exact.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;

use crate::common::{REQUESTS, System, connect, eventually, now, pause, read_once, together};

/// Everybody who runs as a principal below that watchdog.
fn principals(watchdog: u32) -> Vec<u32> {
    let children =
        fs::read_to_string(format!("/proc/{watchdog}/task/{watchdog}/children")).unwrap_or_default();
    let is_principal = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"osps\0principal"))
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_principal).collect()
}

/// Asks for a job and has it done; `None` where the control connection broke, as it may when a principal dies.
fn served(address: SocketAddr) -> Option<()> {
    use std::io::Write;
    let mut control = TcpStream::connect(address).expect("never refused");
    control.write_all(b"echo\n").ok()?;
    let mut answer = [0; 64];
    let length = read_once(&mut control, &mut answer).ok().filter(|&length| length > 0)?;
    let port: u16 = std::str::from_utf8(&answer[..length]).unwrap().trim().parse().ok()?;
    let mut data = TcpStream::connect(SocketAddr::new(address.ip(), port)).expect("never refused");
    data.write_all(b"x").ok()?;
    read_once(&mut data, &mut answer).ok().filter(|&length| length == 1).map(|_| ())
}

/// Reloads while `strike` does something to a principal at a moment that differs from round to round.
fn reloads_with(rounds: u64, times: &str, strike: impl Fn(&System, &[u32], u64)) {
    let system = System::start("secondaries = 2\nclaim_within = \"1s\"", &format!("{REQUESTS}{times}"));
    let address = system.address();
    let watchdog = system.watchdog.id();
    let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (flag, counter) = (over.clone(), count.clone());
    std::thread::scope(|scope| {
        let clients = scope.spawn(move || {
            together(4, move |_| {
                while !flag.load(Ordering::SeqCst) {
                    if served(address).is_some() {
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        });
        for round in 0..rounds {
            let mut tool = system.tool(&["reload"]);
            let mut tool = tool.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // From the moment that the new one is there, a little later each time.
            let mut found = Vec::new();
            let ended = eventually("a new principal, or none", || {
                found = principals(watchdog);
                let ended = tool.try_wait().unwrap().is_some();
                (ended || found.len() > 1).then_some(ended)
            });
            let wait = now();
            while now().since(wait).as_micros() < u128::from(round) * 600 {}
            if !ended {
                strike(&system, &found, round);
            }
            tool.wait().unwrap();
            let before = count.load(Ordering::SeqCst);
            eventually("somebody is served", || (count.load(Ordering::SeqCst) > before + 4).then_some(()));
            system.all_ready();
        }
        over.store(true, Ordering::SeqCst);
        clients.join().unwrap();
    });
    system.until("clients have gone", |status| status["clients"]["connected"] == 0);
    system.until("no job is open", |status| status["ledger"]["open"] == 0);
    system.books_are_exact();
    eventually("one principal is left", || (principals(watchdog).len() == 1).then_some(()));
    eventually("no zombie is left", || system.zombies().is_empty().then_some(()));
    assert!(connect(address).peer_addr().is_ok());
    pause();
}

#[test]
fn either_principal_may_be_killed_at_any_moment() {
    reloads_with(14, "", |system, principals, round| {
        let victim = principals[usize::try_from(round).unwrap() % principals.len()];
        system.strike(victim, Signal::SIGKILL);
    });
}

#[test]
fn either_principal_may_freeze_at_any_moment() {
    let times = "[watchdog]\nperiod = \"20ms\"\nsuspect_after = \"100ms\"\nkill_after = \"300ms\"\nstart_within = \"3s\"\n";
    reloads_with(8, times, |system, principals, round| {
        let victim = principals[usize::try_from(round).unwrap() % principals.len()];
        system.strike(victim, Signal::SIGSTOP);
    });
}

#[test]
fn both_principals_may_die_at_once() {
    reloads_with(6, "", |system, principals, _| {
        for &victim in principals {
            system.strike(victim, Signal::SIGKILL);
        }
    });
}

#[test]
fn all_ends_when_the_watchdog_dies_during_a_reload() {
    let mut system = System::start("secondaries = 2", REQUESTS);
    for round in 0..4u64 {
        let watchdog = system.watchdog.id();
        let mut tool = system.tool(&["reload"]);
        let mut tool = tool.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("a new principal", || {
            (principals(watchdog).len() > 1 || tool.try_wait().unwrap().is_some()).then_some(())
        });
        let wait = now();
        while now().since(wait).as_micros() < u128::from(round) * 1500 {}
        system.strike(watchdog, Signal::SIGKILL);
        tool.wait().unwrap();
        system.start_again_at_once();
        system.books_are_exact();
    }
}
