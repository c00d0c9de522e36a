//! The control connection's state machine, by transcripts: bytes and pauses in, bytes out.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use osps::core::conversation::Conversation;
use osps::core::following::News;
use osps::core::job::End;
use osps::core::moment::Moment;
use osps::wire::client::{Form, Request, Types};
use osps::wire::jeton::Jeton;
use proptest::prelude::*;

const IDLE: Duration = Duration::from_secs(60);
const JETON: Jeton = Jeton::from_bytes([0xab; 16]);

/// What a client does.
#[derive(Clone, Debug)]
enum Do {
    Send(Vec<u8>),
    Pause(Duration),
    End,
}

/// A client against a server whose every known type has port 3000 + its index.
struct Server {
    types: Types,
    conversation: Conversation,
    now: Moment,
    /// The number of the job that was given last.
    last_number: u64,
    /// Clients come for their jobs at once.
    claims: bool,
}

impl Server {
    fn new() -> Self {
        let now = Moment::from_nanos(1_000_000_000);
        Self {
            types: Types::new(["requetetype1", "requetetype2", "sum", "sumall"]),
            conversation: Conversation::new(now),
            now,
            last_number: 0,
            claims: true,
        }
    }

    fn serve(&mut self) {
        while let Some(Request { kind, form }) = self.conversation.poll_request(self.now, &self.types) {
            let port = 3000 + u16::try_from(kind).unwrap();
            self.last_number += 1;
            let (now, number) = (self.now, self.last_number);
            match form {
                Form::Port => self.conversation.answer_port(now, number, port),
                Form::Tracked => self.conversation.answer_tracked(now, number, port, JETON),
                Form::Address => {
                    self.conversation.answer_address(now, number, &format!("work.example:{port}"));
                }
            }
            if self.claims {
                self.conversation.handle_news(now, number, News::Claimed);
            }
        }
    }

    /// Lets time pass, waking the conversation at its own deadlines.
    fn pause(&mut self, pause: Duration) {
        let until = self.now + pause;
        loop {
            let deadline = self.conversation.poll_timeout(&self.types, IDLE).filter(|at| *at <= until);
            let Some(deadline) = deadline else {
                break;
            };
            self.now = self.now.max(deadline);
            if self.conversation.handle_timeout(self.now, &self.types, IDLE) {
                break;
            }
            self.serve();
            assert_ne!(
                self.conversation.poll_timeout(&self.types, IDLE),
                Some(deadline),
                "a deadline that has passed comes back: the loop would spin"
            );
        }
        self.now = until;
    }

    fn run(&mut self, story: &[Do]) -> String {
        for step in story {
            match step {
                Do::Send(bytes) if self.conversation.wants_input() => {
                    self.conversation.handle_input(self.now, bytes);
                }
                Do::Send(_) => {}
                Do::Pause(pause) => self.pause(*pause),
                Do::End => self.conversation.handle_end_of_input(),
            }
            self.serve();
        }
        String::from_utf8(std::mem::take(self.conversation.output())).unwrap()
    }
}

fn answer(story: &[Do]) -> String {
    Server::new().run(story)
}

fn send(text: &str) -> Do {
    Do::Send(text.as_bytes().to_vec())
}

fn millis(millis: u64) -> Do {
    Do::Pause(Duration::from_millis(millis))
}

#[test]
fn a_bare_request_gets_exactly_the_digits() {
    assert_eq!(answer(&[send("requetetype1")]), "3000");
    assert_eq!(answer(&[send("requetetype1"), send("requetetype2")]), "30003001");
}

#[test]
fn a_line_request_gets_a_line() {
    assert_eq!(answer(&[send("requetetype1\n")]), "3000\n");
    assert_eq!(answer(&[send("requetetype1\r\nrequetetype2\n")]), "3000\n3001\n");
    assert_eq!(answer(&[send("\n\r\n\nrequetetype2\n\n")]), "3001\n");
}

#[test]
fn a_newline_that_follows_a_bare_answer_belongs_to_the_request() {
    assert_eq!(answer(&[send("requetetype1"), send("\n")]), "3000\n");
    assert_eq!(answer(&[send("requetetype1"), send("\r"), send("\nrequetetype2\n")]), "3000\n3001\n");
    assert_eq!(
        answer(&[send("foo"), millis(50), send("\n")]),
        "-1 unknown request type \"foo\"; known: requetetype1, requetetype2, sum, sumall\n"
    );
}

