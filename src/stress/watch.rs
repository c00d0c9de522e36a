//! How it goes: a bar on a terminal, plain lines elsewhere, always on standard error; or, for the process
//! that adds up, on a pipe.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::core::moment::nanos;
use crate::stress::faults::{Fault, Faults};
use crate::stress::record::histogram;
use crate::stress::{Plan, Until};

const BAR_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Steps of a bar.
const WIDTH: u64 = 1000;

/// How it goes just now.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Glance {
    /// Requests served so far.
    pub served: u64,
    /// Requests failed so far.
    pub failed: u64,
    /// Requests under way.
    pub under_way: u64,
    /// The 99th percentile of the latency since the last glance, in µs.
    pub p99_us: u64,
}

enum Teller {
    Bar(ProgressBar),
    Lines,
    Pipe,
    Silent,
}

/// Shows how it goes, and strikes meanwhile.
pub struct Watch {
    teller: Teller,
    faults: Option<Faults>,
    now: Glance,
    recent: Histogram<u64>,
    /// When was looked last, and what was served then.
    last: (Duration, u64),
    next_look: Duration,
}

impl Watch {
    /// For people, on standard error.
    #[must_use]
    pub fn for_people(quiet: bool, faults: Option<Faults>) -> Self {
        let teller = if quiet {
            Teller::Silent
        } else if std::io::stderr().is_terminal() {
            Teller::Bar(bar())
        } else {
            Teller::Lines
        };
        Self::new(teller, faults)
    }

    /// For the process that has started this one, on standard output.
    #[must_use]
    pub fn for_parent() -> Self {
        Self::new(Teller::Pipe, None)
    }

    fn new(teller: Teller, faults: Option<Faults>) -> Self {
        let zero = Duration::ZERO;
        Self { teller, faults, now: Glance::default(), recent: histogram(), last: (zero, 0), next_look: zero }
    }

    /// A request was served.
    pub fn served(&mut self, latency: Duration) {
        self.now.served += 1;
        self.recent.saturating_record(nanos(latency));
    }

    /// A request has failed.
    pub fn failed(&mut self) {
        self.now.failed += 1;
    }

    /// Shows how it goes, if it is time to. Returns when to come again.
    pub fn show(&mut self, at: Duration, plan: &Plan, under_way: usize) -> Duration {
        self.now.under_way = under_way as u64;
        if self.next_look <= at {
            self.now.p99_us = self.recent.value_at_quantile(0.99) / 1000;
            self.recent.reset();
            self.tell(at, plan, self.now);
        }
        self.next(at, plan)
    }

    /// As [`Watch::show`], with what several processes have told.
    pub fn show_all(&mut self, at: Duration, plan: &Plan, glance: Glance) -> Duration {
        if self.next_look <= at {
            self.tell(at, plan, glance);
        }
        self.next(at, plan)
    }

    fn next(&mut self, at: Duration, plan: &Plan) -> Duration {
        let mut next = self.next_look;
        // Nobody is struck while the last requests are waited for.
        let is_over = matches!(plan.until, Until::Time(whole) if whole <= at);
        if let Some(faults) = self.faults.as_mut().filter(|_| !is_over) {
            if let Some(fault) = faults.strike(at) {
                let line = format!("{:8.1} s  {}", fault.at_s, fault.what);
                match &self.teller {
                    Teller::Bar(bar) => bar.println(line),
                    Teller::Lines => say(&line),
                    Teller::Pipe | Teller::Silent => {}
                }
            }
            next = next.min(faults.next());
        }
        next.saturating_sub(at).max(Duration::from_millis(1))
    }

    fn tell(&mut self, at: Duration, plan: &Plan, glance: Glance) {
        let every = if matches!(self.teller, Teller::Lines) { LINE_EVERY } else { BAR_EVERY };
        self.next_look = at + every;
        let (before, served) = self.last;
        let seconds = at.saturating_sub(before).as_secs_f64();
        let rate = if seconds > 0.0 { (glance.served - served) as f64 / seconds } else { 0.0 };
        self.last = (at, glance.served);
        let words = format!(
            "{rate:>8.0}/s  {:>6} in flight  {:>5} errors  p99 {:>8}",
            glance.under_way,
            glance.failed,
            if glance.served > served { millis(glance.p99_us) } else { "-".to_owned() }
        );
        match &self.teller {
            Teller::Bar(bar) => {
                let part = match plan.until {
                    Until::Time(whole) => at.as_secs_f64() / whole.as_secs_f64(),
                    Until::Count(whole) => (glance.served + glance.failed) as f64 / whole as f64,
                };
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to WIDTH")]
                bar.set_position((part.clamp(0.0, 1.0) * WIDTH as f64) as u64);
                bar.set_message(words);
            }
            Teller::Lines if at >= LINE_EVERY => say(&format!("{:8.1} s  {words}", at.as_secs_f64())),
            // Whoever had started this process may be gone: then it has no more use.
            Teller::Pipe if write_line(&glance).is_err() => std::process::exit(0),
            Teller::Lines | Teller::Pipe | Teller::Silent => {}
        }
    }

    /// It is over. Returns the faults that there were.
    pub fn close(self) -> Vec<Fault> {
        if let Teller::Bar(bar) = &self.teller {
            bar.finish_and_clear();
        }
        self.faults.map_or_else(Vec::new, |faults| faults.done)
    }
}

/// A line on standard error, if anybody reads it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(WIDTH), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("[{bar:24}] {elapsed_precise} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

/// A line of JSON on standard output.
///
/// # Errors
/// What writing says.
pub fn write_line(what: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    std::io::stdout().write_all(&line)
}

/// Microseconds, for people.
#[must_use]
pub fn millis(micros: u64) -> String {
    let millis = micros as f64 / 1000.0;
    match micros {
        0..1_000 => format!("{millis:.3} ms"),
        1_000..10_000 => format!("{millis:.2} ms"),
        10_000..1_000_000 => format!("{millis:.1} ms"),
        _ => format!("{:.2} s", millis / 1000.0),
    }
}
