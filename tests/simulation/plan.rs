//! What a seed decides before its world begins.

use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::supervision::Settings;

use crate::dice::Dice;
use crate::sabotage::Sabotage;

/// The request types of every world.
pub const TYPES: usize = 2;
pub const NAMES: [&str; TYPES] = ["requetetype1", "requetetype2"];
const FIRST_PORT: u16 = 3000;

/// The port of a slot, counted from 0, for a type.
pub fn port(slot: usize, kind: usize) -> u16 {
    FIRST_PORT + u16::try_from(slot * TYPES + kind).expect("a few")
}

/// The slot and the type of a port.
pub fn whose_port(port: u16) -> (usize, usize) {
    let number = usize::from(port - FIRST_PORT);
    (number / TYPES, number % TYPES)
}

/// The frame of one world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub secondaries: u16,
    /// Entries in each job table.
    pub max_jobs: u32,
    /// A secondary that has served about so many jobs is replaced; 0: never.
    pub max_jobs_served: u64,
    pub settings: Settings,
    pub claim_within: Duration,
    pub queue_within: Duration,
    /// How long the watchdog waits for a graceful stop.
    pub stop_within: Duration,
    /// How often a new process does not become ready as it should, in a thousand.
    pub bad_starts: u64,
    /// The usual time between two faults of one process.
    pub fault_every: Duration,
    /// Principals have a few times as many faults, and die of most of them.
    pub hard_on_principals: bool,
    /// The usual time between two doings of strangers: garbage, forged signals, stolen lines.
    pub stranger_every: Duration,
    /// The usual time between two wishes for a reload.
    pub reload_every: Duration,
    /// The usual time between two clients.
    pub client_every: Duration,
    /// How many of them follow their jobs, in a thousand.
    pub tracked: u64,
    /// How many of the others come without having asked, in a thousand.
    pub uninvited: u64,
    /// Whether these are let in.
    pub open: bool,
    /// From here on everybody behaves.
    pub quiet_from: Moment,
    /// When everything must be well again, or over.
    pub end: Moment,
    pub stops: Vec<Moment>,
    pub watchdog_dies: Option<Moment>,
    /// Whether an observer is wanted from the start.
    pub observed: bool,
    /// How often one is wanted after a reload of the configuration, in a thousand.
    pub observed_later: u64,
    /// Whether the kernel tells the CPU time of a process.
    pub cpu_is_known: bool,
    /// How often a turn of the watchdog comes much too late, in a thousand.
    pub stalls: u64,
    /// Lines that fit into a FIFO.
    pub fifo_lines: usize,
    /// How often others run while a process is in a system call, in a thousand.
    pub interleaved: u64,
}

impl Plan {
    /// A world in which a mistake that seldom matters shows before long.
    pub fn tilt(&mut self, sabotage: Sabotage) {
        match sabotage {
            Sabotage::SignalByPid => {
                self.hard_on_principals = false;
                self.stalls = 300;
                self.interleaved = 300;
                self.secondaries = 6;
            }
            Sabotage::MeetByPid | Sabotage::ReuseNames | Sabotage::ForgetRedo | Sabotage::NoIntent => {
                self.hard_on_principals = true;
                self.fault_every = self.settings.kill_after / 2;
                self.interleaved = 150;
            }
            Sabotage::LetInBlindly => {
                self.tracked = 600;
                self.fifo_lines = 4;
                self.max_jobs = 8;
                self.client_every = self.settings.period / 12;
                self.stranger_every = self.settings.period / 8;
            }
            Sabotage::NeverReconcile => {
                self.stranger_every = self.settings.period / 4;
                self.fault_every = self.settings.kill_after * 100;
            }
            Sabotage::HurryTheWorn | Sabotage::LimitTheWorn => {
                self.max_jobs_served = 3;
                self.watchdog_dies = None;
                self.stops.clear();
                self.fault_every = self.settings.kill_after * 100;
            }
            _ => {}
        }
    }

