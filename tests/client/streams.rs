//! Streams of the library: both ways at once, within bounds, to their ends.

use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;

use osps::client::{ClientError, Input, Mode, Output, Reply, Streamed};

use crate::stage::{Stage, jeton, patient, play};

/// More than both sockets and all buffers between two processes hold.
const MUCH: usize = 32 * 1024 * 1024;

fn pattern(length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap())
}

/// A pipe that is filled with this, by a thread of its own, while `f` runs.
fn fed<T>(bytes: impl Iterator<Item = u8> + Send, f: impl FnOnce(PipeReader) -> T) -> T {
    let (input, mut feeder) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bytes: Vec<u8> = bytes.collect();
            // Whoever reads may have seen enough.
            let _ = feeder.write_all(&bytes);
        });
        f(input)
    })
}

#[test]
fn a_secondary_that_answers_while_it_is_sent_to_blocks_nobody() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().echoes_at_once();
    };
    let mut answer = Vec::new();
    let streamed = fed(pattern(MUCH), |input| {
        play(server, |at| {
            let mut input = Input::stream(input);
            patient(at).stream(Mode::Plain, "echo", &mut input, &mut Output::new(&mut answer)).unwrap()
        })
    });
    assert_eq!(streamed, Streamed { answered: MUCH as u64, tries: 1 });
    assert!(answer.into_iter().eq(pattern(MUCH)));
}

#[test]
fn a_secondary_that_answers_only_at_the_end_gets_the_end() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().echoes();
    };
    let mut answer = Vec::new();
    fed(pattern(MUCH), |input| {
        play(server, |at| {
            let mut input = Input::stream(input);
            patient(at).stream(Mode::Plain, "echo", &mut input, &mut Output::new(&mut answer)).unwrap()
        })
    });
    assert!(answer.into_iter().eq(pattern(MUCH)));
}

#[test]
fn what_is_answered_is_written_while_the_input_is_still_open() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().echoes_at_once();
    };
    let (input, mut feeder) = std::io::pipe().unwrap();
    let (mut reader, output) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        let turns = scope.spawn(move || {
            for word in ["one", "two", "three"] {
                feeder.write_all(word.as_bytes()).unwrap();
                let mut answer = vec![0; word.len()];
                reader.read_exact(&mut answer).unwrap();
                assert_eq!(answer, word.as_bytes());
            }
            reader
        });
        let streamed = play(server, |at| {
            let mut writer = &output;
            let mut output = Output::watched(&mut writer, output.as_fd());
            patient(at).stream(Mode::Plain, "echo", &mut Input::stream(input), &mut output).unwrap()
        });
        assert_eq!(streamed.answered, 11);
        turns.join().unwrap();
    });
}

#[test]
fn an_output_that_does_not_block_is_waited_for() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().echoes_at_once();
    };
    let (mut reader, output) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&output, true).unwrap();
    let (streamed, answer) = std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).unwrap();
            answer
        });
        let sent: Vec<u8> = pattern(MUCH).collect();
        let streamed = play(server, |at| {
            let mut writer = &output;
            let mut output = Output::watched(&mut writer, output.as_fd());
            patient(at).stream(Mode::Plain, "echo", &mut Input::bytes(&sent), &mut output)
        });
        drop(output);
        (streamed, read.join().unwrap())
    });
    assert_eq!(streamed.unwrap().answered, MUCH as u64);
    assert!(answer.into_iter().eq(pattern(MUCH)));
}

#[test]
fn who_stops_reading_ends_a_plain_exchange_even_if_nothing_is_said() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().hears_out();
    };
    let (input, mut feeder) = std::io::pipe().unwrap();
    feeder.write_all(b"abc").unwrap();
    let (reader, output) = std::io::pipe().unwrap();
    drop(reader);
    let error = play(server, |at| {
        let mut writer = &output;
        let mut output = Output::watched(&mut writer, output.as_fd());
        patient(at).stream(Mode::Plain, "echo", &mut Input::stream(input), &mut output).unwrap_err()
    });
    drop(feeder);
    assert!(
        matches!(&error, ClientError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe),
        "{error}"
    );
}

#[test]
fn who_stops_reading_a_followed_job_still_learns_its_end() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        stage.give_tracked(&mut control, 1).hears_out();
        control.says(&format!("fintraitement {}\n", jeton(1)));
        control.waits_until_left();
    };
    let (reader, output) = std::io::pipe().unwrap();
    drop(reader);
    play(server, |at| {
        let mut writer = &output;
        let mut output = Output::watched(&mut writer, output.as_fd());
        patient(at).stream(Mode::Tracked, "echo", &mut Input::bytes(b"abc"), &mut output).unwrap()
    });
}

#[test]
fn a_handler_that_takes_nothing_and_says_nothing_has_done_its_work_if_the_principal_says_so() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        let mut data = stage.give_tracked(&mut control, 1);
        data.half_closes();
        control.says(&format!("debuttraitement {0}\nfintraitement {0}\n", jeton(1)));
        data.hears_out();
    };
    let reply = play(server, |at| patient(at).call_tracked("echo", b"hello").unwrap());
    assert_eq!(reply, Reply { bytes: Vec::new(), tries: 1 });
}

#[test]
fn who_has_not_sent_all_has_not_been_served_whatever_the_books_say() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        let mut data = stage.give_tracked(&mut control, 1);
        data.takes(1);
        data.says("enough");
        data.half_closes();
        control.says(&format!("debuttraitement {0}\nfintraitement {0}\n", jeton(1)));
        data.hears_out();
    };
    let mut answer = Vec::new();
    fed(pattern(MUCH), |input| {
        play(server, |at| {
            let mut input = Input::stream(input);
            let mut output = Output::new(&mut answer);
            let error = patient(at).stream(Mode::Tracked, "echo", &mut input, &mut output).unwrap_err();
            assert!(error.to_string().contains("closed before all was sent"), "{error}");
        })
    });
    assert_eq!(answer, b"enough");
}
