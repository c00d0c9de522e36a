//! A principal that leaves its place to a successor on purpose, as in `src/role/principal/leaving.rs`.

use std::collections::VecDeque;
use std::time::Duration;

use osps::core::job::ClientId;
use osps::core::moment::Moment;
use osps::core::slots::Followed;
use osps::wire::order::Order;

use crate::machine::{Event, Key, Machine, Proc, Progress, Signal};
use crate::plan::millis;
use crate::principal::Principal;
use crate::reload::{Frame, Reply, Word};
use crate::sabotage::Sabotage;

/// Connections that one frame carries.
const PER_FRAME: usize = 3;
/// Frames that may be on their way.
const FRAMES_UNDER_WAY: usize = 2;
/// So long may the successor be silent, and may secondaries take to be ready; less where it may take hardly
/// longer to start.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
const READY_WITHIN: Duration = Duration::from_secs(1);

#[derive(Default)]
pub enum Leaving {
    #[default]
    No,
    /// It was asked to, and has not begun.
    Asked {
        successor: Proc,
        until: Moment,
    },
    UnderWay(Box<Handing>),
    Done,
}

pub struct Handing {
    successor: Proc,
    /// Places of those still to be sent.
    clients: VecDeque<usize>,
    followed: Vec<(ClientId, Followed)>,
    sent: usize,
    end_is_sent: bool,
    /// Frames that were not acknowledged.
    under_way: usize,
    give_up_at: Moment,
    /// What became ready meanwhile.
    postponed: VecDeque<Key>,
}

