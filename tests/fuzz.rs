//! Garbage in everything that is read from shared memory and FIFOs: it may mislead, but only
//! about the slot that it was written into, and it crashes nobody.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{PATIENCE, REQUESTS, System, connect, recv, say};
use osps::core::job::{End, Job, State, Table, Word};
use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::recycling::Recycling;
use osps::core::service::{Service, Settings as ServiceSettings};
use osps::core::slots::{Action, Settings, Slots};
use osps::os::fifo;
use osps::os::segment::Segment;
use osps::page::books::Books;
use osps::page::jobs::JobTable;
use osps::page::principal::PrincipalPage;
use osps::page::secondary::{Counts, SecondaryPage};
use osps::page::watchdog::{Directory, WatchdogPage};
use osps::page::{Access, HEADER_WORDS};
use osps::wire::order::Order;
use osps::wire::tube::{Command, JobRef};
use proptest::prelude::*;

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CAPACITY: usize = 4;
const SERVICE: ServiceSettings = ServiceSettings {
    grace: Duration::ZERO,
    types: 16,
    open: false,
    recycling: Recycling { max_jobs: 0, max_bytes: 0, seed: 0 },
};

/// A word as somebody might write it who knows nothing, or just enough.
fn any_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
        0..16u64,
        (0..8u64, 0..4u64, any::<bool>(), 0..6u64).prop_map(|(number, holder, tracked, state)| number << 20
            | holder << 4
            | u64::from(tracked) << 3
            | state),
    ]
}

fn segment(path: &Path) -> Segment {
    Segment::map(&OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap()
}

/// Writes these words over a page, from `first` on.
fn scribble(path: &Path, first: usize, words: &[(usize, u64)]) {
    let segment = segment(path);
    for &(index, word) in words {
        segment[first + index % (segment.len() - first)].store(word, Ordering::Relaxed);
    }
}

fn some_words() -> impl Strategy<Value = Vec<(usize, u64)>> {
    prop::collection::vec((any::<usize>(), any_word()), 1..200)
}

fn pages(dir: &Path) {
    let directory = Directory {
        version: "1".to_owned(),
        listen: vec![],
        requests: vec!["echo".to_owned()],
        ports: vec![vec![1]],
        secondaries: 2,
        observe: vec![],
    };
    WatchdogPage::create(&dir.join("watchdog.page"), 2, &directory).unwrap();
    PrincipalPage::create(&dir.join("principal.page"), 2, 2).unwrap();
    SecondaryPage::create(&dir.join("secondary1.page"), 1, Counts::default()).unwrap();
    for slot in ["secondary1.jobs", "secondary2.jobs"] {
        JobTable::create(&dir.join(slot), CAPACITY).unwrap();
    }
}

fn books(dir: &Path) -> Books {
    let page = PrincipalPage::attach(&dir.join("principal.page"), Access::ReadWrite).unwrap();
    Books::attach(page, [&dir.join("secondary1.jobs"), &dir.join("secondary2.jobs")]).unwrap()
}

fn slots(dir: &Path) -> Slots<Books> {
    let settings =
        Settings { max_jobs: 4, claim_within: Duration::from_secs(5), grace: Duration::from_secs(10) };
    let mut slots = Slots::new(books(dir), 2, settings, 1);
    slots.handle_takeover(Moment::from_nanos(1), vec![vec![], vec![]]);
    slots
}

/// What a principal, and its clients, may live through beside garbage in slot 0.
#[derive(Clone, Debug)]
enum Step {
    Scribble(Vec<(usize, u64)>),
    Give,
    Serve(usize, u32, bool),
    Hear(usize, u32, u64, bool),
    LookThrough(usize),
    Die(usize),
    Wait(u32),
    Succeed,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec((any::<usize>(), any_word()), 1..8).prop_map(Step::Scribble),
        Just(Step::Give),
        Just(Step::Give),
        (0..2usize, 0..4u32, any::<bool>()).prop_map(|(slot, entry, done)| Step::Serve(slot, entry, done)),
        (0..2usize, prop_oneof![0..6u32, any::<u32>()], 0..20u64, any::<bool>())
            .prop_map(|(slot, entry, number, debut)| Step::Hear(slot, entry, number, debut)),
        (0..2usize).prop_map(Step::LookThrough),
        (0..2usize).prop_map(Step::Die),
        (0..6000u32).prop_map(Step::Wait),
        Just(Step::Succeed),
    ]
}

