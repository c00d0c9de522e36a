//! A system that does not exist, for the tests.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::latency::bucket;
use crate::core::moment::Moment;
use crate::status::{
    Connections, Death, EndsOf, Ledger, Refusals, Server, ServerState, Status, Times, Usage,
};
use crate::top::model::{Model, Reading};

/// A moment, in milliseconds.
pub fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

/// A status of a system with so many secondaries that has been running for so long; nothing has happened yet.
pub fn status(uptime_ms: u64, secondaries: u16) -> Status {
    let nothing = EndsOf { done: 0, failed: 0, expired: 0 };
    let kinds = ["echo", "requetetype1", "requetetype2"];
    Status {
        version: "1.2.3".to_owned(),
        pid: 1000,
        uptime_ms,
        listen: vec!["127.0.0.1:2222".to_owned()],
        observe: Vec::new(),
        stopping: false,
        requests: kinds.map(|kind| (kind.to_owned(), nothing)).into(),
        times: kinds.map(|kind| (kind.to_owned(), Times::default())).into(),
        ledger: Ledger::default(),
        refusals: Refusals { unknown: 0, malformed: 0, busy: 0, stopping: 0 },
        clients: Connections::default(),
        servers: [principal()].into_iter().chain((1..=secondaries).map(secondary)).collect(),
        watchdog: Usage { memory_bytes: Some(3 << 20), cpu_ms: Some(0) },
        observer: None,
        obituaries: Vec::new(),
    }
}

fn principal() -> Server {
    Server { role: "principal", slot: 0, pid: Some(1001), ports: BTreeMap::new(), ..secondary(0) }
}

fn secondary(slot: u16) -> Server {
    Server {
        role: "secondary",
        slot,
        incarnation: 1,
        pid: Some(1001 + u32::from(slot)),
        state: ServerState::Ready,
        restarts: 0,
        kills: 0,
        rtt_us: Some(45),
        answered_ms_ago: Some(120),
        ports: [("echo".to_owned(), 2222 + slot)].into(),
        open: 0,
        done: 0,
        failed: 0,
        recycled: 0,
        usage: Usage { memory_bytes: Some(4 << 20), cpu_ms: Some(0) },
        reason: None,
    }
}

/// An observer that has answered so many requests.
pub fn observer(requests: u64) -> Server {
    Server {
        role: "observer",
        slot: 0,
        pid: Some(998),
        done: requests,
        ports: BTreeMap::new(),
        ..secondary(0)
    }
}

/// A secondary that leaves a slot.
pub fn predecessor(slot: u16) -> Server {
    Server {
        state: ServerState::Draining,
        pid: Some(999),
        open: 2,
        ports: BTreeMap::new(),
        ..secondary(slot)
    }
}

/// Jobs of `echo` that a secondary has done, each served for so long.
pub fn serve(status: &mut Status, slot: usize, jobs: u64, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap();
    for server in [0, slot] {
        status.servers[server].done += jobs;
    }
    status.ledger.accepted += jobs;
    status.ledger.done += jobs;
    status.requests.get_mut("echo").unwrap().done += jobs;
    let times = status.times.get_mut("echo").unwrap();
    for (histogram, micros) in [(&mut times.wait, 200), (&mut times.service, micros)] {
        histogram.buckets[bucket(micros)] += jobs;
        histogram.sum_us += jobs * micros;
    }
}

/// An obituary of one that was frozen.
pub fn death(slot: u16, ms_ago: u64) -> Death {
    Death {
        role: "secondary",
        slot,
        incarnation: 1,
        pid: 1001 + u32::from(slot),
        ms_ago,
        cause: "signal 9".to_owned(),
        killed: Some("stopped, no answer within kill_after"),
        state: Some('T'),
        wchan: Some("do_signal_stop".to_owned()),
        answered_ms_before: Some(2001),
        jobs: 3,
    }
}

/// A reading of that status; all processes sleep, but those that are said to do something else.
pub fn reading(at: Moment, status: &Status, letters: &[(u32, char)]) -> Reading {
    let pids = status.servers.iter().filter_map(|server| server.pid).chain([status.pid]);
    let asleep = pids.map(|pid| (pid, 'S')).chain(letters.iter().copied());
    Reading { at, found: Ok((status.clone(), asleep.collect())) }
}

/// A reading that finds no system.
pub fn nothing(at: Moment) -> Reading {
    Reading { at, found: Err("no osps is running in /run/osps".to_owned()) }
}

/// What is known after a minute in which secondary 1 did 100 jobs a second, of 5 ms each.
pub fn model_at_work(secondaries: u16, change: impl FnOnce(&mut Status)) -> Model {
    let mut model = Model::default();
    let mut status = status(0, secondaries);
    for second in 100..160 {
        model.take(reading(at(second * 1000), &status, &[]));
        status.uptime_ms += 1000;
        status.servers[1].usage.cpu_ms = status.servers[1].usage.cpu_ms.map(|millis| millis + 250);
        serve(&mut status, 1, 100, Duration::from_millis(5));
    }
    change(&mut status);
    model.take(reading(at(160_000), &status, &[]));
    model
}
