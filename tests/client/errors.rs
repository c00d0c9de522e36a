//! Every step fails in its own words, within its own time.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use osps::client::{Client, ClientError, Control, Input, Limits, Mode, Output, Policy, Step};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

use crate::common::ports;
use crate::stage::{Side, Stage, jeton, play, stubborn};

/// A limit that is met for certain: nobody answers.
const SHORT: Duration = Duration::from_millis(50);

/// Calls once, and must fail: in which step, and its words.
fn fails(mut client: Client, mode: Mode) -> (Step, String) {
    let error = client.call_as(mode, "echo", b"hello").unwrap_err();
    (error.step(), error.to_string())
}

/// How a plain call fails against that server.
fn plainly(server: impl FnOnce(&Stage) + Send) -> (Step, String) {
    play(server, |at| fails(stubborn(at), Mode::Plain))
}

/// How a tracked call fails against that server.
fn tracked(server: impl FnOnce(&Stage) + Send) -> (Step, String) {
    play(server, |at| fails(stubborn(at), Mode::Tracked))
}

/// How a call fails whose `limit` is met against that server.
fn in_time(
    mode: Mode,
    limit: impl FnOnce(&mut Limits),
    server: impl FnOnce(&Stage) + Send,
) -> (Step, String) {
    play(server, |at| {
        let mut client = stubborn(at);
        limit(&mut client.limits);
        fails(client, mode)
    })
}

#[track_caller]
fn assert_told((step, told): &(Step, String), expected: Step, words: &[&str]) {
    assert_eq!(*step, expected, "{told}");
    for word in words {
        assert!(told.contains(word), "{word:?} is not in {told:?}");
    }
}

#[test]
fn what_is_no_address_is_not_connected_to() {
    for at in ["", "localhost", "127.0.0.1:", "::1:2222", "unix:"] {
        let error = Client::new(at).unwrap_err();
        assert_eq!(error.step(), Step::Arguments);
        assert!(error.to_string().contains("HOST:PORT"), "{error}");
    }
}

#[test]
fn a_type_that_would_break_the_line_is_not_sent() {
    for kind in ["", "echo\n", "echo echo", "suivi echo", "a\tb", "a\rb"] {
        let error = play(|_| (), |at| stubborn(at).call(kind, b"").unwrap_err());
        assert_eq!(error.step(), Step::Arguments, "{kind:?}: {error}");
    }
}

#[test]
fn a_principal_that_is_not_there_is_named() {
    let (_bound, free) = ports::nobody();
    let free = free.to_string();
    let failed = fails(stubborn(&free), Mode::Plain);
    assert_told(&failed, Step::Connect, &["cannot connect to the principal at", &free, "refused"]);
    let directory = tempfile::tempdir().unwrap();
    let path = format!("unix:{}", directory.path().join("nobody").display());
    let failed = fails(stubborn(&path), Mode::Plain);
    assert_told(&failed, Step::Connect, &[&path, "No such file"]);
}

/// A listener that takes no connection any more, and those that fill its backlog.
fn full(address: &str) -> (TcpListener, Vec<TcpStream>) {
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &address.parse::<SocketAddr>().unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let listener = TcpListener::from(listener);
    let at = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&at, Duration::from_millis(100)).ok();
    let waiting = std::iter::from_fn(connect).take(1000).collect();
    (listener, waiting)
}

#[test]
fn connecting_takes_no_longer_than_it_may() {
    let (listener, _waiting) = full("127.0.0.1:0");
    let mut client = stubborn(&listener.local_addr().unwrap().to_string());
    client.limits.connect = SHORT;
    assert_told(&fails(client, Mode::Plain), Step::Connect, &["timed out"]);
}

#[test]
fn connecting_to_a_unix_socket_takes_no_longer_than_it_may() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("principal");
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let _listener = UnixListener::from(listener);
    let limits = Limits { connect: SHORT, ..Limits::default() };
    let at = format!("unix:{}", path.display()).parse().unwrap();
    let mut open = Vec::new();
    let error = loop {
        match Control::connect(&at, &limits) {
            Ok(control) => open.push(control),
            Err(error) => break error,
        }
        assert!(open.len() < 1000);
    };
    assert!(
        matches!(&error, ClientError::Connect { source, .. } if source.kind() == ErrorKind::TimedOut),
        "{error}"
    );
}

