//! The program `osps-client`: its streams and its exit codes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};

use crate::common::{osps_client, ports};
use crate::stage::{Stage, jeton, play};

/// What a run of the program came to.
type Outcome = (Option<i32>, String, String);

fn run(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn client(at: &str, arguments: &[&str]) -> Command {
    let mut command = osps_client();
    command.args(["--at", at]).args(arguments).stdin(Stdio::null());
    command
}

/// Runs the program against a server that is played.
fn against(server: impl FnOnce(&Stage) + Send, arguments: &[&str]) -> Outcome {
    play(server, |at| run(&mut client(at, arguments)))
}

/// A plain job that is done.
fn serves(stage: &Stage) {
    stage.give(&mut stage.control());
    stage.data().echoes();
}

/// A tracked job whose input is taken, and which ends with that line.
fn ends_with(stage: &Stage, answers: bool, end: &str) {
    let mut control = stage.control();
    let data = stage.give_tracked(&mut control, 1);
    control.says(&format!("debuttraitement {}\n", jeton(1)));
    if answers {
        data.echoes()
    } else {
        data.echoes_nothing()
    }
    control.says(end);
    control.waits_until_left();
}

#[test]
fn the_exit_code_tells_usage_from_failure() {
    let (_bound, free) = ports::nobody();
    let free = free.to_string();
    for arguments in [
        &[][..],
        &["--bogus"],
        &["echo", "--at", "localhost"],
        &["echo", "--at", "unix:"],
        &["echo", "--timeout", "0s"],
        &["echo", "--retries", "-1"],
        &["echo echo", "--at", &free, "--data", "x"],
    ] {
        let (code, _, error) = run(osps_client().args(arguments));
        assert_eq!(code, Some(64), "{arguments:?}: {error}");
        assert!(!error.is_empty(), "{arguments:?}");
    }
    let (code, _, error) = run(&mut client(&free, &["echo", "--data", "x", "--retries", "0"]));
    assert_eq!(code, Some(69), "{error}");
    assert!(error.contains("cannot connect to the principal at") && !error.contains("tries"), "{error}");
    let (code, _, error) = run(osps_client().args(["--config", "/nonexistent/osps.toml", "echo"]));
    assert_eq!(code, Some(78), "{error}");
}

#[test]
fn what_is_refused_or_breaks_off_is_unavailable() {
    let refused = |stage: &Stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.says("-1 unknown request type \"echo\"; known: a\n");
        control.waits_until_left();
    };
    let (code, _, error) = against(refused, &["echo"]);
    assert_eq!(code, Some(69));
    assert!(
        error.contains("refuses \"echo\": unknown request type") && error.ends_with("known: a\n"),
        "{error}"
    );
    let broken = |stage: &Stage| {
        stage.give(&mut stage.control());
        let mut data = stage.data();
        data.says("he");
        data.takes(5);
        data.resets();
    };
    let (code, said, error) = against(broken, &["echo", "--data", "hello"]);
    assert_eq!((code, said.as_str()), (Some(69), "he"), "{error}");
    assert!(error.contains("after 2 bytes of answer"), "{error}");
}

#[test]
fn retries_are_made_quietly_and_can_be_forbidden() {
    let server = |stage: &Stage| {
        drop(stage.control());
        serves(stage);
    };
    let outcome = against(server, &["echo", "--data", "hello"]);
    assert_eq!(outcome, (Some(0), "hello".to_owned(), String::new()));
    let (code, _, error) = against(|stage| drop(stage.control()), &["echo", "--data", "x", "--retries", "0"]);
    assert_eq!(code, Some(69), "{error}");
}

#[test]
fn following_shows_what_becomes_of_the_job() {
    let [debut, fin] = ["debuttraitement", "fintraitement"].map(|word| format!("{word} {}\n", jeton(1)));
    let done = against(|stage| ends_with(stage, true, &fin), &["echo", "--follow", "--data", "hello"]);
    assert_eq!(done, (Some(0), "hello".to_owned(), format!("{debut}{fin}")));
    // The answer is whole, and yet the job has failed.
    let err = format!("errtraitement {} exit 3\n", jeton(1));
    for answers in [true, false] {
        let arguments = ["echo", "--follow", "--data", "hello"];
        let (code, said, error) = against(|stage| ends_with(stage, answers, &err), &arguments);
        assert_eq!((code, said.as_str()), (Some(69), if answers { "hello" } else { "" }));
        assert!(error.starts_with(&format!("{debut}{err}osps-client: the job at ")), "{error}");
        assert!(error.ends_with("exit 3\n"), "{error}");
    }
}

#[test]
fn following_shows_each_try() {
    let lost = format!("errtraitement {} secondary lost\n", jeton(1));
    let server = |stage: &Stage| {
        let mut control = stage.control();
        stage.give_tracked(&mut control, 1).echoes_nothing();
        control.says(&lost);
        stage.give_tracked(&mut control, 2).echoes();
        control.says(&format!("debuttraitement {0}\nfintraitement {0}\n", jeton(2)));
        control.waits_until_left();
    };
    let (code, said, error) = against(server, &["echo", "--follow", "--data", "hello"]);
    assert_eq!((code, said.as_str()), (Some(0), "hello"));
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert_eq!(lines[0], lost.trim_end());
    assert!(lines[1].contains("secondary lost; trying again in "), "{error}");
    assert_eq!(lines[3], format!("fintraitement {}", jeton(2)));
}

