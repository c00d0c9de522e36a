//! A principal that leaves its place to a successor on purpose: it hands over its control connections, as
//! they stand between two turns, and ends.
//!
//! From the first frame on it serves nobody, so that what it has told is true: all that becomes ready is kept for
//! later. Nothing is given away: where the successor dies or takes too long, this one goes on as if nothing had
//! been. Where all have arrived, it writes that down as its last word in its page, and ends.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::process::Signal;

use crate::core::job::{ClientId, Incarnation};
use crate::core::moment::Moment;
use crate::core::slots::Followed;
use crate::os::channel::{Channel, DESCRIPTORS_PER_PACKET, Frame, Received};
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::role::principal::crowd::Parked;
use crate::role::principal::estate::{HandedOver, Page};
use crate::role::principal::{Key, Principal};
use crate::wire::order::Order;
use crate::wire::succession::Word;

/// So many frames may be on their way: their descriptors count against a limit of the kernel
/// (`ETOOMANYREFS`, sendmsg(2)).
const FRAMES_UNDER_WAY: usize = 4;
/// So long may the successor be silent: nobody is served meanwhile.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// Secondaries that are just being started would die with their parent: they get so long to be ready.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// Where a principal stands that is to leave.
#[derive(Default)]
pub enum Leaving {
    /// It is not.
    #[default]
    No,
    /// It was asked to, and has not begun.
    Asked { successor: Channel, incarnation: Incarnation, until: Moment },
    /// It hands over.
    UnderWay(Box<Handing>),
    /// It has.
    Done,
}

/// What is being handed over.
pub struct Handing {
    successor: Channel,
    /// Which one that is.
    incarnation: Incarnation,
    /// Still to be sent, the last one first.
    clients: Vec<Whom>,
    parked: Vec<Parked>,
    followed: HashMap<(u32, u32), Vec<Followed>>,
    sending: Option<(Frame, Vec<Whom>)>,
    sent: u64,
    end_is_sent: bool,
    /// Frames that the successor has not acknowledged.
    under_way: usize,
    give_up_at: Moment,
    /// What became ready meanwhile.
    postponed: HashMap<SourceId, Ready>,
}

#[derive(Clone, Copy)]
enum Whom {
    Client(usize),
    Parked(usize),
}

impl Leaving {
    /// Whether nobody is served.
    pub fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay(_) | Self::Done)
    }

    pub fn deadline(&self) -> Option<Moment> {
        match self {
            Self::No | Self::Done => None,
            Self::Asked { until, .. } => Some(*until),
            Self::UnderWay(handing) => Some(handing.give_up_at),
        }
    }
}

impl Principal {
    /// The watchdog says something.
    pub(super) fn on_channel(&mut self, reactor: &mut Handle<Key>) -> Progress {
        match self.channel.receive(false) {
            Ok(Received::Packet(packet, mut descriptors)) => {
                match (Word::parse(&packet), descriptors.pop()) {
                    (Some(Word::HandOver { successor }), Some(channel)) => {
                        self.asked_to_hand_over(reactor, successor, channel.into());
                    }
                    _ => log::warn!("the watchdog says \"{}\"", packet.escape_ascii()),
                }
                Progress::Again
            }
            // That it has died is told by its pidfd.
            Ok(Received::End | Received::Nothing) => Progress::Drained,
            // The watchdog waits for an answer to what could not be heard: that ends with the successor's patience.
            Err(error) => {
                log::warn!("cannot hear the watchdog: {error}");
                Progress::Again
            }
        }
    }

    fn asked_to_hand_over(
        &mut self,
        reactor: &mut Handle<Key>,
        incarnation: Incarnation,
        successor: Channel,
    ) {
        // Another may have been wanted before, which the watchdog has given up.
        self.keep(reactor, "another is to take over");
        match self.leaving {
            Leaving::No | Leaving::Asked { .. } | Leaving::UnderWay(_) => {
                let until = reactor.now() + READY_WITHIN;
                self.leaving = Leaving::Asked { successor, incarnation, until };
            }
            Leaving::Done => {}
        }
    }