#[test]
fn a_request_without_an_answer_says_so() {
    let closed = plainly(|stage| stage.control().hears("echo\n"));
    let words = ["the principal at 127.0.0.1", "did not answer the request for \"echo\"", "closed"];
    assert_told(&closed, Step::Request, &words);
    let reset = plainly(|stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.resets();
    });
    assert_told(&reset, Step::Request, &["reset"]);
    let half_a_line = plainly(|stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.says("22");
    });
    assert_told(&half_a_line, Step::Request, &["closed"]);
    let silent = in_time(
        Mode::Plain,
        |limits| limits.answer = SHORT,
        |stage| {
            let mut control = stage.control();
            control.hears("echo\n");
            control.says("22");
            control.waits_until_left();
        },
    );
    assert_told(&silent, Step::Request, &["within 50ms"]);
}

#[test]
fn an_answer_that_is_none_is_shown() {
    for (mode, request, answer, words) in [
        (Mode::Plain, "echo", "hello\n", "\"hello\" is no answer"),
        (Mode::Plain, "echo", "0\n", "\"0\" is no answer"),
        (Mode::Plain, "echo", "65536\n", "\"65536\" is no answer"),
        (Mode::Plain, "echo", "+80\n", "\"+80\" is no answer"),
        (Mode::Plain, "echo", "\n", "\"\" is no answer"),
        (Mode::Plain, "echo", "\u{e9}\x01\n", "\u{e9}\\u{1}"),
        (Mode::Plain, "echo", "debuttraitement 12\n", "no news"),
        (Mode::Tracked, "suivi echo", "2223\n", "\"2223\" is no answer"),
        (Mode::Tracked, "suivi echo", "2223 0123\n", "is no answer"),
        (Mode::Addressed, "adresse echo", "2223\n", "\"2223\" is no answer"),
        (Mode::Addressed, "adresse echo", "unix:/x\n", "is no answer"),
    ] {
        let server = |stage: &Stage| {
            let mut control = stage.control();
            control.hears(&format!("{request}\n"));
            control.says(answer);
            control.waits_until_left();
        };
        let failed = play(server, |at| fails(stubborn(at), mode));
        assert_told(&failed, Step::Request, &[words]);
    }
    let endless = plainly(|stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.says(&"9".repeat(5000));
    });
    assert_told(&endless, Step::Request, &["does not end"]);
}

#[test]
fn a_refusal_is_told_in_the_words_of_the_principal() {
    let unknown = plainly(|stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.says("-1 unknown request type \"echo\"; known: a, b\n");
        control.waits_until_left();
    });
    assert_told(&unknown, Step::Request, &["refuses \"echo\": unknown request type", "known: a, b"]);
    // It is told before it asks, and hung up on.
    let too_many = plainly(|stage| {
        let mut control = stage.control();
        control.says("-1 busy: more than 3 connections from your address\n");
        control.half_closes();
        control.hears("echo\n");
        control.waits_until_left();
    });
    assert_told(&too_many, Step::Request, &["busy: more than 3 connections"]);
}

/// Gives a job whose port nobody listens on, as long as the socket is held.
fn give_nowhere(control: &mut Side, request: &str, rest: &str) -> OwnedFd {
    let (bound, address) = ports::nobody();
    control.hears(request);
    control.says(&format!("{}{rest}\n", address.port()));
    bound
}

#[test]
fn a_secondary_that_is_not_there_is_named() {
    let plain = plainly(|stage| {
        let mut control = stage.control();
        let _bound = give_nowhere(&mut control, "echo\n", "");
        control.waits_until_left();
    });
    assert_told(&plain, Step::Open, &["cannot connect to the secondary at 127.0.0.1:", "refused"]);
    let tracked = tracked(|stage| {
        let mut control = stage.control();
        let _bound = give_nowhere(&mut control, "suivi echo\n", &format!(" {}", jeton(1)));
        control.waits_until_left();
    });
    assert_told(&tracked, Step::Open, &["cannot connect to the secondary at 127.0.0.1:", "refused"]);
}

#[test]
fn an_exchange_that_fails_tells_how_far_it_got() {
    let closed = plainly(|stage| {
        stage.give(&mut stage.control());
        stage.data().hears_out();
    });
    assert_told(&closed, Step::Exchange, &["the secondary at 127.0.0.1:", "before an answer", "closed"]);
    let reset = plainly(|stage| {
        stage.give(&mut stage.control());
        let mut data = stage.data();
        data.hears_out();
        data.says("hel");
        data.resets();
    });
    assert_told(&reset, Step::Exchange, &["after 3 bytes of answer", "reset"]);
    let silent = in_time(
        Mode::Plain,
        |limits| limits.silence = SHORT,
        |stage| {
            let mut control = stage.control();
            stage.give(&mut control);
            let mut data = stage.data();
            data.says("h");
            control.waits_until_left();
        },
    );
    assert_told(&silent, Step::Exchange, &["after 1 byte of answer", "no byte was moved within 50ms"]);
}

