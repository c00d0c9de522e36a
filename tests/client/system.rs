//! The library and the program against the real system.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use osps::client::{Client, ClientError, Control, Limits, Policy, Step, Trouble};

use crate::common::{PATIENCE, REQUESTS, System, eventually, now, osps_client, pause, together};

fn client(system: &System) -> Client {
    let mut client = Client::new(&system.address().to_string()).unwrap();
    client.limits = Limits::each(PATIENCE);
    client
}

#[test]
fn a_call_is_all_that_a_program_needs() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut client = client(&system);
    assert_eq!(client.call("echo", b"hello").unwrap().bytes, b"hello");
    let delayed = client.call("requetetype1", b"a\nb\n").unwrap().bytes;
    assert!(delayed.starts_with(b"ok message 1 secondary "), "{delayed:?}");
    assert_eq!(client.call("echo", b"").unwrap().bytes, b"");
    let ledger = &system.books_are_exact()["ledger"];
    assert_eq!((&ledger["done"], &ledger["rejected"]), (&3.into(), &0.into()), "{ledger}");
}

#[test]
fn the_steps_can_be_taken_one_by_one() {
    let system = System::start("secondaries = 1", REQUESTS);
    let at = system.address().to_string().parse().unwrap();
    let mut control = Control::connect(&at, &Limits::each(PATIENCE)).unwrap();
    let mut stream = control.open("requetetype1").unwrap().into_stream();
    let mut answer = [0; 64];
    for number in 1..=3 {
        stream.write_all(b"hello\n").unwrap();
        let length = stream.read(&mut answer).unwrap();
        assert_eq!(answer[..length], *format!("ok message {number} secondary 1\n").as_bytes());
    }
}

#[test]
fn the_servers_own_refusals_are_understood() {
    let system = System::start("secondaries = 1\nmax_jobs = 1\nqueue_within = \"10ms\"", REQUESTS);
    let mut client = client(&system);
    client.policy = Policy { first_pause: Duration::from_millis(1), ..Policy::default() };
    let mut trouble = |kind: &str| {
        let error = client.call(kind, b"x").unwrap_err();
        let tried = matches!(error, ClientError::Tried { .. });
        assert_eq!(error.step(), Step::Request, "{error}");
        (error.trouble(), tried)
    };
    use osps::client::Refusal::{Busy, Other, Unknown};
    assert_eq!(trouble("nosuch"), (Trouble::Refused(Unknown), false));
    assert_eq!(trouble("é"), (Trouble::Refused(Unknown), false));
    assert_eq!(trouble(&"x".repeat(300)), (Trouble::Refused(Other), false));
    let _only = crate::common::request(system.address(), "echo");
    assert_eq!(trouble("echo"), (Trouble::Refused(Busy), true));
}

#[test]
fn an_address_that_has_its_share_of_connections_is_asked_to_wait() {
    let system = System::start("secondaries = 1\nmax_clients_per_address = 1", REQUESTS);
    let mut second = client(&system);
    let first = system.connect();
    system.until("the first connection", |status| status["clients"]["connected"] == 1);
    second.policy = Policy::once();
    let error = second.call("echo", b"x").unwrap_err();
    assert_eq!(error.trouble(), Trouble::Refused(osps::client::Refusal::Busy), "{error}");
    drop(first);
    second.policy = Policy { tries: u32::MAX, within: PATIENCE, ..Policy::default() };
    assert_eq!(second.call("echo", b"x").unwrap().bytes, b"x");
}

#[test]
fn while_servers_are_killed_every_call_succeeds() {
    let system = System::start("secondaries = 3", REQUESTS);
    let at = system.address().to_string();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_over = over.clone();
    let callers = move |number: usize| {
        let mut client = Client::new(&at).unwrap();
        client.limits = Limits::each(PATIENCE);
        client.policy.within = PATIENCE;
        let kind = if number.is_multiple_of(2) { "echo" } else { "requetetype1" };
        let mut tries = 0;
        for call in 0..40 {
            let reply = client.call(kind, format!("{call}\n").as_bytes()).unwrap();
            assert!(reply.bytes.ends_with(b"\n"), "{reply:?}");
            tries += reply.tries;
        }
        tries
    };
    let tries: u32 = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u64.. {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                // Each slot in its turn, the principal's last.
                let slot = (round + 1) % 4;
                if let Some(status) = system.try_status()
                    && let Some(pid) = System::server(&status, slot)["pid"].as_u64()
                {
                    system.strike(u32::try_from(pid).unwrap(), Signal::SIGKILL);
                }
                let next = now() + Duration::from_millis(100);
                while now() < next {
                    pause();
                }
            }
        });
        let tries = together(8, callers).into_iter().sum();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        tries
    });
    assert!(tries >= 8 * 40);
    system.all_ready();
    system.books_are_exact();
}

/// What stands at a place of an endless stream that does not repeat itself soon.
fn fill(buffer: &mut [u8], from: u64) {
    for (chunk, at) in buffer.chunks_mut(8).zip(from / 8..) {
        let word = at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

const CHUNK: usize = 1 << 16;

/// Sends so much through `osps-client echo`, compares what comes back while it comes, and returns
/// how much memory the program had at most, in KiB.
fn echo_is_identical(mebibytes: u64) -> u64 {
    let system = System::start("secondaries = 1", REQUESTS);
    let at = system.address().to_string();
    let mut client = osps_client()
        .args(["--at", &at, "echo", "--timeout", "60s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let length = mebibytes << 20;
    let peak = std::thread::scope(|scope| {
        let feeder = scope.spawn(move || {
            let mut chunk = vec![0; CHUNK];
            for at in (0..length).step_by(CHUNK) {
                fill(&mut chunk, at);
                stdin.write_all(&chunk).unwrap();
            }
            // Its end is not told yet, so that the program is still there to be looked at.
            stdin
        });
        let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
        for at in (0..length).step_by(CHUNK) {
            stdout.read_exact(&mut chunk).unwrap();
            fill(&mut expected, at);
            assert!(chunk == expected, "the {CHUNK} bytes from {at} came back otherwise");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", client.id())).unwrap();
        drop(feeder.join().unwrap());
        assert_eq!(stdout.read(&mut chunk).unwrap(), 0);
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    });
    assert!(eventually("the end of the client", || client.try_wait().unwrap()).success());
    peak
}

#[test]
fn a_long_stream_comes_back_as_it_was_in_constant_memory() {
    let mebibytes = std::env::var("OSPS_STREAM_MIB").map_or(64, |text| text.parse().unwrap());
    let peak = echo_is_identical(mebibytes);
    println!("{mebibytes} MiB went through osps-client, which had {peak} KiB of memory at most");
    assert!(peak < 16 * 1024, "{peak} KiB of memory");
}
