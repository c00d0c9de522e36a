//! The ends of jobs, and what the log tells of them.

use std::net::SocketAddr;

use crate::core::job::End;
use crate::os::{clock, log};
use crate::role::access::{AccessRecord, Bytes};
use crate::role::secondary::Secondary;
use crate::wire::tube::JobRef;

impl Secondary {
    /// The exchange of a job is over, for whom it was and with what was counted of it.
    pub(super) fn end_job(&mut self, job: JobRef, end: End, peer: SocketAddr, bytes: Option<Bytes>) {
        // Not the time of the turn: a handler may have blocked it for a while.
        let ended = self.service.handle_end(clock::now(), job, end);
        if let Some(ended) = ended.filter(|_| log::tells_access()) {
            let (requests, slot) = (&self.config.request[..], self.strays.owner.slot);
            let (peer, peer_port) = (peer.ip(), Some(peer.port()));
            AccessRecord { job: &ended, requests, slot, peer, peer_port, bytes }.tell();
        }
    }
}
