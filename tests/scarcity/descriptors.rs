//! Descriptors run out, in one process at a time: it goes on with those it has, the others
//! serve, and all is well again, by itself, when there are some.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use osps::os::descendants;
use rustix::process::Resource;

use crate::common::{self, REQUESTS, System, ask, connect, eventually, job, request, say};
use crate::limits::{Scarce, descriptors, leave_descriptors, take};
use crate::{LONG, PATIENT, echo, ends_well, lines, logged, patient, replaced};

#[test]
fn clients_wait_while_the_principal_has_no_descriptor_left() {
    let system = patient(2);
    let address = system.address();
    let mut early = system.connect();
    assert_eq!(ask(&mut early, "nonsense").get(..2), Some("-1"));
    let scarce = leave_descriptors(system.pid(0), 2);
    let mut late: Vec<TcpStream> = (0..6).map(|_| connect(address)).collect();
    logged(&system, "cannot accept");
    assert_eq!(ask(&mut early, "nonsense").get(..2), Some("-1"), "who is in is served");
    for client in &mut late {
        client.write_all(b"nonsense\n").unwrap();
    }
    // Each that leaves makes room for another: all come in, two at a time.
    for mut client in late.drain(..) {
        assert!(common::recv(&mut client).starts_with("-1"));
    }
    let mut late: Vec<TcpStream> = (0..6).map(|_| connect(address)).collect();
    scarce.ends();
    for client in &mut late {
        assert!(ask(client, "nonsense").starts_with("-1"), "all are in at once");
    }
    ends_well(system);
}

#[test]
fn a_principal_that_often_runs_out_of_descriptors_says_so_once() {
    let system = patient(1);
    let address = system.address();
    let scarce = leave_descriptors(system.pid(0), 1);
    let mut inside = connect(address);
    for _ in 0..20 {
        let waits = connect(address);
        assert!(ask(&mut inside, "nonsense").starts_with("-1"));
        inside = waits;
    }
    assert!(ask(&mut inside, "nonsense").starts_with("-1"));
    assert_eq!(lines(&system, "cannot accept"), 1, "{}", system.log());
    scarce.ends();
    ends_well(system);
}

#[test]
fn a_principal_without_descriptors_replaces_its_secondary_when_it_has_some() {
    let system = patient(2);
    let (first, principal) = (system.pid(1), system.pid(0));
    let scarce = leave_descriptors(principal, 2);
    system.signal(first, Signal::SIGKILL);
    logged(&system, "cannot start secondary 1");
    for _ in 0..5 {
        echo(&system);
    }
    scarce.ends();
    replaced(&system, 1, first);
    assert_eq!(system.pid(0), principal);
    ends_well(system);
}

#[test]
fn clients_wait_while_their_secondary_has_no_descriptor_left() {
    let system = patient(1);
    let mut control = system.connect();
    let ip = system.address().ip();
    let mut early = connect(SocketAddr::new(ip, job(&mut control, "echo")));
    assert_eq!(say(&mut early, "x"), "x");
    let scarce = leave_descriptors(system.pid(1), 2);
    let ports: Vec<u16> = (0..6).map(|_| job(&mut control, "echo")).collect();
    let mut late: Vec<TcpStream> = ports.iter().map(|&port| connect(SocketAddr::new(ip, port))).collect();
    logged(&system, "cannot accept");
    assert_eq!(say(&mut early, "x"), "x", "who is in is served");
    // Each that leaves makes room for another.
    for mut client in late.drain(..3) {
        assert_eq!(say(&mut client, "y"), "y");
    }
    scarce.ends();
    for client in &mut late {
        assert_eq!(say(client, "z"), "z", "all are in at once");
    }
    drop((early, late));
    assert_eq!(system.books_are_exact()["ledger"]["done"], 7);
    ends_well(system);
}

