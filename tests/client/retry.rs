//! What is tried again, and what is not: each decision against a server that fails just so.

use std::io::Write;

use osps::client::{Client, ClientError, Input, Mode, Output, Policy, REPLAY_BYTES, Reply, Step};

use crate::common::ports;
use crate::stage::{Stage, jeton, patient, play};

/// The call succeeds with the second try, after the first failed as the server plays it.
#[track_caller]
fn is_tried_again(mode: Mode, first: impl FnOnce(&Stage) + Send) {
    let server = |stage: &Stage| {
        first(stage);
        serves(stage, mode);
    };
    let reply = play(server, |at| patient(at).call_as(mode, "echo", b"hello").unwrap());
    assert_eq!(reply, Reply { bytes: b"hello".to_vec(), tries: 2 });
}

/// A try that goes well, on a control connection of its own.
fn serves(stage: &Stage, mode: Mode) {
    let mut control = stage.control();
    match mode {
        Mode::Tracked => {
            stage.give_tracked(&mut control, 9).echoes();
            control.says(&format!("debuttraitement {0}\nfintraitement {0}\n", jeton(9)));
        }
        Mode::Plain => {
            stage.give(&mut control);
            stage.data().echoes();
        }
        Mode::Addressed => {
            control.hears("adresse echo\n");
            control.says(&format!("localhost:{}\n", stage.port()));
            stage.data().echoes();
        }
    }
    control.waits_until_left();
}

/// The call fails with the first try: `play` sees that no second one is made.
#[track_caller]
fn is_not_tried_again(mode: Mode, first: impl FnOnce(&Stage) + Send) -> ClientError {
    let error = play(first, |at| patient(at).call_as(mode, "echo", b"hello").unwrap_err());
    assert!(!matches!(error, ClientError::Tried { .. }), "{error}");
    error
}

/// The first control connection is kept open until the client leaves it, so that the second try,
/// which comes over it, finds it usable.
fn refused_then_served(words: &str) -> Reply {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.says(&format!("-1 {words}\n"));
        stage.give(&mut control);
        stage.data().echoes();
        control.waits_until_left();
    };
    play(server, |at| patient(at).call("echo", b"hello").unwrap())
}

#[test]
fn who_is_busy_or_stopping_is_asked_again_over_the_same_connection() {
    for words in ["busy: no secondary is ready", "stopping"] {
        assert_eq!(refused_then_served(words), Reply { bytes: b"hello".to_vec(), tries: 2 });
    }
}

#[test]
fn who_is_told_that_there_are_too_many_connections_comes_back_with_another() {
    is_tried_again(Mode::Plain, |stage| {
        let mut control = stage.control();
        control.says("-1 busy: more than 1 connections from your address\n");
        control.half_closes();
        control.hears_out();
    });
}

#[test]
fn what_would_be_refused_again_is_not_asked_again() {
    for words in ["unknown request type \"echo\"; known: a", "request too long: the limit is 256 bytes", ""] {
        let error = is_not_tried_again(Mode::Plain, |stage| {
            let mut control = stage.control();
            control.hears("echo\n");
            control.says(&format!("-1 {words}\n"));
            control.waits_until_left();
        });
        assert_eq!(error.step(), Step::Request, "{error}");
    }
}

#[test]
fn a_control_connection_that_breaks_before_the_answer_is_tried_again() {
    for mode in [Mode::Plain, Mode::Tracked, Mode::Addressed] {
        is_tried_again(mode, |stage| drop(stage.control()));
        is_tried_again(mode, |stage| stage.control().resets());
    }
}

#[test]
fn a_principal_that_says_nonsense_is_not_asked_again() {
    let error = is_not_tried_again(Mode::Plain, |stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.says("hello\n");
        control.waits_until_left();
    });
    assert_eq!(error.step(), Step::Request, "{error}");
}

#[test]
fn a_data_connection_that_is_closed_or_reset_before_an_answer_is_tried_again() {
    // Rejected: closed without a look.
    is_tried_again(Mode::Plain, |stage| {
        stage.give(&mut stage.control());
        drop(stage.data());
    });
    // Died with the input in its hands.
    is_tried_again(Mode::Plain, |stage| {
        stage.give(&mut stage.control());
        stage.data().hears_out();
    });
    is_tried_again(Mode::Plain, |stage| {
        stage.give(&mut stage.control());
        stage.data().resets();
    });
}