#[test]
fn what_may_be_extended_waits_for_silence() {
    assert_eq!(answer(&[send("sum")]), "");
    assert_eq!(answer(&[send("sum"), millis(49)]), "");
    assert_eq!(answer(&[send("sum"), millis(50)]), "3002");
    assert_eq!(answer(&[send("sum"), millis(49), send("all")]), "3003");
    assert_eq!(answer(&[send("sumall")]), "3003");
}

#[test]
fn an_unknown_bare_request_is_minus_one_after_silence_and_the_connection_stays_usable() {
    assert_eq!(answer(&[send("foo")]), "");
    assert_eq!(answer(&[send("foo"), millis(50)]), "-1");
    assert_eq!(answer(&[send("foo"), millis(60), send("requetetype1")]), "-13000");
    assert_eq!(answer(&[send("requetetype"), millis(20), send("1")]), "3000");
}

#[test]
fn words_with_an_argument_wait_for_their_newline() {
    let jeton = JETON.to_string();
    assert_eq!(answer(&[send("suivi requetetype1"), millis(1000)]), "");
    let tracked = format!("3000 {jeton}\ndebuttraitement {jeton}\n");
    assert_eq!(answer(&[send("suivi requetetype1"), millis(1000), send("\n")]), tracked);
    assert_eq!(
        answer(&[send("suivi requetetype1"), Do::End]),
        tracked,
        "the end of input counts as a newline"
    );
    assert_eq!(answer(&[send("adresse sum\r\n")]), "work.example:3002\n");
    assert_eq!(
        answer(&[send("adresse foo\n")]),
        "-1 unknown request type \"foo\"; known: requetetype1, requetetype2, sum, sumall\n"
    );
}

#[test]
fn the_end_of_input_completes_a_request() {
    let mut server = Server::new();
    assert_eq!(server.run(&[send("sum"), Do::End]), "3002");
    assert!(server.conversation.is_over());
    assert_eq!(answer(&[send("\nrequetetype1"), Do::End]), "3000\n");
    let mut server = Server::new();
    assert_eq!(server.run(&[Do::End]), "");
    assert!(server.conversation.is_over());
}

#[test]
fn an_over_long_request_is_answered_and_the_connection_ends() {
    let mut server = Server::new();
    assert_eq!(server.run(&[send(&"x".repeat(257))]), "-1");
    assert!(!server.conversation.is_over(), "closing at once would reset the connection");
    server.pause(Duration::from_millis(50));
    assert!(server.conversation.is_over());

    let line = "-1 request too long: the limit is 256 bytes\n";
    let mut server = Server::new();
    assert_eq!(server.run(&[send(&"x".repeat(300)), send("xx\nrequetetype1\n")]), line);
    server.pause(Duration::from_millis(50));
    assert!(server.conversation.is_over());
    assert_eq!(answer(&[send(&format!("\n{}", "x".repeat(257)))]), line);
}

#[test]
fn what_can_only_be_a_line_is_refused_with_a_line() {
    let line = "-1 request incomplete: no newline within 10s\n";
    for begun in ["suivi requete", "adresse ", "\nrequete"] {
        assert_eq!(answer(&[send(begun), millis(9_999)]), "");
        assert_eq!(answer(&[send(begun), millis(10_000), send("\n")]), line, "{begun:?}");
    }
    let long = format!("suivi {}", "x".repeat(300));
    let line = "-1 request too long: the limit is 256 bytes\n";
    assert_eq!(answer(&[send(&long), send("\n")]), line);
    assert_eq!(answer(&[send(&long[..200]), send(&long[200..]), send("\n")]), line);
}

#[test]
fn the_longest_request_is_not_too_long() {
    let name = "y".repeat(256);
    for ending in ["\n", "\r\n"] {
        let said = answer(&[send(&format!("{name}{ending}"))]);
        assert!(said.starts_with("-1 unknown request type \"yyyy"), "{said}");
    }
}