fn heard_within(sys: &Machine) -> Duration {
    HEARD_WITHIN.min(sys.plan.settings.start_within / 2)
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
    pub fn on_channel(&mut self, sys: &mut Machine) -> Progress {
        let Some(word) = sys.hear_watchdog(self.me) else {
            return Progress::Drained;
        };
        if let Word::HandOver(successor) = word {
            // Whoever was named before is not wanted any more.
            self.keep(sys, "another is to take over");
            if matches!(self.leaving, Leaving::Done) {
                return Progress::Drained;
            }
            let ready_within = READY_WITHIN.min(sys.plan.settings.start_within / 4);
            self.leaving = Leaving::Asked { successor, until: self.now + ready_within };
        }
        Progress::Again
    }

    /// The end of a turn: all that was understood is done and told, and what is not can be handed over.
    pub fn leave_if_asked(&mut self, sys: &mut Machine) {
        let Leaving::Asked { until, .. } = self.leaving else {
            return;
        };
        if self.core.is_stopping() {
            self.keep(sys, "the system stops");
        } else if !self.core.is_starting() || until <= self.now {
            self.begin_to_leave(sys);
        }
    }

    fn begin_to_leave(&mut self, sys: &mut Machine) {
        let Leaving::Asked { successor, .. } = std::mem::take(&mut self.leaving) else {
            return;
        };
        if self.core.is_starting() {
            sys.audit.coverage.count("handed over while a secondary was starting");
        }
        let followed = self.core.followed().filter(|_| sys.sabotage != Sabotage::ForgetFollowed).collect();
        let handing = Handing {
            successor,
            clients: self.clients.keys().collect(),
            followed,
            sent: 0,
            end_is_sent: false,
            under_way: 0,
            give_up_at: self.now + heard_within(sys),
            postponed: VecDeque::new(),
        };
        self.leaving = Leaving::UnderWay(Box::new(handing));
        sys.listen_to_heir(self.me, successor);
        self.disturb(sys);
        self.hand_over(sys);
    }

    /// It takes a few milliseconds: what seldom happens would hardly ever happen just now.
    fn disturb(&self, sys: &mut Machine) {
        if sys.is_quiet() {
            return;
        }
        match sys.dice.below(10) {
            0 => sys.processes[self.me].fuse = true,
            1 => sys.soon(millis(10), Event::Fault(self.me)),
            2 if sys.plan.watchdog_dies.is_some() => sys.soon(millis(10), Event::WatchdogDies),
            2 if !sys.plan.stops.is_empty() => sys.soon(millis(10), Event::Stop),
            _ => {}
        }
    }

    /// Sends as much as the successor may be sent now.
    fn hand_over(&mut self, sys: &mut Machine) {
        let Leaving::UnderWay(mut handing) = std::mem::take(&mut self.leaving) else {
            return;
        };
        while handing.under_way < FRAMES_UNDER_WAY && !handing.end_is_sent {
            let of = handing.clients.len().min(PER_FRAME);
            let of: Vec<usize> = handing.clients.drain(..of).collect();
            handing.sent += of.len();
            handing.under_way += 1;
            handing.end_is_sent = of.is_empty();
            let frame = if handing.end_is_sent {
                Frame::End(handing.sent)
            } else {
                sys.audit.coverage.count("a frame of connections was handed over");
                let described = of.into_iter().map(|key| self.clients.describe(key, &handing.followed));
                Frame::Clients(described.collect())
            };
            sys.send_frame(handing.successor, frame);
        }
        self.leaving = Leaving::UnderWay(handing);
    }

    fn on_successor(&mut self, sys: &mut Machine) -> Progress {
        let Leaving::UnderWay(handing) = &mut self.leaving else {
            return Progress::Drained;
        };
        match sys.hear_heir(handing.successor) {
            Some(Reply::Heard) => {
                handing.under_way -= 1;
                handing.give_up_at = self.now + heard_within(sys);
                self.hand_over(sys);
                Progress::Again
            }
            Some(Reply::Taken) => {
                sys.audit_last_word(self.me);
                self.page().set_handed_over(self.name.incarnation);
                sys.audit_is_sealed(self.me);
                self.leaving = Leaving::Done;
                (self.hands_over, self.over) = (true, true);
                Progress::Drained
            }
            Some(Reply::End) => {
                self.keep(sys, "its successor has ended");
                Progress::Drained
            }
            None => Progress::Drained,
        }
    }

    /// Goes on as if nobody had asked to hand over.
    fn keep(&mut self, sys: &mut Machine, reason: &str) {
        let successor = match std::mem::take(&mut self.leaving) {
            Leaving::No => return,
            Leaving::Done => {
                self.leaving = Leaving::Done;
                return;
            }
            Leaving::Asked { successor, .. } => successor,
            Leaving::UnderWay(handing) => {
                for key in handing.postponed {
                    sys.post(self.me, key);
                }
                handing.successor
            }
        };
        sys.audit.coverage.count(format!("kept: {reason}"));
        sys.audit.succession.kept = true;
        sys.tell_watchdog(self.me, Word::Kept(successor));
    }

    /// A signal while nobody is served.
    pub fn on_signal_while_leaving(&mut self, sys: &mut Machine, signal: Signal) {
        match signal {
            Signal::Usr1 => {
                sys.audit.coverage.count("answered while it handed over");
                self.answer_probe(sys);
            }
            Signal::Term => {
                self.keep(sys, "SIGTERM");
                self.on_sigterm(sys);
            }
            Signal::Usr2 | Signal::Chld => {}
        }
    }

    /// Something is ready while nobody is served.
    pub fn on_ready_while_leaving(&mut self, sys: &mut Machine, key: Key) -> Progress {
        match key {
            // What comes now is for who takes over.
            _ if matches!(self.leaving, Leaving::Done) && sys.sabotage != Sabotage::ServeAfterAll => {
                return Progress::Drained;
            }
            Key::Successor => return self.on_successor(sys),
            Key::Channel(_) => return self.on_channel(sys),
            Key::Watchdog => self.keep(sys, "the watchdog has died"),
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders(sys);
                for order in orders {
                    match order {
                        Order::Look => {}
                        Order::Stop | Order::StopNow | Order::Drain | Order::Restart(_) | Order::Rest(_) => {
                            self.keep(sys, "another order has come");
                        }
                    }
                    self.obey(order);
                }
                return progress;
            }
            Key::Listener(_) | Key::Conn(_) | Key::Tube(..) | Key::TubeRoom | Key::Ended(_) => {}
            Key::Reload => return Progress::Drained,
        }
        if let Leaving::UnderWay(handing) = &mut self.leaving {
            sys.audit.coverage.count("something was postponed while all was handed over");
            handing.postponed.push_back(key);
            return Progress::Drained;
        }
        // Once this one goes on, whatever is ready is ready still.
        Progress::Again
    }

    /// The time of whoever takes over is over.
    pub fn on_deadline_while_leaving(&mut self, sys: &mut Machine) {
        if self.leaving.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.keep(sys, "its successor was silent");
        }
    }
}
