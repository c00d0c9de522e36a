//! A status to test with.

use std::collections::BTreeMap;

use crate::core::latency::bucket;
use crate::status::{
    Connections, Death, EndsOf, Ledger, Refusals, Server, ServerState, Status, Times, Usage,
};

fn usage(memory_bytes: u64, cpu_ms: u64) -> Usage {
    Usage { memory_bytes: Some(memory_bytes), cpu_ms: Some(cpu_ms) }
}

fn server(role: &'static str, slot: u16, pid: u32) -> Server {
    let ports = if slot == 0 {
        BTreeMap::new()
    } else {
        BTreeMap::from([("echo".to_owned(), 2220 + 2 * slot + 1), ("sum".to_owned(), 2220 + 2 * slot + 2)])
    };
    Server {
        role,
        slot,
        incarnation: 1,
        pid: Some(pid),
        state: ServerState::Ready,
        restarts: 0,
        kills: 0,
        rtt_us: Some(85),
        answered_ms_ago: Some(120),
        ports,
        open: 1,
        done: 600,
        failed: 2,
        recycled: 0,
        usage: usage(3 << 20, 1_500),
        reason: None,
    }
}

/// Two secondaries serve, one predecessor finishes, one has died.
pub(crate) fn status() -> Status {
    let mut times = Times::default();
    for micros in [40, 80, 300, 2_000] {
        times.wait.buckets[bucket(micros)] += 300;
        times.service.buckets[bucket(micros * 2)] += 300;
    }
    (times.wait.sum_us, times.service.sum_us) = (726_000, 1_452_000);
    let mut predecessor = server("secondary", 2, 105);
    (predecessor.state, predecessor.ports, predecessor.done) = (ServerState::Draining, BTreeMap::new(), 0);
    let death = Death {
        role: "secondary",
        slot: 2,
        incarnation: 1,
        pid: 99,
        ms_ago: 12_345,
        cause: "signal 9".to_owned(),
        killed: Some("stopped"),
        state: Some('T'),
        wchan: Some("do_signal_stop".to_owned()),
        answered_ms_before: Some(2_100),
        jobs: 3,
    };
    let (principal, observer) = (server("principal", 0, 101), server("observer", 0, 104));
    let secondaries = [server("secondary", 1, 102), server("secondary", 2, 103)];
    Status {
        version: "0.1.0".to_owned(),
        pid: 100,
        uptime_ms: 3_725_000,
        listen: vec!["127.0.0.1:2222".to_owned(), "unix:/run/osps/principal".to_owned()],
        observe: vec!["127.0.0.1:2221".to_owned()],
        stopping: false,
        requests: BTreeMap::from([
            ("echo".to_owned(), EndsOf { done: 1_190, failed: 4, expired: 6 }),
            ("sum".to_owned(), EndsOf { done: 10, failed: 0, expired: 0 }),
        ]),
        times: BTreeMap::from([("echo".to_owned(), times), ("sum".to_owned(), Times::default())]),
        ledger: Ledger {
            accepted: 1_213,
            done: 1_200,
            failed: 4,
            expired: 6,
            open: 3,
            refused: 10,
            rejected: 1,
        },
        refusals: Refusals { unknown: 5, malformed: 1, busy: 4, stopping: 0 },
        clients: Connections {
            connected: 12,
            parked: 1,
            accepted: 345,
            turned_away: 2,
            evicted: 3,
            idle: 4,
            broken: 5,
        },
        servers: [principal].into_iter().chain(secondaries).chain([predecessor]).collect(),
        watchdog: usage(4 << 20, 2_000),
        observer: Some(observer),
        obituaries: vec![death],
    }
}
