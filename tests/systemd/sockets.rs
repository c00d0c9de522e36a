//! Sockets that are passed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::common::{PATIENCE, System, connect, job, read_to_end, request, say};
use crate::{Launch, Manager, fails, rewrite, runs};

/// Nothing is said of `listen`: what is passed is listened on.
const SILENT: &str = "# listen is left out\nsecondaries = 2";

fn tcp() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn unix() -> (tempfile::TempDir, UnixListener, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("principal");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, listener, path)
}

fn pass<'a>(sockets: &'a [&'a dyn AsFd]) -> Launch<'a> {
    Launch { sockets, ..Launch::default() }
}

/// Asks for a job on a control connection, and does it.
fn echoes_for(mut control: impl Read + Write, data: SocketAddr) {
    let port = job(&mut control, "echo");
    assert_eq!(say(&mut connect(SocketAddr::new(data.ip(), port)), "x"), "x");
}

fn connect_unix(path: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The sockets that a process has, by their inodes.
fn sockets_of(pid: u32) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter_map(|link| link.to_str().map(str::to_owned)).collect()
}

fn inode(socket: &dyn AsFd) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd())).unwrap();
    link.to_str().unwrap().to_owned()
}

fn has_successor(system: &System, slot: u64) {
    let before = system.pid(slot);
    system.signal(before, Signal::SIGKILL);
    system.until("a successor", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"] != before
    });
    system.all_ready();
}

#[test]
fn what_is_passed_is_listened_on_through_deaths_and_reloads_and_is_left_at_the_end() {
    let (tcp, address) = tcp();
    let (_dir, unix, path) = unix();
    let mut system = pass(&[&unix, &tcp]).start(SILENT);
    system.all_ready();
    let serves = || {
        let listen = [format!("unix:{}", path.display()), address.to_string()];
        assert_eq!(system.status()["listen"], serde_json::json!(listen));
        echoes_for(connect_unix(&path), address);
        assert_eq!(say(&mut request(address, "echo"), "x"), "x");
    };
    serves();
    has_successor(&system, 1);
    has_successor(&system, 0);
    serves();
    let mut kept = connect_unix(&path);
    runs(&system, &["reload"]);
    serves();
    runs(&system, &["scale", "1"]);
    serves();
    echoes_for(&mut kept, address);
    assert_eq!(system.stop().code(), Some(0));
    assert!(path.exists(), "it is the manager's");
    // Who comes now waits in the backlog, and is served by the next.
    let waits = TcpStream::connect(address).unwrap();
    let waits_too = connect_unix(&path);
    let next = pass(&[&unix, &tcp]).start(SILENT);
    next.all_ready();
    waits.set_read_timeout(Some(PATIENCE)).unwrap();
    echoes_for(waits, address);
    echoes_for(waits_too, address);
}

#[test]
fn those_of_listen_that_are_not_passed_are_bound_as_ever() {
    let (tcp, address) = tcp();
    let (_dir, unix, path) = unix();
    let own = path.with_file_name("own");
    let listen = format!("listen = [\"unix:{}\", \"{address}\", \"unix:{}\"]", own.display(), path.display());
    let mut system = pass(&[&tcp, &unix]).start(&format!("secondaries = 1\n{listen}"));
    system.all_ready();
    for path in [&own, &path] {
        echoes_for(connect_unix(path), address);
    }
    // A reload may take away what is its own, and not what was passed.
    rewrite(&system, &format!("\"unix:{}\", ", own.display()), "");
    runs(&system, &["reload"]);
    assert!(!own.exists());
    rewrite(&system, &format!(", \"unix:{}\"", path.display()), "");
    let why = fails(&system, &["reload"]);
    assert!(why.contains("nothing was changed") && why.contains(path.to_str().unwrap()), "{why}");
    echoes_for(connect_unix(&path), address);
    assert_eq!(system.stop().code(), Some(0));
    assert!(path.exists());
}

#[test]
fn one_that_is_not_in_listen_is_refused_by_its_name() {
    let (tcp, address) = tcp();
    let (code, log) = pass(&[&tcp]).fails("listen = [\"127.0.0.1:0\", \"127.0.0.2:0\"]");
    assert_eq!(code, Some(78), "{log}");
    for word in ["listen = [\"127.0.0.1:0\", \"127.0.0.2:0\"]", &format!("\"{address}\""), "leave listen out"]
    {
        assert!(log.contains(word), "{log}");
    }
    // Secondaries need a host.
    let (_dir, unix, path) = unix();
    let (code, log) = pass(&[&unix]).fails(SILENT);
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains(path.to_str().unwrap()) && log.contains("a TCP address is wanted as well"), "{log}");
}

#[test]
fn what_cannot_be_listened_on_is_refused() {
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = datagrams.local_addr().unwrap();
    let (tcp, _) = tcp();
    let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let (_dir, unix, _) = unix();
    let again = unix.try_clone().unwrap();
    for (sockets, variables, words) in [
        (
            &[&tcp as &dyn AsFd, &datagrams][..],
            &[][..],
            &["descriptor 4 (\"dns\")", "datagram", &address.to_string()][..],
        ),
        (&[&connected], &[], &["descriptor 3 (\"web\")", "does not listen"]),
        (&[&file], &[], &["descriptor 3 (\"web\")", "is no socket"]),
        (&[&tcp], &[("LISTEN_FDS", "3")], &["descriptor 4 (\"dns\")", "cannot be taken"]),
        (&[&tcp], &[("LISTEN_FDS", "4000000000")], &["LISTEN_FDS = \"4000000000\""]),
        (&[&tcp], &[("LISTEN_FDS", "some")], &["LISTEN_FDS = \"some\""]),
        (&[&unix, &again], &[], &["two sockets of unix:/"]),
    ] {
        let launch = Launch { sockets, variables, names: "web:dns", ..Launch::default() };
        let (code, log) = launch.fails(SILENT);
        assert_eq!(code, Some(78), "{log}");
        assert!(words.iter().all(|word| log.contains(word)), "{words:?}: {log}");
    }
}

