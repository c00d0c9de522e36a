//! A control connection as a sequence of operations: input, time, answers of every form, news,
//! an end of input, a client that takes its answers late; against a model of what it is owed.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use osps::core::conversation::Conversation;
use osps::core::following::{MAX_UNCLAIMED, News};
use osps::core::job::{End, Reason};
use osps::core::moment::Moment;
use osps::core::refused::Refused;
use osps::wire::client::{Form, Refusal, Request, Types};
use osps::wire::jeton::Jeton;

const IDLE: Duration = Duration::from_secs(30);
/// What a shell reads at once.
const READ_BYTES: usize = 4096;
/// With that much unsent, nothing more is asked; one answer, and news, may come on top.
const OUTPUT_LIMIT: usize = 4096;
const LONGEST_ANSWER: usize = 1024;
const LONGEST_NEWS: usize = 80;
const NAMES: [&str; 4] = ["requetetype1", "requetetype2", "sum", "sumall"];

#[derive(Arbitrary, Debug)]
enum Op {
    Say(Said),
    Pause(u16),
    LongPause,
    Answer,
    Refuse(u8),
    Claim(u8),
    End(u8, Fate),
    /// The client takes so much of what was sent.
    Take(u16),
    EndOfInput,
}

#[derive(Arbitrary, Debug)]
enum Said {
    Type(u8),
    Tracked(u8),
    Address(u8),
    Newline,
    Return,
    Bytes(Vec<u8>),
    Much(u8, u16),
    Many(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Fate {
    Done,
    Lost,
    Stopping,
    Reset,
    Expired,
}

#[derive(Arbitrary, Debug)]
struct Input {
    ops: Vec<Op>,
    turned_away: bool,
    /// Whether each request is answered at once.
    prompt: bool,
}

/// A job that was given here and has not ended.
struct Open {
    number: u64,
    jeton: Option<Jeton>,
    claimed: bool,
}

/// What must come out, in this order.
#[derive(Debug, PartialEq)]
enum Token {
    Port(u16),
    Refusal,
    News(String),
}

struct Server {
    types: Types,
    conversation: Conversation,
    now: Moment,
    asked: Option<Request>,
    jobs: Vec<Open>,
    given: u64,
    ended: bool,
    /// All that was sent.
    sent: String,
    /// Tokens that must come, refusals of its own not among them.
    owed: Vec<Token>,
    refused_by_us: u64,
    refused: u64,
    /// News since the output was empty.
    news: usize,
    gone: bool,
}

fuzz_target!(|input: Input| {
    let mut server = Server::new(input.turned_away);
    for op in input.ops {
        if server.gone {
            break;
        }
        server.apply(op);
        if input.prompt {
            server.answer_all();
        }
        // What was taken or told may leave a deadline that has passed: its timer comes at once.
        server.pause(Duration::ZERO);
        server.check();
    }
    server.finish();
});

impl Server {
    fn new(turned_away: bool) -> Self {
        let now = Moment::from_nanos(1_000_000_000);
        let conversation = if turned_away {
            Conversation::turned_away(now, Refusal::TooManyConnections(3))
        } else {
            Conversation::new(now)
        };
        Self {
            types: Types::new(NAMES),
            conversation,
            now,
            asked: None,
            jobs: Vec::new(),
            given: 0,
            ended: false,
            sent: String::new(),
            owed: Vec::new(),
            refused_by_us: 0,
            refused: 0,
            news: 0,
            gone: false,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Say(said) => self.say(&bytes(said)),
            Op::Pause(millis) => self.pause(Duration::from_millis((millis % 1000).into())),
            Op::LongPause => self.pause(IDLE * 2),
            Op::Answer => self.answer(),
            Op::Refuse(why) => self.refuse(why),
            Op::Claim(which) => {
                if let Some(at) = self.which(which).filter(|at| !self.jobs[*at].claimed) {
                    self.claim(at);
                }
            }
            Op::End(which, fate) => {
                if let Some(at) = self.which(which) {
                    self.end(at, fate);
                }
            }
            Op::Take(bytes) => self.take(bytes.into()),
            Op::EndOfInput => {
                self.ended = true;
                self.conversation.handle_end_of_input();
                self.poll();
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(READ_BYTES) {
            if self.conversation.wants_input() {
                self.conversation.handle_input(self.now, piece);
                self.poll();
            }
        }
    }

    fn poll(&mut self) {
        let request = self.conversation.poll_request(self.now, &self.types);
        assert!(request.is_none() || self.asked.is_none(), "a second request before the answer");
        self.asked = self.asked.or(request);
        self.refused += sum(self.conversation.take_refused());
    }

    /// Lets time pass, as a shell does whose timers come in time.
    fn pause(&mut self, pause: Duration) {
        let until = self.now + pause;
        while let Some(at) = self.conversation.poll_timeout(&self.types, IDLE).filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let quiet =
                self.conversation.output().is_empty() && !self.jobs.iter().any(|job| job.jeton.is_some());
            if self.conversation.handle_timeout(self.now, &self.types, IDLE) {
                assert!(quiet && self.asked.is_none(), "closed as idle, and something was owed");
                self.gone = true;
            }
            self.poll();
            let next = self.conversation.poll_timeout(&self.types, IDLE);
            assert!(next.is_none_or(|next| next > self.now), "a deadline that has passed comes back");
        }
        self.now = until;
    }

    fn answer_all(&mut self) {
        while self.asked.is_some() {
            self.answer();
        }
    }

    fn answer(&mut self) {
        let Some(Request { kind, form }) = self.asked.take() else {
            return;
        };
        assert!(kind < NAMES.len());
        self.given += 1;
        let (now, number) = (self.now, self.given);
        let port = 10_000 + u16::try_from(number % 50_000).expect("it fits");
        self.owed.push(Token::Port(port));
        let mut jeton = None;
        match form {
            Form::Port => self.conversation.answer_port(now, number, port),
            Form::Address => self.conversation.answer_address(now, number, &format!("[::1]:{port}")),
            Form::Tracked => {
                let secret = Jeton::from_bytes((u128::from(number) << 64 | 1).to_be_bytes());
                self.conversation.answer_tracked(now, number, port, secret);
                jeton = Some(secret);
            }
        }
        self.jobs.push(Open { number, jeton, claimed: false });
        self.poll();
    }

    fn refuse(&mut self, why: u8) {
        if self.asked.take().is_none() {
            return;
        }
        let why = [Refusal::AllFull, Refusal::NoneReady, Refusal::Stopping][usize::from(why % 3)];
        self.refused_by_us += 1;
        self.conversation.refuse(self.now, why);
        self.poll();
    }

    fn which(&self, which: u8) -> Option<usize> {
        usize::from(which).checked_rem(self.jobs.len())
    }

    fn claim(&mut self, at: usize) {
        let Open { number, jeton, ref mut claimed } = self.jobs[at];
        *claimed = true;
        self.tell(number, News::Claimed, jeton.map(|jeton| format!("debuttraitement {jeton}")));
    }

    fn end(&mut self, at: usize, fate: Fate) {
        let end = match fate {
            Fate::Done => End::Done,
            Fate::Lost => End::Failed(Reason::SecondaryLost),
            Fate::Stopping => End::Failed(Reason::Stopping),
            Fate::Reset => End::Failed(Reason::ConnectionLost),
            Fate::Expired => End::Expired,
        };
        // Who has begun does not expire; who has not cannot end otherwise.
        if self.jobs[at].claimed == (end == End::Expired) {
            return;
        }
        let Open { number, jeton, claimed } = self.jobs.swap_remove(at);
        let line = jeton.map(|jeton| match end {
            End::Done => format!("fintraitement {jeton}"),
            End::Failed(reason) => format!("errtraitement {jeton} {reason}"),
            End::Expired => format!("errtraitement {jeton} expired"),
        });
        self.tell(number, News::Ended { end, was_claimed: claimed }, line);
    }

    fn tell(&mut self, number: u64, news: News, line: Option<String>) {
        self.conversation.handle_news(self.now, number, news);
        self.news += usize::from(line.is_some());
        self.owed.extend(line.map(Token::News));
        self.poll();
    }

    fn take(&mut self, bytes: usize) {
        let output = self.conversation.output();
        let taken = output.drain(..bytes.min(output.len()));
        self.sent.push_str(std::str::from_utf8(taken.as_slice()).expect("ASCII"));
        drop(taken);
        if self.conversation.output().is_empty() {
            self.news = 0;
        }
        self.poll();
    }

    fn check(&mut self) {
        let unclaimed = self.jobs.iter().filter(|job| !job.claimed).count();
        let following = self.conversation.following();
        assert_eq!(following.unclaimed() as usize, unclaimed);
        assert!(following.unclaimed() <= MAX_UNCLAIMED);
        assert_eq!(following.is_tracking(), self.jobs.iter().any(|job| job.jeton.is_some()));
        assert_eq!(self.conversation.is_asked(), self.asked.is_some());
        let unsent = self.conversation.output().len();
        assert!(unsent <= OUTPUT_LIMIT + LONGEST_ANSWER + self.news * LONGEST_NEWS, "{unsent} bytes");
        let closed = self.ended || self.asked.is_some() || self.conversation.is_over();
        let full = following_is_full(unclaimed) || unsent >= OUTPUT_LIMIT;
        assert!(!self.conversation.wants_input() || !closed && !full);
        let next = self.conversation.poll_timeout(&self.types, IDLE);
        assert!(next.is_none_or(|next| next > self.now), "a deadline that has passed");
        if let Some(since) = self.conversation.idle_since() {
            assert!(since <= self.now && !self.jobs.iter().any(|job| job.jeton.is_some()));
        }
    }

    /// Everything comes to its end: what was sent is what was owed.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.answer_all();
            self.take(usize::MAX);
            while !self.jobs.is_empty() {
                let fate = if self.jobs[0].claimed { Fate::Done } else { Fate::Expired };
                self.end(0, fate);
            }
            if self.asked.is_none() && self.conversation.output().is_empty() {
                break;
            }
        }
        if !self.ended {
            self.apply(Op::EndOfInput);
            self.answer_all();
            self.take(usize::MAX);
            while !self.jobs.is_empty() {
                self.end(0, Fate::Expired);
            }
        }
        self.pause(IDLE * 2);
        self.take(usize::MAX);
        assert!(self.conversation.is_over(), "{:?}", self.conversation);
        let tokens = tokens(&self.sent);
        let refusals = tokens.iter().filter(|token| **token == Token::Refusal).count();
        assert_eq!(refusals as u64, self.refused, "{:?}", self.sent);
        assert!(self.refused >= self.refused_by_us);
        let others: Vec<Token> = tokens.into_iter().filter(|token| *token != Token::Refusal).collect();
        assert_eq!(others, self.owed, "{:?}", self.sent);
    }
}

fn following_is_full(unclaimed: usize) -> bool {
    unclaimed >= MAX_UNCLAIMED as usize
}

fn bytes(said: Said) -> Vec<u8> {
    let name = |which: u8| NAMES[usize::from(which) % NAMES.len()];
    match said {
        Said::Type(which) => name(which).into(),
        Said::Tracked(which) => format!("suivi {}", name(which)).into(),
        Said::Address(which) => format!("adresse {}\n", name(which)).into(),
        Said::Newline => b"\n".into(),
        Said::Return => b"\r".into(),
        Said::Bytes(bytes) => bytes,
        Said::Much(byte, times) => vec![byte; times.into()],
        Said::Many(which) => format!("suivi {}\r\n", name(which)).repeat(which.into()).into(),
    }
}

/// Understands what a client gets: every byte of it belongs to an answer or to news.
fn tokens(mut text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    while !text.is_empty() {
        let line_length = text.find('\n').map_or(text.len(), |at| at + 1);
        let length = if text.starts_with("-1") {
            tokens.push(Token::Refusal);
            let has_reason = text[2..].starts_with([' ', '\n']);
            if has_reason { line_length } else { 2 }
        } else if text.starts_with(|first: char| first.is_ascii_digit()) {
            tokens.push(Token::Port(text[..5].parse().expect("a port")));
            if text[5..].starts_with([' ', '\n']) { line_length } else { 5 }
        } else if let Some(place) = text.strip_prefix("[::1]:") {
            tokens.push(Token::Port(place[..5].parse().expect("a port")));
            assert_eq!(&place[5..6], "\n");
            line_length
        } else {
            assert!(text[..line_length].ends_with('\n'), "{text:?}");
            tokens.push(Token::News(text[..line_length - 1].to_owned()));
            line_length
        };
        text = &text[length..];
    }
    tokens
}

fn sum(refused: Refused) -> u64 {
    let Refused { unknown, malformed, busy, stopping } = refused;
    unknown + malformed + busy + stopping
}
