//! What principal and secondaries owe the watchdog: a record, answers, obedience.

use rustix::process::Signal;

use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::exit::Failure;
use crate::os::fifo::Reader;
use crate::os::pidfd::Pidfd;
use crate::os::reactor::{Handle, Progress};
use crate::os::{proc, process};
use crate::page::watchdog::{RecordIndex, Verdict, WatchdogPage};
use crate::page::{Access, Page, record};
use crate::role::launch::Sheet;
use crate::wire::order::Order;

/// A server's side of its supervision.
#[derive(Debug)]
pub struct Liveness {
    name: Name,
    watchdog: Pidfd,
    watchdog_page: WatchdogPage,
    orders: Reader,
    /// Where the watchdog writes this server's probe numbers; looked up at the first probe.
    record: Option<RecordIndex>,
    /// The watchdog is to look, at the end of the turn.
    ring_is_due: bool,
}

impl Liveness {
    /// Introduces this process in its page.
    ///
    /// # Errors
    /// A [`Failure`] that names what could not be opened.
    pub fn begin(
        sheet: &Sheet,
        watchdog: Pidfd,
        watchdog_page: &std::fs::File,
        orders: Reader,
        page: &Page,
    ) -> Result<Self, Failure> {
        let pid = std::process::id();
        let start_time = match sheet.start_time {
            0 => proc::stat(pid).map(|stat| stat.start_time),
            known => Ok(known),
        };
        let start_time = start_time.map_err(|error| Failure::internal("read /proc/self/stat", &error))?;
        let name = sheet.name();
        record::introduce(page, name.incarnation, pid, start_time);
        let watchdog_page = WatchdogPage::attach(watchdog_page, Access::ReadOnly)
            .map_err(|error| Failure::internal("attach", &error))?;
        let liveness = Self { name, watchdog, watchdog_page, orders, record: None, ring_is_due: false };
        liveness.log_as_told();
        Ok(liveness)
    }

    /// Watches the orders and the watchdog itself under these keys, then declares the
    /// server ready.
    ///
    /// # Errors
    /// A [`Failure`] where the kernel refuses.
    pub fn declare_ready<K: Copy>(
        &mut self,
        reactor: &mut Handle<K>,
        page: &Page,
        orders: K,
        watchdog: K,
    ) -> Result<(), Failure> {
        self.orders.watch(reactor, orders).map_err(|error| Failure::internal("watch the orders", &error))?;
        self.watchdog
            .watch(reactor, watchdog)
            .map_err(|error| Failure::internal("watch the watchdog", &error))?;
        // A successor has begun with what was in force before.
        self.log_as_told();
        reactor.has_waited();
        record::declare_ready(page, reactor.now());
        process::die_gently_with_parent()
            .map_err(|error| Failure::internal("ask for the parent-death signal", &error))?;
        self.ring();
        Ok(())
    }

    /// Answers a probe: copies the number back, then rings. Called from the loop, never
    /// from a signal handler, so that an answer proves that the loop turns.
    pub fn answer_probe(&mut self, page: &Page, now: Moment) {
        let current = |index: &RecordIndex| {
            self.watchdog_page.load(*index).is_some_and(|watched| watched.name == self.name)
        };
        self.record = self.record.filter(current).or_else(|| self.watchdog_page.find(self.name));
        // A SIGUSR1 that is not the watchdog's finds no new number, and changes nothing.
        if let Some(watched) = self.record.and_then(|index| self.watchdog_page.load(index)) {
            self.log_as_told();
            record::answer(page, watched.probe, now);
            self.ring();
        }
    }

    fn log_as_told(&self) {
        crate::os::log::set_level(self.watchdog_page.log_level());
        if let Some(logging) = self.watchdog_page.logging() {
            crate::os::log::set_logging(logging);
        }
    }

    /// Sends SIGUSR2: "look at the shared memory".
    pub fn ring(&self) {
        if let Err(error) = self.watchdog.signal(Signal::USR2) {
            log::warn!("cannot signal the watchdog: {error}");
        }
    }

    /// The same, when the turn is over.
    pub fn ring_later(&mut self) {
        self.ring_is_due = true;
    }

    /// The turn is over.
    pub fn ring_if_due(&mut self) {
        if std::mem::take(&mut self.ring_is_due) {
            self.ring();
        }
    }

    /// Reads the orders that are there.
    pub fn read_orders(&mut self) -> (Vec<Order>, Progress) {
        let mut orders = Vec::new();
        let read = self.orders.read(|line| match Order::parse(line) {
            Ok(order) => orders.push(order),
            Err(_) => log::warn!("not an order: \"{}\"", line.escape_ascii()),
        });
        let progress = read.unwrap_or_else(|error| {
            log::warn!("cannot read orders: {error}");
            Progress::Drained
        });
        (orders, progress)
    }

    /// Whether the watchdog wants this server to drain: its order may have been lost.
    #[must_use]
    pub fn is_to_drain(&self) -> bool {
        let watched = self.record.and_then(|index| self.watchdog_page.load(index));
        watched.is_some_and(|watched| watched.name == self.name && watched.verdict == Verdict::Draining)
    }

    /// Whether the watchdog would go on supervising this server while it takes its time to end, and
    /// has room for its successor: it knows it, and all else is well.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.record.is_some() && self.watchdog_page.has_room() && !self.watchdog_page.is_stopping()
    }

    /// The processes that do not answer.
    #[must_use]
    pub fn suspects(&self) -> Vec<Name> {
        let watched = self.watchdog_page.watched();
        watched.filter(|watched| watched.verdict == Verdict::Suspect).map(|watched| watched.name).collect()
    }

    /// The watchdog's page.
    #[must_use]
    pub fn watchdog_page(&self) -> &WatchdogPage {
        &self.watchdog_page
    }

    /// The watchdog.
    #[must_use]
    pub fn watchdog(&self) -> &Pidfd {
        &self.watchdog
    }
}
