//! Servers that are killed, stopped, stuck or told to drain, and what clients see of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{REQUESTS, System, breaks, connect, eventually, job, now, recv, request, say};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Times with which a server that is stopped is soon replaced.
const IMPATIENT: &str = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"150ms\"\nkill_after = \"500ms\"\n";

/// As many secondaries; jobs wait for as long as the test may take.
fn patient(secondaries: u16) -> String {
    format!(
        "secondaries = {secondaries}\nclaim_within = \"10m\"\nqueue_within = \"10m\"\nclient_idle = \"10m\""
    )
}

fn server_pid(status: &Value, slot: u64) -> Option<u64> {
    System::server(status, slot)["pid"].as_u64()
}

/// Waits until somebody else than `before` is ready in a slot.
fn replaced(system: &System, slot: u64, before: u32) -> Value {
    system.until("a replacement that is ready", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"] != before && server["pid"].is_u64()
    })
}

/// One claimed job in each of two slots, in the order of the slots.
fn one_exchange_each(system: &System, control: &mut TcpStream, kind: &str) -> [TcpStream; 2] {
    let status = system.status();
    let ports = [job(control, kind), job(control, kind)];
    let of_slot = |slot| {
        let port = System::server(&status, slot)["ports"][kind].as_u64().unwrap();
        let port = ports.into_iter().find(|&given| u64::from(given) == port);
        let mut data = at_port(system, port.expect("two jobs go to two slots"));
        assert!(!say(&mut data, "first").is_empty());
        data
    };
    [of_slot(1), of_slot(2)]
}

fn at_port(system: &System, port: u16) -> TcpStream {
    connect(SocketAddr::new(system.address().ip(), port))
}

fn port(status: &Value, slot: u64, kind: &str) -> u16 {
    u16::try_from(System::server(status, slot)["ports"][kind].as_u64().unwrap()).unwrap()
}

/// Whether a predecessor with that pid drains.
fn drains(status: &Value, pid: u32) -> bool {
    let servers = status["servers"].as_array().unwrap();
    servers.iter().any(|server| server["state"] == "draining" && server["pid"] == pid)
}

#[test]
fn a_killed_secondary_is_replaced_and_waiting_jobs_are_served() {
    let system = System::start(&patient(2), REQUESTS);
    let mut control = system.connect();
    let [mut first, mut second] = one_exchange_each(&system, &mut control, "echo");
    let waiting = [job(&mut control, "echo"), job(&mut control, "echo")];
    let pid = system.pid(1);
    system.signal(pid, Signal::SIGKILL);
    breaks(&mut first);
    for port in waiting {
        assert_eq!(say(&mut at_port(&system, port), "waited"), "waited");
    }
    assert_eq!(say(&mut second, "untouched"), "untouched");
    drop(second);
    replaced(&system, 1, pid);
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["done"], &status["ledger"]["failed"]), (&3.into(), &1.into()));
    let counts = |slot| {
        let server = System::server(&status, slot);
        (server["restarts"].as_u64(), server["kills"].as_u64(), server["failed"].as_u64())
    };
    assert_eq!(counts(1), (Some(1), Some(0), Some(1)));
    assert_eq!(counts(2), (Some(0), Some(0), Some(0)));
}

#[test]
fn a_frozen_secondary_is_suspected_killed_and_replaced() {
    let system = System::start(&patient(1), &format!("{REQUESTS}\n{IMPATIENT}"));
    let mut control = system.connect();
    let port = job(&mut control, "echo");
    let pid = system.pid(1);
    let kills = System::server(&system.status(), 1)["kills"].as_u64().unwrap();
    system.signal(pid, Signal::SIGSTOP);
    // It stands in the backlog until the replacement accepts it.
    let mut data = at_port(&system, port);
    assert_eq!(say(&mut data, "hello"), "hello");
    drop(data);
    assert!(system.log().contains("does not answer: suspect"));
    let status = replaced(&system, 1, pid);
    assert_eq!(System::server(&status, 1)["kills"], kills + 1);
    assert_eq!(system.books_are_exact()["ledger"]["done"], 1);
}

