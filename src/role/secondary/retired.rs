//! Request types that a reload has taken out of service: a secondary serves the jobs of them that are left.

use crate::os::reactor::Handle;
use crate::role::secondary::{Key, Listener, Secondary};

impl Secondary {
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
