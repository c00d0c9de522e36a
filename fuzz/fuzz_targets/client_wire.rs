//! The words of clients: requests, hosts, jetons, and the first bytes of a data connection.
#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use osps::core::arrival::{Arrival, DECIDING_BYTES, Verdict};
use osps::core::moment::Moment;
use osps::wire::client::{Form, Host, Prefix, Refusal, Types, is_type_name, parse_request};
use osps::wire::jeton::Jeton;

const CLAIM_WITHIN: Duration = Duration::from_secs(5);

#[derive(Arbitrary, Debug)]
struct Input {
    names: Vec<String>,
    request: Vec<u8>,
    host: String,
    port: u16,
    jeton: Vec<u8>,
    /// Pieces of the first bytes, and how long each is waited for, in milliseconds.
    arrival: Vec<(Vec<u8>, u16)>,
    ended: bool,
}

fuzz_target!(|input: Input| {
    let mut names: Vec<&str> = input.names.iter().map(String::as_str).filter(|n| is_type_name(n)).collect();
    names.extend(["requetetype1", "sum", "sumall"]);
    names.sort_unstable();
    names.dedup();
    request(&names, &input.request);
    host(&input.host, input.port);
    jeton(&input.jeton);
    arrival(&input.arrival, input.ended);
});

fn request(names: &[&str], bytes: &[u8]) {
    let types = Types::new(names.iter().copied());
    match parse_request(bytes, &types) {
        Ok(request) => {
            let word: &[u8] = match request.form {
                Form::Port => b"",
                Form::Tracked => b"suivi ",
                Form::Address => b"adresse ",
            };
            assert_eq!(bytes, [word, names[request.kind].as_bytes()].concat());
        }
        Err(asked) => {
            assert!(bytes.ends_with(asked) && !names.iter().any(|name| name.as_bytes() == asked));
            let said = Refusal::Unknown { asked, types: &types }.to_string();
            assert!(said.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && said.len() < 1024, "{said}");
        }
    }
    let extended = || names.iter().any(|name| name.as_bytes().starts_with(bytes) && name.len() > bytes.len());
    match types.prefix(bytes) {
        Prefix::Complete(kind) => assert!(names[kind].as_bytes() == bytes && !extended()),
        Prefix::WaitsForNewline => assert!(bytes.starts_with(b"suivi ") || bytes.starts_with(b"adresse ")),
        Prefix::Open => assert!(types.find(bytes).is_none() || extended()),
    }
}

fn host(text: &str, port: u16) {
    let Some(host) = Host::parse(text) else {
        return;
    };
    assert_eq!(Host::parse(&host.to_string()).as_ref(), Some(&host));
    let place = host.with_port(port);
    assert!(place.bytes().all(|byte| byte.is_ascii_graphic()) && place.ends_with(&format!(":{port}")));
    if let Host::Address(address) = host {
        assert!(place.contains('%') || place.parse() == Ok(SocketAddr::new(address, port)), "{place}");
    }
}

fn jeton(bytes: &[u8]) {
    let is_hex = bytes.len() == 32 && bytes.iter().all(u8::is_ascii_hexdigit);
    let jeton = Jeton::parse(bytes);
    assert_eq!(jeton.is_some(), is_hex);
    if let Some(jeton) = jeton {
        assert_eq!(jeton.to_string().as_bytes(), bytes.to_ascii_lowercase());
        assert!(Jeton::from_words(jeton.words()).is_none_or(|same| same == jeton));
    }
}

fn arrival(pieces: &[(Vec<u8>, u16)], ended: bool) {
    let since = Moment::from_nanos(1);
    let (mut now, mut bytes) = (since, Vec::new());
    let mut arrival = Arrival::new(since);
    let mut at_once = Arrival::new(since);
    let mut decided = None;
    for (piece, millis) in pieces {
        now = now + Duration::from_millis((*millis).into());
        bytes.extend_from_slice(piece);
        bytes.truncate(DECIDING_BYTES);
        let verdict = arrival.judge(now, &bytes, false, CLAIM_WITHIN);
        check(verdict, now, &bytes);
        if !matches!(verdict, Verdict::Wait(_) | Verdict::Silent(_)) {
            decided = Some(verdict);
            break;
        }
        // Without pauses it does not matter how the bytes are cut.
        at_once.judge(since, &bytes, false, CLAIM_WITHIN);
    }
    let whole = Arrival::new(since).judge(since, &bytes, ended, CLAIM_WITHIN);
    assert_eq!(at_once.judge(since, &bytes, ended, CLAIM_WITHIN), whole);
    if decided.is_none() {
        let later = now + CLAIM_WITHIN;
        let last = arrival.judge(later, &bytes, ended, CLAIM_WITHIN);
        assert!(!matches!(last, Verdict::Wait(_) | Verdict::Silent(_)), "it waits for ever");
        check(last, later, &bytes);
    }
}

fn check(verdict: Verdict, now: Moment, bytes: &[u8]) {
    match verdict {
        Verdict::Wait(until) | Verdict::Silent(until) => assert!(until > now),
        Verdict::Plain => assert!(!bytes.starts_with(b"jeton ")),
        Verdict::Wrong => assert!(bytes.starts_with(b"jeton ")),
        Verdict::Tracked { jeton, line_bytes } => {
            assert!(line_bytes <= DECIDING_BYTES && bytes[line_bytes - 1] == b'\n');
            let line = bytes[..line_bytes].trim_ascii_end().to_ascii_lowercase();
            assert_eq!(line, format!("jeton {jeton}").into_bytes());
        }
    }
}