#[test]
fn a_sender_that_never_stops_is_cut_off() {
    let mut server = Server::new();
    let flood: Vec<Do> = (0..100).map(|_| send(&"x".repeat(1000))).collect();
    assert_eq!(server.run(&flood), "-1");
    assert!(server.conversation.is_over());
}

#[test]
fn what_was_sent_ahead_is_understood_before_more_is_read() {
    const SENT: usize = 2048;
    let mut server = Server::new();
    server.conversation.handle_input(server.now, &b"?\n".repeat(SENT));
    let mut answered = 0;
    loop {
        server.serve();
        assert!(server.conversation.output().len() < 2 * 4096, "who takes nothing gets no more");
        let answers = std::mem::take(server.conversation.output());
        answered += answers.iter().filter(|&&byte| byte == b'\n').count();
        if server.conversation.wants_input() {
            break;
        }
        assert!(!answers.is_empty(), "nobody would come back to what is left");
    }
    assert!(answered >= SENT - 128, "{answered}");
}

#[test]
fn who_never_ends_its_line_has_time_to_read_why_it_is_sent_away() {
    let mut server = Server::new();
    let refusal = "-1 request incomplete: no newline within 10s\n";
    assert_eq!(server.run(&[send("suivi sum"), millis(9_999)]), "");
    assert_eq!(server.run(&[millis(1)]), refusal);
    assert_eq!(server.run(&[millis(49)]), "");
    assert!(!server.conversation.is_over(), "closing at once would reset the connection");
    server.pause(Duration::from_millis(1));
    assert!(server.conversation.is_over());
}

#[test]
fn an_idle_client_is_let_go_but_not_one_that_is_owed_something() {
    let mut server = Server::new();
    server.run(&[send("requetetype1\n")]);
    server.pause(IDLE - Duration::from_millis(1));
    assert!(!server.conversation.is_over());
    server.pause(Duration::from_millis(1));
    assert!(server.conversation.is_over());

    let mut server = Server::new();
    server.conversation.handle_input(server.now, b"requetetype1\n");
    let request = Request { kind: 0, form: Form::Port };
    assert_eq!(server.conversation.poll_request(server.now, &server.types), Some(request));
    server.pause(IDLE * 2);
    assert!(!server.conversation.is_over());
    server.conversation.answer_port(server.now, 1, 3000);
    server.conversation.handle_news(server.now, 1, News::Claimed);
    server.pause(IDLE - Duration::from_millis(1));
    assert!(!server.conversation.is_over(), "idle counts from the answer");
}

/// Those bytes in pieces, and a pause of so many milliseconds after each.
fn cut(bytes: &[u8], cuts: &[(usize, u64)]) -> Vec<Do> {
    let mut cuts: Vec<(usize, u64)> =
        cuts.iter().map(|(at, pause)| (at % (bytes.len() + 1), *pause)).collect();
    cuts.extend([(0, 0), (bytes.len(), 0)]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|pair| (&bytes[pair[0].0..pair[1].0], pair[1].1));
    pieces.flat_map(|(piece, pause)| [Do::Send(piece.to_vec()), millis(pause)]).collect()
}

/// Whether bare bytes that come first would be answered before the line is whole: a known type
/// that no other extends, with something else right behind it.
fn begins_like_a_bare_request(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    ["requetetype1", "requetetype2", "sumall"].iter().any(|name| {
        let rest = line.strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| !rest.is_empty() && rest != b"\r")
    })
}

/// Requests of every sort, each ended by a newline or `\r\n`.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let request = prop_oneof![
        Just(b"requetetype1".to_vec()),
        Just(b"sum".to_vec()),
        Just(b"sumall".to_vec()),
        Just(Vec::new()),
        Just(b"suivi sum".to_vec()),
        Just(b"suivi requetetype2".to_vec()),
        Just(b"adresse sumall".to_vec()),
        Just(b"adresse inconnu".to_vec()),
        Just(b"suivi ".to_vec()),
        prop::collection::vec(any::<u8>().prop_filter("one line", |byte| !b"\r\n".contains(byte)), 0..80),
    ];
    let ending = prop_oneof![Just(&b"\n"[..]), Just(&b"\r\n"[..])];
    prop::collection::vec((request, ending), 1..6).prop_map(|lines| {
        lines.into_iter().flat_map(|(line, ending)| [line, ending.to_vec()].concat()).collect()
    })
}

