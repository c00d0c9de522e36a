//! The screen, drawn for terminals of several sizes that do not exist.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

use super::*;
use crate::status::ServerState;
use crate::top::fake::{at, death, model_at_work, nothing, predecessor, reading, status};
use crate::top::keys::Key;

const UTF8: Theme = Theme { colours: true, ascii: false };
const ASCII: Theme = Theme { colours: false, ascii: true };

fn controls() -> Controls {
    Controls::new(Duration::from_secs(1))
}

/// What a terminal of that size shows.
fn terminal(size: (u16, u16), model: &Model, controls: &mut Controls, theme: Theme) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| draw(frame.buffer_mut(), model, controls, theme)).unwrap();
    terminal
}

/// The same as lines, without blanks at their ends.
fn lines(size: (u16, u16), model: &Model, controls: &mut Controls, theme: Theme) -> Vec<String> {
    let terminal = terminal(size, model, controls, theme);
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(size.0).max(1));
    let line =
        |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    rows.map(|row| line(row).trim_end().to_owned()).collect()
}

/// A system in trouble: one is suspect, one is down, one leaves, one has died.
fn trouble() -> Model {
    model_at_work(4, |status| {
        status.servers[2].state = ServerState::Suspect;
        status.servers[2].answered_ms_ago = Some(900);
        status.servers[3].state = ServerState::Down;
        status.servers[3].pid = None;
        status.servers[3].usage = crate::status::Usage::default();
        status.servers[3].rtt_us = None;
        status.servers[3].answered_ms_ago = None;
        status.servers[3].restarts = 12;
        status.servers[3].reason = Some("it says that it cannot start: see the log");
        status.servers.push(predecessor(1));
        status.obituaries = vec![death(3, 700), death(2, 70_000)];
    })
}

/// Whether there are exactly these lines.
fn shows(lines: &[String], expected: &str) {
    let expected: Vec<&str> = expected.trim_start_matches('\n').lines().collect();
    assert_eq!(lines, expected, "\n{}", lines.join("\n"));
}

#[test]
fn everything_has_its_place_on_a_usual_terminal() {
    let expected = "
osps 1.2.3  up 1m00s  on 127.0.0.1:2222                                 every 1s
jobs: 6000 accepted = 6000 done + 0 failed + 0 expired + 0 open
refused: 0 (0 busy); rejected: 0; clients: 0 connected, 0 waiting
jobs/s 100                    █████████  service p99 4.9ms               ███████
── request types, latencies of the last 5s ─────────────────────────────────────
REQUEST      JOBS/S WAIT p50 WAIT p99 SERV p50 SERV p99    DONE FAILED EXPIRED
echo            100    175us    248us    3.7ms    4.9ms    6000      0       0
requetetype1    0.0        -        -        -        -       0      0       0
requetetype2    0.0        -        -        -        -       0      0       0
── 7 processes: 1 down, 1 suspect, 1 draining, 3 ready, 1 running ──────────────
SERVER      STATE    S   PID JOBS/S OPEN CPU%   MEM   RTT  ANSW  RST KILL FAIL
watchdog    running  S  1000      -    -  0.0  3.0M     -     -    -    -    -
principal   ready    S  1001    100    0  0.0  4.0M  45us 120ms    0    0    0
secondary 1 ready    S  1002    100    0 25.0  4.0M  45us 120ms    0    0    0
secondary 1 draining S   999      -    2    -  4.0M  45us 120ms    -    -    -
secondary 2 suspect  S  1003    0.0    0  0.0  4.0M  45us 900ms    0    0    0
secondary 3 down     -     -    0.0    0    -     -     -     -   12    0    0
secondary 4 ready    S  1005    0.0    0  0.0  4.0M  45us 120ms    0    0    0
── the last deaths ─────────────────────────────────────────────────────────────
DEATHS           PID    AGO JOBS CAUSE
secondary 3     1004     0s    3 killed: stopped, no answer within kill_after, ~
secondary 2     1003  1m10s    3 killed: stopped, no answer within kill_after, ~

q quit  ? help  < > sort: slot  r reverse  / filter  p pause  + - interval
";
    shows(&lines((80, 24), &trouble(), &mut controls(), UTF8), expected);
}

