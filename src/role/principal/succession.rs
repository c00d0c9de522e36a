//! A principal that takes over from another on purpose: it hears what that hands over, and waits until it
//! has ended.

use std::net::TcpStream as StdTcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::time::Duration;

use mio::net::{TcpStream, UnixStream};

use crate::core::job::{ClientId, Incarnation};
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::slots::{Followed, Household, Occupied};
use crate::exit::{Code, Failure};
use crate::os::channel::{Channel, Received};
use crate::os::fifo::{self, Reader, Writer};
use crate::os::pidfd::Pidfd;
use crate::os::process;
use crate::os::reactor::Handle;
use crate::os::stream::Stream;
use crate::page::Access;
use crate::page::secondary::{Introduced, SecondaryPage};
use crate::role::launch;
use crate::role::principal::crowd::Parked;
use crate::role::principal::estate::{HandedOver, Page};
use crate::role::principal::servers::{Uninvited, watch_end, watch_tube};
use crate::role::principal::slot::Server;
use crate::role::principal::{Key, Principal, number};
use crate::wire::client::{Refusal, Request};
use crate::wire::succession::Word;

/// Those of a secondary that is taken over, and of one that drains beside it.
const DESCRIPTORS_PER_SLOT: usize = 6;
const SPARE_DESCRIPTORS: usize = 16;
/// How soon a secondary has ended whose descriptors are gone.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// What a predecessor has handed over.
#[derive(Default)]
pub struct Estate {
    pub clients: Vec<(HandedOver, OwnedFd)>,
    pub uninvited: Vec<Uninvited>,
}

impl Estate {
    /// Waits for it, and for the word of the watchdog that the predecessor has ended: before the loop
    /// runs there is nobody else to attend to. Whoever waits too long for us kills us.
    ///
    /// # Errors
    /// A [`Failure`] where the predecessor goes on.
    pub fn receive(watchdog: &Channel, predecessor: &Channel, slots: usize) -> Result<Self, Failure> {
        let say = |to: &Channel, word: Word| {
            let said = to.send(word.to_string().as_bytes(), &[]);
            said.map_err(|error| Failure::internal(&format!("say \"{word}\""), &error))
        };
        say(watchdog, Word::Prepared)?;
        let hear = |error| Failure::internal("hear what is handed over", &error);
        let mut estate = Self::default();
        loop {
            let Some((page, descriptors)) = predecessor.receive_frame().map_err(hear)? else {
                return Err(Failure::new(Code::Unavailable, "the predecessor has not handed over"));
            };
            match serde_json::from_slice(&page) {
                Ok(Page::Clients(clients)) if clients.len() == descriptors.len() => {
                    estate.clients.extend(clients.into_iter().zip(descriptors));
                    say(predecessor, Word::Heard)?;
                }
                Ok(Page::End { clients, uninvited }) if clients == estate.clients.len() as u64 => {
                    estate.uninvited = uninvited;
                    has_descriptors_for(slots)?;
                    say(predecessor, Word::Taken)?;
                    break;
                }
                other => {
                    let found =
                        other.map_or_else(|error| error.to_string(), |_| "descriptors are missing".into());
                    return Err(Failure::internal("understand what is handed over", &found));
                }
            }
        }
        match watchdog.receive(true).map_err(hear)? {
            Received::Packet(packet, _) if Word::parse(&packet) == Some(Word::Proceed) => Ok(estate),
            Received::Packet(..) | Received::End | Received::Nothing => {
                Err(Failure::new(Code::Unavailable, "the predecessor goes on"))
            }
        }
    }
}

/// Whether all secondaries can be taken over, now that all clients are here.
fn has_descriptors_for(slots: usize) -> Result<(), Failure> {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let needed = open + DESCRIPTORS_PER_SLOT * slots + SPARE_DESCRIPTORS;
    let limit = process::descriptor_limit();
    if needed as u64 <= limit {
        return Ok(());
    }
    let message = format!("the limit of open descriptors is {limit}, and {needed} are needed");
    Err(Failure::new(Code::Unavailable, message))
}

impl Principal {
    /// Goes on where a predecessor has stopped: with its clients, and its secondaries.
    pub(super) fn succeed(&mut self, reactor: &mut Handle<Key>, estate: Estate) -> Result<(), Failure> {
        let introduced = self.introduced()?;
        let mut households = Vec::new();
        for slot in 0..self.slots.len() {
            households.push(self.take_over_slot(reactor, slot, &introduced)?);
        }
        let (mut followed, mut taken) = (Vec::new(), Vec::new());
        for (client, descriptor) in estate.clients {
            taken.extend(self.take_over_client(reactor, client, descriptor, &mut followed));
        }
        self.core.handle_succession(reactor.now(), households, &followed, self.sheet.renews);
        let latest = reactor.now() + self.config.queue_within;
        let uninvited = estate.uninvited.into_iter();
        self.read_verdicts(reactor);
        self.uninvited = uninvited.map(|known| known.at_latest(latest)).collect();
        self.end_families_of_departed(reactor);
        self.carry_out(reactor);
        self.resume_all(reactor, taken);
        self.empty_what_is_closing(reactor);
        Ok(())
    }

