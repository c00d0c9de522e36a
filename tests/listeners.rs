//! Several listeners: IPv4 and IPv6, and a Unix socket for the control side. Whoever comes over
//! one of them is served as over any other, also while servers are replaced.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    PATIENCE, REQUESTS, System, ask, breaks, connect, eventually, job, osps_client, recv, request, say,
};
use nix::sys::signal::Signal;

/// Nobody is judged for being silent, and jobs wait as long as a test lets them.
const PATIENT: &str = "claim_within = \"100s\"\nqueue_within = \"100s\"\n\
    [watchdog]\nsuspect_after = \"100s\"\nkill_after = \"200s\"\ngrace = \"100s\"\n";

/// `listen = [...]`
fn listen(addresses: &[&str]) -> String {
    format!("listen = {addresses:?}\n")
}

/// A system that listens on these addresses, `PORT` in them being one port that nobody else has.
fn start_at_one_port(addresses: &[&str], rest: &str) -> (System, u16) {
    eventually("a port that is free on every host", || {
        // On every address: whoever has it on another one of the loopback's is in the way of some.
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let addresses: Vec<String> =
            addresses.iter().map(|address| address.replace("PORT", &port.to_string())).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        start_unless_taken(&format!("{}{rest}", listen(&addresses))).map(|system| (system, port))
    })
}

/// A system, unless somebody has a port that it is to listen on.
fn start_unless_taken(top: &str) -> Option<System> {
    let mut system = System::start_unready(top, REQUESTS);
    let runs = eventually("a start or an end", || match system.watchdog.try_wait().unwrap() {
        Some(_) => Some(false),
        None => system.try_status().map(|_| true),
    });
    if runs {
        system.all_ready();
    } else {
        assert!(system.log().contains("another program has this port"), "{}", system.log());
    }
    runs.then_some(system)
}

/// Whether this machine has IPv6; says so where it has not.
fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        println!("skipped: this machine has no IPv6 loopback");
    }
    has
}

/// A directory for a socket, and the path.
fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("principal");
    (dir, path)
}

/// A system with a Unix socket before `rest` of the addresses.
fn with_socket(path: &Path, rest: &[&str]) -> String {
    let socket = format!("unix:{}", path.display());
    listen(&[&[socket.as_str()], rest].concat())
}

fn connect_unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn echoes(host: IpAddr, port: u16) {
    assert_eq!(say(&mut connect(SocketAddr::new(host, port)), "x"), "x", "at {host}:{port}");
}

/// The data ports of a slot.
fn ports(system: &System, slot: u64) -> Vec<u16> {
    let ports = System::server(&system.status(), slot)["ports"].as_object().unwrap().clone();
    ports.values().map(|port| u16::try_from(port.as_u64().unwrap()).unwrap()).collect()
}

fn replaced(system: &System, slot: u64, before: u32) {
    system.until("a replacement", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"].is_u64() && server["pid"] != before
    });
}

/// Stops, and leaves neither processes nor files but the lock.
fn ends_well(mut system: System) {
    system.books_are_exact();
    // Orphans of a watchdog that was killed are reaped by init, sooner or later.
    eventually("the end of the old", || (!system.has_survivors()).then_some(()));
    assert!(system.stop().success());
    assert_eq!(system.files(), ["lock"]);
    assert!(!system.has_processes());
}

#[test]
fn each_address_serves_and_each_data_port_is_the_same_on_every_host() {
    let top = format!("secondaries = 2\n{}", listen(&["127.0.0.1:0", "127.0.0.2:0"]));
    let system = System::start(&top, REQUESTS);
    let addresses = system.addresses();
    assert_eq!(addresses.len(), 2);
    let out = fs::read_to_string(system.dir.path().join("stdout")).unwrap();
    assert!(out.contains(&format!("listening on {}, {}", addresses[0], addresses[1])), "{out}");
    for address in &addresses {
        assert_eq!(say(&mut request(*address, "echo"), "x"), "x");
        let mut control = connect(*address);
        for other in &addresses {
            echoes(other.ip(), job(&mut control, "echo"));
        }
    }
    for port in [1, 2].into_iter().flat_map(|slot| ports(&system, slot)) {
        for address in &addresses {
            breaks(&mut connect(SocketAddr::new(address.ip(), port)));
        }
    }
    assert_eq!(system.status()["ledger"]["rejected"], 2 * 2 * 4);
    ends_well(system);
}