#[test]
fn a_large_terminal_shows_all_there_is() {
    let lines = lines((200, 50), &trouble(), &mut controls(), UTF8);
    let has =
        |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{text}\n{}", lines.join("\n"));
    has("refused: 0 requests (0 unknown, 0 malformed, 0 busy, 0 stopping); rejected: 0 connections");
    has("jobs/s 100, highest 100 in the last 1m02s");
    has("PROBE RTT  ANSWERED  RESTARTS   KILLS         DONE   FAILED PORTS");
    has("        0       0         6000        0 2223");
    has("        0 it says that it cannot start: see the log");
    has(
        "killed: stopped, no answer within kill_after, state T in do_signal_stop, last answer 2001 ms before",
    );
    assert_eq!(lines.iter().filter(|line| line.contains("████████")).count(), 15, "graphs are high");
    assert!(lines[49].ends_with("up down scroll"));
}

#[test]
fn a_small_terminal_shows_what_matters_most() {
    let expected = "
osps 1.2.3  up 1m00s            every 1s
acc 6000 done 6000 fail 0 exp 0 open 0
100/s p99 4.9ms                █████████
SERVER      STATE    JOBS/S OPEN CPU%
watchdog    running       -    -  0.0
principal   ready       100    0  0.0
secondary 1 ready       100    0 25.0
DEATHS           PID    AGO CAUSE
secondary 3     1004     0s killed: ~
q quit  ? help  < > sort: slot  1-3 of 7
";
    shows(&lines((40, 10), &trouble(), &mut controls(), UTF8), expected);
    let expected = "
osps up 1m00s
SERVER      STATE
watchdog    running
principal   ready
q quit      1-2 of 7
";
    shows(&lines((20, 5), &trouble(), &mut controls(), UTF8), expected);
    assert_eq!(lines((1, 1), &trouble(), &mut controls(), UTF8), ["o"]);
}

#[test]
fn no_size_is_too_odd() {
    let models = [Model::default(), trouble(), model_at_work(300, |status| status.requests.clear())];
    let mut help = controls();
    let _ = help.press(Key::Char('?'));
    for model in &models {
        for size in [(0, 0), (1, 40), (300, 1), (3, 3), (7, 60), (59, 9), (60, 9), (123, 31), (500, 200)] {
            for theme in [UTF8, ASCII] {
                assert_eq!(lines(size, model, &mut controls(), theme).len(), usize::from(size.1));
                let _ = lines(size, model, &mut help, theme);
            }
        }
    }
}

#[test]
fn without_colours_and_in_ascii_nothing_is_lost() {
    let terminal = terminal((80, 24), &trouble(), &mut controls(), ASCII);
    for cell in &terminal.backend().buffer().content {
        assert!(cell.symbol().is_ascii(), "{cell:?}");
        assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset));
    }
    let (plain, full) = (
        lines((80, 24), &trouble(), &mut controls(), ASCII),
        lines((80, 24), &trouble(), &mut controls(), UTF8),
    );
    let in_ascii = |line: &String| line.replace('─', "-").replace('█', "#");
    assert_eq!(plain, full.iter().map(in_ascii).collect::<Vec<_>>());
}

#[test]
fn a_name_that_cannot_be_shown_is_no_harm() {
    let model = model_at_work(1, |status| status.listen = vec!["unix:/tmp/d\u{1b}[2Jé\n".to_owned()]);
    let title = &lines((80, 24), &model, &mut controls(), ASCII)[0];
    assert!(title.starts_with("osps 1.2.3  up 1m00s  on unix:/tmp/d[2J?"), "{title}");
}

#[test]
fn what_is_wrong_stands_out() {
    let terminal = terminal((80, 24), &trouble(), &mut controls(), UTF8);
    let at = |x, y| terminal.backend().buffer().cell((x, y)).unwrap().clone();
    assert_eq!((at(12, 15).fg, at(12, 13).fg), (Color::Yellow, Color::Green), "suspect, ready");
    assert!(at(12, 15).modifier.contains(Modifier::BOLD) && !at(12, 13).modifier.contains(Modifier::BOLD));
    assert!(at(0, 10).modifier.contains(Modifier::REVERSED), "the column that decides the order");
    assert!(!at(12, 10).modifier.contains(Modifier::REVERSED));
}

