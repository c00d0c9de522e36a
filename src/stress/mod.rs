//! `osps-stress`: many clients from one process with one thread, or from several; what became of their
//! requests, told honestly.
//!
//! Pure: [`mix`] (which type is next), [`pace`] (when requests begin), [`record`] (what became of them),
//! [`report`] (in words and JSON). [`load`] and [`client`] join them to sockets; [`herd`] runs several
//! processes and adds up; [`faults`] strikes servers meanwhile; [`watch`] shows how it goes, [`plot`] how
//! it went.

pub mod client;
pub mod faults;
pub mod herd;
pub mod load;
pub mod mix;
pub mod pace;
pub mod plot;
pub mod record;
pub mod report;
pub mod watch;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::exit::{Code, Failure};
use crate::os::process;
use crate::stress::load::Target;
use crate::stress::mix::Share;

/// Descriptors that are needed beside those of the clients.
const OWN_DESCRIPTORS: u64 = 32;
/// So many clients come from one address where nobody says how many shall.
const CLIENTS_PER_SOURCE: usize = 64;
/// Addresses that are used at most.
const MAX_SOURCES: usize = 1 << 16;

/// When the last request begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Until {
    /// After that time.
    Time(Duration),
    /// When so many have begun.
    Count(u64),
}

/// When an answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Expect {
    /// The client ends its input, and the server closes the connection after its answer: good for every
    /// handler
    End,
    /// As many bytes have come back as were sent, and the same
    Echo,
    /// A newline has come
    Line,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The types and their weights.
    pub shares: Vec<Share>,
    /// What is said to the principal, by type.
    pub requests: Vec<Vec<u8>>,
    /// What is sent to a secondary.
    pub payload: Vec<u8>,
    /// When its answer is complete.
    pub expect: Expect,
    /// Clients at once.
    pub clients: usize,
    /// Requests a second; `None`: a closed loop.
    pub rate: Option<f64>,
    /// How long it goes on.
    pub until: Until,
    /// Whether a client keeps its control connection for the next request.
    pub keep: bool,
    /// How long a request may take.
    pub timeout: Duration,
    /// How long it takes until all clients, or the whole rate, are there.
    pub ramp: Duration,
    /// Loopback addresses to connect from; 0: what the kernel takes.
    pub sources: usize,
    /// The first client has this place among those of all processes.
    pub first_client: usize,
    /// An open loop begins so much later: those of several processes take turns.
    pub offset: Duration,
    /// Processes that share the clients.
    pub processes: usize,
}

impl Plan {
    /// The address from which the client of that place connects.
    #[must_use]
    pub fn source(&self, place: usize) -> Option<IpAddr> {
        let index = u32::try_from((self.first_client + place).checked_rem(self.sources)?).ok()?;
        Some(Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + index).into())
    }

    /// How many addresses to connect from, where nobody says: ports run out on one, and a server may let
    /// one address have only a share of its places. Only the loopback has more than one.
    #[must_use]
    pub fn usual_sources(clients: usize, target: &Target) -> usize {
        if target.has_spare_sources() && clients > CLIENTS_PER_SOURCE {
            clients.div_ceil(CLIENTS_PER_SOURCE).min(MAX_SOURCES)
        } else {
            0
        }
    }

    /// What one of several processes is to do.
    #[must_use]
    pub fn part(&self, index: usize, of: usize) -> Self {
        let share = |whole: usize| whole / of + usize::from(index < whole % of);
        let first = |whole: usize| whole / of * index + index.min(whole % of);
        let until = match self.until {
            Until::Count(count) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                Until::Count(share(count) as u64)
            }
            time @ Until::Time(_) => time,
        };
        Self {
            clients: share(self.clients),
            first_client: self.first_client + first(self.clients),
            rate: self.rate.map(|rate| rate / of as f64),
            offset: self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(index as f64 / rate)),
            until,
            ..self.clone()
        }
    }

    /// Makes sure that this process may open what it needs.
    ///
    /// # Errors
    /// Which limit is in the way, and what to do.
    pub fn claim_descriptors(&self) -> Result<(), Failure> {
        let needed = 2 * self.clients as u64 + OWN_DESCRIPTORS;
        let limit = process::raise_descriptor_limit();
        if needed <= limit {
            return Ok(());
        }
        let most = limit.saturating_sub(OWN_DESCRIPTORS) / 2;
        let message = format!(
            "{} clients need {needed} descriptors, this process may have {limit}: at most {most} clients \
             here, more with --processes, or raise the limit (ulimit -H -n)",
            self.clients
        );
        Err(Failure::new(Code::Unavailable, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            shares: vec!["echo".parse().unwrap()],
            requests: vec![b"echo\n".to_vec()],
            payload: b"x\n".to_vec(),
            expect: Expect::End,
            clients: 10,
            rate: Some(100.0),
            until: Until::Count(11),
            keep: true,
            timeout: Duration::from_secs(1),
            ramp: Duration::ZERO,
            sources: 4,
            first_client: 0,
            offset: Duration::ZERO,
            processes: 1,
        }
    }

    #[test]
    fn parts_are_the_whole() {
        let plan = plan();
        let parts: Vec<Plan> = (0..3).map(|index| plan.part(index, 3)).collect();
        assert_eq!(parts.iter().map(|part| part.clients).collect::<Vec<_>>(), [4, 3, 3]);
        assert_eq!(parts.iter().map(|part| part.first_client).collect::<Vec<_>>(), [0, 4, 7]);
        let counts = [4, 4, 3].map(Until::Count);
        assert_eq!(parts.iter().map(|part| part.until).collect::<Vec<_>>(), counts);
        let together: f64 = parts.iter().filter_map(|part| part.rate).sum();
        assert!((together - 100.0).abs() < 1e-9);
        assert_eq!(parts.iter().map(|part| part.offset.as_millis()).collect::<Vec<_>>(), [0, 10, 20]);
    }

    #[test]
    fn clients_are_spread_over_loopback_addresses() {
        let plan = plan();
        let source = |place| plan.source(place).unwrap().to_string();
        assert_eq!([0, 3, 4].map(source), ["127.0.0.1", "127.0.0.4", "127.0.0.1"]);
        assert_eq!(Plan { sources: 0, ..plan }.source(3), None);
        let target = |text: &str| Target::Tcp(text.parse().unwrap());
        assert_eq!(Plan::usual_sources(9000, &target("127.0.0.1:2222")), 141);
        assert_eq!(Plan::usual_sources(64, &target("127.0.0.1:2222")), 0);
        assert_eq!(Plan::usual_sources(9000, &target("192.0.2.1:2222")), 0);
        assert_eq!(Plan::usual_sources(9000, &target("[::1]:2222")), 0);
        assert_eq!(Plan::usual_sources(9000, &Target::Unix("/run/x".into())), 0);
    }
}