#[test]
fn a_data_port_that_is_taken_on_one_host_is_passed_over_on_all() {
    let taken = TcpListener::bind("127.0.0.2:0").unwrap();
    let first = taken.local_addr().unwrap().port();
    let last = first.saturating_add(50);
    let echo = "[[request]]\nname = \"echo\"\nhandler = \"echo\"\n";
    let hosts = listen(&["127.0.0.1:0", "127.0.0.2:0"]);
    let system = System::start(&format!("{hosts}secondaries = 1\ndata_ports = \"{first}-{last}\""), echo);
    let port = ports(&system, 1)[0];
    assert!(first < port && port <= last, "{port} of {first}-{last}");
    for address in system.addresses() {
        assert_eq!(say(&mut request(address, "echo"), "x"), "x");
    }
    let mut none =
        System::start_unready(&format!("{hosts}secondaries = 1\ndata_ports = \"{first}-{first}\""), echo);
    assert_eq!(none.ended().code(), Some(69));
    assert!(none.log().contains("not enough free ports on 127.0.0.1 and 127.0.0.2"), "{}", none.log());
    ends_well(system);
}

#[test]
fn ipv4_and_ipv6_are_served_on_one_port() {
    if !has_ipv6() {
        return;
    }
    for addresses in [["127.0.0.1:PORT", "[::1]:PORT"], ["0.0.0.0:PORT", "[::]:PORT"]] {
        let (system, port) = start_at_one_port(&addresses, "secondaries = 1");
        for host in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(host.parse().unwrap(), port);
            assert_eq!(say(&mut request(address, "echo"), "x"), "x", "{address}");
            let data = ask(&mut connect(address), "adresse echo").parse::<SocketAddr>().unwrap();
            assert_eq!((data.ip(), data.port() > 2222), (address.ip(), true));
            echoes(data.ip(), data.port());
        }
        ends_well(system);
    }
}

#[test]
fn both_loopbacks_are_one_client() {
    if !has_ipv6() {
        return;
    }
    let system = System::start(&listen(&["127.0.0.1:0", "[::1]:0"]), REQUESTS);
    let [v4, v6] = system.addresses()[..] else { panic!("two addresses") };
    echoes(v6.ip(), job(&mut connect(v4), "echo"));
    echoes(v4.ip(), job(&mut connect(v6), "echo"));
    ends_well(system);
}

#[test]
fn an_ipv6_listener_leaves_ipv4_to_others() {
    if !has_ipv6() {
        return;
    }
    eventually("a port that is free on IPv6", || {
        let others = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = others.local_addr().unwrap().port();
        // An IPv4 listener of the same port would be in the way of one for both.
        let system = start_unless_taken(&format!("listen = \"[::]:{port}\"\nsecondaries = 1"))?;
        let mut client = connect(others.local_addr().unwrap());
        others.accept().unwrap().0.write_all(b"others").unwrap();
        assert_eq!(recv(&mut client), "others");
        assert_eq!(say(&mut request(SocketAddr::new("::1".parse().unwrap(), port), "echo"), "x"), "x");
        ends_well(system);
        Some(())
    });
}

