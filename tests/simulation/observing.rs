//! The observer, as the watchdog sees it: `src/role/watchdog/observer.rs`, and what a reload wants of it.

use osps::core::name::Name;
use osps::page::Access;
use osps::page::observer::ObserverPage;

use crate::fifo::{FifoId, FifoName};
use crate::kernel::Sheet;
use crate::machine::{Event, Machine, Proc, WATCHDOG};
use crate::plan::millis;
use crate::sabotage::Sabotage;
use crate::watchdog::Watchdog;

impl Watchdog {
    /// From now on there is to be an observer, or none.
    pub fn bring_into_force(&mut self, sys: &mut Machine, observed: bool) {
        self.observed = observed;
        sys.audit_observed(self.now, observed);
        if observed || sys.sabotage != Sabotage::KeepObserver {
            self.tree.handle_observed(self.now, observed);
        }
    }

    pub fn start_observer(&mut self, sys: &mut Machine, name: Name) {
        if name.incarnation > 1 && sys.sabotage == Sabotage::ForgetObserver {
            return;
        }
        match Self::spawn_observer(sys, name) {
            Some((pidfd, page, orders)) => {
                self.observer_page = Some(page);
                self.supervise(sys, name, pidfd, None, orders);
            }
            None => {
                sys.audit_observer_not_started(self.now);
                self.tree.handle_observer_not_started(self.now);
            }
        }
    }

    /// An observer was told to go: before it hears of it, somebody takes its order away.
    pub fn disturb_dismissal(&self, sys: &mut Machine, name: Name) {
        if let Some(index) = self.position(name)
            && !sys.is_quiet()
            && sys.dice.chance(100)
        {
            sys.audit.coverage.count("observer: its order to go was stolen");
            sys.steal_lines(self.processes[index].orders);
        }
    }

    /// An observer has ended. A stop would seldom come before there is another.
    pub fn disturb_after_observer(sys: &mut Machine) {
        if !sys.is_quiet() && !sys.plan.stops.is_empty() && sys.dice.chance(50) {
            sys.soon(millis(20), Event::Stop);
        }
    }

    /// Its page and its orders are new, so that nothing of the one before is in its way.
    fn spawn_observer(sys: &mut Machine, name: Name) -> Option<(Proc, ObserverPage, FifoId)> {
        let path = sys.rundir.observer_page();
        sys.system_call();
        osps::os::rundir::remove(&path).expect("our own directory");
        sys.unlink_fifo(FifoName::ObserverOrders);
        sys.system_call();
        ObserverPage::create(&path).expect("it was removed");
        assert!(sys.mkfifo(FifoName::ObserverOrders), "it was removed");
        let orders = sys.open_fifo(FifoName::ObserverOrders).expect("it was created");
        let pidfd = sys.spawn(WATCHDOG, Sheet::of(name, orders, None))?;
        let page = ObserverPage::attach(&path, Access::ReadOnly).expect("it was created");
        Some((pidfd, page, orders))
    }
}