proptest! {
    /// Whatever TCP does to the bytes of whole lines, the client gets the same bytes back,
    /// as long as no pause makes an unfinished line look like a bare request.
    #[test]
    fn segmentation_of_lines_changes_nothing(
        bytes in lines(),
        cuts in prop::collection::vec((0usize..500, Just(0)), 0..10),
    ) {
        prop_assume!(!begins_like_a_bare_request(&bytes));
        prop_assert_eq!(answer(&cut(&bytes, &cuts)), answer(&[Do::Send(bytes.clone())]));
    }

    /// Once a newline was seen, pauses change nothing either, as long as each line is whole in
    /// time.
    #[test]
    fn after_the_first_newline_pauses_change_nothing(
        bytes in lines(),
        cuts in prop::collection::vec((0usize..500, 0u64..900), 0..10),
    ) {
        let bytes = [b"\n", bytes.as_slice()].concat();
        let mut pieces = cut(&bytes[1..], &cuts);
        pieces.insert(0, send("\n"));
        prop_assert_eq!(answer(&pieces), answer(&[Do::Send(bytes)]));
    }

    /// News of jobs stand between answers, never in the middle of a line; each once.
    #[test]
    fn news_and_answers_are_whole_lines(
        bytes in lines(),
        cuts in prop::collection::vec((0usize..500, Just(0)), 0..10),
        unclaimed: bool,
    ) {
        let mut server = Server { claims: !unclaimed, ..Server::new() };
        let bytes = [b"\n", bytes.as_slice()].concat();
        let mut said = server.run(&cut(&bytes, &cuts));
        for number in 1..=server.last_number {
            let (end, was_claimed) = if unclaimed { (End::Expired, false) } else { (End::Done, true) };
            server.conversation.handle_news(server.now, number, News::Ended { end, was_claimed });
            said += &server.run(&[]);
        }
        let tracked = said.lines().filter(|line| line.len() == "3000 ".len() + Jeton::DIGITS).count();
        let count = |word: &str| said.lines().filter(|line| line.starts_with(word)).count();
        prop_assert!(said.is_empty() || said.ends_with('\n'));
        prop_assert_eq!(count("debuttraitement "), if unclaimed { 0 } else { tracked });
        prop_assert_eq!(count("fintraitement "), if unclaimed { 0 } else { tracked });
        prop_assert_eq!(count("errtraitement "), if unclaimed { tracked } else { 0 });
        prop_assert_eq!(server.conversation.following().unclaimed(), 0);
        prop_assert!(!server.conversation.following().is_tracking());
    }

    /// A bare request may come in pieces, with less than 50 ms between them: same bytes out, for
    /// each of several requests whose answers are awaited.
    #[test]
    fn a_bare_request_in_pieces_is_the_same_request(
        requests in prop::collection::vec(
            (
                prop_oneof![Just("requetetype1"), Just("requetetype2"), Just("sum"), Just("sumall"), Just("inconnu")],
                prop::collection::vec((0usize..20, 0u64..50), 0..4),
            ),
            1..5,
        ),
    ) {
        let whole: Vec<Do> = requests.iter().flat_map(|(name, _)| [send(name), millis(50)]).collect();
        let pieces = requests.iter().flat_map(|(name, cuts)| {
            // Two cuts at one place would add up to one longer pause.
            let cuts: BTreeMap<usize, u64> =
                cuts.iter().map(|(at, pause)| (at % (name.len() + 1), *pause)).collect();
            let cuts: Vec<(usize, u64)> = cuts.into_iter().collect();
            let mut pieces = cut(name.as_bytes(), &cuts);
            pieces.push(millis(50));
            pieces
        });
        prop_assert_eq!(answer(&pieces.collect::<Vec<_>>()), answer(&whole));
    }

    #[test]
    fn no_bytes_make_it_panic_or_spin(
        pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..400), 0u64..100), 0..20),
    ) {
        let story: Vec<Do> = pieces.into_iter().flat_map(|(bytes, pause)| [Do::Send(bytes), millis(pause)]).collect();
        answer(&story);
    }
}
