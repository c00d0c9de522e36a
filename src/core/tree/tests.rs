use super::*;

const SETTINGS: Settings = Settings {
    period: Duration::from_millis(100),
    suspect_after: Duration::from_millis(200),
    kill_after: Duration::from_millis(800),
    start_within: Duration::from_secs(10),
    grace: Duration::from_secs(5),
};

pub(super) fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

pub(super) fn actions(tree: &mut Tree) -> Vec<Action> {
    std::iter::from_fn(|| tree.poll_action()).collect()
}

pub(super) fn running(secondaries: u16) -> Tree {
    let mut tree = Tree::new(at(0), secondaries, SETTINGS, SETTINGS.grace, 1);
    tree.handle_timeout(at(0));
    assert_eq!(actions(&mut tree), [Action::StartPrincipal(1)]);
    tree.handle_started(at(0), Name::principal(1));
    tree.handle_ready(at(1), Name::principal(1));
    for slot in 1..=secondaries {
        tree.handle_started(at(1), Name::secondary(slot, 1));
        tree.handle_ready(at(2), Name::secondary(slot, 1));
    }
    tree
}

#[test]
fn a_dead_principal_is_replaced_and_its_healthy_secondaries_drain() {
    let mut tree = running(2);
    tree.handle_started(at(3), Name::secondary(2, 2));
    actions(&mut tree);
    tree.handle_exited(at(2000), Name::principal(1), false);
    let said = actions(&mut tree);
    assert!(said.contains(&Action::Drain(Name::secondary(1, 1))));
    assert!(said.contains(&Action::To(Name::secondary(2, 2), Act::Kill(Reason::Orphaned))));
    tree.handle_timeout(at(2000));
    assert_eq!(actions(&mut tree)[0], Action::StartPrincipal(2));
    assert!(tree.is_draining(Name::secondary(1, 1)));
}

#[test]
fn who_is_only_suspect_when_its_principal_dies_is_judged_like_everybody_else() {
    let mut tree = running(1);
    let (mut sent, mut killed) = (None, None);
    for millis in (2..2000).step_by(2) {
        tree.handle_timeout(at(millis));
        for action in actions(&mut tree) {
            match action {
                Action::To(name, Act::Probe(number)) if name.role == Role::Principal => {
                    tree.handle_answer(at(millis), name, number);
                }
                Action::To(_, Act::Probe(_)) => sent = sent.or(Some(millis)),
                Action::To(_, Act::Suspect) => tree.handle_exited(at(millis), Name::principal(1), false),
                Action::To(name, Act::Examine) => {
                    let evidence = Evidence { run_state: RunState::Waiting, cpu_since_probe: None };
                    tree.handle_evidence(at(millis), name, evidence);
                }
                Action::To(name, Act::Kill(reason)) => killed = killed.or(Some((millis, name, reason))),
                _ => {}
            }
        }
    }
    let judged_at = sent.unwrap() + 800;
    let (killed_at, name, reason) = killed.unwrap();
    assert_eq!((name, reason), (Name::secondary(1, 1), Reason::NoAnswer));
    assert!((judged_at..=judged_at + 2).contains(&killed_at), "{killed_at}");
}

#[test]
fn a_predecessor_is_killed_when_its_grace_is_over() {
    let mut tree = running(1);
    tree.handle_draining(at(10), Name::secondary(1, 1));
    let mut killed = None;
    for millis in (10..8000).step_by(10) {
        tree.handle_timeout(at(millis));
        for action in actions(&mut tree) {
            if let Action::To(name, act) = action {
                match act {
                    Act::Probe(number) => tree.handle_answer(at(millis), name, number),
                    Act::Kill(reason) => killed = Some((millis, name, reason)),
                    Act::Suspect | Act::Trust | Act::Examine | Act::TellStubborn => {}
                }
            }
        }
    }
    assert_eq!(killed, Some((6010, Name::secondary(1, 1), Reason::GraceOver)));
}

/// Lets time pass for those who answer each probe; what else was done to them.
fn live(tree: &mut Tree, millis: std::ops::Range<u64>) -> Vec<(u64, Action)> {
    let mut done = Vec::new();
    for millis in millis.step_by(10) {
        tree.handle_timeout(at(millis));
        for action in actions(tree) {
            match action {
                Action::To(name, Act::Probe(number)) => tree.handle_answer(at(millis), name, number),
                other => done.push((millis, other)),
            }
        }
    }
    done
}

