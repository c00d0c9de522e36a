//! Tracked jobs of the real system, as the library and the program see them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use osps::client::{
    Client, ClientError, Control, Event, Fate, Input, Limits, Mode, Output, Place, Reason, Trouble,
};

use crate::common::{PATIENCE, REQUESTS, System, now, osps_client, pause, together};

const CLIENTS: usize = 8;
const CALLS_EACH: u32 = 125;
const CALLS: u32 = 8 * CALLS_EACH;
const KILL_EVERY: Duration = Duration::from_millis(200);

fn client(at: &str) -> Client {
    let mut client = Client::new(at).unwrap();
    client.limits = Limits::each(PATIENCE);
    client.policy.within = PATIENCE;
    client
}

/// Has the lines of news collected that the client hears.
fn news_of(client: &mut Client) -> Rc<RefCell<Vec<Fate>>> {
    let heard = Rc::new(RefCell::new(Vec::new()));
    let told = heard.clone();
    client.observe(move |event| {
        if let Event::News(news) = event {
            told.borrow_mut().push(news.fate.clone());
        }
    });
    heard
}

#[test]
fn a_tracked_call_hears_of_its_start_and_of_its_end() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut client = client(&system.address().to_string());
    let heard = news_of(&mut client);
    for (kind, answer) in [("echo", "a\n"), ("requetetype1", "ok message 1 secondary ")] {
        let reply = client.call_tracked(kind, b"a\n").unwrap();
        assert!(reply.bytes.starts_with(answer.as_bytes()), "{reply:?}");
        assert_eq!(heard.take(), [Fate::Began, Fate::Done]);
    }
    assert_eq!(client.call_tracked("echo", b"").unwrap().bytes, b"", "the end tells that this is the answer");
    let ledger = &system.books_are_exact()["ledger"];
    assert_eq!((&ledger["done"], &ledger["rejected"]), (&3.into(), &0.into()), "{ledger}");
}

/// What a tracked call came to.
struct Called {
    tries: u32,
    /// The principal said that it came to a good end. If not, the whole answer had come, and then the
    /// secondary died before it could say so: such a call is never repeated.
    is_done: bool,
}

fn call(client: &mut Client, kind: &str, message: &str) -> Result<Called, ClientError> {
    let mut answer = Vec::new();
    let mut input = Input::bytes(message.as_bytes());
    let called = client.stream(Mode::Tracked, kind, &mut input, &mut Output::new(&mut answer));
    let is_whole = match kind {
        "echo" => answer == message.as_bytes(),
        _ => answer.starts_with(b"ok message 1 ") && answer.ends_with(b"\n"),
    };
    match called {
        Ok(streamed) if is_whole => Ok(Called { tries: streamed.tries, is_done: true }),
        Err(error) if is_whole && error.trouble() == Trouble::Failed(Reason::SecondaryLost) => {
            Ok(Called { tries: 1, is_done: false })
        }
        Ok(_) => panic!("{answer:?} answers {message:?}"),
        Err(error) => Err(error),
    }
}

#[test]
fn a_thousand_tracked_calls_succeed_while_secondaries_are_killed() {
    let system =
        Arc::new(System::start("secondaries = 4\nqueue_within = \"10s\"\nclaim_within = \"1s\"", REQUESTS));
    let at = system.address().to_string();
    let calling = AtomicUsize::new(CLIENTS);
    let its_system = system.clone();
    let counts = together(CLIENTS + 1, move |number| {
        if number == CLIENTS {
            return (strike(&its_system, &calling), 0);
        }
        let mut client = client(&at);
        let heard = news_of(&mut client);
        let kind = if number.is_multiple_of(2) { "echo" } else { "requetetype1" };
        let (mut tries, mut done) = (0, 0);
        for round in 0..CALLS_EACH {
            let called = call(&mut client, kind, &format!("call {round} of {number}\n"));
            // Who strikes must not wait for ever for one that has failed.
            let called = called.inspect_err(|_| calling.store(0, Ordering::SeqCst)).unwrap();
            let heard = heard.take();
            assert_eq!(heard.ends_with(&[Fate::Began, Fate::Done]), called.is_done, "{heard:?}");
            tries += called.tries;
            done += u32::from(called.is_done);
        }
        calling.fetch_sub(1, Ordering::SeqCst);
        (tries, done)
    });
    let strikes = counts[CLIENTS].0;
    let tries: u32 = counts[..CLIENTS].iter().map(|(tries, _)| tries).sum();
    let done: u32 = counts.iter().map(|(_, done)| done).sum();
    println!("{CALLS} calls, {done} done, took {tries} tries while {strikes} secondaries were killed");
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["done"], done);
    assert!(CALLS - done <= strikes, "one call at most for each that was killed");
}