#[test]
fn when_nobody_reads_the_answer_it_ends_quietly() {
    let endless = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().says_on_and_on();
    };
    let quiet = |mut client: Command| {
        let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(client.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        drop(stdout);
        let output = client.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(play(endless, |at| quiet(client(at, &["echo"]))), (Some(0), String::new()));
    let lost = format!("errtraitement {} connection lost\n", jeton(1));
    let followed = |stage: &Stage| {
        let mut control = stage.control();
        stage.give_tracked(&mut control, 1).says_on_and_on();
        control.says(&lost);
        control.waits_until_left();
    };
    let outcome = play(followed, |at| quiet(client(at, &["echo", "--follow"])));
    assert_eq!(outcome, (Some(69), lost.clone()), "only fintraitement is success");
}

#[test]
fn when_nobody_reads_any_more_it_does_not_wait_for_the_next_byte() {
    let server = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().waits_until_left();
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // Its input stays open, and nobody says anything.
    let (input, _feeder) = std::io::pipe().unwrap();
    let (code, _, error) = play(server, |at| run(client(at, &["echo"]).stdin(input).stdout(writer)));
    assert_eq!((code, error.as_str()), (Some(0), ""));
}

#[test]
fn its_own_input_and_output_are_not_the_servers_fault() {
    let taken = |stage: &Stage| {
        stage.give(&mut stage.control());
        stage.data().hears_out();
    };
    let directory = File::open("/").unwrap();
    let (code, _, error) = play(taken, |at| run(client(at, &["echo"]).stdin(directory)));
    assert_eq!(code, Some(70), "{error}");
    assert!(error.contains("cannot read the input"), "{error}");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, _, error) = play(serves, |at| run(client(at, &["echo", "--data", "x"]).stdout(full)));
    assert_eq!(code, Some(70), "{error}");
    assert!(error.contains("No space left"), "{error}");
}

/// Serves so many requests over one control connection.
fn serves_often(stage: &Stage, times: usize) {
    let mut control = stage.control();
    for _ in 0..times {
        stage.give(&mut control);
        stage.data().echoes();
    }
    control.waits_until_left();
}

#[test]
fn the_input_is_sent_again_for_each_repetition() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"not this, but this").unwrap();
    file.seek(SeekFrom::Start(10)).unwrap();
    let from_file = |at: &str| run(client(at, &["echo", "--repeat", "3"]).stdin(file));
    let outcome = play(|stage| serves_often(stage, 3), from_file);
    assert_eq!(outcome, (Some(0), "but thisbut thisbut this".to_owned(), String::new()));
    let (input, mut feeder) = std::io::pipe().unwrap();
    feeder.write_all(b"ab").unwrap();
    drop(feeder);
    let from_pipe = |at: &str| run(client(at, &["echo", "--repeat", "2"]).stdin(input));
    let outcome = play(|stage| serves_often(stage, 2), from_pipe);
    assert_eq!(outcome, (Some(0), "abab".to_owned(), String::new()));
}

#[test]
fn a_repetition_that_fails_is_the_last() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        stage.give(&mut control);
        stage.data().echoes();
        control.hears("echo\n");
        control.says("-1 unknown request type \"echo\"; known: \n");
        control.waits_until_left();
    };
    let (code, said, _) = against(server, &["echo", "--data", "a", "--repeat", "3"]);
    assert_eq!((code, said.as_str()), (Some(69), "a"));
}

#[test]
fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("principal");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = |stage: &Stage| {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "echo");
        drop(lines);
        let _ = stage;
    };
    // One that ends without a word: the error names the path.
    let at = format!("unix:{}", path.display());
    let (code, _, error) = play(server, |_| run(&mut client(&at, &["echo", "--retries", "0"])));
    assert_eq!(code, Some(69), "{error}");
    assert!(error.contains(&format!("the principal at {at} did not answer")), "{error}");
    let server = |stage: &Stage| {
        let (stream, _) = listener.accept().unwrap();
        let mut control = BufReader::new(stream);
        control.read_line(&mut String::new()).unwrap();
        control.get_mut().write_all(format!("{}\n", stage.port()).as_bytes()).unwrap();
        stage.data().echoes();
    };
    let outcome = play(server, |_| run(&mut client(&at, &["echo", "--data", "hello"])));
    assert_eq!(outcome, (Some(0), "hello".to_owned(), String::new()));
}

#[test]
fn help_tells_what_is_tried_again_and_what_the_exit_codes_mean() {
    let (code, help, _) = run(osps_client().arg("--help"));
    assert_eq!(code, Some(0));
    for words in ["--follow", "--retries", "256 KiB", "69  refused", "fintraitement", "unix:PATH"] {
        assert!(help.contains(words), "{words:?} is not in {help}");
    }
}