#[test]
fn who_recycles_takes_its_time_until_something_else_asks_for_its_end() {
    let name = Name::secondary(1, 1);
    for what in 0..3 {
        let mut tree = running(1);
        tree.handle_recycling(at(10), name);
        tree.handle_started(at(20), Name::secondary(1, 2));
        tree.handle_ready(at(20), Name::secondary(1, 2));
        assert_eq!(live(&mut tree, 20..60_000), [], "nobody disturbs it");
        assert!(tree.is_draining(name) && !tree.has_limit(name));
        match what {
            0 => tree.handle_stop(at(60_000)),
            1 => tree.handle_exited(at(60_000), Name::principal(1), false),
            _ => tree.handle_draining(at(60_000), name),
        }
        assert!(tree.has_limit(name));
        assert!(actions(&mut tree).contains(&Action::Drain(name)));
        let killed = live(&mut tree, 60_000..70_000).into_iter().find(|(_, action)| match action {
            Action::To(killed, Act::Kill(_)) => *killed == name,
            _ => false,
        });
        assert_eq!(killed.map(|(millis, _)| millis), Some(66_000));
    }
}

#[test]
fn who_recycles_and_hangs_is_killed_like_anybody_else() {
    let mut tree = running(1);
    tree.handle_recycling(at(10), Name::secondary(1, 1));
    let mut killed = false;
    for millis in (10..5000).step_by(10) {
        tree.handle_timeout(at(millis));
        for action in actions(&mut tree) {
            match action {
                Action::To(name, Act::Probe(number)) if name.role == Role::Principal => {
                    tree.handle_answer(at(millis), name, number);
                }
                Action::To(name, Act::Examine) => {
                    let evidence = Evidence { run_state: RunState::Stopped, cpu_since_probe: None };
                    tree.handle_evidence(at(millis), name, evidence);
                }
                Action::To(_, Act::Kill(reason)) => killed |= reason == Reason::Stopped,
                _ => {}
            }
        }
    }
    assert!(killed);
}

#[test]
fn one_unproven_kill_a_period() {
    let mut tree = running(3);
    let mut kills = Vec::new();
    for millis in 2..3000 {
        tree.handle_timeout(at(millis));
        for action in actions(&mut tree) {
            match action {
                Action::To(name, Act::Examine) => {
                    let evidence = Evidence { run_state: RunState::Waiting, cpu_since_probe: None };
                    tree.handle_evidence(at(millis), name, evidence);
                }
                Action::To(name, Act::Kill(_)) => kills.push((millis, name)),
                Action::To(name, Act::Probe(number)) if name.role == Role::Principal => {
                    tree.handle_answer(at(millis), name, number);
                }
                _ => {}
            }
        }
    }
    assert_eq!(kills.len(), 3);
    assert!(kills.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 100), "{kills:?}");
}

#[test]
fn who_is_stopped_is_killed_also_where_every_round_is_void() {
    // The phase decides which deadline is missed: each must lead to the end.
    for phase in 0..500 {
        let mut tree = running(1);
        let mut killed = Vec::new();
        for millis in (phase..20_000).step_by(500) {
            tree.handle_timeout(at(millis));
            while let Some(action) = tree.poll_action() {
                match action {
                    Action::To(name, Act::Examine) => {
                        let evidence = Evidence { run_state: RunState::Stopped, cpu_since_probe: None };
                        tree.handle_evidence(at(millis), name, evidence);
                    }
                    Action::To(name, Act::Kill(reason)) => killed.push((name, reason, millis)),
                    Action::To(name, Act::Probe(number)) if name.role == Role::Principal => {
                        tree.handle_answer(at(millis), name, number);
                    }
                    _ => {}
                }
            }
        }
        let [(name, reason, millis)] = killed[..] else { panic!("phase {phase}: {killed:?}") };
        assert_eq!((name, reason), (Name::secondary(1, 1), Reason::Stopped));
        assert!(millis < 5000, "phase {phase}: {millis}");
    }
}

#[test]
fn a_stop_ends_when_the_last_process_has_and_kills_on_the_second_asking() {
    let mut tree = running(1);
    tree.handle_stop(at(10));
    assert_eq!(actions(&mut tree), [Action::Stop(Name::principal(1))]);
    tree.handle_exited(at(20), Name::secondary(1, 1), false);
    tree.handle_stop(at(30));
    assert_eq!(actions(&mut tree), [Action::StopNow(Name::principal(1))]);
    tree.handle_timeout(at(530));
    assert_eq!(actions(&mut tree), [Action::To(Name::principal(1), Act::Kill(Reason::Stopping))]);
    tree.handle_exited(at(531), Name::principal(1), false);
    assert_eq!(actions(&mut tree), [Action::Finished]);
    assert_eq!(tree.poll_timeout(), None);
}

#[test]
fn probes_are_spread_over_the_period() {
    let tree = running(3);
    let mut times: Vec<_> = (0..4).map(|slot| tree.next_probe(at(1000), slot)).collect();
    times.sort();
    assert!(times.windows(2).all(|pair| pair[1].since(pair[0]) == Duration::from_millis(25)));
}