#[test]
fn what_is_passed_to_another_process_is_left_alone() {
    let (tcp, address) = tcp();
    for pid in ["1", "x"] {
        let system = Launch { pid: Some(pid), ..pass(&[&tcp]) }.start("secondaries = 1");
        system.all_ready();
        assert_ne!(system.address(), address);
    }
    // Without a pid they are for whoever is started.
    let system = Launch { pid: Some(""), ..pass(&[&tcp]) }.start(SILENT);
    system.all_ready();
    assert_eq!(system.address(), address);
}

/// What the observer answers there.
fn is_healthy(place: SocketAddr) {
    let mut http = connect(place);
    http.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answer = read_to_end(&mut http);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn a_socket_for_the_observer_is_known_by_its_name_or_its_address() {
    let (tcp, address) = tcp();
    let (observed, place) = self::tcp();
    let sockets: [&dyn AsFd; 2] = [&tcp, &observed];
    let observe = format!("observe = \"{place}\"");
    for (names, top) in [
        ("osps.socket:observe", SILENT.to_owned()),
        ("osps.socket:observe", format!("{SILENT}\n{observe}")),
        ("", format!("{SILENT}\n{observe}")),
        ("", format!("secondaries = 2\nlisten = \"{address}\"\n{observe}")),
    ] {
        let mut system = Launch { names, ..pass(&sockets) }.start(&top);
        system.all_ready();
        is_healthy(place);
        assert_eq!(system.addresses(), [address]);
        // Where the file told which is which, a reload without that still knows.
        if top.contains(&observe) {
            rewrite(&system, &observe, "");
        }
        runs(&system, &["reload"]);
        is_healthy(place);
        assert_eq!(say(&mut request(address, "echo"), "x"), "x");
        assert!(sockets_of(system.pids()[0]).contains(&inode(&observed)));
        assert!(!sockets_of(system.pid(0)).contains(&inode(&observed)));
        assert_eq!(system.stop().code(), Some(0));
    }
    let top = format!("{SILENT}\nobserve = \"127.0.0.1:0\"");
    let (code, log) = Launch { names: "x:observe", ..pass(&sockets) }.fails(&top);
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("observe = [\"127.0.0.1:0\"]") && log.contains(&place.to_string()), "{log}");
}

#[test]
fn each_process_holds_of_what_was_passed_what_it_should() {
    let (tcp, _) = tcp();
    let (_dir, unix, _) = unix();
    let system = pass(&[&tcp, &unix]).start(SILENT);
    system.all_ready();
    let passed = BTreeSet::from([inode(&tcp), inode(&unix)]);
    let pids = system.pids();
    for (place, pid) in pids.iter().enumerate() {
        let held = sockets_of(*pid).intersection(&passed).count();
        assert_eq!(held, if place < 2 { 2 } else { 0 }, "pid {pid}");
    }
    let flags = |number| fs::read_to_string(format!("/proc/{}/fdinfo/{number}", pids[0])).unwrap();
    for number in [3, 4] {
        // O_CLOEXEC and O_NONBLOCK (open(2)), as proc_pid_fdinfo(5) writes them.
        let flags = flags(number);
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & 0o2_004_000, 0o2_004_000, "{flags:o}");
    }
}

#[test]
fn what_the_manager_says_to_the_watchdog_reaches_nobody_else() {
    let manager = Manager::new();
    let (tcp, address) = tcp();
    let command = "[[request]]\nname = \"env\"\nhandler = \"exec\"\ncommand = [\"env\"]\n";
    let variables = [("WATCHDOG_USEC", "60000000"), ("LISTEN_PIDFDID", "7"), ("KEPT", "yes")];
    let sockets: [&dyn AsFd; 1] = [&tcp];
    let launch = Launch { manager: Some(&manager), variables: &variables, names: "web", ..pass(&sockets) };
    let system = launch.start(&format!("{SILENT}\n{command}"));
    system.all_ready();
    manager.until(&["READY=1"]);
    let environ = |pid: u32| fs::read_to_string(format!("/proc/{pid}/environ")).unwrap().replace('\0', "\n");
    let is_said =
        |line: &&str| ["NOTIFY_", "WATCHDOG_", "LISTEN_"].iter().any(|prefix| line.starts_with(prefix));
    let pids = system.pids();
    assert_eq!(environ(pids[0]).lines().filter(is_said).count(), 6, "{}", environ(pids[0]));
    let mut data = request(address, "env");
    let mut environments = vec![String::new()];
    data.read_to_string(&mut environments[0]).unwrap();
    environments.extend(pids[1..].iter().map(|pid| environ(*pid)));
    for environment in environments {
        assert!(environment.contains("KEPT=yes"), "{environment}");
        assert_eq!(environment.lines().find(is_said), None, "{environment}");
    }
}
