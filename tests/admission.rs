//! Who is let in on a data port: the core of a secondary over a real job table.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use osps::core::job::Job;
use osps::core::moment::Moment;
use osps::core::service::{Service, Settings, Welcome};
use osps::page::Access;
use osps::page::jobs::JobTable;
use osps::wire::jeton::Jeton;
use osps::wire::tube::JobRef;

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const NOW: Moment = Moment::from_nanos(1);
const SETTINGS: Settings = Settings { grace: Duration::ZERO, types: 2, open: false };
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