    /// The end of a turn: all that was understood is done and told, and what is not can be handed over.
    pub(super) fn leave_if_asked(&mut self, reactor: &mut Handle<Key>) {
        let Leaving::Asked { until, .. } = self.leaving else {
            return;
        };
        if self.core.is_stopping() {
            self.keep(reactor, "the system stops");
        } else if !self.core.is_starting() || until <= reactor.now() {
            self.begin_to_leave(reactor);
        }
    }

    fn begin_to_leave(&mut self, reactor: &mut Handle<Key>) {
        let Leaving::Asked { mut successor, incarnation, .. } = std::mem::take(&mut self.leaving) else {
            return;
        };
        if let Err(error) = successor.watch(reactor, Key::Successor) {
            let why = format!("it cannot watch its successor: {error}");
            self.tell_watchdog(&Word::Kept { successor: incarnation, why });
            return;
        }
        let mut followed: HashMap<_, Vec<_>> = HashMap::new();
        for (ClientId { place, serial }, job) in self.core.followed() {
            followed.entry((place, serial)).or_default().push(job);
        }
        let parked = self.door.crowd.take_parked();
        let heard = self.clients.iter().map(|(key, _)| Whom::Client(key));
        let clients: Vec<_> = heard.chain((0..parked.len()).map(Whom::Parked)).collect();
        log::info!("handing over {} control connections to a successor", clients.len());
        self.leaving = Leaving::UnderWay(Box::new(Handing {
            successor,
            incarnation,
            clients: clients.into_iter().rev().collect(),
            parked,
            followed,
            sending: None,
            sent: 0,
            end_is_sent: false,
            under_way: 0,
            give_up_at: reactor.now() + HEARD_WITHIN,
            postponed: HashMap::new(),
        }));
        self.hand_over(reactor);
    }

    /// Sends as much as the successor may be sent now.
    fn hand_over(&mut self, reactor: &mut Handle<Key>) {
        let Leaving::UnderWay(mut handing) = std::mem::take(&mut self.leaving) else {
            return;
        };
        let sent = self.send_frames(&mut handing);
        self.leaving = Leaving::UnderWay(handing);
        if let Err(error) = sent {
            self.keep(reactor, &format!("its successor cannot be told: {error}"));
        }
    }

    fn send_frames(&self, handing: &mut Handing) -> io::Result<()> {
        while handing.under_way < FRAMES_UNDER_WAY {
            let (mut frame, of) = match handing.sending.take() {
                Some(frame) => frame,
                None if handing.end_is_sent => break,
                None => self.next_frame(handing)?,
            };
            let descriptors = of.iter().map(|whom| self.descriptor_of(handing, *whom)).collect::<Vec<_>>();
            if !frame.send(&handing.successor, &descriptors)? {
                handing.sending = Some((frame, of));
                break;
            }
            handing.under_way += 1;
        }
        Ok(())
    }

    fn next_frame(&self, handing: &mut Handing) -> io::Result<(Frame, Vec<Whom>)> {
        let first = handing.clients.len().saturating_sub(DESCRIPTORS_PER_PACKET);
        let of: Vec<Whom> = handing.clients.split_off(first).into_iter().rev().collect();
        handing.sent += of.len() as u64;
        let page = if of.is_empty() {
            handing.end_is_sent = true;
            Page::End { clients: handing.sent, uninvited: self.uninvited.clone() }
        } else {
            Page::Clients(of.iter().map(|whom| self.describe(handing, *whom)).collect())
        };
        Ok((Frame::new(&serde_json::to_vec(&page)?), of))
    }

    fn descriptor_of<'a>(&'a self, handing: &'a Handing, whom: Whom) -> BorrowedFd<'a> {
        match whom {
            Whom::Client(key) => self.clients[key].stream.as_fd(),
            Whom::Parked(index) => handing.parked[index].stream.as_fd(),
        }
    }

    fn describe(&self, handing: &Handing, whom: Whom) -> HandedOver {
        match whom {
            Whom::Client(key) => {
                let id = (u32::try_from(key).unwrap_or(u32::MAX), self.clients[key].serial);
                let jobs = handing.followed.get(&id).cloned().unwrap_or_default();
                self.clients[key].describe(jobs)
            }
            Whom::Parked(index) => handing.parked[index].describe(),
        }
    }

