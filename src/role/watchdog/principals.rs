//! Starting principals.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use crate::core::name::Name;
use crate::os::channel::Channel;
use crate::os::pidfd::Pidfd;
use crate::os::reactor::Handle;
use crate::os::{fifo, proc, rundir};
use crate::page::LAYOUT_VERSION;
use crate::role::launch::{self, Sheet};
use crate::role::watchdog::{Force, Key, Watchdog};

/// A principal that was just started.
pub struct Born {
    pub pidfd: Pidfd,
    pub start_time: u64,
    pub orders: File,
    /// Our end of the channel to it.
    pub channel: Channel,
}

impl Watchdog {
    pub(super) fn start_principal(&mut self, reactor: &mut Handle<Key>, name: Name) {
        match self.spawn_principal(name, &self.force, None) {
            Ok(Born { pidfd, start_time, orders, channel }) => {
                if name.incarnation > 1 {
                    self.page.count_principal_restart();
                }
                self.listen_to(reactor, name, channel);
                self.supervise(reactor, name, pidfd, start_time, None, Some(orders));
                self.tree.handle_started(reactor.now(), name);
            }
            Err(error) => {
                if self.start_trouble.is_news(reactor.now()) {
                    log::error!("cannot start {name}: {error}");
                }
                self.tree.handle_start_failed(reactor.now());
            }
        }
    }

    /// Has the reactor tell what that principal says.
    fn listen_to(&mut self, reactor: &mut Handle<Key>, name: Name, mut channel: Channel) {
        if let Some(mut old) = self.channel.take() {
            old.unwatch(reactor);
        }
        if let Err(error) = channel.watch(reactor, Key::Channel(name)) {
            log::error!("cannot listen to {name}: {error}");
        }
        self.channel = Some(channel);
    }

    /// With a predecessor, it takes over what that hands over at the other end, and does not have the name of
    /// its orders before.
    pub(super) fn spawn_principal(
        &self,
        name: Name,
        force: &Force,
        predecessor: Option<&Channel>,
    ) -> std::io::Result<Born> {
        self.rundir.restore()?;
        // Whoever serves reads there what is there already.
        self.heirlooms.restore_headers(&self.principal_page)?;
        let path = match predecessor {
            Some(_) => self.rundir.candidate_orders(name.incarnation),
            None => self.rundir.principal_orders(),
        };
        rundir::remove(&path)?;
        fifo::create(&path)?;
        let born = self.spawn_with_orders(name, force, predecessor, &path);
        born.inspect_err(|_| {
            let _ = rundir::remove(&path);
        })
    }

    fn spawn_with_orders(
        &self,
        name: Name,
        force: &Force,
        predecessor: Option<&Channel>,
        path: &Path,
    ) -> std::io::Result<Born> {
        let (orders, their_orders) = (fifo::open_end(path)?, fifo::open_end(path)?);
        let (channel, theirs) = Channel::pair()?;
        let sheet = self.sheet(name, force, predecessor.is_some());
        let heirlooms = &self.heirlooms;
        let mut inheritance = vec![
            heirlooms.watchdog_page.as_fd(),
            their_orders.as_fd(),
            heirlooms.principal_page.as_fd(),
            theirs.as_fd(),
        ];
        inheritance.extend(predecessor.map(AsFd::as_fd));
        inheritance.extend(heirlooms.tables[..usize::from(force.slots)].iter().map(File::as_fd));
        inheritance.extend(force.bound.listeners());
        let program = force.program.as_ref().map(|program| program.as_fd());
        let pidfd = launch::spawn(program, &sheet, &self.me, &inheritance)?;
        let start_time = proc::stat(pidfd.pid()).map_or(0, |stat| stat.start_time);
        Ok(Born { pidfd, start_time, orders, channel })
    }

    /// What a server is told that is started with that in force.
    pub(super) fn sheet(&self, name: Name, force: &Force, succeeds: bool) -> Sheet {
        Sheet {
            start_time: 0,
            layout: LAYOUT_VERSION,
            succeeds,
            role: name.role,
            slot: 0,
            incarnation: name.incarnation,
            config: force.config.clone(),
            rundir: self.rundir.path().to_owned(),
            watchdog: std::process::id(),
            parent: std::process::id(),
            ports: force.bound.ports(),
            slots: force.slots,
            retired: force.retired.clone(),
            closing: force.bound.closing(),
            kinds: Vec::new(),
            renews: force.renews,
            fresh: if succeeds { force.fresh.clone() } else { BTreeSet::new() },
            parking_places: force.places.parking,
            resting: self.resting.iter().copied().collect(),
            open_files: force.places.open_files,
        }
    }
}
