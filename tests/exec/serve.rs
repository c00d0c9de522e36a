//! What a command is given.

use std::io::Write;
use std::net::Shutdown;

use crate::common::{System, connect, eventually, job, request};
use crate::{Control, rest, start, tree, until_processes};

#[test]
fn the_connection_is_standard_input_and_output() {
    let system = start("secondaries = 1", &[("sort", "exec sort", "")]);
    let mut data = request(system.address(), "sort");
    data.write_all(b"b\na\n").unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut data), "a\nb\n");
    let status = system.books_are_exact();
    assert_eq!(status["requests"]["sort"]["done"], 1);
}

#[test]
fn not_a_byte_behind_the_claim_is_taken() {
    let system = start("secondaries = 1", &[("cat", "exec cat", "")]);
    let mut control = Control::new(&system);
    let input = "the first line\nthe second, without an end";
    let (mut data, jeton) = control.claim("cat", input);
    data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut data), input);
    assert_eq!(control.line(), format!("debuttraitement {jeton}"));
    assert_eq!(control.end(&jeton), "fintraitement");
}

#[test]
fn it_knows_who_is_served() {
    let more = "environment = { GREETING = \"hello you\" }\ndirectory = \"/\"";
    let script = "pwd; env | sort | grep -E '^(PROTO|TCP|OSPS_TYPE|OSPS_JOB|GREETING)'";
    let system = start("secondaries = 1", &[("env", script, more)]);
    let mut control = connect(system.address());
    let port = job(&mut control, "env");
    let mut data = connect((system.address().ip(), port).into());
    let (local, peer) = (data.local_addr().unwrap(), data.peer_addr().unwrap());
    let expected = [
        "/".to_owned(),
        "GREETING=hello you".to_owned(),
        "OSPS_JOB=1".to_owned(),
        "OSPS_TYPE=env".to_owned(),
        "PROTO=TCP".to_owned(),
        format!("TCPLOCALIP={}", peer.ip()),
        format!("TCPLOCALPORT={}", peer.port()),
        format!("TCPREMOTEIP={}", local.ip()),
        format!("TCPREMOTEPORT={}", local.port()),
    ];
    assert_eq!(rest(&mut data).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn its_errors_are_in_the_log_with_the_number_of_the_job() {
    let script = "printf 'first\\nsecond \\033[2J' >&2; printf answer";
    let system = start("secondaries = 1", &[("talk", script, "")]);
    let mut control = Control::new(&system);
    assert_eq!(control.run("talk"), ("answer".to_owned(), "fintraitement".to_owned()));
    let log = system.log();
    assert!(log.contains("job 1 (talk): first\n"), "{log}");
    assert!(log.contains("job 1 (talk): second \\x1b[2J\n"), "a terminal must not obey it: {log}");
}

#[test]
fn who_finds_no_place_waits_for_one_and_may_leave() {
    let system = start("secondaries = 1", &[("cat", "exec cat", "max_parallel = 1")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (mut first, first_jeton) = control.begin("cat");
    let (mut second, second_jeton) = control.begin("cat");
    let (third, third_jeton) = control.begin("cat");
    until_processes(tree, 1);
    rustix::net::sockopt::set_socket_linger(&third, Some(std::time::Duration::ZERO)).unwrap();
    drop(third);
    assert_eq!(control.end(&third_jeton), "errtraitement connection lost");
    second.write_all(b"second").unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    first.write_all(b"first").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        (rest(&mut first), control.end(&first_jeton)),
        ("first".to_owned(), "fintraitement".to_owned())
    );
    assert_eq!(
        (rest(&mut second), control.end(&second_jeton)),
        ("second".to_owned(), "fintraitement".to_owned())
    );
    system.books_are_exact();
}

#[test]
fn a_program_that_has_gone_fails_its_jobs_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (program, away) = (dir.path().join("work"), dir.path().join("away"));
    std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
    let request = format!("[[request]]\nname = \"work\"\nhandler = \"exec\"\ncommand = [{program:?}]\n");
    let system = System::start("secondaries = 1", &request);
    std::fs::rename(&program, &away).unwrap();
    let mut control = Control::new(&system);
    for _ in 0..3 {
        assert_eq!(control.run("work"), (String::new(), "errtraitement cannot start".to_owned()));
    }
    let told = system.log().lines().filter(|line| line.contains("its command does not start")).count();
    assert_eq!(told, 1, "once, not for each job: {}", system.log());
    std::fs::rename(&away, &program).unwrap();
    assert_eq!(control.run("work").1, "fintraitement");
    system.books_are_exact();
}

#[test]
fn many_at_once_leave_nothing_behind() {
    let system = start("secondaries = 2", &[("cat", "exec cat", "max_parallel = 4")]);
    let address = system.address();
    let descriptors = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let all = || system.pids()[1..].iter().map(|&pid| descriptors(pid)).collect::<Vec<usize>>();
    let before = crate::common::at_rest(all);
    crate::common::together(8, move |client| {
        for round in 0..20 {
            let word = format!("{client} {round}");
            let mut data = request(address, "cat");
            data.write_all(word.as_bytes()).unwrap();
            data.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&mut data), word);
        }
    });
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["done"], 160);
    eventually("descriptors are closed", || (all() <= before).then_some(()));
    assert_eq!(until_processes(tree(&system), 0), [0_u32; 0]);
    assert_eq!(system.zombies(), [0_u32; 0]);
}

#[test]
fn who_says_too_much_on_standard_error_does_not_fill_the_log() {
    let script = "n=0; while [ $n -lt 20000 ]; do echo line $n; n=$((n + 1)); done >&2";
    let system = start("secondaries = 1", &[("chatters", script, "")]);
    let mut control = Control::new(&system);
    assert_eq!(control.run("chatters").1, "fintraitement");
    let log = system.log();
    let said = log.lines().filter(|line| line.contains("(chatters): line ")).count();
    let left_out: Vec<&str> = log.lines().filter(|line| line.contains("are left out")).collect();
    let number = |line: &&str| {
        let (_, rest) = line.split_once("(chatters): ").unwrap();
        rest.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let withheld: usize = left_out.iter().map(number).sum();
    // A line that could not be written to the log at all is told of elsewhere.
    assert!(
        said >= 900 && said + withheld == 20_000 || log.contains("could not be written"),
        "{said} and {withheld}"
    );
    assert!(withheld > 0);
}
