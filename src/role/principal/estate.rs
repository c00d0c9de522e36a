//! What a principal hands over to its successor, as text: frames of JSON over a channel, each client's
//! descriptor with the frame that describes it. The layout version of the pages covers this format, too.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::core::conversation::Conversation;
use crate::core::moment::Moment;
use crate::core::slots::Followed;
use crate::role::principal::servers::Uninvited;
use crate::wire::client::Request;

/// One frame.
#[derive(Debug, Serialize, Deserialize)]
pub enum Page {
    /// Control connections, in the order of the descriptors.
    Clients(Vec<HandedOver>),
    /// There were so many in all, and these requests for jobs of those who came uninvited.
    End { clients: u64, uninvited: Vec<Uninvited> },
}

/// A control connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedOver {
    pub address: IpAddr,
    pub is_tcp: bool,
    /// It has one of the places.
    pub counts: bool,
    /// `None` where it waits to be heard.
    pub conversation: Option<Conversation>,
    /// The request that waits for a secondary, and until when.
    pub waits: Option<(Request, Moment)>,
    /// Since when it takes nothing of what is to be sent.
    pub stuck_since: Option<Moment>,
    /// The jobs of which it is to hear.
    pub jobs: Vec<Followed>,
}