/// Lives these steps; whoever is started is ready at once. Returns how the books stand.
fn live(dir: &Path, steps: &[Step]) -> Slots<Books> {
    let mut slots = slots(dir);
    let mut now = Moment::from_nanos(1_000_000);
    for step in steps {
        now = now + Duration::from_millis(1);
        match step {
            Step::Scribble(words) => scribble(&dir.join("secondary1.jobs"), HEADER_WORDS, words),
            Step::Give => {
                let _ = slots.give(Job { kind: 0, client: HOME, given_at: now, jeton: None }, None);
            }
            Step::Serve(slot, entry, done) => serve(dir, *slot, *entry, *done),
            Step::Hear(slot, index, number, true) => {
                slots.handle_debut(*slot, JobRef { index: *index, number: *number });
            }
            Step::Hear(slot, index, number, false) => {
                slots.handle_end(*slot, JobRef { index: *index, number: *number });
            }
            Step::LookThrough(slot) => slots.look_through(*slot),
            Step::Die(slot) => {
                if let Some(incarnation) = slots.current(*slot) {
                    slots.handle_exited(now, *slot, incarnation, false);
                }
            }
            Step::Wait(millis) => now = now + Duration::from_millis(u64::from(*millis)),
            Step::Succeed => {
                // What stands in the table now is all that a successor will ever know.
                slots.look_through(0);
                slots = self::slots(dir);
            }
        }
        slots.handle_timeout(now);
        slots.finish_turn(now);
        while let Some(action) = slots.poll_action() {
            if let Action::Start { slot, incarnation } = action {
                slots.handle_ready(now, slot, incarnation);
            }
        }
    }
    slots
}