    /// How long jobs of a type may take; in some worlds.
    pub fn time_limit(&self, kind: usize) -> Option<Duration> {
        (kind == 1 && self.max_jobs == 4).then_some(self.settings.kill_after / 2)
    }

    pub fn draw(dice: &mut Dice) -> Self {
        let settings = draw_settings(dice);
        // Who is silent is taken for plain after 50 ms: a job must wait for longer.
        let claim_within = (settings.kill_after * dice.pick(&[1, 2, 3])).max(millis(150));
        let periods = u32::try_from(dice.below(70)).expect("a few") + 20;
        let mut quiet_from = Moment::default() + settings.period * periods;
        if dice.chance(10) {
            // Long enough for the longest forgiveness.
            quiet_from = Moment::default() + secs(70) + settings.kill_after;
        }
        let stop_within = settings.grace + claim_within;
        let stops = draw_stops(dice, quiet_from, &settings);
        let watchdog_dies = (stops.is_empty() && dice.chance(80))
            .then(|| Moment::default() + dice.up_to(quiet_from.since(Moment::default())));
        let queue_within = settings.kill_after / 2;
        let open = dice.chance(300);
        let never = (false, 0);
        let (observed, observed_later) =
            dice.pick(&[never, never, (true, 1000), (true, 1000), (true, 500), (false, 500)]);
        Self {
            secondaries: dice.pick(&[1, 2, 2, 3, 3, 4, 5, 6]),
            max_jobs: dice.pick(&[2, 4, 8]),
            max_jobs_served: dice.pick(&[0, 0, 0, 1, 3, 20]),
            claim_within,
            queue_within,
            stop_within,
            bad_starts: dice.pick(&[0, 100, 400]),
            fault_every: settings.kill_after * dice.pick(&[1, 1, 2, 4, 10, 100]),
            hard_on_principals: dice.chance(350),
            stranger_every: settings.period * dice.pick(&[1, 4, 30]),
            reload_every: settings.kill_after * dice.pick(&[1, 3, 10, 1000]),
            client_every: settings.period * 2 / dice.pick(&[1, 4, 12]),
            tracked: dice.pick(&[0, 300, 600, 900]),
            uninvited: if open { 300 } else { 40 },
            open,
            quiet_from,
            end: quiet_from.max(stops.last().copied().unwrap_or_default()) + recovery(&settings, stop_within),
            stops,
            watchdog_dies,
            observed,
            observed_later,
            cpu_is_known: dice.chance(850),
            stalls: dice.pick(&[0, 0, 5, 300, 600, 850]),
            fifo_lines: dice.pick(&[4, 6, 40]),
            interleaved: dice.pick(&[0, 5, 50, 150]),
            settings,
        }
    }
}

/// The longest way back: a start that hangs is found out, then the longest back-off, for
/// the principal and then for a secondary; then what they had under way.
fn recovery(settings: &Settings, stop_within: Duration) -> Duration {
    let one = settings.start_within + settings.kill_after + secs(10);
    2 * one + 3 * stop_within + 20 * settings.period + secs(3)
}

fn draw_settings(dice: &mut Dice) -> Settings {
    let (period, kill_after, whole) = match dice.below(32) {
        0 => (millis(10), millis(50), millis(600)),
        1..=15 => (millis(100), millis(400), secs(1)),
        16..=23 => (millis(400), millis(800), secs(2)),
        _ => (millis(250), secs(2), secs(3)),
    };
    let suspect_after = kill_after / dice.pick(&[2, 4]);
    Settings { period, suspect_after, kill_after, start_within: whole, grace: whole }
}

/// A third of the worlds are stopped, some of them by an impatient user.
fn draw_stops(dice: &mut Dice, quiet_from: Moment, settings: &Settings) -> Vec<Moment> {
    if dice.chance(650) {
        return Vec::new();
    }
    let span = quiet_from.since(Moment::default());
    let mut at = Moment::default() + dice.up_to(span + span / 8);
    let mut stops = vec![at];
    while stops.len() < 4 && dice.chance(400) {
        let patience = dice.pick(&[millis(400), settings.grace]);
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