#[test]
fn a_secondary_that_nobody_reaches_is_asked_for_again() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        let (_bound, free) = ports::nobody();
        control.says(&format!("{}\n", free.port()));
        stage.give(&mut control);
        stage.data().echoes();
        control.waits_until_left();
    };
    let reply = play(server, |at| patient(at).call("echo", b"hello").unwrap());
    assert_eq!(reply.tries, 2);
}

#[test]
fn after_the_first_byte_of_answer_nothing_is_tried_again() {
    let error = is_not_tried_again(Mode::Plain, |stage| {
        stage.give(&mut stage.control());
        let mut data = stage.data();
        data.takes(5);
        data.says("h");
        data.resets();
    });
    assert_eq!((error.step(), error.answered()), (Step::Exchange, 1), "{error}");
}

#[test]
fn an_answer_to_nothing_may_be_empty() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().echoes();
    };
    let reply = play(server, |at| patient(at).call("echo", b"").unwrap());
    assert_eq!(reply, Reply { bytes: Vec::new(), tries: 1 });
}

#[test]
fn a_secondary_that_is_silent_may_be_at_work() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        stage.give(&mut control);
        let _data = stage.data();
        control.waits_until_left();
    };
    let error = play(server, |at| {
        let mut client = patient(at);
        client.limits.silence = std::time::Duration::from_millis(50);
        client.call("echo", b"hello").unwrap_err()
    });
    assert!(!matches!(error, ClientError::Tried { .. }), "{error}");
}

#[test]
fn a_tracked_job_that_was_lost_is_tried_again_over_the_same_connection() {
    for reason in ["expired", "secondary lost", "connection lost", "stopping"] {
        let server = |stage: &Stage| {
            let mut control = stage.control();
            let data = stage.give_tracked(&mut control, 1);
            control.says(&format!("debuttraitement {0}\nerrtraitement {0} {reason}\n", jeton(1)));
            data.echoes_nothing();
            stage.give_tracked(&mut control, 2).echoes();
            control.says(&format!("debuttraitement {0}\nfintraitement {0}\n", jeton(2)));
            control.waits_until_left();
        };
        let reply = play(server, |at| patient(at).call_tracked("echo", b"hello").unwrap());
        assert_eq!(reply, Reply { bytes: b"hello".to_vec(), tries: 2 }, "{reason}");
    }
}

/// Its secondary died before it had claimed the job: the principal has nothing to tell for now.
#[test]
fn a_data_connection_that_breaks_before_the_job_is_claimed_is_tried_again_before_it_expires() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        stage.give_tracked(&mut control, 1).resets();
        let data = stage.give_tracked(&mut control, 2);
        control.says(&format!("errtraitement {} expired\n", jeton(1)));
        data.echoes();
        control.says(&format!("debuttraitement {0}\nfintraitement {0}\n", jeton(2)));
        control.waits_until_left();
    };
    let reply = play(server, |at| patient(at).call_tracked("echo", b"hello").unwrap());
    assert_eq!(reply, Reply { bytes: b"hello".to_vec(), tries: 2 });
}

#[test]
fn what_the_handler_says_of_a_job_stands() {
    for reason in ["exit 3", "signal 9", "time limit", "connection timed out", "hocus pocus"] {
        let error = is_not_tried_again(Mode::Tracked, |stage| {
            let mut control = stage.control();
            let data = stage.give_tracked(&mut control, 1);
            control.says(&format!("errtraitement {} {reason}\n", jeton(1)));
            data.echoes_nothing();
            control.waits_until_left();
        });
        assert!(error.to_string().ends_with(reason), "{error}");
    }
}

#[test]
fn a_job_that_was_lost_after_a_byte_of_answer_is_not_tried_again() {
    let error = is_not_tried_again(Mode::Tracked, |stage| {
        let mut control = stage.control();
        let mut data = stage.give_tracked(&mut control, 1);
        data.says("h");
        data.hears_out();
        drop(data);
        control.says(&format!("errtraitement {} secondary lost\n", jeton(1)));
        control.waits_until_left();
    });
    assert_eq!((error.step(), error.answered()), (Step::Follow, 1), "{error}");
}

