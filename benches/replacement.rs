//! How long it takes until a server that was killed, stopped or made to spin is replaced.
//!
//! One tree with four secondaries, `kill_after` 50 ms and `period` 20 ms. Servers are struck in
//! turn, every kind of blow in every round, so that the machine's moods hit all of them; so it is with
//! the yardstick, spawning and reaping `/bin/true`. Two times are taken:
//!
//! - *ready*: until the replacement declares itself ready,
//! - *served*: until a client that connected right after the blow has its answer. A secondary's client
//!   has been given its port before the blow; a principal's still has to ask.
//!
//! Nobody is struck in the first second of its life, for then its successor would have to wait. A
//! connection that is refused makes the benchmark fail; a figure that is missed does not.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
mod ratio;

use std::collections::BTreeMap;
use std::env;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, ExitCode};
use std::time::Duration;

use common::blows::{Blow, give_jobs_at, while_busy};
use common::{PATIENCE, System, eventually, job, now, pause, read_once};
use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::restart::YOUNG;
use osps::page::Access;
use osps::page::principal::PrincipalPage;
use osps::page::record::Record;
use osps::page::secondary::SecondaryPage;
use osps::page::watchdog::WatchdogPage;
use ratio::{Limit, Ratio};

const ROUNDS: usize = 25;
const ROUNDS_WITH_PRINCIPAL: usize = 20;
const SECONDARIES: u16 = 4;
const BUSY_CLIENTS: usize = 4;
/// Samples of the yardstick before each blow.
const YARDSTICKS: usize = 4;
/// Nothing happens for so long before a blow, and before each sample of the yardstick: who starts a process again and
/// again finds all that it needs in the caches, and is another yardstick.
const QUIET: Duration = Duration::from_millis(10);
/// Longer than young by what the principal may be late in hearing of it.
const HEALTHY: Duration = YOUNG.saturating_add(Duration::from_millis(100));

const TIMES: &str = "[watchdog]\nperiod = \"20ms\"\nsuspect_after = \"25ms\"\nkill_after = \"50ms\"\n";
/// The request types of the built-in configuration.
const REQUESTS: &str = r#"
[[request]]
name = "requetetype1"
handler = "delay"
delay = "20ms"

[[request]]
name = "requetetype2"
handler = "delay"
delay = "50ms"

[[request]]
name = "echo"
handler = "echo"
"#;

/// The blows at secondaries in one round, and whether clients keep the secondary busy.
const ROUND: [(Blow, bool); 8] = [
    (Blow::Kill, false),
    (Blow::Stop, true),
    (Blow::Kill, true),
    (Blow::Spin, false),
    (Blow::Kill, false),
    (Blow::Stop, false),
    (Blow::Kill, true),
    (Blow::Spin, true),
];

fn main() -> ExitCode {
    let rounds = env::args().find_map(|argument| argument.parse().ok());
    // Without `--bench` it is `cargo test`, which wants to know only whether it works.
    let is_bench = env::args().any(|argument| argument == "--bench");
    let rounds = rounds.unwrap_or(if is_bench { ROUNDS } else { 1 });
    if !Blow::Spin.is_possible() {
        println!("no process can be made to spin here: that is left out");
    }
    let mut range = Range::new();
    for round in 0..rounds {
        range.round(round);
    }
    range.report()
}

/// What was measured after one blow.
struct Sample {
    ready: Duration,
    /// `None` where the connection was accepted by the one that was struck, and broke.
    served: Option<Duration>,
    /// When the watchdog sent SIGKILL, counted from the blow, where it did.
    killed: Option<Duration>,
}

/// Which line of the table a sample belongs to.
type Kind = (Target, Blow, bool);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Secondary,
    Principal,
}

/// The tree that is struck, and what was measured.
struct Range {
    system: System,
    address: SocketAddr,
    echo_ports: Vec<u16>,
    yardstick: Vec<Duration>,
    samples: Vec<(Kind, Sample)>,
    blows: usize,
    refused: usize,
}