    fn on_successor(&mut self, reactor: &mut Handle<Key>) -> Progress {
        let Leaving::UnderWay(handing) = &mut self.leaving else {
            return Progress::Drained;
        };
        let word = match handing.successor.receive(false) {
            Ok(Received::Packet(packet, _)) => Word::parse(&packet),
            // It may be writable again.
            Ok(Received::Nothing) => {
                self.hand_over(reactor);
                return Progress::Drained;
            }
            Ok(Received::End) | Err(_) => None,
        };
        match word {
            Some(Word::Heard) => {
                handing.under_way = handing.under_way.saturating_sub(1);
                handing.give_up_at = reactor.now() + HEARD_WITHIN;
                self.hand_over(reactor);
                Progress::Again
            }
            Some(Word::Taken) if handing.end_is_sent => {
                log::info!("a successor has taken over {} control connections", handing.sent);
                self.page().set_handed_over(self.sheet.incarnation);
                self.leaving = Leaving::Done;
                reactor.stop();
                Progress::Drained
            }
            _ => {
                self.keep(reactor, "its successor has ended");
                Progress::Drained
            }
        }
    }

    /// Goes on as if nobody had asked to hand over.
    pub(super) fn keep(&mut self, reactor: &mut Handle<Key>, reason: &str) {
        let not_to = match std::mem::take(&mut self.leaving) {
            Leaving::No => return,
            Leaving::Done => {
                self.leaving = Leaving::Done;
                return;
            }
            Leaving::Asked { incarnation, .. } => incarnation,
            Leaving::UnderWay(handing) => {
                let Handing { mut successor, incarnation, parked, postponed, .. } = *handing;
                successor.unwatch(reactor);
                for connection in parked {
                    self.park_again(connection);
                }
                for (id, ready) in postponed {
                    reactor.again(id, ready);
                }
                incarnation
            }
        };
        log::warn!("goes on: {reason}");
        self.tell_watchdog(&Word::Kept { successor: not_to, why: reason.to_owned() });
    }

    fn tell_watchdog(&self, word: &Word) {
        if let Err(error) = self.channel.send(word.to_string().as_bytes(), &[]) {
            log::warn!("cannot tell the watchdog \"{word}\": {error}");
        }
    }

    /// A signal while nobody is served.
    pub(super) fn on_signal_while_leaving(&mut self, reactor: &mut Handle<Key>, signal: Signal) {
        match signal {
            Signal::USR1 => {
                let Self { liveness, core, .. } = self;
                liveness.answer_probe(core.books().page().page(), reactor.now());
            }
            Signal::TERM => {
                self.keep(reactor, "SIGTERM");
                self.on_sigterm(reactor);
            }
            _ => {}
        }
    }

    /// Something is ready while nobody is served.
    pub(super) fn on_ready_while_leaving(
        &mut self,
        reactor: &mut Handle<Key>,
        id: SourceId,
        key: Key,
        ready: Ready,
    ) -> Progress {
        if matches!(self.leaving, Leaving::Done) {
            // The last word is said: what comes now is for the successor.
            return Progress::Drained;
        }
        match key {
            Key::Successor => return self.on_successor(reactor),
            Key::Channel => return self.on_channel(reactor),
            Key::Watchdog => self.keep(reactor, "the watchdog has died"),
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders();
                for order in orders {
                    match order {
                        Order::Look => {}
                        Order::Stop | Order::StopNow | Order::Drain | Order::Restart(_) | Order::Rest(_) => {
                            self.keep(reactor, "another order has come");
                        }
                    }
                    self.obey(reactor, order);
                }
                return progress;
            }
            Key::Listener(_) | Key::Client(_) | Key::Tube(..) | Key::TubeRoom | Key::Ended(..) => {}
        }
        match &mut self.leaving {
            Leaving::UnderWay(handing) => handing.postponed.entry(id).or_default().merge(ready),
            // Once this one goes on, whatever is ready is ready still.
            Leaving::No | Leaving::Asked { .. } => return Progress::Again,
            Leaving::Done => {}
        }
        Progress::Drained
    }

    /// The time of whoever takes over is over.
    pub(super) fn on_deadline_while_leaving(&mut self, reactor: &mut Handle<Key>) {
        if self.leaving.deadline().is_some_and(|deadline| deadline <= reactor.now()) {
            self.keep(reactor, &format!("its successor was silent for {HEARD_WITHIN:?}"));
        }
    }
}