/// What an honest secondary does.
fn serve(dir: &Path, slot: usize, entry: u32, done: bool) {
    let path = dir.join(format!("secondary{}.jobs", slot + 1));
    let table = JobTable::attach(&path, Access::ReadWrite).unwrap();
    if let Ok(word @ Word { state: State::Waiting, .. }) = table.state(entry) {
        let claimed = word.claimed_by(1);
        let end = if done { State::Done } else { State::Failed };
        let _ = table.swap(entry, word, claimed) && table.swap(entry, claimed, claimed.in_state(end));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_line_is_a_command_or_refused(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (Command::parse(&line), Order::parse(&line));
    }

    #[test]
    fn pages_full_of_garbage_mislead_but_crash_nobody(words in some_words(), header: bool) {
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path());
        let path = |name: &str| dir.path().join(name);
        let watchdog = WatchdogPage::attach(&path("watchdog.page"), Access::ReadWrite).unwrap();
        let principal = PrincipalPage::attach(&path("principal.page"), Access::ReadWrite).unwrap();
        for name in ["watchdog.page", "principal.page", "secondary1.page", "secondary1.jobs"] {
            scribble(&path(name), if header { 0 } else { HEADER_WORDS }, &words);
        }
        // Attached before, or after.
        for page in [Some(watchdog), WatchdogPage::attach(&path("watchdog.page"), Access::ReadOnly).ok()].iter().flatten() {
            let _ = (page.watched().count(), page.directory(), page.watchdog(), page.is_stopping());
            let _ = (page.kills(Role::Principal, 0), page.kills(Role::Secondary, u16::MAX), page.find(Name::principal(1)));
            let _ = (page.killed().records().count(), page.obituaries().find(Name::secondary(1, 1)));
        }
        for page in [Some(principal), PrincipalPage::attach(&path("principal.page"), Access::ReadOnly).ok()].iter().flatten() {
            let slots = page.slots().min(2);
            let known: Vec<_> = (1..=slots).map(|slot| page.slot(slot)).collect();
            let _ = (known, page.ends(0), page.times(0), page.record(), page.accepted());
            let _ = page.obituaries().records().count();
        }
        if let Ok(page) = SecondaryPage::attach(&path("secondary1.page"), Access::ReadOnly) {
            let _ = (page.record(), page.counts(), page.open());
        }
        if !header {
            let slots = slots(dir.path());
            let _ = slots.dispatch().open();
        }
    }

    #[test]
    fn a_secondary_over_a_table_full_of_garbage_claims_only_what_waits(words in some_words()) {
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path());
        let path = dir.path().join("secondary1.jobs");
        scribble(&path, HEADER_WORDS, &words);
        let table = JobTable::attach(&path, Access::ReadWrite).unwrap();
        let waiting = table.indices().filter(|&entry| table.state(entry).is_ok_and(|word| word.state == State::Waiting));
        let waiting = waiting.count();
        let mut service = Service::new(JobTable::attach(&path, Access::ReadWrite).unwrap(), 1, SERVICE);
        let mut claimed = 0;
        for kind in 0..16 {
            for index in [0, 3, 4, u32::MAX] {
                service.handle_job(JobRef { index, number: words[0].1 });
            }
            while let Some(job) = service.claim_plain(kind, HOME, Moment::from_nanos(1)) {
                claimed += 1;
                service.handle_end(Moment::from_nanos(2), job, End::Done);
            }
        }
        prop_assert!(claimed <= waiting, "{claimed} of {waiting}");
    }

    #[test]
    fn who_scribbles_into_one_table_spoils_no_other_and_no_book(
        mut steps in prop::collection::vec(any_step(), 1..120),
        one_principal: bool,
    ) {
        if one_principal {
            steps.retain(|step| !matches!(step, Step::Succeed));
        }
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path());
        let mut slots = live(dir.path(), &steps);
        slots.look_through(0);
        slots.look_through(1);
        let open = slots.dispatch().open();
        let page = slots.books().page();
        let ends: u64 = (0..2).map(|kind| page.ends(kind)).map(|ends| ends.done + ends.failed + ends.expired).sum();
        // A successor knows only what stands in the table: there a job may be missing, or be one
        // that nobody was given.
        if !steps.iter().any(|step| matches!(step, Step::Succeed)) {
            prop_assert_eq!(page.accepted(), ends + open);
        }
        // What stands in the other table is what was given there and has not ended.
        let table = &slots.books().tables()[1];
        let held = table.indices().filter(|&entry| table.state(entry).unwrap().state != State::Free);
        prop_assert_eq!(u32::try_from(held.count()).unwrap(), slots.dispatch().load(1).open);
    }
}

/// Where a stranger of the same user may write, and what is left alone: his slot is 1.
const OF_SLOT_1: [&str; 5] = ["secondary1.page", "secondary1.jobs", "dwtube1", "wdtube1", "orders.1"];
const OF_ALL: [&str; 8] = [
    "secondary1.page",
    "secondary1.jobs",
    "dwtube1",
    "wdtube1",
    "orders.1",
    "principal.page",
    "watchdog.page",
    "orders.principal",
];
const TIMES: &str = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"200ms\"\nkill_after = \"600ms\"\n";

