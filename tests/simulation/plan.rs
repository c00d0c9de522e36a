//! What a seed decides before its world begins.

use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::supervision::Settings;

use crate::dice::Dice;

/// The frame of one world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub secondaries: u16,
    pub settings: Settings,
    /// How long the principal may take for a graceful stop.
    pub stop_within: Duration,
    /// How often a new process does not become ready as it should, in a thousand.
    pub bad_starts: u64,
    /// The usual time between two faults of one process.
    pub fault_every: Duration,
    /// From here on everybody behaves.
    pub quiet_from: Moment,
    pub end: Moment,
    pub stops: Vec<Moment>,
    /// Whether the shell carries actions out after each report, or once a turn.
    pub acts_once_a_turn: bool,
    /// Whether the kernel tells the CPU time of a process.
    pub cpu_is_known: bool,
    /// How often a turn of the watchdog comes much too late, in a thousand.
    pub stalls: u64,
}

impl Plan {
    pub fn draw(dice: &mut Dice) -> Self {
        let settings = draw_settings(dice);
        let quiet_from = Moment::default() + dice.between(secs(30), secs(60));
        let stop_within = settings.grace;
        let stops = draw_stops(dice, quiet_from, stop_within);
        let mut end = quiet_from + recovery(&settings);
        if let Some(stop) = stops.last() {
            end = end.max(*stop + stop_within + secs(3));
        }
        Self {
            secondaries: dice.pick(&[1, 2, 3, 4]),
            settings,
            stop_within,
            bad_starts: dice.pick(&[0, 100, 400]),
            fault_every: dice.pick(&[secs(2), secs(6), secs(20)]),
            quiet_from,
            end,
            stops,
            acts_once_a_turn: dice.chance(500),
            cpu_is_known: dice.chance(850),
            stalls: dice.pick(&[0, 1, 5, 300]),
        }
    }
}

/// The longest way back: a start that hangs is found out, then the longest back-off, for
/// the principal and then for a secondary, then one hung predecessor each.
fn recovery(settings: &Settings) -> Duration {
    let one = settings.start_within + settings.kill_after + secs(10);
    2 * one + 8 * settings.period + secs(2)
}

fn draw_settings(dice: &mut Dice) -> Settings {
    let (period, kill_after, whole) = match dice.below(32) {
        0 => (millis(10), millis(50), secs(1)),
        1..=12 => (millis(100), millis(400), secs(2)),
        _ => (millis(250), secs(2), secs(10)),
    };
    let suspect_after = kill_after / dice.pick(&[2, 4]);
    Settings { period, suspect_after, kill_after, start_within: whole, grace: whole }
}

/// Half of the worlds are stopped, some of them by an impatient user.
fn draw_stops(dice: &mut Dice, quiet_from: Moment, stop_within: Duration) -> Vec<Moment> {
    if dice.chance(500) {
        return Vec::new();
    }
    let span = quiet_from.since(Moment::default());
    let mut at = Moment::default() + dice.up_to(span + secs(5));
    let mut stops = vec![at];
    while stops.len() < 4 && dice.chance(400) {
        let patience = dice.pick(&[millis(400), stop_within]);
        at = at + dice.up_to(patience);
        stops.push(at);
    }
    stops
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}
