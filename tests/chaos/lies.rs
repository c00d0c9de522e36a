//! The verdict itself on trial: an honest story is believed, each lie is found.

use std::time::Duration;

use serde_json::{Value, json};

use crate::clients::{Outcome, Record};
use crate::journal::Chronicle;
use crate::plan::Blow;
use crate::striker::{Report, Strike};
use crate::verdict::Trial;

/// A small story: secondary 1.1 was killed by us, 2.1 was stopped by us and then killed by the
/// watchdog, the principal was told to end; then all was stopped.
const LOG: &str = r#"2026-01-01T00:00:00.000Z WARN  principal.1[2]: obituary role=secondary slot=1 incarnation=1 pid=3 cause="signal 9" answered_ms_before=9 jobs=1
2026-01-01T00:00:00.001Z WARN  watchdog[1]: secondary 1 pid 6: ready, echo 4
2026-01-01T00:00:00.002Z WARN  watchdog[1]: killing secondary 2.1 (pid 4, state T): stopped, no answer within kill_after
2026-01-01T00:00:00.003Z WARN  principal.1[2]: obituary role=secondary slot=2 incarnation=1 pid=4 cause="signal 9" answered_ms_before=9 jobs=1
2026-01-01T00:00:00.004Z INFO  principal.1[2]: told to end: a successor takes over
2026-01-01T00:00:00.005Z WARN  watchdog[1]: obituary role=principal slot=0 incarnation=1 pid=2 cause="exit 0" answered_ms_before=9 jobs=1
2026-01-01T00:00:00.006Z INFO  watchdog[1]: obituary role=principal slot=0 incarnation=2 pid=5 cause="exit 0" answered_ms_before=9 jobs=1
"#;

struct Story {
    records: Vec<Record>,
    report: Report,
    log: String,
    status: Value,
}

/// A request for `echo` that was asked of a slot between two lines of the log.
fn record(slot: u16, from_line: usize, to_line: usize, outcome: Outcome) -> Record {
    let mark = |line| {
        let lines = LOG.split_inclusive('\n').take(line);
        u64::try_from(lines.map(str::len).sum::<usize>()).unwrap()
    };
    let (since, until) = (mark(from_line), mark(to_line));
    Record { kind: 0, outcome, slot, since, until, took: Duration::ZERO }
}

impl Story {
    fn honest() -> Self {
        let records = vec![
            record(1, 0, 0, Outcome::Served),
            record(1, 0, 1, Outcome::DataBroke { answers: 1 }),
            record(2, 2, 4, Outcome::DataBroke { answers: 1 }),
            record(0, 4, 6, Outcome::ControlBroke),
            record(0, 6, 6, Outcome::Refused("busy: no secondary is ready".to_owned())),
        ];
        let strike = |slot, blow| Strike { mark: 0, slot, incarnation: 1, blow, gone: None };
        let strikes = vec![strike(1, Blow::Kill), strike(2, Blow::Freeze), strike(0, Blow::Dismiss)];
        let status = json!({
            "requests": {"echo": {"done": 1, "failed": 2, "expired": 1}},
            "ledger": {"accepted": 4, "done": 1, "failed": 2, "expired": 1, "open": 0, "refused": 1, "rejected": 0},
            "servers": [
                {"slot": 0, "incarnation": 2, "restarts": 1, "kills": 0},
                {"slot": 1, "incarnation": 2, "restarts": 1, "kills": 0},
                {"slot": 2, "incarnation": 2, "restarts": 1, "kills": 1},
            ],
        });
        Self { records, report: Report { strikes, ..Report::default() }, log: LOG.to_owned(), status }
    }

    fn wrongs(&self) -> Vec<String> {
        let trial = Trial {
            types: &["echo".to_owned()],
            records: &self.records,
            report: &self.report,
            chronicle: &Chronicle::of(&self.log),
            status: &self.status,
            never_busy: false,
        };
        trial.wrongs()
    }

    fn is_found_to_lie(&self, how: &str) {
        let wrongs = self.wrongs();
        assert!(wrongs.iter().any(|wrong| wrong.contains(how)), "not found: {how}; found: {wrongs:?}");
    }
}

#[test]
fn an_honest_story_is_believed() {
    assert_eq!(Story::honest().wrongs(), Vec::<String>::new());
}

#[test]
fn a_connection_that_broke_before_or_after_a_death_or_with_another_server_is_found() {
    // Secondary 1.1 was dead before the second line.
    for (slot, from, to) in [(1, 2, 3), (3, 0, 7), (2, 0, 2)] {
        let mut story = Story::honest();
        story.records[1] = record(slot, from, to, Outcome::DataBroke { answers: 1 });
        story.is_found_to_lie("nobody had died");
    }
    let mut story = Story::honest();
    story.records[3] = record(0, 6, 7, Outcome::ControlBroke);
    story.is_found_to_lie("nobody had died");
    let mut story = Story::honest();
    story.records[1] = record(3, 0, 7, Outcome::DataBroke { answers: 0 });
    story.is_found_to_lie("turned away");
}

#[test]
fn a_refused_connection_is_found() {
    let mut story = Story::honest();
    story.records[0].outcome = Outcome::Wrong("REFUSED: control".to_owned());
    story.is_found_to_lie("REFUSED");
    let mut story = Story::honest();
    story.records[4].outcome = Outcome::Refused("stopping".to_owned());
    story.is_found_to_lie("refused");
}

#[test]
fn a_kill_and_a_death_of_nobody_whom_we_struck_are_found() {
    for slot in [1, 2] {
        let mut story = Story::honest();
        story.report.strikes.retain(|strike| strike.slot != slot);
        story.is_found_to_lie(if slot == 1 { "died of nothing known" } else { "killed although" });
    }
    let mut story = Story::honest();
    story.log = LOG.replace("exit 0", "signal 11");
    story.is_found_to_lie("died of nothing known");
    let mut story = Story::honest();
    story.log = LOG.replace("INFO ", "ERROR");
    story.is_found_to_lie("logged");
    let mut story = Story::honest();
    story.log.push_str("thread 'main' panicked at src/lib.rs:1:1:\n");
    story.is_found_to_lie("panicked");
}

#[test]
fn books_that_do_not_fit_what_clients_saw_are_found() {
    let lies = [
        ("/ledger/open", 1, "not exact"),
        ("/ledger/expired", 0, "not exact"),
        ("/ledger/accepted", 2, "ports were given"),
        ("/ledger/accepted", 5, "ports were given"),
        ("/ledger/refused", 0, "were refused"),
        ("/ledger/refused", 3, "were refused"),
        ("/requests/echo/done", 2, "in the books"),
        ("/requests/echo/failed", 3, "in the books"),
        ("/servers/2/kills", 0, "kills were logged"),
        ("/servers/0/restarts", 0, "ends of principals"),
    ];
    for (where_to, number, how) in lies {
        let mut story = Story::honest();
        *story.status.pointer_mut(where_to).unwrap() = number.into();
        story.is_found_to_lie(how);
    }
}
