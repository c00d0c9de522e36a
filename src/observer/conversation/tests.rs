//! What a client gets, for what it sends and when.

use super::*;
use proptest::prelude::*;

const START: Moment = Moment::from_nanos(1_000_000_000);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const EVENTS: &[u8] = b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n";

/// Does what a shell does in a turn, and takes all output.
fn turn(conversation: &mut Conversation, now: Moment) -> (Vec<u8>, Vec<Request>, bool) {
    let (mut sent, mut requests) = (Vec::new(), Vec::new());
    loop {
        match conversation.poll_action(now) {
            Some(Action::Respond(request)) => {
                let response = match &*request.path {
                    "/events" => Response::events(),
                    path => Response::text(200, format!("<{path}>")),
                };
                requests.push(request);
                conversation.respond(now, &response);
            }
            Some(Action::Close) => return (sent, requests, true),
            None if conversation.output().is_empty() => return (sent, requests, false),
            None => {}
        }
        let output = conversation.output().to_vec();
        sent.extend_from_slice(&output);
        conversation.handle_written(now, output.len());
    }
}

fn say(conversation: &mut Conversation, now: Moment, bytes: &[u8]) -> (String, bool) {
    conversation.handle_input(now, bytes);
    let (sent, _, closed) = turn(conversation, now);
    (String::from_utf8(sent).unwrap(), closed)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Lets time pass as a shell does, up to a moment. Returns what was sent, and when it was closed.
fn wait(conversation: &mut Conversation, until: Moment) -> (String, Option<Moment>) {
    let mut all = Vec::new();
    while let Some(at) = conversation.poll_timeout().filter(|&at| at <= until) {
        conversation.handle_timeout(at);
        let (sent, _, closed) = turn(conversation, at);
        all.extend_from_slice(&sent);
        if closed {
            return (String::from_utf8(all).unwrap(), Some(at));
        }
    }
    (String::from_utf8(all).unwrap(), None)
}

#[test]
fn a_connection_stays_open_for_more_requests() {
    let mut conversation = Conversation::new(START);
    let (first, closed) = say(&mut conversation, START, GET);
    assert!(first.starts_with("HTTP/1.1 200 OK\r\n") && first.ends_with("\r\n\r\n</>"), "{first}");
    assert!(first.contains("Content-Length: 3\r\n") && !first.contains("Connection:") && !closed);
    let last = b"\r\nHEAD /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (second, closed) = say(&mut conversation, START, last);
    assert!(second.contains("Content-Length: 4\r\nConnection: close\r\n"), "{second}");
    assert!(second.ends_with("\r\n\r\n") && closed);
}

#[test]
fn an_old_client_is_told_whether_the_connection_stays_open() {
    let mut conversation = Conversation::new(START);
    let (kept, closed) = say(&mut conversation, START, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(kept.contains("Connection: keep-alive\r\n") && !closed);
    let (last, closed) = say(&mut conversation, START, b"GET / HTTP/1.0\r\n\r\n");
    assert!(last.contains("Connection: close\r\n") && closed);
}

#[test]
fn who_has_asked_and_closed_its_side_is_answered() {
    let mut conversation = Conversation::new(START);
    conversation.handle_input(START, GET);
    conversation.handle_input(START, GET);
    conversation.handle_end_of_input();
    let (sent, requests, closed) = turn(&mut conversation, START);
    assert_eq!(requests.len(), 2);
    assert!(sent.ends_with(b"</>") && closed);
}

#[test]
fn half_a_request_and_its_end_are_a_fault() {
    let mut conversation = Conversation::new(START);
    conversation.handle_input(START, b"GET / HT");
    conversation.handle_end_of_input();
    let (sent, _, closed) = turn(&mut conversation, START);
    assert!(sent.starts_with(b"HTTP/1.1 400 ") && closed);
}

#[test]
fn a_head_that_trickles_in_gets_408_and_is_closed() {
    let mut conversation = Conversation::new(START);
    for (second, byte) in (0..9).zip(GET) {
        say(&mut conversation, START + seconds(second), &[*byte]);
    }
    let (sent, closed) = wait(&mut conversation, START + seconds(100));
    assert!(sent.starts_with("HTTP/1.1 408 ") && sent.contains("Connection: close\r\n"), "{sent}");
    assert_eq!(closed, Some(START + HEAD_WITHIN + DISCARD_WITHIN));
}

#[test]
fn who_asks_for_nothing_is_closed_in_silence() {
    for first in [&b""[..], b"\r\n", GET] {
        let mut conversation = Conversation::new(START);
        say(&mut conversation, START, first);
        assert_eq!(conversation.idle_since(), Some(START));
        let (sent, closed) = wait(&mut conversation, START + seconds(100));
        assert_eq!((&*sent, closed), ("", Some(START + IDLE)));
    }
}

#[test]
fn who_takes_nothing_is_closed_and_so_is_who_takes_a_byte_now_and_then() {
    let stuck = |step: u64| {
        let mut conversation = Conversation::new(START);
        conversation.handle_input(START, GET);
        let Some(Action::Respond(_)) = conversation.poll_action(START) else { panic!("no request") };
        conversation.respond(START, &Response::text(200, "x".repeat(10_000)));
        let mut now = START;
        while conversation.poll_action(now) != Some(Action::Close) {
            assert!(conversation.poll_action(now).is_none());
            now = (now + seconds(step)).min(conversation.poll_timeout().unwrap());
            conversation.handle_timeout(now);
            conversation.handle_written(now, 1);
        }
        now.since(START)
    };
    assert_eq!(stuck(11), TAKEN_WITHIN);
    assert_eq!(stuck(9), ALL_TAKEN_WITHIN);
}

#[test]
fn a_fault_is_told_and_what_follows_is_thrown_away_up_to_a_bound() {
    let mut conversation = Conversation::new(START);
    let (sent, closed) = say(&mut conversation, START, b"POST / HTTP/1.1\r\nHost: a\r\n\r\nx=");
    assert!(sent.starts_with("HTTP/1.1 405 ") && sent.contains("Allow: GET, HEAD\r\n"), "{sent}");
    assert!(sent.contains("Connection: close\r\n") && !closed && conversation.wants_input());
    let closed = (0..100).any(|_| say(&mut conversation, START, &[b'y'; 1024]).1);
    assert!(closed);
}

#[test]
fn each_fault_is_told_to_the_shell_once() {
    for request in ["nonsense\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut conversation = Conversation::new(START);
        say(&mut conversation, START, GET);
        assert!(!conversation.take_refused());
        say(&mut conversation, START, request.as_bytes());
        say(&mut conversation, START, request.as_bytes());
        assert_eq!([conversation.take_refused(), conversation.take_refused()], [true, false]);
    }
    let mut slow = Conversation::new(START);
    say(&mut slow, START, b"GET /");
    wait(&mut slow, START + HEAD_WITHIN);
    assert!(slow.take_refused());
}

#[test]
fn a_slow_subscriber_misses_events_and_gets_the_newest() {
    let mut conversation = Conversation::new(START);
    let (head, closed) = say(&mut conversation, START, EVENTS);
    assert!(head.contains("Content-Type: text/event-stream\r\n") && !head.contains("Content-Length"));
    assert!(conversation.is_streaming() && !closed);
    let sent: Vec<bool> = (0..3).map(|number| conversation.send_event(START, &format!("{number}"))).collect();
    assert_eq!((sent, conversation.output()), (vec![true, false, false], &b"0"[..]));
    conversation.handle_written(START, 1);
    assert!(conversation.send_event(START, "3"));
    assert_eq!(conversation.output(), b"3");
    let (_, closed) = wait(&mut conversation, START + TAKEN_WITHIN);
    assert_eq!(closed, Some(START + TAKEN_WITHIN), "it takes nothing at all");
}

#[test]
fn a_subscriber_that_leaves_is_let_go() {
    let mut conversation = Conversation::new(START);
    say(&mut conversation, START, EVENTS);
    assert_eq!((conversation.poll_timeout(), conversation.wants_input()), (None, true));
    conversation.handle_end_of_input();
    assert!(turn(&mut conversation, START).2);
}

#[test]
fn a_head_of_events_is_a_head() {
    let mut conversation = Conversation::new(START);
    let (head, closed) = say(&mut conversation, START, b"HEAD /events HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.contains("text/event-stream") && closed);
}

/// All that a client gets which sends these bytes cut into such pieces, then nothing more.
fn whole(bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<Request>) {
    let mut conversation = Conversation::new(START);
    let (mut sent, mut requests, mut rest) = (Vec::new(), Vec::new(), bytes);
    let mut pieces = pieces.iter().cycle();
    let mut is_over = false;
    while !is_over {
        if rest.is_empty() {
            conversation.handle_end_of_input();
        } else if conversation.wants_input() {
            let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
            conversation.handle_input(START, piece);
            rest = after;
        }
        let held = conversation.input.len() + conversation.output().len();
        assert!(held <= 2 * MAX_HEAD_BYTES + 2048, "{held} bytes are held");
        let (more, asked, closed) = turn(&mut conversation, START);
        sent.extend(more);
        requests.extend(asked);
        is_over = closed;
    }
    (sent, requests)
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        6 => Just(GET.to_vec()),
        2 => Just(b"HEAD /a?b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_vec()),
        1 => Just(EVENTS.to_vec()),
        1 => Just(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab".to_vec()),
        1 => Just(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        2 => Just(b"\r\n".to_vec()),
        2 => Just(b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()),
        1 => (1..9000_usize).prop_map(|length| vec![b'x'; length]),
        1 => (1..9000_usize).prop_map(|length| {
            [b"GET /".to_vec(), vec![b'x'; length], b" HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()].concat()
        }),
        1 => prop::collection::vec(any::<u8>(), 1..40),
    ];
    prop::collection::vec(word, 0..6).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_a_client_gets_does_not_depend_on_how_its_bytes_are_cut(
        bytes in some_bytes(),
        pieces in prop::collection::vec(1..4096_usize, 1..10),
    ) {
        let expected = whole(&bytes, &[4096]);
        prop_assert_eq!(&expected, &whole(&bytes, &pieces));
        prop_assert_eq!(&expected, &whole(&bytes, &[1]));
    }

    #[test]
    fn garbage_is_answered_or_closed(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (sent, requests) = whole(&bytes, &[7]);
        prop_assert!(requests.is_empty() && (sent.is_empty() || sent.starts_with(b"HTTP/1.1 ")));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Say(Vec<u8>),
    Pause(u64),
    Event,
    Take(usize),
    EndOfInput,
}

fn some_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => some_bytes().prop_map(Op::Say),
        3 => (1..70_000_u64).prop_map(Op::Pause),
        2 => Just(Op::Event),
        3 => (1..5_000_usize).prop_map(Op::Take),
        2 => Just(Op::Take(usize::MAX)),
        1 => Just(Op::EndOfInput),
    ]
}

/// A shell with a client that takes what it likes.
struct Shell {
    conversation: Conversation,
    now: Moment,
    closed: bool,
}

impl Shell {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Say(bytes) => {
                for piece in bytes.chunks(4096) {
                    if self.conversation.wants_input() {
                        self.conversation.handle_input(self.now, piece);
                        self.poll();
                    }
                }
            }
            Op::Pause(millis) => self.pause(Duration::from_millis(millis)),
            Op::Event => {
                let is_free = self.conversation.is_streaming() && self.conversation.output().is_empty();
                assert_eq!(self.conversation.send_event(self.now, &"y".repeat(10_000)), is_free);
            }
            Op::Take(bytes) => {
                let taken = bytes.min(self.conversation.output().len());
                self.conversation.handle_written(self.now, taken);
                self.poll();
            }
            Op::EndOfInput => {
                self.conversation.handle_end_of_input();
                self.poll();
            }
        }
        assert!(
            self.conversation.output().len() <= 11_000 && self.conversation.input.len() < 2 * MAX_HEAD_BYTES
        );
    }

    fn poll(&mut self) {
        while let Some(action) = self.conversation.poll_action(self.now).filter(|_| !self.closed) {
            match action {
                Action::Respond(request) if request.path == "/events" => {
                    self.conversation.respond(self.now, &Response::events());
                }
                Action::Respond(_) => {
                    self.conversation.respond(self.now, &Response::text(200, "x".repeat(10_000)));
                }
                Action::Close => self.closed = true,
            }
        }
    }

    fn pause(&mut self, pause: Duration) {
        let until = self.now + pause;
        while let Some(at) = self.conversation.poll_timeout().filter(|at| *at <= until && !self.closed) {
            assert!(at > self.now, "a deadline that has passed");
            self.now = at;
            self.conversation.handle_timeout(at);
            self.poll();
        }
        self.now = until;
    }
}

proptest! {
    #[test]
    fn whatever_is_done_memory_is_bounded_and_it_ends(ops in prop::collection::vec(some_op(), 0..20)) {
        let mut shell = Shell { conversation: Conversation::new(START), now: START, closed: false };
        for op in ops {
            if !shell.closed {
                shell.apply(op);
            }
        }
        // It takes nothing any more and says nothing: it is let go, whatever was going on; only who listens to
        // events, and has taken all, may stay.
        if shell.conversation.is_streaming() {
            shell.apply(Op::Event);
        }
        shell.pause(ALL_TAKEN_WITHIN + HEAD_WITHIN + IDLE);
        prop_assert!(shell.closed, "{:?}", shell.conversation);
    }
}
