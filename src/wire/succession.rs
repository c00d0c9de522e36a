//! What is said when a principal is replaced on purpose, one packet each.
//!
//! | packet | from | to | means |
//! |---|---|---|---|
//! | `prepared` | new principal | watchdog | it can take over |
//! | `refused REASON` | new principal | watchdog | it cannot, and ends |
//! | `hand over N` | watchdog | old principal | to incarnation N, at the other end of the socket that comes with it |
//! | `heard` | new | old | a frame with clients has arrived |
//! | `taken` | new | old | all have arrived: the old one may end |
//! | `kept N REASON` | old principal | watchdog | it has not handed over to incarnation N, and goes on |
//! | `proceed` | watchdog | new principal | the old one has ended: the place is yours |

use std::fmt;

use crate::core::job::Incarnation;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// `prepared`
    Prepared,
    /// `refused REASON`
    Refused(String),
    /// `hand over N`
    HandOver {
        /// To which incarnation.
        successor: Incarnation,
    },
    /// `heard`
    Heard,
    /// `taken`
    Taken,
    /// `kept N REASON`
    Kept {
        /// To which incarnation it has not handed over.
        successor: Incarnation,
        /// Why.
        why: String,
    },
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
            Some(("hand", rest)) => Self::HandOver { successor: rest.strip_prefix("over ")?.parse().ok()? },
            Some(("refused", reason)) => Self::Refused(reason.to_owned()),
            Some(("kept", rest)) => {
                let (successor, why) = rest.split_once(' ')?;
                Self::Kept { successor: successor.parse().ok()?, why: why.to_owned() }
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepared => write!(f, "prepared"),
            Self::Refused(reason) => write!(f, "refused {reason}"),
            Self::HandOver { successor } => write!(f, "hand over {successor}"),
            Self::Heard => write!(f, "heard"),
            Self::Taken => write!(f, "taken"),
            Self::Kept { successor, why } => write!(f, "kept {successor} {why}"),
            Self::Proceed => write!(f, "proceed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let with_reason = [
            Word::Refused("layout 7".to_owned()),
            Word::Kept { successor: 65535, why: "it stops".to_owned() },
            Word::HandOver { successor: 2 },
        ];
        let plain = [Word::Prepared, Word::Heard, Word::Taken, Word::Proceed];
        for word in plain.into_iter().chain(with_reason) {
            assert_eq!(Word::parse(word.to_string().as_bytes()), Some(word));
        }
        for strange in ["", "hand over", "hand 1", "prepared now", "kept", "kept 1", "kept it x", "\u{e9}"] {
            assert_eq!(Word::parse(strange.as_bytes()), None, "{strange}");
        }
    }
}
