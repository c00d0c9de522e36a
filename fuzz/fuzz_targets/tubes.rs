//! What processes write to each other through FIFOs, anyhow cut, among anything.
#![no_main]

use std::net::IpAddr;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use osps::wire::lines::{Lines, MAX_LINE_BYTES};
use osps::wire::order::Order;
use osps::wire::tube::{Command, JobRef};

#[derive(Arbitrary, Debug)]
enum Piece {
    Job(u32, u64),
    Stop,
    Resync,
    Ready,
    Draining,
    Debut(u32, u64),
    Fin(u32, u64),
    Err(u32, u64),
    Uninvited(u16, IpAddr),
    Ping(u64),
    Pong(u64),
    Order(u8),
    Garbage(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Input {
    pieces: Vec<Piece>,
    cuts: Vec<u16>,
}

fuzz_target!(|input: Input| {
    let mut stream = Vec::new();
    for piece in &input.pieces {
        write(piece, &mut stream);
    }
    let whole = lines(&[&stream]);
    let mut cuts: Vec<usize> = input
        .cuts
        .iter()
        .map(|cut| usize::from(*cut) % (stream.len() + 1))
        .chain([0, stream.len()])
        .collect();
    cuts.sort_unstable();
    let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
    assert_eq!(lines(&parts), whole);
    for line in whole {
        assert!(!line.is_empty() && line.len() <= MAX_LINE_BYTES + 1 && !line.contains(&b'\n'));
        if let Ok(command) = Command::parse(&line) {
            assert_eq!(reread(command), command);
        }
        if let Ok(order) = Order::parse(&line) {
            assert_eq!(order.as_line().trim().as_bytes(), line);
        }
    }
});

fn lines(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    for part in parts {
        lines.feed(part, |line| found.push(line.to_vec()));
    }
    found
}

fn reread(command: Command) -> Command {
    let mut line = Vec::new();
    command.write_to(&mut line);
    assert_eq!(line.pop(), Some(b'\n'));
    assert!(line.len() <= MAX_LINE_BYTES);
    Command::parse(&line).expect("what is written is read")
}

fn write(piece: &Piece, stream: &mut Vec<u8>) {
    let job = |index: &u32, number: &u64| JobRef { index: *index, number: *number };
    let command = match piece {
        Piece::Job(index, number) => Command::Job(job(index, number)),
        Piece::Stop => Command::Stop,
        Piece::Resync => Command::Resync,
        Piece::Ready => Command::Ready,
        Piece::Draining => Command::Draining,
        Piece::Debut(index, number) => Command::Debut(job(index, number)),
        Piece::Fin(index, number) => Command::Fin(job(index, number)),
        Piece::Err(index, number) => Command::Err(job(index, number)),
        Piece::Uninvited(kind, client) => Command::Uninvited { kind: *kind, client: *client },
        Piece::Ping(number) => Command::Ping(*number),
        Piece::Pong(number) => Command::Pong(*number),
        Piece::Order(which) => {
            let orders = [Order::Stop, Order::StopNow, Order::Drain, Order::Look];
            stream.extend_from_slice(orders[usize::from(which % 4)].as_line().as_bytes());
            return;
        }
        Piece::Garbage(bytes) => return stream.extend_from_slice(bytes),
    };
    assert_eq!(reread(command), command);
    command.write_to(stream);
}