impl Range {
    fn new() -> Self {
        let system = System::start(&format!("secondaries = {SECONDARIES}"), &format!("{REQUESTS}{TIMES}"));
        let status = system.status();
        let echo_port = |slot| System::server(&status, slot)["ports"]["echo"].as_u64().unwrap();
        let echo_ports = (1..=u64::from(SECONDARIES)).map(|slot| u16::try_from(echo_port(slot)).unwrap());
        Self {
            address: system.address(),
            echo_ports: echo_ports.collect(),
            system,
            yardstick: Vec::new(),
            samples: Vec::new(),
            blows: 0,
            refused: 0,
        }
    }

    fn round(&mut self, round: usize) {
        for (index, (blow, busy)) in ROUND.into_iter().enumerate() {
            let slot = u16::try_from((index + round) % usize::from(SECONDARIES) + 1).unwrap();
            self.sample((Target::Secondary, blow, busy), slot);
        }
        if round < ROUNDS_WITH_PRINCIPAL {
            self.sample((Target::Principal, Blow::Kill, false), 0);
            let hang = if round.is_multiple_of(2) { Blow::Stop } else { Blow::Spin };
            self.sample((Target::Principal, hang, false), 0);
        }
    }

    fn sample(&mut self, kind: Kind, slot: u16) {
        let (target, blow, busy) = kind;
        if !blow.is_possible() {
            return;
        }
        for _ in 0..YARDSTICKS {
            wait_until(now() + QUIET);
            let start = now();
            assert!(Command::new("/bin/true").status().unwrap().success());
            self.yardstick.push(now().since(start));
        }
        let sample = match target {
            Target::Secondary => self.strike_secondary(slot, blow, busy),
            Target::Principal => self.strike_principal(blow),
        };
        self.blows += 1;
        self.samples.push((kind, sample));
    }

    fn strike_secondary(&mut self, slot: u16, blow: Blow, busy: bool) -> Sample {
        let before = self.healthy(slot);
        let clients = if busy { BUSY_CLIENTS } else { 0 };
        let address = SocketAddr::new(self.address.ip(), self.echo_ports[usize::from(slot) - 1]);
        let mut control = self.connect(self.address);
        give_jobs_at(&mut control, "echo", address.port(), clients + 1);
        let clients: Vec<TcpStream> = (0..clients).map(|_| self.connect(address)).collect();
        while_busy(clients, || {
            wait_until(now() + QUIET);
            let blow_at = now();
            blow.strike(before.pid);
            let mut waiting = self.connect(address);
            let served = says(&mut waiting).then(|| now().since(blow_at));
            drop(waiting);
            self.measured(slot, before, blow_at, served)
        })
    }

    fn strike_principal(&mut self, blow: Blow) -> Sample {
        for slot in 1..=SECONDARIES {
            self.healthy(slot);
        }
        let before = self.healthy(0);
        let blow_at = now();
        blow.strike(before.pid);
        let mut control = self.connect(self.address);
        let port = job(&mut control, "echo");
        let mut data = self.connect(SocketAddr::new(self.address.ip(), port));
        let served = says(&mut data).then(|| now().since(blow_at));
        self.measured(0, before, blow_at, served)
    }

    /// What the pages tell after a blow.
    fn measured(&self, slot: u16, before: Record, blow_at: Moment, served: Option<Duration>) -> Sample {
        let ready_at = eventually("a replacement that is ready", || {
            self.record(slot).filter(|record| record.pid != before.pid)?.ready_at
        });
        let name = match slot {
            0 => Name::principal(before.incarnation),
            slot => Name::secondary(slot, before.incarnation),
        };
        let killed = self.watchdog_page().killed().find(name).filter(|killed| killed.pid == before.pid);
        let killed = killed.map(|killed| killed.at.since(blow_at));
        Sample { ready: ready_at.since(blow_at), served, killed }
    }