#[test]
fn a_system_that_has_gone_and_a_watchdog_that_is_stopped_are_told() {
    let mut model = trouble();
    model.take(nothing(at(161_000)));
    model.take(nothing(at(166_000)));
    let gone = lines((80, 24), &model, &mut controls(), UTF8);
    assert_eq!(gone[0], "osps NOT RUNNING for 5s: no osps is running in /run/osps                every 1s");
    assert!(gone[9].contains("7 processes, as seen last: 1 down"), "{}", gone[9]);
    assert!(gone[3].starts_with("jobs/s - "), "{}", gone[3]);
    assert!(gone[20].starts_with("secondary 3     1004     6s"), "{}", gone[20]);
    model.take(reading(at(167_000), &status(0, 2), &[(1000, 'T')]));
    let stopped = lines((80, 24), &model, &mut controls(), UTF8);
    assert!(stopped[0].ends_with(" WATCHDOG STOPPED"), "{}", stopped[0]);
    assert_eq!(lines((20, 5), &model, &mut controls(), UTF8)[0], "osp WATCHDOG STOPPED");
    let stopping = model_at_work(2, |status| status.stopping = true);
    assert!(lines((80, 24), &stopping, &mut controls(), UTF8)[0].ends_with(" STOPPING"));
    let mut nobody = Model::default();
    nobody.take(nothing(at(1000)));
    assert!(lines((80, 24), &nobody, &mut controls(), UTF8)[0].contains("NOT RUNNING for 0s"));
}

#[test]
fn the_line_of_keys_tells_what_is_chosen() {
    let mut controls = controls();
    let model = trouble();
    let mut press = |keys: &[Key]| {
        for &key in keys {
            let _ = controls.press(key);
        }
        lines((80, 24), &model, &mut controls, UTF8)
    };
    let sorted = press(&[Key::Char('<'), Key::Char('r'), Key::Char('p')]);
    assert!(sorted[23].contains("sort: failed, reversed"), "{}", sorted[23]);
    assert!(sorted[0].ends_with(" PAUSED"), "{}", sorted[0]);
    let typing = press(&[Key::Char('/'), Key::Char('s'), Key::Char('u'), Key::Char('s')]);
    assert!(typing[23].starts_with("/sus_  Enter keep  Esc clear"), "{}", typing[23]);
    assert!(typing.iter().any(|line| line.contains("1 of 7 processes: 1 down, 1 suspect")));
    let filtered = press(&[Key::Enter]);
    assert!(filtered[23].starts_with("/sus  q quit"), "{}", filtered[23]);
    let rows = filtered.iter().filter(|line| line.starts_with("secondary") && line.contains("ms"));
    assert_eq!(rows.count(), 1, "{filtered:?}");
}

#[test]
fn rows_that_do_not_fit_are_scrolled_to() {
    let model = model_at_work(40, |_| ());
    let mut controls = controls();
    let first = lines((80, 24), &model, &mut controls, UTF8);
    assert!(first[23].ends_with(" 1-10 of 42"), "{}", first[23]);
    let _ = controls.press(Key::PageDown);
    let second = lines((80, 24), &model, &mut controls, UTF8);
    assert!(second[23].ends_with(" 11-20 of 42"), "{}", second[23]);
    assert!(second.iter().any(|line| line.starts_with("secondary 9  ready")), "{second:?}");
    let _ = controls.press(Key::End);
    let last = lines((80, 24), &model, &mut controls, UTF8);
    assert!(
        last[23].ends_with(" 33-42 of 42") && last.iter().any(|line| line.starts_with("secondary 40 ready"))
    );
}

#[test]
fn of_many_request_types_those_that_are_used_are_shown() {
    let model = model_at_work(2, |status| {
        for number in 0..60 {
            let ends = crate::status::EndsOf { done: number, failed: 0, expired: 0 };
            status.requests.insert(format!("kind{number:02}"), ends);
        }
    });
    let lines = lines((80, 24), &model, &mut controls(), UTF8);
    let kinds: Vec<&str> = lines[6..11].iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["echo", "kind56", "kind57", "kind58", "kind59"], "\n{}", lines.join("\n"));
}

#[test]
fn the_keys_are_explained() {
    let mut controls = controls();
    let _ = controls.press(Key::Char('?'));
    let help = lines((80, 24), &trouble(), &mut controls, UTF8);
    for key in ["q Esc Ctrl-C", "< >", "PgUp PgDn", "Ctrl-Z", "RTT", "REJECTED", "Any key goes back."] {
        assert!(help.iter().any(|line| line.contains(key)), "{key}\n{}", help.join("\n"));
    }
    assert_eq!(help[23], "any key goes back");
    assert!(help[1..].iter().all(|line| line.chars().count() <= 78), "no line is cut off");
}
