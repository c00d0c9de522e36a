//! In the steady state a request allocates no memory, neither in the principal nor in a secondary that
//! serves `echo`. This program is test and server in one, for it counts by its own allocator: it is
//! the whole system when its environment says so, and reads the counters of the servers in their memory
//! (`/proc/<pid>/mem`, proc_pid_mem(5)).
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System as Kernel};
use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{REQUESTS, System, ask, connect, say};

/// Says that this program is to be a server.
const IS_SERVER: &str = "OSPS_TEST_COUNTS_ALLOCATIONS";
const WARM_UP: usize = 300;
const COUNTED: usize = 400;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything on to the usual allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: what is promised to us is promised to it.
        unsafe { Kernel.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { Kernel.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { Kernel.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    if std::env::var_os(IS_SERVER).is_some() {
        return osps::Server::new().run();
    }
    if std::env::args().any(|argument| argument == "--list") {
        println!("a_request_allocates_nothing: test");
        return ExitCode::SUCCESS;
    }
    println!("\nrunning 1 test");
    // Records of jobs cost none either.
    ["", "access_log = true"].into_iter().for_each(a_request_allocates_nothing);
    println!("test a_request_allocates_nothing ... ok");
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

fn a_request_allocates_nothing(keys: &str) {
    // Nobody is probed meanwhile, however long it takes: that is not part of a request.
    let times = "[watchdog]\nperiod = \"100days\"\nsuspect_after = \"200days\"\nkill_after = \"300days\"\n";
    let system =
        System::start_by(&format!("secondaries = 2\n{keys}"), &format!("{REQUESTS}{times}"), |command| {
            let mut server = Command::new(std::env::current_exe().unwrap());
            let config = command.get_args().last().map(Path::new).unwrap();
            let log = File::options().append(true).open(config.with_file_name("stderr")).unwrap();
            server.args(command.get_args()).env(IS_SERVER, "1").stderr(log);
            server
        });
    system.all_ready();
    let servers = &system.pids()[1..];
    let mut controls: Vec<TcpStream> = (0..4).map(|_| connect(system.address())).collect();
    // Room for more at once than will be there: whether two meet is a matter of moments.
    for _ in 0..4 {
        crowd(&mut controls[0], 32);
    }
    work(&mut controls, WARM_UP);
    let before: Vec<u64> = servers.iter().map(|&pid| allocations(pid)).collect();
    assert!(before.iter().all(|&count| count > 0), "the counters are there: {before:?}");
    work(&mut controls, COUNTED);
    // One more round trip for each, so that all have settled what they had to do.
    work(&mut controls, 8);
    let after: Vec<u64> = servers.iter().map(|&pid| allocations(pid)).collect();
    assert_eq!(after, before, "principal, then secondaries, in {COUNTED} requests, with \"{keys}\"");
    let records = system.log().matches("access job=").count();
    assert_eq!(records > COUNTED, !keys.is_empty(), "{records} records");
    system.books_are_exact();
}

/// So many exchanges at the same time.
fn crowd(control: &mut TcpStream, exchanges: usize) {
    let host = control.peer_addr().unwrap().ip();
    let ports: Vec<u16> = (0..exchanges).map(|_| ask(control, "echo").parse().unwrap()).collect();
    let mut all: Vec<TcpStream> = ports.iter().map(|&port| connect(SocketAddr::new(host, port))).collect();
    for data in &mut all {
        assert_eq!(say(data, "what comes goes"), "what comes goes");
    }
}

/// So many requests, one after another, over control connections that are kept.
fn work(controls: &mut [TcpStream], requests: usize) {
    for number in 0..requests {
        let control = &mut controls[number % 4];
        let port = ask(control, "echo").parse().unwrap();
        let mut data = connect(SocketAddr::new(control.peer_addr().unwrap().ip(), port));
        assert_eq!(say(&mut data, "what comes goes"), "what comes goes");
        data.flush().unwrap();
    }
}

/// The counter of another process of this program.
fn allocations(pid: u32) -> u64 {
    let place = std::ptr::from_ref(&ALLOCATIONS).addr() as u64 - base("self");
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut count = [0; 8];
    memory.read_exact_at(&mut count, base(&pid.to_string()) + place).unwrap();
    u64::from_ne_bytes(count)
}

/// Where a process has this program in its memory: the first line of `/proc/<pid>/maps`.
fn base(pid: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap()
}
