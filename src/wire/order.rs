//! The orders of the watchdog, one per line, in `orders.principal` and `orders.<n>`.

use crate::wire::tube::Malformed;

/// What the watchdog tells a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Give no new jobs, let what is given come to its end, then end.
    Stop,
    /// End now; what is open fails.
    StopNow,
    /// Your slot has a successor: close your listeners, finish what you have, end.
    Drain,
    /// My verdicts or my list of processes changed: read my page.
    Look,
    /// Principal: a new secondary for this slot, or one at last; the old one finishes what it has.
    Restart(u16),
    /// Principal: no jobs for this slot, and no secondary once its last job has ended.
    Rest(u16),
}

impl Order {
    /// The order as a line, newline included; one before it ends whatever stands there.
    #[must_use]
    pub fn as_line(self) -> String {
        match self {
            Self::Stop => "\nstop\n".to_owned(),
            Self::StopNow => "\nstop now\n".to_owned(),
            Self::Drain => "\ndrain\n".to_owned(),
            Self::Look => "\nlook\n".to_owned(),
            Self::Restart(slot) => format!("\nrestart {slot}\n"),
            Self::Rest(slot) => format!("\nrest {slot}\n"),
        }
    }

    /// Understands one line, its newline removed.
    ///
    /// # Errors
    /// [`Malformed`], where it is no order.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(line).map_err(|_| Malformed)?;
        let slot = |text: &str| text.parse().map_err(|_| Malformed);
        match text.split_once(' ') {
            None if text == "stop" => Ok(Self::Stop),
            None if text == "drain" => Ok(Self::Drain),
            None if text == "look" => Ok(Self::Look),
            Some(("stop", "now")) => Ok(Self::StopNow),
            Some(("restart", number)) => Ok(Self::Restart(slot(number)?)),
            Some(("rest", number)) => Ok(Self::Rest(slot(number)?)),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let of_slots = [Order::Restart(1), Order::Rest(1024)];
        for order in [Order::Stop, Order::StopNow, Order::Drain, Order::Look].into_iter().chain(of_slots) {
            assert_eq!(Order::parse(order.as_line().trim().as_bytes()), Ok(order));
        }
        for line in ["stop  now", "rest", "rest x", "restart -1", "restart 1 2", "look 1"] {
            assert_eq!(Order::parse(line.as_bytes()), Err(Malformed), "{line}");
        }
    }
}
