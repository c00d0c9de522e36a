//! News of tracked jobs, which come when they happen.

use osps::client::{Control, Fate, Limits, MAX_FOLLOWED, News, Place, Reason};

use crate::common::PATIENCE;
use crate::stage::{Stage, jeton, play};

fn connect(at: &str) -> Control {
    Control::connect(&at.parse().unwrap(), &Limits::each(PATIENCE)).unwrap()
}

/// Gives a job that nobody claims here.
fn give(stage: &Stage, control: &mut crate::stage::Side, number: u32, before: &str, after: &str) {
    control.hears("suivi echo\n");
    control.says(&format!("{before}{} {}\n{after}", stage.port(), jeton(number)));
}

fn lines(news: &[News]) -> Vec<String> {
    news.iter().map(ToString::to_string).collect()
}

#[test]
fn news_may_stand_between_a_request_and_its_answer() {
    let [a, b, c] = [1, 2, 3].map(jeton);
    let server = |stage: &Stage| {
        let mut control = stage.control();
        give(stage, &mut control, 1, "", "");
        give(stage, &mut control, 2, &format!("debuttraitement {a}\n"), "");
        let before = format!("errtraitement {a} secondary lost\ndebuttraitement {b}\n");
        give(stage, &mut control, 3, &before, &format!("fintraitement {b}\n"));
        control.hears("echo\n");
        control.says(&format!("errtraitement {c} expired\n{}\n", stage.port()));
        control.waits_until_left();
    };
    let (of_b, rest, place, end) = play(server, |at| {
        let mut control = connect(at);
        let [_, b, _] = [1, 2, 3].map(|_| control.track("echo").unwrap().jeton);
        let place = control.request("echo").unwrap();
        let of_b = [control.news(Some(b)).unwrap().unwrap(), control.news(Some(b)).unwrap().unwrap()];
        let rest = [0; 3].map(|_| control.news(None).unwrap().unwrap());
        let end = control.news(None).unwrap();
        (of_b, rest, place, end)
    });
    assert!(matches!(place, Place::Addresses(_)));
    assert_eq!(lines(&of_b), [format!("debuttraitement {b}"), format!("fintraitement {b}")]);
    let expected = [
        format!("debuttraitement {a}"),
        format!("errtraitement {a} secondary lost"),
        format!("errtraitement {c} expired"),
    ];
    assert_eq!(lines(&rest), expected);
    assert_eq!(end, None, "no job is open");
}

#[test]
fn a_line_cut_anywhere_is_one_line() {
    let text = format!("debuttraitement {0}\nerrtraitement {0} expired\n", jeton(1));
    let server = |stage: &Stage| {
        let mut control = stage.control();
        give(stage, &mut control, 1, "", "");
        for byte in text.chars() {
            control.says(&byte.to_string());
        }
        control.waits_until_left();
    };
    let (end, told) = play(server, |at| {
        let mut control = connect(at);
        let jeton = control.track("echo").unwrap().jeton;
        let mut told = Vec::new();
        let end = control.follow(jeton, &mut |news| told.push(news.clone())).unwrap();
        assert!(control.follow(jeton, &mut |_| ()).is_err(), "it has one end only");
        (end, told)
    });
    assert_eq!(end, Fate::Failed(Reason::Expired));
    assert_eq!(lines(&told).join("\n") + "\n", text);
}

#[test]
fn a_job_that_nobody_wants_to_hear_of_disturbs_nobody() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        give(stage, &mut control, 1, "", "");
        let before = format!("debuttraitement {0}\nerrtraitement {0} expired\n", jeton(1));
        give(stage, &mut control, 2, &before, &format!("fintraitement {}\n", jeton(2)));
        control.waits_until_left();
    };
    let fates = play(server, |at| {
        let mut control = connect(at);
        let first = control.track("echo").unwrap().jeton;
        control.forget(first);
        let second = control.track("echo").unwrap().jeton;
        let fate = control.news(None).unwrap().unwrap();
        (fate, control.news(None).unwrap(), second)
    });
    assert_eq!(fates, (News { jeton: fates.2, fate: Fate::Done }, None, fates.2));
}

#[test]
fn a_jeton_that_is_given_twice_is_nonsense() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        give(stage, &mut control, 1, "", "");
        give(stage, &mut control, 1, "", "");
        control.waits_until_left();
    };
    let error = play(server, |at| {
        let mut control = connect(at);
        control.track("echo").unwrap();
        control.track("echo").unwrap_err()
    });
    assert!(error.to_string().contains("a jeton given twice"), "{error}");
}

#[test]
fn no_more_jobs_are_followed_than_there_is_room_for() {
    let most = u32::try_from(MAX_FOLLOWED).unwrap();
    let server = |stage: &Stage| {
        let mut control = stage.control();
        for number in 0..most {
            give(stage, &mut control, number, "", "");
        }
        control.hears("echo\n");
        control.says(&format!("fintraitement {}\n1\n", jeton(0)));
        give(stage, &mut control, most, "", "");
        control.waits_until_left();
    };
    play(server, |at| {
        let mut control = connect(at);
        for _ in 0..most {
            control.track("echo").unwrap();
        }
        let error = control.track("echo").unwrap_err();
        assert!(error.to_string().contains("jobs are followed already"), "{error}");
        control.request("echo").unwrap();
        control.news(None).unwrap().unwrap();
        control.track("echo").unwrap();
    });
}

#[test]
fn a_request_that_was_not_answered_in_time_spoils_no_later_one() {
    let server = |stage: &Stage| {
        let mut control = stage.control();
        control.hears("echo\n");
        control.waits_until_left();
    };
    play(server, |at| {
        let limits = Limits { answer: std::time::Duration::from_millis(20), ..Limits::each(PATIENCE) };
        let mut control = Control::connect(&at.parse().unwrap(), &limits).unwrap();
        assert!(control.request("echo").is_err());
        let error = control.request("echo").unwrap_err();
        assert!(error.to_string().contains("an earlier request was not answered"), "{error}");
        assert!(!control.is_usable());
    });
}
