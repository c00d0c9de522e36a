//! How a system is, in words.

use std::time::Duration;

use crate::status::{Server, ServerState, Status};

/// A watchdog that lets all its servers go without a probe for longer hangs, or is stopped; the alert
/// `OspsWatchdogFrozen` waits for as long.
const SILENCE: Duration = Duration::from_secs(15);

/// How good that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// All serve.
    Good,
    /// It serves, and somebody should have a look.
    Fair,
    /// It does not serve.
    Bad,
}

/// How a system is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// How good.
    pub level: Level,
    /// In a sentence without its full stop.
    pub summary: String,
    /// What is not as it should be, each in words.
    pub troubles: Vec<String>,
}

impl Health {
    /// What a status tells, or why there is none.
    #[must_use]
    pub fn of(status: Result<&Status, &str>) -> Self {
        match status {
            Ok(status) => Self::of_status(status),
            Err(reason) => Self::bad(reason),
        }
    }

    /// Whether requests are answered with a port: the principal is ready, and so is at least one secondary.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.level != Level::Bad
    }

    fn bad(summary: impl Into<String>) -> Self {
        Self { level: Level::Bad, summary: summary.into(), troubles: Vec::new() }
    }

    fn of_status(status: &Status) -> Self {
        if status.stopping {
            return Self::bad("The system is stopping");
        }
        let principal = status.servers.iter().find(|server| server.slot == 0);
        match principal.map_or(ServerState::Down, |principal| principal.state) {
            ServerState::Ready => {}
            state => return Self::bad(format!("The principal {}: nobody gets a port", predicate(state))),
        }
        let of_slots = |server: &&Server| server.slot > 0 && server.state != ServerState::Draining;
        let secondaries: Vec<&Server> = status.servers.iter().filter(of_slots).collect();
        let (all, serving) = (secondaries.len(), secondaries.iter().filter(|server| serves(server)).count());
        let of_watchdog = silence_of_watchdog(status).map(|silence| {
            format!("no server was probed for {} s: the watchdog hangs or is stopped", silence.as_secs())
        });
        let of_servers = secondaries.into_iter().filter(|server| !serves(server)).map(trouble);
        let troubles: Vec<String> = of_watchdog.into_iter().chain(of_servers).collect();
        let (level, summary) = match (serving, all) {
            (0, _) => (Level::Bad, "No secondary serves".to_owned()),
            (1, 1) => (Level::Good, "The only secondary serves".to_owned()),
            (2, 2) => (Level::Good, "Both secondaries serve".to_owned()),
            _ if serving == all => (Level::Good, format!("All {all} secondaries serve")),
            (1, _) => (Level::Fair, format!("1 of {all} secondaries serves")),
            _ => (Level::Fair, format!("{serving} of {all} secondaries serve")),
        };
        let level = if level == Level::Good && !troubles.is_empty() { Level::Fair } else { level };
        Self { level, summary, troubles }
    }
}

/// For how long the watchdog has probed nobody, where that is too long. The system serves on meanwhile, but who hangs
/// is not replaced.
#[must_use]
pub fn silence_of_watchdog(status: &Status) -> Option<Duration> {
    let servers = status.servers.iter().chain(&status.observer);
    let last = Duration::from_millis(servers.filter_map(|server| server.answered_ms_ago).min()?);
    (last > SILENCE).then_some(last)
}

fn serves(server: &Server) -> bool {
    server.state == ServerState::Ready
}

fn trouble(server: &Server) -> String {
    match server.reason {
        Some(reason) => format!("secondary {} is down: {reason}", server.slot),
        None => format!("secondary {} {}", server.slot, predicate(server.state)),
    }
}

fn predicate(state: ServerState) -> &'static str {
    match state {
        ServerState::Starting => "is starting",
        ServerState::Ready => "is ready",
        ServerState::Suspect => "does not answer probes",
        ServerState::Draining => "is draining",
        ServerState::Down => "is down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::example;

    fn of(states: &[ServerState]) -> Health {
        let mut status = example::status();
        let like = status.servers[1].clone();
        status.servers.truncate(1);
        status.servers[0].state = states[0];
        let servers = (1..).zip(&states[1..]);
        status.servers.extend(servers.map(|(slot, &state)| Server { slot, state, ..like.clone() }));
        Health::of(Ok(&status))
    }

    #[test]
    fn it_is_told_in_words() {
        use ServerState::{Down, Draining, Ready, Starting, Suspect};
        for (states, level, summary) in [
            (&[Ready, Ready, Ready, Ready][..], Level::Good, "All 3 secondaries serve"),
            (&[Ready, Ready, Ready], Level::Good, "Both secondaries serve"),
            (&[Ready, Ready], Level::Good, "The only secondary serves"),
            (&[Ready, Ready, Draining], Level::Good, "The only secondary serves"),
            (&[Ready, Ready, Suspect, Down], Level::Fair, "1 of 3 secondaries serves"),
            (&[Ready, Ready, Ready, Starting], Level::Fair, "2 of 3 secondaries serve"),
            (&[Ready, Starting], Level::Bad, "No secondary serves"),
            (&[Ready], Level::Bad, "No secondary serves"),
            (&[Suspect, Ready], Level::Bad, "The principal does not answer probes: nobody gets a port"),
        ] {
            let health = of(states);
            assert_eq!((health.level, &*health.summary), (level, summary));
        }
        let troubles = of(&[Ready, Ready, Suspect, Down]).troubles;
        assert_eq!(troubles, ["secondary 2 does not answer probes", "secondary 3 is down"]);
    }

    #[test]
    fn a_watchdog_that_probes_nobody_is_told() {
        let mut status = example::status();
        let summary = Health::of(Ok(&status)).summary;
        for server in status.servers.iter_mut().chain(&mut status.observer) {
            server.answered_ms_ago = server.answered_ms_ago.map(|_| 16_200);
        }
        let health = Health::of(Ok(&status));
        assert_eq!((health.level, &health.summary), (Level::Fair, &summary));
        assert_eq!(health.troubles[0], "no server was probed for 16 s: the watchdog hangs or is stopped");
        assert!(health.is_ready(), "it serves");
        // One was: the others hang.
        status.servers[1].answered_ms_ago = Some(14_000);
        assert_eq!(silence_of_watchdog(&status), None);
    }

    #[test]
    fn who_stops_is_not_ready() {
        let mut status = example::status();
        assert!(Health::of(Ok(&status)).is_ready());
        status.stopping = true;
        assert!(!Health::of(Ok(&status)).is_ready());
        assert!(!Health::of(Err("no osps is running")).is_ready());
    }
}
