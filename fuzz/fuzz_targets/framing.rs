//! Lines anyhow cut or merged: the client gets the same bytes.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use osps::core::conversation::Conversation;
use osps::core::following::News;
use osps::core::moment::Moment;
use osps::wire::client::{Form, Types};
use osps::wire::jeton::Jeton;

const IDLE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 4096;
const NAMES: [&str; 4] = ["requetetype1", "requetetype2", "sum", "sumall"];

#[derive(Arbitrary, Debug)]
enum Said {
    Type(u8),
    Tracked(u8),
    Address(u8),
    Newline,
    ReturnNewline,
    Bytes(Vec<u8>),
    Much(u8, u16),
}

#[derive(Arbitrary, Debug)]
struct Input {
    said: Vec<Said>,
    /// Where the bytes are cut, and how many milliseconds pass there.
    cuts: Vec<(u16, u8)>,
    /// A newline comes first: from then on pauses matter no more.
    lines: bool,
}

fuzz_target!(|input: Input| {
    let mut stream = if input.lines { b"\n".to_vec() } else { Vec::new() };
    for said in &input.said {
        write(said, &mut stream);
    }
    // Who is sent away is heard for so many bytes, counted as they are read.
    stream.truncate(32 * 1024);
    stream.push(b'\n');
    if !input.lines && begins_like_a_bare_request(&stream) {
        return;
    }
    let mut cuts: Vec<(usize, u8)> = input
        .cuts
        .iter()
        .take(64)
        .map(|(at, pause)| (usize::from(*at) % (stream.len() + 1), *pause))
        .collect();
    cuts.extend([(0, 0), (stream.len(), 0)]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|pair| {
        // A pause in a first line that has no newline yet makes it a bare request; one after
        // an over-long line ends the connection earlier, which says nothing more anyway.
        let pause = if input.lines { pair[1].1 % 150 } else { 0 };
        (&stream[pair[0].0..pair[1].0], Duration::from_millis(pause.into()))
    });
    assert_eq!(answers(pieces), answers([(&stream[..], Duration::ZERO)]));
});

/// What a client gets whose every request is answered, and claimed, at once.
fn answers<'a>(pieces: impl IntoIterator<Item = (&'a [u8], Duration)>) -> String {
    let types = Types::new(NAMES);
    let mut now = Moment::from_nanos(1_000_000_000);
    let mut conversation = Conversation::new(now);
    let (mut sent, mut number) = (Vec::new(), 0);
    // What is owed is sent at once: while more than so much waits, nothing is understood.
    let mut serve = |conversation: &mut Conversation, now| loop {
        while let Some(request) = conversation.poll_request(now, &types) {
            number += 1;
            let port = 3000 + u16::try_from(request.kind).expect("a few");
            match request.form {
                Form::Port => conversation.answer_port(now, number, port),
                Form::Address => conversation.answer_address(now, number, &format!("[::1]:{port}")),
                Form::Tracked => {
                    let jeton = Jeton::from_bytes(u128::from(number).to_be_bytes());
                    conversation.answer_tracked(now, number, port, jeton);
                }
            }
            conversation.handle_news(now, number, News::Claimed);
            sent.append(conversation.output());
        }
        if conversation.output().is_empty() {
            break;
        }
        sent.append(conversation.output());
    };
    for (piece, pause) in pieces {
        for bytes in piece.chunks(READ_BYTES) {
            if conversation.wants_input() {
                conversation.handle_input(now, bytes);
                serve(&mut conversation, now);
            }
        }
        now = now + pause;
        if conversation.poll_timeout(&types, IDLE).is_some_and(|at| at <= now) {
            conversation.handle_timeout(now, &types, IDLE);
            serve(&mut conversation, now);
        }
    }
    conversation.handle_end_of_input();
    serve(&mut conversation, now);
    String::from_utf8(sent).expect("ASCII")
}

/// A known type that no other extends is answered at once where something else follows it.
fn begins_like_a_bare_request(stream: &[u8]) -> bool {
    let line = stream.split(|&byte| byte == b'\n').next().unwrap_or_default();
    ["requetetype1", "requetetype2", "sumall"].iter().any(|name| {
        let rest = line.strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| !rest.is_empty() && rest != b"\r")
    })
}

fn write(said: &Said, stream: &mut Vec<u8>) {
    let name = |which: &u8| NAMES[usize::from(*which) % NAMES.len()];
    let bytes = match said {
        Said::Type(which) => name(which).to_owned().into_bytes(),
        Said::Tracked(which) => format!("suivi {}", name(which)).into_bytes(),
        Said::Address(which) => format!("adresse {}", name(which)).into_bytes(),
        Said::Newline => b"\n".to_vec(),
        Said::ReturnNewline => b"\r\n".to_vec(),
        Said::Bytes(bytes) => bytes.clone(),
        Said::Much(byte, times) => vec![*byte; usize::from(*times % 1000)],
    };
    stream.extend_from_slice(&bytes);
}
