//! The data ports of a secondary, and when it closes them.

use mio::net::TcpListener;

use crate::os::reactor::{Handle, SourceId};
use crate::role::secondary::{Key, Secondary};
use crate::wire::client::TypeIndex;

/// A data port, on one host.
pub struct Listener {
    pub socket: TcpListener,
    pub id: SourceId,
    pub kind: TypeIndex,
}

impl Secondary {
    pub(super) fn stop_accepting(&mut self, reactor: &mut Handle<Key>) {
        for Listener { mut socket, id, .. } in self.listeners.drain() {
            reactor.deregister(&mut socket, id);
        }
    }

    /// The last client of a request type that is not offered any more has come: nobody else will.
    pub(super) fn close_what_is_retired(&mut self, reactor: &mut Handle<Key>) {
        if self.retired.is_empty() {
            return;
        }
        let Self { listeners, retired, service, .. } = self;
        listeners.retain(|_, Listener { socket, id, kind }| {
            let stays = !retired.contains(kind) || service.waits(*kind);
            if !stays {
                reactor.deregister(socket, *id);
            }
            stays
        });
    }
}