#[test]
fn clients_of_every_host_wait_while_there_is_no_descriptor_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("principal");
    let socket = format!("unix:{}", path.display());
    let listen = format!("listen = {:?}\n", ["127.0.0.1:0", &socket, "127.0.0.2:0"]);
    let system = System::start(&format!("{listen}secondaries = 1\n{LONG}"), &format!("{PATIENT}{REQUESTS}"));
    let addresses = system.addresses();
    let mut control = system.connect();
    let ports = [job(&mut control, "echo"), job(&mut control, "echo")];
    let (principal, secondary) = (system.pid(0), system.pid(1));
    let scarce = [leave_descriptors(principal, 0), leave_descriptors(secondary, 0)];
    let mut unix = UnixStream::connect(&path).unwrap();
    unix.set_read_timeout(Some(common::PATIENCE)).unwrap();
    unix.write_all(b"nonsense\n").unwrap();
    let mut tcp: Vec<TcpStream> = addresses.iter().map(|address| connect(*address)).collect();
    let data = addresses.iter().zip(ports).map(|(address, port)| SocketAddr::new(address.ip(), port));
    let mut data: Vec<TcpStream> = data.map(connect).collect();
    eventually("both are short", || (lines(&system, "cannot accept") == 2).then_some(()));
    scarce.into_iter().for_each(Scarce::ends);
    assert!(common::recv(&mut unix).starts_with("-1"));
    for client in &mut tcp {
        assert!(ask(client, "nonsense").starts_with("-1"));
    }
    for client in &mut data {
        assert_eq!(say(client, "x"), "x");
    }
    drop((unix, tcp, data));
    ends_well(system);
}

#[test]
fn who_was_started_in_scarcity_has_plenty_when_it_is_over() {
    let system = patient(1);
    let (first, ip) = (system.pid(1), system.address().ip());
    let scarce = take(system.pid(0), Resource::Nofile, 64);
    system.signal(first, Signal::SIGKILL);
    replaced(&system, 1, first);
    scarce.ends();
    let mut control = system.connect();
    let exchange = |_| {
        let mut data = connect(SocketAddr::new(ip, job(&mut control, "echo")));
        assert_eq!(say(&mut data, "x"), "x");
        data
    };
    let exchanges: Vec<TcpStream> = (0..100).map(exchange).collect();
    drop(exchanges);
    ends_well(system);
}

#[test]
fn a_watchdog_without_descriptors_replaces_the_principal_when_it_has_some() {
    let system = patient(2);
    let (address, principal) = (system.address(), system.pid(0));
    let mut held = request(address, "echo");
    assert_eq!(say(&mut held, "x"), "x");
    let scarce = leave_descriptors(system.watchdog.id(), 0);
    system.signal(principal, Signal::SIGKILL);
    logged(&system, "cannot start principal");
    let mut waits = connect(address);
    waits.write_all(b"echo\n").unwrap();
    assert_eq!(say(&mut held, "y"), "y", "exchanges under way go on");
    scarce.ends();
    replaced(&system, 0, principal);
    let port = common::recv(&mut waits).trim().parse().unwrap();
    assert_eq!(say(&mut connect(SocketAddr::new(address.ip(), port)), "z"), "z");
    drop(held);
    system.all_ready();
    ends_well(system);
}

#[test]
fn a_watchdog_without_descriptors_still_kills_the_frozen() {
    let times = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"200ms\"\nkill_after = \"500ms\"\n";
    let system = System::start("secondaries = 2", &format!("{times}{REQUESTS}"));
    let frozen = system.pid(1);
    let scarce = leave_descriptors(system.watchdog.id(), 0);
    system.signal(frozen, Signal::SIGSTOP);
    logged(&system, "killing secondary 1");
    scarce.ends();
    replaced(&system, 1, frozen);
    ends_well(system);
}

