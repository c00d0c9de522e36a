//! Who is let in on a data port, and when a secondary leaves it to its successor: the core of a
//! secondary over a real job table.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use osps::core::job::{End, Job};
use osps::core::moment::Moment;
use osps::core::recycling::{Recycling, Worn};
use osps::core::service::{Action, Departure, Service, Settings, Surroundings, Undecided, Welcome};
use osps::page::Access;
use osps::page::jobs::JobTable;
use osps::wire::jeton::Jeton;
use osps::wire::tube::{Command, JobRef};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const NOW: Moment = Moment::from_nanos(1);
const GRACE: Duration = Duration::from_secs(1);
const SETTINGS: Settings = Settings {
    grace: GRACE,
    types: 2,
    open: false,
    recycling: Recycling { max_jobs: 1, max_bytes: 0, seed: 0 },
};
const JETON: Jeton = Jeton::from_bytes([7; 16]);

fn job(jeton: Option<Jeton>) -> Job {
    Job { kind: 0, client: HOME, given_at: NOW, jeton }
}

/// A principal's view of a table, and the secondary of its slot.
fn slot(dir: &std::path::Path) -> (JobTable, Service<JobTable>) {
    let principal = JobTable::create(&dir.join("jobs"), 4).unwrap();
    let table = JobTable::attach(&dir.join("jobs"), Access::ReadWrite).unwrap();
    (principal, Service::new(table, 1, SETTINGS))
}

#[test]
fn who_comes_for_a_tracked_job_is_not_taken_for_plain_although_its_doorbell_is_late() {
    let dir = tempfile::tempdir().unwrap();
    let (principal, mut service) = slot(dir.path());
    principal.publish(0, 1, job(None));
    service.handle_job(JobRef { index: 0, number: 1 });
    principal.publish(1, 2, job(Some(JETON)));
    assert_eq!(service.welcome(0, HOME, NOW), Welcome::Undecided);
    assert_eq!(service.claim_tracked(0, JETON, NOW), Some(JobRef { index: 1, number: 2 }));
    principal.publish(2, 3, job(None));
    service.handle_job(JobRef { index: 1, number: 2 });
    assert_eq!(service.welcome(0, HOME, NOW), Welcome::Admitted(JobRef { index: 0, number: 1 }));
    assert_eq!(service.welcome(0, HOME, NOW), Welcome::Admitted(JobRef { index: 2, number: 3 }));
    assert_eq!(service.welcome(0, HOME, NOW), Welcome::Uninvited);
}

#[test]
fn a_doorbell_that_is_heard_does_not_hide_one_that_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (principal, mut service) = slot(dir.path());
    let other = Jeton::from_bytes([8; 16]);
    let types_differ = Job { kind: 1, ..job(Some(other)) };
    principal.publish(0, 1, job(Some(JETON)));
    principal.publish(1, 2, types_differ);
    principal.publish(2, 3, job(None));
    service.handle_job(JobRef { index: 1, number: 2 });
    service.handle_job(JobRef { index: 2, number: 3 });
    assert_eq!(service.welcome(0, HOME, NOW), Welcome::Undecided);
    service.handle_job(JobRef { index: 0, number: 1 });
    assert_eq!(service.claim_tracked(0, JETON, NOW), Some(JobRef { index: 0, number: 1 }));
    assert_eq!(service.claim_tracked(1, other, NOW), Some(JobRef { index: 1, number: 2 }));
    assert_eq!(service.welcome(0, HOME, NOW), Welcome::Admitted(JobRef { index: 2, number: 3 }));
}

fn actions(service: &mut Service<JobTable>) -> Vec<Action> {
    std::iter::from_fn(|| service.poll_action()).collect()
}

/// A secondary that is about to leave: it has served the one job that it may.
fn worn(dir: &std::path::Path) -> (Service<JobTable>, JobRef) {
    let (principal, mut service) = slot(dir);
    principal.publish(0, 1, job(None));
    let Welcome::Admitted(job) = service.welcome(0, HOME, NOW) else { panic!("its job waits") };
    assert_eq!(actions(&mut service), [Action::Tell(Command::Debut(job))]);
    service.finish_turn(Undecided::default());
    assert!(!service.is_worn(), "the watchdog does not know it yet");
    service.handle_probe(true, 0);
    assert!(service.is_worn());
    (service, job)
}

const LEAVES: [Action; 2] = [
    Action::Declare(Departure::Recycles(Worn::Jobs { served: 1, limit: 1 })),
    Action::Tell(Command::Recycling),
];

#[test]
fn who_is_worn_out_leaves_once_all_have_the_jobs_that_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (mut service, job) = worn(dir.path());
    service.finish_turn(Undecided { all: 2, asked_for: 1 });
    assert_eq!(actions(&mut service), [Action::StopAccepting]);
    service.finish_turn(Undecided { all: 1, asked_for: 0 });
    assert_eq!(actions(&mut service), LEAVES);
    assert_eq!(service.poll_timeout(), None, "it may take as long as it needs");
    service.handle_end(NOW, job, End::Done);
    service.finish_turn(Undecided { all: 1, asked_for: 0 });
    assert_eq!(actions(&mut service), [Action::Tell(Command::Fin(job))]);
    service.finish_turn(Undecided::default());
    assert_eq!(actions(&mut service), [Action::End]);
}

#[test]
fn whatever_else_asks_for_its_end_gives_it_grace_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    for orphan in [false, true] {
        for asked_for in [0, 1] {
            let _ = std::fs::remove_file(dir.path().join("jobs"));
            let (mut service, _) = worn(dir.path());
            service.finish_turn(Undecided { all: asked_for, asked_for });
            actions(&mut service);
            service.handle_term(NOW, Surroundings { is_orphan: orphan, is_stopping: !orphan });
            assert_eq!(service.poll_timeout(), Some(NOW + GRACE));
            assert!(actions(&mut service).contains(&Action::Declare(Departure::Drains)));
            service.handle_timeout(NOW + GRACE, Surroundings { is_orphan: orphan, is_stopping: true });
            assert_eq!(actions(&mut service), [Action::CutAll, Action::End]);
        }
    }
}