#[test]
fn a_client_of_the_unix_socket_is_served_over_tcp() {
    let (_dir, path) = socket_path();
    let system = System::start(&with_socket(&path, &["0.0.0.0:0"]), REQUESTS);
    assert_eq!(system.status()["listen"][0], format!("unix:{}", path.display()));
    let mut control = connect_unix(&path);
    echoes("127.0.0.1".parse().unwrap(), job(&mut control, "echo"));
    let address = ask(&mut control, "adresse echo");
    assert_eq!(say(&mut connect(address.parse().unwrap()), "x"), "x");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    // As any other client: bare, tracked, half-closed, refused.
    let mut bare = connect_unix(&path);
    bare.write_all(b"echo").unwrap();
    bare.shutdown(Shutdown::Write).unwrap();
    echoes("127.0.0.1".parse().unwrap(), recv(&mut bare).parse().unwrap());
    assert_eq!(recv(&mut bare), "");
    assert!(ask(&mut control, "nonsense").starts_with("-1 unknown request type"));
    let tracked = ask(&mut control, "suivi echo");
    let (port, jeton) = tracked.split_once(' ').unwrap();
    let mut data = connect(SocketAddr::new("127.0.0.1".parse().unwrap(), port.parse().unwrap()));
    assert_eq!(say(&mut data, &format!("jeton {jeton}\nx")), "x");
    assert_eq!(recv(&mut control), format!("debuttraitement {jeton}\n"));
    drop(data);
    assert_eq!(recv(&mut control), format!("fintraitement {jeton}\n"));
    ends_well(system);
    assert!(!path.exists());
}

#[test]
fn where_ipv6_is_listened_on_first_a_unix_client_is_sent_there() {
    if !has_ipv6() {
        return;
    }
    for (first, host) in [("[::]:0", "[::1]:"), ("[::1]:0", "[::1]:"), ("127.0.0.2:0", "127.0.0.2:")] {
        let (_dir, path) = socket_path();
        let system = System::start(&with_socket(&path, &[first, "127.0.0.1:0"]), REQUESTS);
        let address = ask(&mut connect_unix(&path), "adresse echo");
        assert!(address.starts_with(host), "{first}: {address}");
        assert_eq!(say(&mut connect(address.parse().unwrap()), "x"), "x");
        ends_well(system);
    }
}

#[test]
fn what_is_announced_is_told_to_everybody() {
    for (announce, host) in [("work.example.org", "work.example.org:"), ("2001:db8::1", "[2001:db8::1]:")] {
        let (_dir, path) = socket_path();
        let top = format!("announce = {announce:?}\n{}", with_socket(&path, &["127.0.0.1:0"]));
        let system = System::start(&top, REQUESTS);
        let (mut tcp, mut unix) = (system.connect(), connect_unix(&path));
        for answer in [ask(&mut tcp, "adresse echo"), ask(&mut unix, "adresse echo")] {
            let port = answer.strip_prefix(host).unwrap_or_else(|| panic!("{answer}")).parse().unwrap();
            echoes(system.address().ip(), port);
        }
        echoes(system.address().ip(), job(&mut tcp, "echo"));
        ends_well(system);
    }
}

#[test]
fn a_socket_file_of_a_dead_server_is_no_hindrance() {
    let (_dir, path) = socket_path();
    drop(UnixListener::bind(&path).unwrap());
    let mut system = System::start(&with_socket(&path, &["127.0.0.1:0"]), REQUESTS);
    for _ in 0..3 {
        // The principal cannot close its listener: the next start must end it.
        system.signal(system.pid(0), Signal::SIGSTOP);
        system.signal(system.watchdog.id(), Signal::SIGKILL);
        system.start_again_at_once();
        echoes(system.address().ip(), job(&mut connect_unix(&path), "echo"));
    }
    ends_well(system);
    assert!(!path.exists());
}

#[test]
fn a_socket_may_stand_in_the_runtime_directory() {
    let top = with_socket(Path::new("RUNDIR/principal"), &["127.0.0.1:0"]);
    let mut system = System::start_by(&top, REQUESTS, |command| {
        let file = PathBuf::from(command.get_args().last().unwrap());
        let run = file.with_file_name("run");
        let toml = fs::read_to_string(&file).unwrap();
        fs::write(&file, toml.replace("RUNDIR", run.to_str().unwrap())).unwrap();
        command
    });
    system.all_ready();
    let path = system.rundir().join("principal");
    echoes(system.address().ip(), job(&mut connect_unix(&path), "echo"));
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    system.start_again_at_once();
    echoes(system.address().ip(), job(&mut connect_unix(&path), "echo"));
    ends_well(system);
}