/// Numbers from a seed (SplitMix64).
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *seed;
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Writes a little garbage somewhere. What was removed meanwhile is passed over.
fn disturb(rundir: &Path, names: &[&str], seed: &mut u64) {
    let pick = |from: u64, below: usize| usize::try_from(from % below as u64).unwrap();
    let path = rundir.join(names[pick(next(seed), names.len())]);
    if path.extension().is_some_and(|extension| extension == "page" || extension == "jobs") {
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
            return;
        };
        let Ok(segment) = Segment::map(&file) else {
            return;
        };
        for _ in 0..8 {
            let word = if next(seed).is_multiple_of(2) { next(seed) } else { next(seed) % 8 };
            segment[pick(next(seed), segment.len())].store(word, Ordering::Relaxed);
        }
    } else if let Ok(mut fifo) = fifo::open_end(&path) {
        let garbage: Vec<u8> = (0..64).flat_map(|_| next(seed).to_le_bytes()).collect();
        let _ = fifo.write_all(&garbage);
    }
}

/// One exchange of `echo` that may fail, as long as nobody refuses the connection.
fn try_echo(address: std::net::SocketAddr) -> bool {
    let mut control = connect(address);
    if control.write_all(b"echo").is_err() {
        return false;
    }
    let mut buffer = [0; 64];
    let Ok(length @ 1..) = common::read_once(&mut control, &mut buffer) else {
        return false;
    };
    let Ok(port) = std::str::from_utf8(&buffer[..length]).unwrap().parse() else {
        return false;
    };
    let mut data = connect(std::net::SocketAddr::new(address.ip(), port));
    data.write_all(b"x").is_ok() && matches!(common::read_once(&mut data, &mut buffer), Ok(1))
}

#[test]
fn garbage_of_one_slot_is_that_slot_s_affair() {
    let mut system = System::start("secondaries = 2\nclaim_within = \"1s\"", &format!("{TIMES}{REQUESTS}"));
    let (principal, other) = (system.pid(0), system.pid(2));
    let mut seed = 1;
    for _ in 0..300 {
        disturb(&system.rundir(), &OF_SLOT_1, &mut seed);
        try_echo(system.address());
    }
    let status = system.until("slot 1 serves again", |status| System::server(status, 1)["state"] == "ready");
    assert_eq!(System::server(&status, 0)["pid"], principal, "{status}");
    assert_eq!(System::server(&status, 2)["pid"], other, "{status}");
    assert_eq!(System::server(&status, 2)["failed"], 0, "{status}");
    let _ = system.books_are_exact();
    assert!(system.stop().success());
}

#[test]
fn garbage_everywhere_crashes_neither_principal_nor_watchdog() {
    let mut system = System::start("secondaries = 2\nclaim_within = \"1s\"", &format!("{TIMES}{REQUESTS}"));
    let address = system.address();
    let mut seed = 2;
    for _ in 0..300 {
        disturb(&system.rundir(), &OF_ALL, &mut seed);
        try_echo(address);
    }
    let log = system.log();
    assert!(!log.contains("panicked"), "{log}");
    // Whoever was misled into silence is replaced, and serves.
    let give_up_at = common::now() + PATIENCE;
    while !try_echo(address) {
        assert!(common::now() < give_up_at, "nobody serves any more");
    }
    assert!(system.watchdog.try_wait().unwrap().is_none(), "the watchdog has ended");
    system.signal(system.watchdog.id(), nix::sys::signal::Signal::SIGTERM);
    let _ = system.ended();
}

#[test]
fn a_line_that_never_ends_is_nobody_s_memory() {
    let mut system = System::start("secondaries = 1", &format!("{TIMES}{REQUESTS}"));
    for name in ["wdtube1", "dwtube1", "orders.1", "orders.principal"] {
        let mut fifo = fifo::open_end(&system.rundir().join(name)).unwrap();
        for _ in 0..200 {
            let _ = fifo.write(&[b'x'; 4096]);
        }
    }
    let mut control = connect(system.address());
    control.write_all(b"echo\n").unwrap();
    let port: u16 = recv(&mut control).trim().parse().unwrap();
    let mut data = connect(std::net::SocketAddr::new(system.address().ip(), port));
    assert_eq!(say(&mut data, "x"), "x");
    drop(data);
    let _ = system.books_are_exact();
    assert!(system.stop().success());
}