#[test]
fn a_principal_that_dies_before_the_answer_is_asked_again_though_the_job_goes_on() {
    is_tried_again(Mode::Tracked, |stage| {
        let mut control = stage.control();
        let data = stage.give_tracked(&mut control, 1);
        control.says(&format!("debuttraitement {}\n", jeton(1)));
        drop(control);
        data.echoes_nothing();
    });
}

#[test]
fn a_stream_is_sent_again_as_long_as_all_of_it_is_kept() {
    for (length, tries) in [(0, 1), (1, 2), (REPLAY_BYTES, 2), (REPLAY_BYTES + 1, 1)] {
        let sent: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let served = tries == 2;
        let server = |stage: &Stage| {
            stage.give(&mut stage.control());
            stage.data().echoes_nothing();
            if served {
                serves(stage, Mode::Plain);
            }
        };
        let (input, mut feeder) = std::io::pipe().unwrap();
        let bytes = sent.clone();
        let (streamed, answer) = std::thread::scope(|scope| {
            scope.spawn(move || feeder.write_all(&bytes));
            let mut answer = Vec::new();
            let streamed = play(server, |at| {
                let mut input = Input::stream(input);
                patient(at).stream(Mode::Plain, "echo", &mut input, &mut Output::new(&mut answer))
            });
            (streamed, answer)
        });
        match streamed {
            Ok(streamed) => assert_eq!((streamed.tries, answer == sent), (tries, true), "{length}"),
            Err(error) => {
                assert!(length > REPLAY_BYTES && !matches!(error, ClientError::Tried { .. }), "{error}")
            }
        }
    }
}

#[test]
fn a_file_is_sent_again_from_where_it_stood_however_long_it_is() {
    use std::io::{Seek, SeekFrom};
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..3 * REPLAY_BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
    file.write_all(&bytes).unwrap();
    file.seek(SeekFrom::Start(100)).unwrap();
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().echoes_nothing();
        serves(stage, Mode::Plain);
    };
    let mut answer = Vec::new();
    let streamed = play(server, |at| {
        let mut input = Input::file(file).unwrap();
        patient(at).stream(Mode::Plain, "echo", &mut input, &mut Output::new(&mut answer)).unwrap()
    });
    assert_eq!(streamed.tries, 2);
    assert!(answer == bytes[100..], "{} bytes came back", answer.len());
}

#[test]
fn the_policy_bounds_the_tries() {
    let server = |stage: &Stage| {
        for _ in 0..4 {
            drop(stage.control());
        }
    };
    let error = play(server, |at| {
        let mut client = patient(at);
        client.policy.tries = 4;
        client.call("echo", b"hello").unwrap_err()
    });
    assert!(matches!(error, ClientError::Tried { tries: 4, .. }), "{error}");
    let error = play(
        |stage| drop(stage.control()),
        |at| {
            let mut client = patient(at);
            client.policy = Policy { within: std::time::Duration::ZERO, ..client.policy };
            client.call("echo", b"hello").unwrap_err()
        },
    );
    assert!(!matches!(error, ClientError::Tried { .. }), "its time is over: {error}");
}

#[test]
fn a_control_connection_serves_call_after_call_and_one_that_was_closed_costs_no_try() {
    let call = |client: &mut Client| client.call("echo", b"hello").unwrap().tries;
    let (closed, is_closed) = std::sync::mpsc::channel();
    let server = |stage: &Stage| {
        let mut control = stage.control();
        for _ in 0..3 {
            stage.give(&mut control);
            stage.data().echoes();
        }
        drop(control);
        closed.send(()).unwrap();
        serves(stage, Mode::Plain);
    };
    let tries = play(server, |at| {
        let mut client = patient(at);
        let mut tries = vec![call(&mut client), call(&mut client), call(&mut client)];
        is_closed.recv().unwrap();
        tries.push(call(&mut client));
        tries
    });
    assert_eq!(tries, [1; 4]);
}
