//! The status as tables for people.

use std::fmt::Write as _;

use crate::page::principal::Connections;
use crate::status::{Death, EndsOf, Ledger, Refusals, Status};

/// Deaths that the table shows; JSON has more.
const SHOWN_DEATHS: usize = 8;

impl Status {
    /// A table for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let seconds = self.uptime_ms / 1000;
        let _ = writeln!(
            text,
            "osps {}, watchdog pid {}, up {seconds} s, listening on {}",
            self.version,
            self.pid,
            self.listen.join(", ")
        );
        if !self.observe.is_empty() {
            let _ = writeln!(text, "observed on {}", self.observe.join(", "));
        }
        let Ledger { accepted, done, failed, expired, open, refused, rejected } = self.ledger;
        let _ = writeln!(
            text,
            "jobs: {accepted} accepted = {done} done + {failed} failed + {expired} expired + {open} open"
        );
        let Refusals { unknown, malformed, busy, stopping } = self.refusals;
        let _ = writeln!(
            text,
            "refused requests: {refused} ({unknown} unknown, {malformed} malformed, {busy} busy, {stopping} stopping), \
             rejected data connections: {rejected}"
        );
        let Connections { connected, parked, accepted, turned_away, evicted, idle, broken } = self.clients;
        let _ = writeln!(
            text,
            "clients: {connected} connected, {parked} waiting for a place; of {accepted} so far {turned_away} turned away, \
             {evicted} evicted, {idle} idle for too long, {broken} broken"
        );
        let _ = writeln!(
            text,
            "\n{:<12} {:>7} {:<9} {:>8} {:>6} {:>8} {:>9} {:>6} {:>9} {:>7}",
            "SERVER", "PID", "STATE", "RESTARTS", "KILLS", "RTT us", "ANSWERED", "OPEN", "DONE", "FAILED"
        );
        for server in self.servers.iter().chain(&self.observer) {
            let name = name(server.role, server.slot);
            let state = server.state.as_str();
            let or_dash =
                |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
            let answered = server.answered_ms_ago.map_or_else(|| "-".to_owned(), |ago| format!("{ago} ms"));
            let _ = writeln!(
                text,
                "{name:<12} {:>7} {state:<9} {:>8} {:>6} {:>8} {answered:>9} {:>6} {:>9} {:>7}{}",
                or_dash(server.pid.map(u64::from)),
                server.restarts,
                server.kills,
                or_dash(server.rtt_us),
                server.open,
                server.done,
                server.failed,
                match (server.reason, server.recycled) {
                    (Some(reason), _) => format!("  {reason}"),
                    (None, 0) => String::new(),
                    (None, recycled) => format!("  {recycled} of the restarts: recycled"),
                }
            );
        }
        self.requests_to_text(&mut text);
        self.obituaries_to_text(&mut text);
        text
    }

    fn requests_to_text(&self, text: &mut String) {
        let _ = writeln!(text, "\n{:<20} {:>9} {:>9} {:>9}  PORTS", "REQUEST", "DONE", "FAILED", "EXPIRED");
        for (name, EndsOf { done, failed, expired }) in &self.requests {
            let ports: Vec<String> = self
                .servers
                .iter()
                .filter_map(|server| server.ports.get(name))
                .map(ToString::to_string)
                .collect();
            let _ = writeln!(text, "{name:<20} {done:>9} {failed:>9} {expired:>9}  {}", ports.join(" "));
        }
    }

    fn obituaries_to_text(&self, text: &mut String) {
        if self.obituaries.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{:<12} {:>7} {:>9} {:>5}  CAUSE", "DEATHS", "PID", "AGO", "JOBS");
        for death in self.obituaries.iter().take(SHOWN_DEATHS) {
            let Death { role, slot, pid, ms_ago, cause, jobs, .. } = death;
            let name = name(role, *slot);
            let ago = format!("{}.{} s", ms_ago / 1000, ms_ago % 1000 / 100);
            let _ = write!(text, "{name:<12} {pid:>7} {ago:>9} {jobs:>5}  {cause}");
            if let Some(killed) = death.killed {
                let _ = write!(text, ", killed: {killed}");
            }
            if let Some(state) = death.state {
                let _ = write!(text, ", state {state}");
            }
            if let Some(wchan) = &death.wchan {
                let _ = write!(text, " in {wchan}");
            }
            if let Some(millis) = death.answered_ms_before {
                let _ = write!(text, ", last answer {millis} ms before");
            }
            text.push('\n');
        }
    }
}

/// The principal needs no number.
fn name(role: &str, slot: u16) -> String {
    match slot {
        0 => role.to_owned(),
        slot => format!("{role} {slot}"),
    }
}
