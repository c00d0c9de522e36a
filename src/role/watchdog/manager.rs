//! The service manager that started us, where it wants to hear how we are (sd_notify(3)): what it is to be told is
//! decided in [`crate::core::notice`].

use std::env::var_os;

use crate::core::moment::Moment;
use crate::core::notice::{Notices, View};
use crate::core::slots::Occupied;
use crate::os::clock;
use crate::os::log::Recurrence;
use crate::os::notify::{NotifySocket, watched_within};
use crate::role::watchdog::Watchdog;

/// Who is told, and what.
pub struct ServiceManager {
    socket: NotifySocket,
    notices: Notices,
    /// Messages do not get through.
    trouble: Recurrence,
}

impl ServiceManager {
    /// As its variables say. One that cannot be understood is no reason not to serve.
    pub fn from_environment(now: Moment) -> Option<Self> {
        let address = var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        let socket = NotifySocket::to(&address)
            .inspect_err(|error| log::warn!("NOTIFY_SOCKET = {address:?}: {error}: nobody is notified"))
            .ok()?;
        let (usec, pid) = (var_os("WATCHDOG_USEC"), var_os("WATCHDOG_PID"));
        let within = watched_within(usec.as_deref(), pid.as_deref(), std::process::id());
        let within = within.unwrap_or_else(|why| {
            log::warn!("{why}: no signs of life are sent");
            None
        });
        Some(Self { socket, notices: Notices::new(now, within), trouble: Recurrence::default() })
    }

    /// When there is something to send, should nothing happen before.
    pub fn deadline(&self) -> Option<Moment> {
        self.notices.poll_timeout()
    }

    fn send(&mut self, now: Moment) {
        while let Some(message) = self.notices.poll_message(now) {
            let sent = self.socket.send(&message);
            self.notices.handle_sent(now, sent.is_ok());
            if let Err(error) = sent
                && self.trouble.is_news(now)
            {
                log::warn!("cannot notify the service manager, trying again: {error}");
            }
        }
    }
}

impl Watchdog {
    /// Tells the service manager, if there is one, what it does not know yet.
    pub(super) fn tell_manager(&mut self, now: Moment) {
        let Some(mut manager) = self.manager.take() else {
            return;
        };
        manager.notices.handle_view(self.view(), || self.force.bound.addresses().join(" and "));
        manager.send(now);
        self.manager = Some(manager);
    }

    /// A reload, or a change of scale, begins.
    pub(super) fn note_reload(&mut self) {
        if let Some(manager) = &mut self.manager {
            // Not the time of the turn: the signal that asked for it may have come since.
            manager.notices.handle_reload(clock::now());
        }
    }

    /// It has failed.
    pub(super) fn note_failed_reload(&mut self, why: &str) {
        if let Some(manager) = &mut self.manager {
            manager.notices.handle_failure(why);
        }
    }

    fn view(&self) -> View {
        let secondaries = self.force.config.secondaries;
        let stops = self.tree.is_stopping() || self.page.is_stopping();
        let mut view = View {
            principal: self.tree.answers(0),
            ready: 0,
            wanted: 0,
            given_up: 0,
            untried: 0,
            drained: 0,
            reloading: self.is_reloading() || self.has_reload_under_way(),
            stopping: stops.then(|| self.tree.stop_within()),
        };
        for slot in 1..=secondaries {
            if self.resting.contains(&slot) {
                view.drained += 1;
                continue;
            }
            view.wanted += 1;
            if self.tree.answers(slot) {
                view.ready += 1;
                continue;
            }
            let known = self.principal_page.slot(slot);
            match known.occupied {
                Occupied::GivenUp => view.given_up += 1,
                Occupied::Down | Occupied::Starting | Occupied::Ready | Occupied::Resting => {
                    view.untried += usize::from(known.incarnation <= 1);
                }
            }
        }
        view
    }
}
