//! What a control connection waits to hear of the jobs that it was given.
//!
//! Every job counts until it is claimed or has expired: with [`MAX_UNCLAIMED`] of them a
//! client is not heard further. A tracked job is reported: one start at most, and exactly
//! one end.

use std::io::Write as _;

use serde::{Deserialize, Serialize};

use crate::core::job::{End, JobNumber};
use crate::wire::jeton::Jeton;

/// So many jobs may a connection have that nobody has come for yet.
pub const MAX_UNCLAIMED: u32 = 64;

/// Something that has become of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody came for it: its exchange has begun.
    Claimed,
    /// It has ended.
    Ended {
        /// How.
        end: End,
        /// Whether [`News::Claimed`] came before.
        was_claimed: bool,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tracked {
    number: JobNumber,
    jeton: Jeton,
}

/// The jobs of one control connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Following {
    unclaimed: u32,
    /// Those whose end is to be reported.
    tracked: Vec<Tracked>,
}

impl Following {
    /// The client was given a job; with a jeton it is tracked.
    pub fn add(&mut self, number: JobNumber, jeton: Option<Jeton>) {
        self.unclaimed += 1;
        if let Some(jeton) = jeton {
            self.tracked.push(Tracked { number, jeton });
        }
    }

    /// Appends to `output` what a client is told of a job that it follows.
    pub fn handle_news(&mut self, number: JobNumber, news: News, output: &mut Vec<u8>) {
        if matches!(news, News::Claimed | News::Ended { was_claimed: false, .. }) {
            debug_assert!(self.unclaimed > 0, "job {number} was claimed twice");
            self.unclaimed = self.unclaimed.saturating_sub(1);
        }
        let Some(at) = self.tracked.iter().position(|tracked| tracked.number == number) else {
            return;
        };
        let jeton = self.tracked[at].jeton;
        let written = match news {
            News::Claimed => writeln!(output, "debuttraitement {jeton}"),
            News::Ended { end, .. } => {
                self.tracked.swap_remove(at);
                match end {
                    End::Done => writeln!(output, "fintraitement {jeton}"),
                    End::Failed(reason) => writeln!(output, "errtraitement {jeton} {reason}"),
                    End::Expired => writeln!(output, "errtraitement {jeton} expired"),
                }
            }
        };
        debug_assert!(written.is_ok(), "writing to a Vec does not fail");
    }

    /// How many of its jobs nobody has come for yet.
    #[must_use]
    pub fn unclaimed(&self) -> u32 {
        self.unclaimed
    }

    /// Whether the client is not heard until some of its jobs are claimed or have expired.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.unclaimed >= MAX_UNCLAIMED
    }

    /// Whether the end of any job is still to be reported.
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        !self.tracked.is_empty()
    }
}