    /// Who serves the slot goes on, and who drains there is watched.
    fn take_over_slot(
        &mut self,
        reactor: &mut Handle<Key>,
        slot: usize,
        introduced: &[Introduced],
    ) -> Result<Household, Failure> {
        let last = self.page().slot(number(slot));
        let serves = matches!(last.occupied, Occupied::Starting | Occupied::Ready);
        let current = match Pidfd::of_process(last.pid, last.start_time) {
            Ok(pidfd) if serves => self.adopt_server(reactor, slot, last.incarnation, pidfd)?,
            _ => None,
        };
        let current = current.map(|server| {
            let incarnation = server.incarnation;
            self.slots[slot].counts = server.page.counts();
            let ready_at = server.page.record().ready_at.unwrap_or_else(|| reactor.now());
            self.slots[slot].current = Some(server);
            (incarnation, (last.occupied == Occupied::Ready).then_some(ready_at))
        });
        self.adopt_living(reactor, slot, introduced)?;
        let predecessors = self.slots[slot].predecessors.iter();
        let predecessors = predecessors.map(|predecessor| (predecessor.incarnation, predecessor.has_limit()));
        Ok(Household { current, predecessors: predecessors.collect() })
    }

    /// By the descriptors of its own, for their names may have been removed; `None` where it has just died.
    fn adopt_server(
        &self,
        reactor: &mut Handle<Key>,
        slot: usize,
        incarnation: Incarnation,
        mut pidfd: Pidfd,
    ) -> Result<Option<Server>, Failure> {
        let own = |descriptor: i32| PathBuf::from(format!("/proc/{}/fd/{descriptor}", pidfd.pid()));
        let open = || -> Result<_, String> {
            let end = |descriptor| fifo::open_end(&own(descriptor)).map_err(|error| error.to_string());
            let (to_it, from_it) = (end(launch::TO_SECONDARY)?, end(launch::FROM_SECONDARY)?);
            let page = SecondaryPage::attach(&own(launch::OWN_PAGE), Access::ReadOnly);
            Ok((page.map_err(|error| error.to_string())?, Reader::from(from_it), Writer::from(to_it)))
        };
        let (page, mut tube, writer) = match open() {
            Ok(opened) => opened,
            // The kernel takes its descriptors away a moment before it tells of its end.
            Err(_) if pidfd.ends_within(GONE_WITHIN) => return Ok(None),
            Err(error) => {
                let name = Name::secondary(number(slot), incarnation);
                let message = format!("cannot take over {name} (pid {}): {error}", pidfd.pid());
                return Err(Failure::new(Code::Unavailable, message));
            }
        };
        watch_end(reactor, &mut pidfd, slot, incarnation);
        watch_tube(reactor, &mut tube, slot, incarnation);
        Ok(Some(Server { incarnation, pidfd, page, tube, writer, killed: None }))
    }

    /// Returns its place, and for whom it waits.
    fn take_over_client(
        &mut self,
        reactor: &mut Handle<Key>,
        client: HandedOver,
        descriptor: OwnedFd,
        followed: &mut Vec<(ClientId, Followed)>,
    ) -> Option<(usize, Option<(Request, Moment)>)> {
        let HandedOver { address, is_tcp, counts, conversation, waits, stuck_since, jobs } = client;
        let stream = if is_tcp {
            Stream::Tcp(TcpStream::from_std(StdTcpStream::from(descriptor)))
        } else {
            Stream::Unix(UnixStream::from_std(StdUnixStream::from(descriptor)))
        };
        let Some(conversation) = conversation else {
            self.park_again(Parked { stream, address });
            return None;
        };
        if counts {
            self.door.crowd.handle_succession(address.into());
        }
        let key = self.open_client(reactor, stream, address, conversation, counts)?;
        let serial = self.clients[key].go_on_being(stuck_since);
        let id = u32::try_from(key).ok().map(|place| ClientId { place, serial });
        if let Some(id) = id {
            followed.extend(jobs.into_iter().map(|job| (id, job)));
        }
        Some((key, waits))
    }

    /// What they have asked for waits on, in its order; what they have sent besides is understood.
    fn resume_all(&mut self, reactor: &mut Handle<Key>, taken: Vec<(usize, Option<(Request, Moment)>)>) {
        let (mut waiting, mut others) = (Vec::new(), Vec::new());
        let latest = reactor.now() + self.config.queue_within;
        for (key, waits) in taken {
            match waits {
                Some((request, _)) if self.sheet.retired.contains(&request.kind) => {
                    let asked = self.config.request[request.kind].name.as_bytes();
                    let refusal = Refusal::Unknown { asked, types: &self.types };
                    self.clients[key].refuse(reactor.now(), refusal);
                    others.push(key);
                }
                Some((request, until)) => waiting.push((until.min(latest), key, request)),
                None => others.push(key),
            }
        }
        waiting.sort_by_key(|&(until, key, _)| (until, key));
        for (until, key, request) in waiting {
            self.wait_until(key, request, until);
        }
        for key in others {
            self.converse(reactor, key);
        }
    }
}