/// Replaces a secondary while the watchdog has so many descriptors left for the new one.
fn replace_unseen(system: &System, left: u64) -> Scarce {
    let (first, principal, watchdog) = (system.pid(1), system.pid(0), system.watchdog.id());
    let before = descriptors(watchdog).len();
    system.signal(principal, Signal::SIGSTOP);
    system.signal(first, Signal::SIGKILL);
    let buried = || (descriptors(watchdog).len() < before).then_some(());
    eventually("the watchdog has forgotten it", buried);
    let scarce = leave_descriptors(watchdog, left);
    system.signal(principal, Signal::SIGCONT);
    eventually("a successor that nobody watches", || {
        let slot = System::server(&system.try_status()?, 1);
        (slot["pid"].is_u64() && slot["pid"] != first).then_some(())
    });
    for _ in 0..4 {
        echo(system);
    }
    scarce
}

fn is_probed(system: &System) {
    system.until("probes", |status| System::server(status, 1)["answered_ms_ago"].is_u64());
}

#[test]
fn a_watchdog_without_descriptors_supervises_a_new_secondary_when_it_has_some() {
    let system = patient(2);
    let scarce = replace_unseen(&system, 0);
    logged(&system, "cannot supervise secondary 1");
    scarce.ends();
    is_probed(&system);
    ends_well(system);
}

#[test]
fn a_watchdog_that_cannot_supervise_says_so_once() {
    let system = patient(2);
    let scarce = replace_unseen(&system, 0);
    logged(&system, "cannot supervise secondary 1");
    for _ in 0..50 {
        echo(&system);
    }
    assert_eq!(lines(&system, "cannot supervise"), 1, "{}", system.log());
    scarce.ends();
    is_probed(&system);
}

#[test]
fn a_watchdog_with_one_descriptor_left_forgets_no_secondary() {
    let system = patient(2);
    let scarce = replace_unseen(&system, 1);
    scarce.ends();
    is_probed(&system);
    ends_well(system);
}

#[test]
fn a_tool_waits_while_the_watchdog_has_no_descriptor_left() {
    let mut system = patient(1);
    let scarce = leave_descriptors(system.watchdog.id(), 0);
    let mut stop = system.tool(&["stop"]).spawn().unwrap();
    logged(&system, "cannot accept a tool");
    assert!(system.try_status().is_some(), "status asks nobody");
    scarce.ends();
    let ended = eventually("the tool's end", || stop.try_wait().unwrap());
    assert!(ended.success());
    assert!(system.ended().success());
}

#[test]
fn a_command_ends_with_all_its_processes_though_its_secondary_has_no_descriptor_left() {
    let script = "x=$(setsid sh -c 'trap \"\" TERM; exec sleep 1000 <&- >&- 2>&-' &); exec sleep 1001";
    let request = format!(
        "[[request]]\nname = \"stays\"\nhandler = \"exec\"\ncommand = [\"sh\", \"-c\", {script:?}]\ntime_limit = \"3s\"\n"
    );
    let system = System::start(&format!("secondaries = 1\n{LONG}"), &format!("{PATIENT}{REQUESTS}{request}"));
    let secondary = system.pid(1);
    let processes = || descendants::below(secondary).len();
    let mut followed = common::worker::Followed::begin(&system, "stays");
    followed.has_begun();
    eventually("the command and its daemon", || {
        let below = descendants::below(secondary);
        let sleeps = below.iter().filter(|(pid, _)| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        (sleeps.count() == 2).then_some(())
    });
    // Clients take all that are free below the highest.
    let open = descriptors(secondary);
    let limit = open.last().unwrap() + 1;
    let scarce = take(secondary, Resource::Nofile, limit);
    let mut control = system.connect();
    let ip = system.address().ip();
    let free = usize::try_from(limit).unwrap() - open.len();
    let clients: Vec<TcpStream> =
        (0..=free).map(|_| connect(SocketAddr::new(ip, job(&mut control, "echo")))).collect();
    logged(&system, "cannot accept");
    assert_eq!(followed.end(), "time limit");
    eventually("nobody is left", || (processes() == 0).then_some(()));
    scarce.ends();
    drop((followed, clients));
    system.books_are_exact();
    ends_well(system);
}
