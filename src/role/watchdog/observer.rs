//! Starting observers.

use std::fs::File;
use std::os::fd::AsFd;

use crate::core::name::Name;
use crate::os::pidfd::Pidfd;
use crate::os::reactor::Handle;
use crate::os::{fifo, proc, rundir};
use crate::page::Access;
use crate::page::observer::ObserverPage;
use crate::role::launch;
use crate::role::watchdog::{Key, Watchdog};

impl Watchdog {
    pub(super) fn start_observer(&mut self, reactor: &mut Handle<Key>, name: Name) {
        match self.spawn_observer(name) {
            Ok((pidfd, page, orders)) => {
                let start_time = proc::stat(pidfd.pid()).map_or(0, |stat| stat.start_time);
                self.observer_page = Some(page);
                self.supervise(reactor, name, pidfd, start_time, None, Some(orders));
                self.tree.handle_started(reactor.now(), name);
            }
            Err(error) => {
                if self.observer_trouble.is_news(reactor.now()) {
                    log::error!("cannot start {name}: {error}");
                }
                self.tree.handle_observer_not_started(reactor.now());
            }
        }
    }

    /// Its page and its orders are new, so that nothing of the one before is in its way.
    fn spawn_observer(&self, name: Name) -> std::io::Result<(Pidfd, ObserverPage, File)> {
        self.rundir.restore()?;
        let (page_path, orders_path) = (self.rundir.observer_page(), self.rundir.observer_orders());
        rundir::remove(&page_path)?;
        rundir::remove(&orders_path)?;
        ObserverPage::create(&page_path).map_err(std::io::Error::other)?;
        fifo::create(&orders_path)?;
        let (orders, their_orders) = (fifo::open_end(&orders_path)?, fifo::open_end(&orders_path)?);
        let page = File::options().read(true).write(true).open(&page_path)?;
        let sheet = self.sheet(name, &self.force, false).for_observer(name.incarnation);
        let mut inheritance = vec![self.heirlooms.watchdog_page.as_fd(), their_orders.as_fd(), page.as_fd()];
        inheritance.extend(self.force.bound.observers());
        let program = self.force.program.as_ref().map(|program| program.as_fd());
        let pidfd = launch::spawn(program, &sheet, &self.me, &inheritance)?;
        let page = ObserverPage::attach(&page, Access::ReadOnly).map_err(std::io::Error::other)?;
        Ok((pidfd, page, orders))
    }
}