/// Kills one secondary after the other until all clients are done; how many.
fn strike(system: &System, calling: &AtomicUsize) -> u32 {
    let mut strikes = 0;
    while calling.load(Ordering::SeqCst) > 0 {
        let status = system.status();
        let pid = System::server(&status, u64::from(strikes % 4) + 1)["pid"].as_u64();
        if let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) {
            strikes += u32::from(system.strike(pid, Signal::SIGKILL));
        }
        let until = now() + KILL_EVERY;
        while now() < until && calling.load(Ordering::SeqCst) > 0 {
            pause();
        }
    }
    assert!(strikes > 0, "nobody was killed");
    strikes
}

#[test]
fn a_principal_that_is_killed_during_a_tracked_call_costs_a_try() {
    let system = System::start("secondaries = 2", &REQUESTS.replace("20ms", "200ms"));
    let mut client = client(&system.address().to_string());
    let struck = std::cell::Cell::new(false);
    let pid = system.pid(0);
    client.observe({
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        move |event| {
            if matches!(event, Event::News(_)) && !struck.replace(true) {
                nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
            }
        }
    });
    let reply = client.call_tracked("requetetype1", b"a\n").unwrap();
    assert_eq!(reply.tries, 2);
    assert!(reply.bytes.starts_with(b"ok message 1 "), "{reply:?}");
}

#[test]
fn a_job_that_is_not_claimed_is_told_to_have_expired() {
    let system = System::start("secondaries = 1\nclaim_within = \"50ms\"", REQUESTS);
    let at = system.address().to_string().parse().unwrap();
    let mut control = Control::connect(&at, &Limits::each(PATIENCE)).unwrap();
    let [first, second] = ["echo", "requetetype1"].map(|kind| control.track(kind).unwrap().jeton);
    assert_eq!(control.follow(second, &mut |_| ()).unwrap(), Fate::Failed(Reason::Expired));
    assert_eq!(control.follow(first, &mut |_| ()).unwrap(), Fate::Failed(Reason::Expired));
    assert_eq!(control.news(None).unwrap(), None);
}

#[test]
fn the_principal_names_the_host_where_it_is_asked_to() {
    let listen = "listen = [\"127.0.0.1:0\", \"[::1]:0\"]\nannounce = \"localhost\"\nsecondaries = 1";
    let system = System::start(listen, REQUESTS);
    let at = system.address().to_string();
    let mut control = Control::connect(&at.parse().unwrap(), &Limits::each(PATIENCE)).unwrap();
    let Place::Named(named) = control.address("echo").unwrap() else { panic!("no name") };
    assert!(named.starts_with("localhost:"), "{named}");
    assert_eq!(client(&at).call_as(Mode::Addressed, "echo", b"hello").unwrap().bytes, b"hello");
}

#[test]
fn every_listener_serves_every_mode() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("principal").display().to_string();
    let listen = format!("listen = [\"127.0.0.1:0\", \"[::1]:0\", \"unix:{path}\"]\nsecondaries = 1");
    let system = System::start(&listen, REQUESTS);
    let status = system.status();
    let listening = status["listen"].as_array().unwrap();
    assert_eq!(listening.len(), 3, "{status}");
    for at in listening {
        let mut client = client(at.as_str().unwrap());
        for mode in [Mode::Plain, Mode::Tracked, Mode::Addressed] {
            assert_eq!(client.call_as(mode, "echo", b"hello").unwrap().bytes, b"hello", "{at}, {mode:?}");
        }
    }
    let ledger = &system.books_are_exact()["ledger"];
    assert_eq!((&ledger["done"], &ledger["rejected"]), (&9.into(), &0.into()), "{ledger}");
}

#[test]
fn the_program_follows_its_job() {
    let system = System::start("secondaries = 1", REQUESTS);
    let at = system.address().to_string();
    let output = osps_client().args(["--at", &at, "echo", "--follow", "--data", "hello"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"hello"[..]), "{told}");
    let (begin, end) = told.split_once('\n').unwrap();
    assert_eq!(
        begin.strip_prefix("debuttraitement "),
        end.trim_end().strip_prefix("fintraitement "),
        "{told}"
    );
}

#[test]
fn a_stop_that_cuts_a_job_off_is_told() {
    let mut system = System::start("secondaries = 1", &format!("[watchdog]\ngrace = \"100ms\"\n{REQUESTS}"));
    let (input, _feeder) = std::io::pipe().unwrap();
    let mut command = osps_client();
    command.args(["--at", &system.address().to_string(), "echo", "--follow"]).args(["--retries", "0"]);
    let client = command.stdin(input).stderr(std::process::Stdio::piped()).spawn().unwrap();
    system.until("an open job", |status| status["servers"][1]["open"] == 1);
    assert!(system.stop().success());
    let output = client.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{told}");
    assert!(told.contains("errtraitement ") && told.ends_with(": stopping\n"), "{told}");
}
