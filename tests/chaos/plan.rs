//! What will be done to the system, and when: decided by the seed before the storm begins,
//! so that the same seed means the same faults.

use std::time::Duration;

use crate::dice::Dice;

/// How one server is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and nothing more.
    Freeze,
    /// SIGSTOP, and SIGCONT so much later: before it is found out, or too late.
    Doze(Duration),
    /// SIGTERM, as a careful administrator sends it.
    Dismiss,
}

/// One fault.
#[derive(Clone, Debug)]
pub enum Fault {
    /// To whom serves in a slot, 0 being the principal.
    Strike(u16, Blow),
    /// To a predecessor that still finishes its exchanges in a slot, if there is one.
    StrikePredecessor(u16, Blow),
    /// To all secondaries at once.
    StrikeAll(Blow),
    /// To the principal and that many secondaries.
    StrikePrincipalAnd(u16, Blow),
    /// SIGUSR1 and SIGUSR2, so many of each, from somebody who is not the watchdog.
    Forge(Addressee, u64),
    /// A program beside the system that burns CPU for a moment.
    Hog(Duration),
    /// A client whose request blocks its secondary for longer than `kill_after`.
    Stall,
    /// The watchdog is stopped for a while.
    WatchdogSleeps(Duration),
    /// Everybody but the watchdog is replaced, and no client may notice.
    Reload,
}

/// Whom forged signals reach.
#[derive(Clone, Copy, Debug)]
pub enum Addressee {
    Watchdog,
    Slot(u16),
    Everybody,
}

/// A fault and its time, counted from the beginning of the storm.
#[derive(Clone, Debug)]
pub struct Planned {
    pub at: Duration,
    pub fault: Fault,
}

impl Fault {
    /// What the summary counts it as.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Strike(_, blow) | Self::StrikePredecessor(_, blow) => match blow {
                Blow::Kill => "killed",
                Blow::Freeze => "stopped",
                Blow::Doze(_) => "stopped and continued",
                Blow::Dismiss => "told to end",
            },
            Self::StrikeAll(_) => "all secondaries at once",
            Self::StrikePrincipalAnd(..) => "principal and secondaries together",
            Self::Forge(..) => "forged signals",
            Self::Hog(_) => "CPU hog",
            Self::Stall => "request that blocks for too long",
            Self::WatchdogSleeps(_) => "watchdog stopped and continued",
            Self::Reload => "reload",
        }
    }
}

/// What the plan has to know.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub length: Duration,
    /// Faults a second, on average.
    pub rate: f64,
    pub secondaries: u16,
    pub kill_after: Duration,
}

/// Faults at random times: the gaps between them are spread evenly around their mean.
pub fn plan(dice: &mut Dice, frame: &Frame) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mean = Duration::from_secs_f64(1.0 / frame.rate);
    let mut at = dice.up_to(mean * 2);
    while at < frame.length {
        planned.push(Planned { at, fault: fault(dice, frame) });
        at += dice.up_to(mean * 2);
    }
    planned
}

fn fault(dice: &mut Dice, frame: &Frame) -> Fault {
    match dice.below(100) {
        0..24 => Fault::Strike(slot(dice, frame), Blow::Kill),
        24..36 => Fault::Strike(slot(dice, frame), Blow::Freeze),
        36..48 => Fault::Strike(slot(dice, frame), doze(dice, frame)),
        48..54 => Fault::Strike(slot(dice, frame), Blow::Dismiss),
        54..60 => Fault::StrikePredecessor(secondary(dice, frame), blow(dice)),
        60..64 => Fault::StrikeAll(blow(dice)),
        64..68 => {
            let most = u64::from(frame.secondaries);
            let secondaries = u16::try_from(1 + dice.below(most)).expect("a few");
            Fault::StrikePrincipalAnd(secondaries, blow(dice))
        }
        68..82 => Fault::Forge(addressee(dice, frame), 1 + dice.below(20)),
        82..86 => Fault::Hog(dice.between(Duration::from_millis(50), Duration::from_millis(400))),
        86..90 => Fault::Stall,
        90..96 => Fault::Reload,
        _ => Fault::WatchdogSleeps(dice.up_to(frame.kill_after * 2)),
    }
}

/// A secondary mostly, the principal sometimes.
fn slot(dice: &mut Dice, frame: &Frame) -> u16 {
    if dice.chance(170) { 0 } else { secondary(dice, frame) }
}

fn secondary(dice: &mut Dice, frame: &Frame) -> u16 {
    u16::try_from(1 + dice.below(u64::from(frame.secondaries))).expect("a few")
}

fn blow(dice: &mut Dice) -> Blow {
    dice.pick(&[Blow::Kill, Blow::Freeze])
}

fn doze(dice: &mut Dice, frame: &Frame) -> Blow {
    Blow::Doze(dice.up_to(frame.kill_after * 3 / 2))
}

fn addressee(dice: &mut Dice, frame: &Frame) -> Addressee {
    match dice.below(4) {
        0 => Addressee::Watchdog,
        1 => Addressee::Everybody,
        _ => Addressee::Slot(slot(dice, frame)),
    }
}