#[test]
fn a_secondary_that_is_stopped_for_a_while_is_suspect_for_a_while() {
    let times = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"100ms\"\nkill_after = \"10m\"\n";
    let system = System::start(&patient(2), &format!("{REQUESTS}\n{times}"));
    let pid = system.pid(1);
    system.signal(pid, Signal::SIGSTOP);
    let status = system.until("suspect", |status| System::server(status, 1)["state"] == "suspect");
    // It may have been given a job before the principal was told; from now on it is not.
    let mut control = system.connect();
    let second = port(&status, 2, "echo");
    eventually("jobs for the other only", || (job(&mut control, "echo") == second).then_some(()));
    for _ in 0..10 {
        assert_eq!(job(&mut control, "echo"), second);
    }
    system.signal(pid, Signal::SIGCONT);
    let status = system.until("ready again", |status| System::server(status, 1)["state"] == "ready");
    let server = System::server(&status, 1);
    assert_eq!((&server["pid"], &server["restarts"], &server["kills"]), (&pid.into(), &0.into(), &0.into()));
    assert_eq!(say(&mut at_port(&system, second), "x"), "x");
}

#[test]
fn a_handler_that_blocks_for_too_long_costs_its_own_slot_only() {
    let requests =
        REQUESTS.replace("handler = \"block\"\ndelay = \"20ms\"", "handler = \"block\"\ndelay = \"10m\"");
    let system = System::start(&patient(2), &format!("{requests}\n{IMPATIENT}"));
    let mut control = system.connect();
    let exchanges = one_exchange_each(&system, &mut control, "echo");
    let given = job(&mut control, "block");
    let status = system.status();
    let slot = if port(&status, 1, "block") == given { 1 } else { 2 };
    let pid = system.pid(slot);
    let mut block = at_port(&system, given);
    assert_eq!(port(&status, slot, "block"), given);
    std::io::Write::write_all(&mut block, b"go").unwrap();
    breaks(&mut block);
    for (mut data, of_slot) in exchanges.into_iter().zip([1, 2]) {
        if of_slot == slot {
            breaks(&mut data);
        } else {
            assert_eq!(say(&mut data, "untouched"), "untouched");
        }
    }
    let status = replaced(&system, slot, pid);
    assert_eq!(System::server(&status, slot)["kills"], 1);
    assert_eq!(System::server(&status, 3 - slot)["failed"], 0);
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["done"], &status["ledger"]["failed"]), (&1.into(), &2.into()));
    assert_eq!(say(&mut request(system.address(), "echo"), "on"), "on");
}

#[test]
fn a_killed_principal_is_replaced_while_old_secondaries_finish_their_exchanges() {
    let requests =
        format!("{REQUESTS}\n[[request]]\nname = \"slow\"\nhandler = \"delay\"\ndelay = \"300ms\"\n");
    let system = System::start(&patient(2), &format!("{requests}\n[watchdog]\ngrace = \"10m\"\n"));
    let address = system.address();
    let mut control = system.connect();
    let mut running = one_exchange_each(&system, &mut control, "slow");
    let waiting = job(&mut control, "echo");
    for data in &mut running {
        std::io::Write::write_all(data, b"second").unwrap();
    }
    let pids = system.pids();
    system.signal(system.pid(0), Signal::SIGKILL);
    breaks(&mut control);
    for _ in 0..20 {
        assert_eq!(say(&mut request(address, "echo"), "new"), "new");
    }
    assert_eq!(say(&mut at_port(&system, waiting), "waited"), "waited");
    let status = system.until("new servers, and the old ones drain", |status| {
        let fresh = (0..=2).all(|slot| {
            server_pid(status, slot).is_some_and(|pid| !pids.contains(&u32::try_from(pid).unwrap()))
        });
        fresh && drains(status, pids[2]) && drains(status, pids[3])
    });
    assert_eq!(System::server(&status, 0)["restarts"], 1);
    for mut data in running {
        assert!(common::recv(&mut data).starts_with("ok message 2 secondary "));
    }
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["accepted"], &status["ledger"]["done"]), (&23.into(), &23.into()));
    system.until("predecessors have ended", |status| !drains(status, pids[2]) && !drains(status, pids[3]));
}

#[test]
fn a_frozen_principal_is_replaced_and_every_secondary_with_it() {
    let system = System::start(&patient(2), &format!("{REQUESTS}\n{IMPATIENT}"));
    let address = system.address();
    let pids = system.pids();
    system.signal(pids[1], Signal::SIGSTOP);
    assert_eq!(say(&mut request(address, "echo"), "waited"), "waited");
    let status = system.until("all are new", |status| {
        (0..=2).all(|slot| {
            server_pid(status, slot).is_some_and(|pid| !pids.contains(&u32::try_from(pid).unwrap()))
        })
    });
    assert!(System::server(&status, 0)["kills"].as_u64() >= Some(1));
    assert_eq!(system.books_are_exact()["ledger"]["done"], 1);
}