    /// A connection that may have to wait in the backlog, but is never refused.
    fn connect(&mut self, address: SocketAddr) -> TcpStream {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                stream
            }
            Err(error) => {
                self.refused += 1;
                eprintln!("REFUSED: {address}: {error}");
                eventually("a connection after one that was refused", || TcpStream::connect(address).ok())
            }
        }
    }

    /// The server in a slot, 0 being the principal, once it is not young any more.
    fn healthy(&self, slot: u16) -> Record {
        loop {
            let ready = |record: &Record| record.ready_at.is_some();
            let record = eventually("a server that is ready", || self.record(slot).filter(ready));
            if record.ready_at.is_some_and(|ready| now().since(ready) > HEALTHY) {
                return record;
            }
            pause();
        }
    }

    fn record(&self, slot: u16) -> Option<Record> {
        let page = |name: &str| self.system.rundir().join(name);
        match slot {
            0 => PrincipalPage::attach(&page("principal.page"), Access::ReadOnly)
                .ok()
                .map(|page| page.record()),
            slot => {
                let page = page(&format!("secondary{slot}.page"));
                SecondaryPage::attach(&page, Access::ReadOnly).ok().map(|page| page.record())
            }
        }
    }

    fn watchdog_page(&self) -> WatchdogPage {
        let path = self.system.rundir().join("watchdog.page");
        eventually("the page of the watchdog", || WatchdogPage::attach(&path, Access::ReadOnly).ok())
    }
}

/// Whether an exchange succeeds; not if the connection breaks.
fn says(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 64];
    std::io::Write::write_all(stream, b"hello").is_ok()
        && read_once(stream, &mut buffer).is_ok_and(|length| &buffer[..length] == b"hello")
}

fn wait_until(moment: Moment) {
    while now() < moment {
        pause();
    }
}

/// The figures, one line each.
struct Table {
    yardstick: Duration,
}

