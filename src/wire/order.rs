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
}

impl Order {
    /// The order as a line, newline included; one before it ends whatever stands there.
    #[must_use]
    pub fn as_line(self) -> &'static str {
        match self {
            Self::Stop => "\nstop\n",
            Self::StopNow => "\nstop now\n",
            Self::Drain => "\ndrain\n",
            Self::Look => "\nlook\n",
        }
    }

    /// Understands one line, its newline removed.
    ///
    /// # Errors
    /// [`Malformed`], where it is no order.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        [Self::Stop, Self::StopNow, Self::Drain, Self::Look]
            .into_iter()
            .find(|order| order.as_line().trim().as_bytes() == line)
            .ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for order in [Order::Stop, Order::StopNow, Order::Drain, Order::Look] {
            assert_eq!(Order::parse(order.as_line().trim().as_bytes()), Ok(order));
        }
        assert_eq!(Order::parse(b"stop  now"), Err(Malformed));
    }
}