#[test]
fn a_secondary_that_is_told_to_end_drains_beside_its_successor() {
    let system = System::start(&patient(1), &format!("{REQUESTS}\n[watchdog]\ngrace = \"10m\"\n"));
    let before = system.status();
    let mut running = request(system.address(), "requetetype1");
    assert!(say(&mut running, "one").starts_with("ok message 1 "));
    let pid = system.pid(1);
    system.signal(pid, Signal::SIGTERM);
    let status = replaced(&system, 1, pid);
    assert_eq!(System::server(&status, 1)["ports"], System::server(&before, 1)["ports"]);
    assert!(drains(&status, pid), "{status}");
    assert_eq!(say(&mut request(system.address(), "echo"), "new"), "new");
    assert!(say(&mut running, "two").starts_with("ok message 2 "));
    assert!(drains(&system.status(), pid));
    drop(running);
    system.until("the predecessor has ended", |status| !drains(status, pid));
    assert_eq!(system.books_are_exact()["ledger"]["done"], 2);
    let of_predecessor = |name: &String| !name.starts_with('.') && name.matches('.').count() > 1;
    eventually("its files are gone", || (!system.files().iter().any(of_predecessor)).then_some(()));
}

#[test]
fn a_successor_has_files_that_were_made_beforehand() {
    // Nobody but whom we kill dies, however loaded the machine is.
    let times = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"10s\"\nkill_after = \"10m\"\n";
    let mut system = System::start(&patient(2), &format!("{REQUESTS}\n{times}"));
    let inode = |name: &str| std::fs::metadata(system.rundir().join(name)).map(|found| found.ino());
    let spares =
        || ["page", "dwtube", "wdtube", "orders"].map(|kind| [1, 2].map(|set| format!(".spare{set}.{kind}")));
    let all = || spares().map(|sets| sets.map(|name| inode(&name).ok()));
    let beforehand = || {
        eventually("files for two", || Some(all()).filter(|all| all.iter().flatten().all(Option::is_some)))
    };
    let made = beforehand();
    let first = system.pid(1);
    system.signal(first, Signal::SIGKILL);
    replaced(&system, 1, first);
    for (name, made) in ["secondary1.page", "dwtube1", "wdtube1", "orders.1"].iter().zip(made) {
        assert!(made.contains(&inode(name).ok()), "{name}: {made:?}, {:?}", inode(name));
    }
    assert_eq!(say(&mut request(system.address(), "echo"), "new"), "new");
    // Another principal finds what was made, and makes what it has used again.
    let made = beforehand();
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGKILL);
    replaced(&system, 0, principal);
    system.all_ready();
    assert!(made[1].contains(&inode("dwtube1").ok()) && made[1].contains(&inode("dwtube2").ok()));
    beforehand();
    assert!(system.stop().success());
    assert_eq!(system.files(), ["lock"]);
}

#[test]
fn a_watchdog_that_was_stopped_kills_nobody_for_its_own_silence() {
    let system = System::start(&patient(2), &format!("{REQUESTS}\n{IMPATIENT}"));
    let pids = system.pids();
    system.signal(pids[0], Signal::SIGSTOP);
    let answered = |status: &Value, slot| System::server(status, slot)["answered_ms_ago"].as_u64();
    system.until("a silence longer than kill_after", |status| {
        (0..=2).all(|slot| answered(status, slot).is_none_or(|ago| ago > 1000))
    });
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    system.signal(pids[0], Signal::SIGCONT);
    let continued_at = now();
    system.until("all have answered since", |status| {
        let since = u64::try_from(now().since(continued_at).as_millis()).unwrap();
        (0..=2).all(|slot| answered(status, slot).is_some_and(|ago| ago < since))
    });
    assert_eq!(system.pids(), pids);
}

/// Signals that a terminal sends to all: the watchdog alone decides.
const OF_TERMINALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// Doorbells, and signals that nobody here uses.
const FORGED: [Signal; 7] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];

#[test]
fn forged_signals_change_nothing() {
    let system = System::start(&patient(2), REQUESTS);
    let pids = system.pids();
    let sent_at = now();
    for _ in 0..50 {
        for signal in FORGED {
            pids.iter().for_each(|&pid| system.signal(pid, signal));
        }
        for signal in OF_TERMINALS {
            pids[1..].iter().for_each(|&pid| system.signal(pid, signal));
        }
    }
    let status = system.until("all have answered since", |status| {
        let since = u64::try_from(now().since(sent_at).as_millis()).unwrap();
        let answered = |slot| System::server(status, slot)["answered_ms_ago"].as_u64();
        (0..=2).all(|slot| answered(slot).is_some_and(|ago| ago < since))
    });
    assert_eq!(system.pids(), pids);
    for slot in 0..=2 {
        let server = System::server(&status, slot);
        assert_eq!((&server["restarts"], &server["kills"]), (&0.into(), &0.into()), "{status}");
    }
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}