impl Range {
    fn report(mut self) -> ExitCode {
        self.yardstick.sort_unstable();
        let table = Table { yardstick: at(&self.yardstick, 0.5) };
        println!(
            "{:<36}{:>7}{:>9}{:>9}{:>9}{:>9}{:>8}  limit",
            "ms", "samples", "min", "median", "p90", "max", "x true"
        );
        table.line("/bin/true", &mut self.yardstick, None);
        let mut kinds: BTreeMap<String, Vec<&(Kind, Sample)>> = BTreeMap::new();
        for sample in &self.samples {
            kinds.entry(label(sample.0)).or_default().push(sample);
        }
        for (label, samples) in kinds {
            table.lines(&label, samples[0].0, &samples);
        }
        self.mishaps();
        if env::args().any(|argument| argument == "--bench") {
            self.keep();
        }
        if self.refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// For the table of all benchmarks.
    fn keep(&self) {
        let yardstick = at(&self.yardstick, 0.5).as_secs_f64();
        let times = |target, blow, time: fn(&Sample) -> Option<Duration>, unit: f64| {
            let of_kind = self.samples.iter().filter(move |((t, b, _), _)| (*t, *b) == (target, blow));
            of_kind.filter_map(move |(_, sample)| Some(time(sample)?.as_secs_f64() / unit))
        };
        let killed = times(Target::Secondary, Blow::Kill, |sample| Some(sample.ready), yardstick);
        let stopped = times(Target::Secondary, Blow::Stop, |sample| sample.served, 0.1);
        let principal = times(Target::Principal, Blow::Kill, |sample| sample.served, 0.02);
        let ratios = [
            Ratio::of("a killed secondary is ready again", "/bin/true", Limit::AtMost(3.0), killed),
            Ratio::of("a stopped secondary serves again", "100 ms", Limit::AtMost(1.0), stopped),
            Ratio::of("a killed principal serves again", "20 ms", Limit::AtMost(1.0), principal),
        ];
        ratio::keep("replacement", &ratios);
    }

    /// What should not have happened.
    fn mishaps(&self) {
        let cut = self.samples.iter().filter(|(_, sample)| sample.served.is_none()).count();
        let page = self.watchdog_page();
        let secondaries = (1..=SECONDARIES).map(|slot| page.kills(Role::Secondary, slot));
        let kills = page.kills(Role::Principal, 0) + secondaries.sum::<u64>();
        let hangs = self.samples.iter().filter(|((_, blow, _), _)| *blow != Blow::Kill).count();
        let forgiven = self.system.log().lines().filter(|line| line.contains("forgiven")).count();
        println!(
            "{} blows; {} connections refused, {cut} cut off; {} servers killed by the watchdog that nobody \
             had struck; {forgiven} forgivenesses",
            self.blows,
            self.refused,
            i128::from(kills) - i128::try_from(hangs).unwrap(),
        );
    }
}

fn label((target, blow, busy): Kind) -> String {
    let target = match target {
        Target::Secondary if busy => "busy secondary",
        Target::Secondary => "idle secondary",
        Target::Principal => "principal",
    };
    let blow = match blow {
        Blow::Kill => "killed",
        Blow::Stop => "stopped",
        Blow::Spin => "spinning",
    };
    format!("{target} {blow}")
}

impl Table {
    /// All that is to be said of one kind of blow, with what is promised (docs/performance.md).
    fn lines(&self, label: &str, kind: Kind, samples: &[&(Kind, Sample)]) {
        let samples = || samples.iter().map(|(_, sample)| sample);
        let (target, blow, _) = kind;
        let hundred = Duration::from_millis(100);
        let twenty = Duration::from_millis(20);
        let (ready, served) = match (target, blow) {
            (Target::Secondary, Blow::Kill) => (Some(self.yardstick * 3), None),
            (Target::Secondary, Blow::Stop | Blow::Spin) => (Some(hundred), Some(hundred)),
            (Target::Principal, Blow::Kill) => (None, Some(twenty)),
            (Target::Principal, Blow::Stop | Blow::Spin) => (None, None),
        };
        let mut times: Vec<Duration> = samples().map(|sample| sample.ready).collect();
        self.line(&format!("{label}: ready"), &mut times, ready);
        let mut times: Vec<Duration> = samples().filter_map(|sample| sample.served).collect();
        self.line(&format!("{label}: served"), &mut times, served);
        if blow == Blow::Kill {
            return;
        }
        let since_kill = |time: Duration, sample: &Sample| Some(time.saturating_sub(sample.killed?));
        let mut ready: Vec<Duration> =
            samples().filter_map(|sample| since_kill(sample.ready, sample)).collect();
        self.line("  since the kill: ready", &mut ready, None);
        let mut served: Vec<Duration> =
            samples().filter_map(|sample| since_kill(sample.served?, sample)).collect();
        let limit = (target == Target::Principal).then_some(twenty);
        self.line("  since the kill: served", &mut served, limit);
    }

    fn line(&self, label: &str, times: &mut [Duration], limit: Option<Duration>) {
        if times.is_empty() {
            return;
        }
        times.sort_unstable();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let [min, median, p90, max] = [0.0, 0.5, 0.9, 1.0].map(|part| millis(at(times, part)));
        let ratio = median / millis(self.yardstick);
        let limit = limit.map_or(String::new(), |limit| {
            let within = times.iter().filter(|time| **time <= limit).count();
            let holds = if at(times, 0.5) <= limit { "yes" } else { "no" };
            format!("  {:.1}: {holds}, {within} of {}", millis(limit), times.len())
        });
        let samples = times.len();
        println!("{label:<36}{samples:>7}{min:>9.2}{median:>9.2}{p90:>9.2}{max:>9.2}{ratio:>8.2}{limit}");
    }
}

/// The value below which that part of sorted times lies.
fn at(sorted: &[Duration], part: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted[index]
}
