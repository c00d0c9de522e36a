//! What is said when a principal is replaced on purpose, one packet each.
//!
//! | packet | from | to | means |
//! |---|---|---|---|
//! | `prepared` | new principal | watchdog | it can take over |
//! | `refused REASON` | new principal | watchdog | it cannot, and ends |
//! | `hand over` | watchdog | old principal | to who is at the other end of the socket that comes with it |
//! | `heard` | new | old | a frame with clients has arrived |
//! | `taken` | new | old | all have arrived: the old one may end |
//! | `kept REASON` | old principal | watchdog | it has not handed over, and goes on |
//! | `proceed` | watchdog | new principal | the old one has ended: the place is yours |

use std::fmt;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// `prepared`
    Prepared,
    /// `refused REASON`
    Refused(String),
    /// `hand over`
    HandOver,
    /// `heard`
    Heard,
    /// `taken`
    Taken,
    /// `kept REASON`
    Kept(String),
    /// `proceed`
    Proceed,
}

impl Word {
    /// Understands a packet; `None` where it is none of them.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let text = str::from_utf8(packet).ok()?;
        Some(match text.split_once(' ') {
            None if text == "prepared" => Self::Prepared,
            None if text == "heard" => Self::Heard,
            None if text == "taken" => Self::Taken,
            None if text == "proceed" => Self::Proceed,
            Some(("hand", "over")) => Self::HandOver,
            Some(("refused", reason)) => Self::Refused(reason.to_owned()),
            Some(("kept", reason)) => Self::Kept(reason.to_owned()),
            _ => return None,
        })
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepared => write!(f, "prepared"),
            Self::Refused(reason) => write!(f, "refused {reason}"),
            Self::HandOver => write!(f, "hand over"),
            Self::Heard => write!(f, "heard"),
            Self::Taken => write!(f, "taken"),
            Self::Kept(reason) => write!(f, "kept {reason}"),
            Self::Proceed => write!(f, "proceed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let with_reason = [Word::Refused("layout 7".to_owned()), Word::Kept("it stops".to_owned())];
        let plain = [Word::Prepared, Word::HandOver, Word::Heard, Word::Taken, Word::Proceed];
        for word in plain.into_iter().chain(with_reason) {
            assert_eq!(Word::parse(word.to_string().as_bytes()), Some(word));
        }
        for strange in ["", "hand", "prepared now", "kept", "\u{e9}"] {
            assert_eq!(Word::parse(strange.as_bytes()), None, "{strange}");
        }
    }
}