#[test]
fn a_secondary_that_closes_before_it_has_taken_all_has_not_done_its_work() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        let mut data = stage.data();
        data.takes(1);
        data.says("a");
        data.half_closes();
        data.waits_until_left();
    };
    let (input, mut feeder) = std::io::pipe().unwrap();
    feeder.write_all(b"a").unwrap();
    let error = play(server, |at| {
        let mut answer = Vec::new();
        let mut input = Input::stream(input);
        stubborn(at).stream(Mode::Plain, "echo", &mut input, &mut Output::new(&mut answer)).unwrap_err()
    });
    assert_told(&(error.step(), error.to_string()), Step::Exchange, &["closed before all was sent"]);
}

#[test]
fn a_followed_job_that_is_not_told_of_any_more_is_not_done() {
    let broken = tracked(|stage| {
        let mut control = stage.control();
        let data = stage.give_tracked(&mut control, 1);
        control.says(&format!("debuttraitement {}\n", jeton(1)));
        data.echoes();
        drop(control);
    });
    let words = ["the principal at", "does not tell how the job ended, after 5 bytes", "closed"];
    assert_told(&broken, Step::Follow, &words);
    let silent = in_time(
        Mode::Tracked,
        |limits| limits.news = SHORT,
        |stage| {
            let mut control = stage.control();
            stage.give_tracked(&mut control, 1).echoes();
            control.waits_until_left();
        },
    );
    assert_told(&silent, Step::Follow, &["does not tell", "within 50ms"]);
    for (news, words) in [
        (format!("fintraitement {}\n", jeton(2)), "not open here"),
        (format!("debuttraitement {0}\ndebuttraitement {0}\n", jeton(1)), "second start"),
        ("2223\n".to_owned(), "an answer to no request"),
        ("fintraitement\n".to_owned(), "no news"),
    ] {
        let nonsense = tracked(|stage| {
            let mut control = stage.control();
            let data = stage.give_tracked(&mut control, 1);
            control.says(&news);
            data.echoes();
            control.waits_until_left();
        });
        assert_told(&nonsense, Step::Follow, &["does not tell", words]);
    }
}

#[test]
fn a_job_that_failed_tells_why() {
    for reason in ["expired", "secondary lost", "exit 3", "connection timed out"] {
        let failed = tracked(|stage| {
            let mut control = stage.control();
            let data = stage.give_tracked(&mut control, 1);
            control.says(&format!("errtraitement {} {reason}\n", jeton(1)));
            data.echoes_nothing();
        });
        assert_told(
            &failed,
            Step::Follow,
            &["the job at the secondary at 127.0.0.1:", "before an answer", reason],
        );
    }
}

#[test]
fn input_and_output_of_ones_own_are_told_apart_from_the_server() {
    let directory = std::fs::File::open("/").unwrap();
    let error = play(
        |stage| {
            stage.give(&mut stage.control());
            stage.data().hears_out();
        },
        |at| {
            let mut answer = Vec::new();
            let mut input = Input::stream(directory);
            stubborn(at).stream(Mode::Plain, "echo", &mut input, &mut Output::new(&mut answer)).unwrap_err()
        },
    );
    assert_told(&(error.step(), error.to_string()), Step::Input, &["cannot read the input", "directory"]);
    let too_long = |mode: Mode| {
        play(
            |stage| {
                let mut control = stage.control();
                let mut data = match mode {
                    Mode::Tracked => stage.give_tracked(&mut control, 1),
                    Mode::Plain | Mode::Addressed => {
                        stage.give(&mut control);
                        stage.data()
                    }
                };
                data.says("hello");
                control.waits_until_left();
            },
            |at| {
                let mut client = stubborn(at);
                client.limits.answer_bytes = 4;
                fails(client, mode)
            },
        )
    };
    for mode in [Mode::Plain, Mode::Tracked] {
        assert_told(&too_long(mode), Step::Output, &["longer than 4 bytes"]);
    }
}

#[test]
fn after_all_tries_the_last_failure_is_told() {
    let error = play(
        |stage| {
            for _ in 0..3 {
                stage.control().hears("echo\n");
            }
        },
        |at| {
            let mut client = stubborn(at);
            client.policy = Policy { tries: 3, first_pause: Duration::from_millis(1), ..Policy::default() };
            client.call("echo", b"hello").unwrap_err()
        },
    );
    assert!(matches!(error, ClientError::Tried { tries: 3, .. }), "{error}");
    assert_told(
        &(error.step(), error.to_string()),
        Step::Request,
        &["after 3 tries: the principal at", "closed"],
    );
}