#[test]
fn a_socket_that_is_in_use_is_left_to_its_server() {
    let (_dir, path) = socket_path();
    let top = with_socket(&path, &["127.0.0.1:0"]);
    let system = System::start(&top, REQUESTS);
    let mut second = System::start_unready(&top, REQUESTS);
    assert_eq!(second.ended().code(), Some(69));
    assert!(second.log().contains(&format!("unix:{}: Address already in use", path.display())));
    echoes(system.address().ip(), job(&mut connect_unix(&path), "echo"));
    ends_well(system);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let (_dir, path) = socket_path();
    fs::write(&path, "mine").unwrap();
    let mut system = System::start_unready(&with_socket(&path, &["127.0.0.1:0"]), REQUESTS);
    assert_eq!(system.ended().code(), Some(73));
    let said = system.log();
    assert!(said.contains(&path.display().to_string()) && said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_start_that_fails_leaves_no_socket_file() {
    let (_dir, path) = socket_path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut system = System::start_unready(&with_socket(&path, &[address.as_str()]), REQUESTS);
    assert_eq!(system.ended().code(), Some(69));
    assert!(system.log().contains(&address), "{}", system.log());
    assert!(!path.exists());
    assert_eq!(system.files(), ["lock"]);
}

#[test]
fn a_killed_secondary_is_replaced_on_every_host() {
    let top = format!("secondaries = 1\n{}", listen(&["127.0.0.1:0", "127.0.0.2:0"]));
    let system = System::start(&top, &format!("{PATIENT}{REQUESTS}"));
    let addresses = system.addresses();
    for _ in 0..3 {
        let mut control = connect(addresses[0]);
        let jobs = [job(&mut control, "echo"), job(&mut control, "echo")];
        let first = system.pid(1);
        system.signal(first, Signal::SIGSTOP);
        let mut waiting: Vec<TcpStream> = addresses
            .iter()
            .zip(jobs)
            .map(|(address, port)| connect(SocketAddr::new(address.ip(), port)))
            .collect();
        system.signal(first, Signal::SIGKILL);
        for client in &mut waiting {
            assert_eq!(say(client, "x"), "x", "a job that was given before");
        }
        replaced(&system, 1, first);
        for address in &addresses {
            assert_eq!(say(&mut request(*address, "echo"), "y"), "y");
        }
    }
    ends_well(system);
}

#[test]
fn a_killed_principal_is_replaced_on_every_listener() {
    let (_dir, path) = socket_path();
    let top = with_socket(&path, &["127.0.0.1:0", "127.0.0.2:0"]);
    let system = System::start(&top, &format!("{PATIENT}{REQUESTS}"));
    let addresses = system.addresses();
    for _ in 0..3 {
        let principal = system.pid(0);
        system.signal(principal, Signal::SIGSTOP);
        let mut unix = connect_unix(&path);
        let mut tcp: Vec<TcpStream> = addresses.iter().map(|address| connect(*address)).collect();
        system.signal(principal, Signal::SIGKILL);
        echoes(addresses[0].ip(), job(&mut unix, "echo"));
        for (client, address) in tcp.iter_mut().zip(&addresses) {
            echoes(address.ip(), job(client, "echo"));
        }
        replaced(&system, 0, principal);
    }
    system.all_ready();
    ends_well(system);
    assert!(!path.exists());
}

#[test]
fn a_secondary_that_drains_leaves_every_host_to_its_successor() {
    let top = format!("secondaries = 1\n{}", listen(&["127.0.0.1:0", "127.0.0.2:0"]));
    let system = System::start(&top, &format!("{PATIENT}{REQUESTS}"));
    let addresses = system.addresses();
    let mut held: Vec<TcpStream> = addresses.iter().map(|address| request(*address, "echo")).collect();
    for client in &mut held {
        assert_eq!(say(client, "x"), "x");
    }
    let first = system.pid(1);
    system.signal(first, Signal::SIGTERM);
    replaced(&system, 1, first);
    for address in &addresses {
        for _ in 0..20 {
            assert_eq!(say(&mut request(*address, "echo"), "y"), "y");
        }
    }
    system.until("that the successor has served all", |status| System::server(status, 1)["done"] == 40);
    for client in &mut held {
        assert_eq!(say(client, "z"), "z", "and the old one finishes");
    }
    drop(held);
    ends_well(system);
}

#[test]
fn when_the_watchdog_dies_nobody_listens_anywhere() {
    let (_dir, path) = socket_path();
    let top = format!("secondaries = 1\n{}", with_socket(&path, &["127.0.0.1:0", "127.0.0.2:0"]));
    let mut system = System::start(&top, &format!("{PATIENT}{REQUESTS}"));
    let (addresses, data) = (system.addresses(), ports(&system, 1));
    let mut held = request(addresses[1], "echo");
    assert_eq!(say(&mut held, "x"), "x");
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    system.ended();
    let is_refused = |address| TcpStream::connect(address).is_err();
    for address in &addresses {
        eventually("no control listener", || is_refused(*address).then_some(()));
        for port in &data {
            let address = SocketAddr::new(address.ip(), *port);
            eventually("no data listener", || is_refused(address).then_some(()));
        }
    }
    eventually("no Unix listener", || UnixStream::connect(&path).is_err().then_some(()));
    assert_eq!(say(&mut held, "y"), "y", "what is under way goes on");
}

#[test]
fn a_flood_at_one_listener_does_not_keep_out_who_comes_to_another() {
    let (_dir, path) = socket_path();
    let socket = format!("unix:{}", path.display());
    let top = format!("max_clients = 2\nsecondaries = 1\n{}", listen(&["127.0.0.1:0", &socket]));
    // Descriptors for few more than are heard: most of the flood stays in the backlog.
    let system = System::start_by(&top, REQUESTS, |command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 80; exec \"$@\" >>stdout 2>>stderr", "sh"]).arg(command.get_program());
        shell.args(command.get_args());
        shell
    });
    system.all_ready();
    let address = system.address();
    let flood = |_| {
        let mut client = connect(address);
        client.write_all(b"nonsense\n").unwrap();
        client
    };
    let mut flood: VecDeque<TcpStream> = (0..60).map(flood).collect();
    let mut unix = connect_unix(&path);
    unix.write_all(b"nonsense\n").unwrap();
    while flood.len() > 5 {
        assert!(recv(&mut flood.pop_front().unwrap()).starts_with("-1 unknown"));
    }
    assert!(recv(&mut unix).starts_with("-1 unknown"), "while some of the flood are not heard yet");
    drop((flood, unix));
    ends_well(system);
}

#[test]
fn a_unix_client_that_never_reads_its_answers_is_let_go() {
    let (_dir, path) = socket_path();
    let top = format!("client_idle = \"2s\"\n{}", with_socket(&path, &["127.0.0.1:0"]));
    let system = System::start(&top, REQUESTS);
    let mut client = connect_unix(&path);
    client.set_nonblocking(true).unwrap();
    let broken = || loop {
        match client.write(&b"nonsense\n".repeat(1000)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(_) => return Some(()),
        }
    };
    eventually("the end of the connection", broken);
    system.until("that nobody is connected", |status| status["clients"]["connected"] == 0);
    echoes(system.address().ip(), job(&mut connect_unix(&path), "echo"));
    ends_well(system);
}

#[test]
fn the_reference_client_takes_the_first_tcp_address() {
    let (_dir, path) = socket_path();
    let socket = format!("unix:{}", path.display());
    let (system, _) = start_at_one_port(&[&socket, "0.0.0.0:PORT"], "");
    let mut client = osps_client();
    client.args(["echo", "--data", "hello", "--config"]).arg(system.dir.path().join("osps.toml"));
    let output = client.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"hello");
    ends_well(system);
}
