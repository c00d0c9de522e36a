//! How many requests were refused, and why.

use serde::{Deserialize, Serialize};

use crate::wire::client::Refusal;

/// Requests that were answered -1, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// No such type.
    pub unknown: u64,
    /// Too long, or never ended.
    pub malformed: u64,
    /// No secondary could take it, or too many came from one address.
    pub busy: u64,
    /// The system stops.
    pub stopping: u64,
}

impl Refused {
    /// Counts one more.
    pub fn count(&mut self, refusal: &Refusal<'_>) {
        let counter = match refusal {
            Refusal::Unknown { .. } => &mut self.unknown,
            Refusal::TooLong | Refusal::Incomplete(_) => &mut self.malformed,
            Refusal::AllFull
            | Refusal::OverShare
            | Refusal::NoneReady
            | Refusal::NoPlace
            | Refusal::TooManyConnections(_) => &mut self.busy,
            Refusal::Stopping => &mut self.stopping,
        };
        *counter += 1;
    }
}