#[test]
fn a_slot_whose_servers_die_young_is_started_again_and_again_beside_the_others() {
    let system = System::start(&patient(2), REQUESTS);
    let address = system.address();
    let mut killed = BTreeSet::new();
    while killed.len() < 8 {
        let status = system.until("the next incarnation", |status| {
            server_pid(status, 1).is_some_and(|pid| !killed.contains(&pid))
        });
        let pid = server_pid(&status, 1).unwrap();
        system.strike(u32::try_from(pid).unwrap(), Signal::SIGKILL);
        killed.insert(pid);
        assert_eq!(say(&mut request(address, "echo"), "on"), "on");
    }
    let status = system.until("the last incarnation", |status| {
        let server = System::server(status, 1);
        server["state"] == "ready" && !killed.contains(&server["pid"].as_u64().unwrap_or_default())
    });
    assert_eq!(System::server(&status, 1)["restarts"], 8);
    assert_eq!(System::server(&status, 2)["restarts"], 0);
    // Who is killed may not have seen yet that its client had all it wanted.
    let ledger = &system.books_are_exact()["ledger"];
    assert_eq!(ledger["done"].as_u64().unwrap() + ledger["failed"].as_u64().unwrap(), 8, "{ledger}");
}

#[test]
fn every_process_is_one_thread() {
    let system = System::start(&patient(2), REQUESTS);
    for kind in ["echo", "requetetype1", "block"] {
        assert!(!say(&mut request(system.address(), kind), "x").is_empty());
    }
    for pid in system.pids() {
        assert_eq!(Path::new(&format!("/proc/{pid}/task")).read_dir().unwrap().count(), 1, "pid {pid}");
    }
}

/// What the descriptors of a process are open on.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = Path::new(&format!("/proc/{pid}/fd")).read_dir().unwrap();
    let targets = entries.filter_map(|entry| entry.unwrap().path().read_link().ok());
    targets.map(|target| target.into_os_string().into_string().unwrap()).collect()
}

/// The IPv4 ports on which a process holds a listening socket (proc_net(5)), sorted.
fn listening_ports(pid: u32) -> Vec<u16> {
    let held = descriptors(pid);
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let mut ports: Vec<u16> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[3] == "0A" && held.contains(&format!("socket:[{}]", fields[9])))
        .map(|fields| u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap())
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn a_secondary_holds_its_own_listeners_and_nobody_elses() {
    let system = System::start(&patient(3), REQUESTS);
    let status = system.status();
    let mut all = vec![system.address().port()];
    for slot in 1..=3 {
        let ports = System::server(&status, slot)["ports"].as_object().unwrap().clone();
        let mut ports: Vec<u16> =
            ports.values().map(|port| u16::try_from(port.as_u64().unwrap()).unwrap()).collect();
        ports.sort_unstable();
        assert_eq!(listening_ports(system.pid(slot)), ports);
        all.extend(ports);
    }
    all.sort_unstable();
    assert_eq!(listening_ports(system.pid(0)), all);
    assert_eq!(listening_ports(system.watchdog.id()), all);
}

#[test]
fn replacing_servers_leaves_no_descriptor_behind() {
    let system = System::start(&patient(4), REQUESTS);
    let counts = || {
        let pids = system.pids();
        (pids.len() == 6).then(|| [pids[0], pids[1], pids[2]].map(|pid| descriptors(pid).len()))
    };
    let before = counts().unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        for slot in 1..=4 {
            let pid = system.pid(slot);
            system.signal(pid, signal);
            replaced(&system, slot, pid);
        }
    }
    eventually("as many descriptors as before", || (counts()? == before).then_some(()));
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGKILL);
    replaced(&system, 0, principal);
    eventually("as many descriptors as before", || (counts()? == before).then_some(()));
}

#[test]
fn many_calls_that_block_for_a_moment_are_no_reason_to_miss_a_probe() {
    const CLIENTS: usize = 100;
    let patient = "[watchdog]\nperiod = \"100ms\"\nsuspect_after = \"900ms\"\nkill_after = \"1s\"\n";
    let system = System::start("secondaries = 1\nclient_idle = \"60s\"", &format!("{REQUESTS}\n{patient}"));
    let pid = system.pid(1);
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| request(system.address(), "block")).collect();
    // All at once: two seconds of work, of which a probe waits for one call at most.
    for client in &mut clients {
        std::io::Write::write_all(client, b"go").unwrap();
    }
    for client in &mut clients {
        assert!(recv(client).starts_with("ok message 1 "));
    }
    assert_eq!(system.pid(1), pid);
    assert_eq!(System::server(&system.status(), 1)["kills"], 0);
}
