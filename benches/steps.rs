//! What single steps cost: a job that is published in shared memory and read on the other side, a line of
//! each protocol. Each beside the least that could do it: a store and a load, a parse by hand.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use criterion::{Criterion, criterion_group, criterion_main};
use osps::core::job::{Job, Table};
use osps::core::moment::Moment;
use osps::os::segment::Segment;
use osps::page::jobs::JobTable;
use osps::wire::client::{Types, parse_request};
use osps::wire::tube::{Command, JobRef};

criterion_group!(benches, segment, tube, requests);
criterion_main!(benches);

fn segment(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let words = Segment::create(&dir.path().join("words"), 64).unwrap();
    let table = JobTable::create(&dir.path().join("jobs"), 64).unwrap();
    let job =
        Job { kind: 2, client: Ipv4Addr::LOCALHOST.into(), given_at: Moment::from_nanos(7), jeton: None };
    let mut group = criterion.benchmark_group("publish and read");
    group.bench_function("one word (bare)", |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            number += 1;
            words[9].store(black_box(number), Ordering::Release);
            black_box(words[9].load(Ordering::Acquire))
        });
    });
    group.bench_function("a job", |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            number += 1;
            table.publish(9, black_box(number), job);
            black_box((table.state(9), table.job(9)))
        });
    });
    group.finish();
}

fn tube(criterion: &mut Criterion) {
    let job = JobRef { index: 123, number: 4_567_890 };
    let mut line = Vec::with_capacity(64);
    let mut group = criterion.benchmark_group("a line of a tube");
    group.bench_function("copied (bare)", |bencher| {
        bencher.iter(|| {
            line.clear();
            line.extend_from_slice(black_box(b"fintraitement 123 4567890\n"));
            black_box(line.len())
        });
    });
    group.bench_function("written and parsed", |bencher| {
        bencher.iter(|| {
            line.clear();
            black_box(Command::Fin(job)).write_to(&mut line);
            black_box(Command::parse(line.trim_ascii()).unwrap())
        });
    });
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let names: Vec<String> = (0..1000).map(|number| format!("type{number}")).collect();
    let few = Types::new(["requetetype1", "requetetype2", "echo"]);
    let many = Types::new(names.iter().map(String::as_str));
    let mut group = criterion.benchmark_group("a request");
    group.bench_function("compared with one name (bare)", |bencher| {
        bencher.iter(|| black_box(b"echo") == black_box(b"echo"));
    });
    group.bench_function("parsed, 3 types", |bencher| {
        bencher.iter(|| black_box(parse_request(black_box(b"echo"), &few)));
    });
    group.bench_function("parsed, 1000 types", |bencher| {
        bencher.iter(|| black_box(parse_request(black_box(b"suivi type500"), &many)));
    });
    group.finish();
}
