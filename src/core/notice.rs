//! What a service manager is told of the system, and when (sd_notify(3)).
//!
//! A message may not get through for a while, so nothing is told once and forgotten: what is still to be said
//! waits here until the shell says that it was sent.

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::moment::Moment;

/// After a message that did not get through, the next is tried so much later, unless there is news before.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// systemd takes 4096 bytes; nobody reads so much on one line.
const LONGEST_TEXT: usize = 1024;
/// How much longer than it means to take, a stop may take before the service manager loses its patience.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The system, as far as a service manager wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// A principal is ready and answers.
    pub principal: bool,
    /// Secondaries that are ready and answer, among those that are wanted.
    pub ready: usize,
    /// Slots in which one is wanted.
    pub wanted: usize,
    /// Those of them of which the secondary said that it cannot start.
    pub given_up: usize,
    /// Those of them in which none has been ready, has failed or was given up yet.
    pub untried: usize,
    /// Slots that are drained.
    pub drained: usize,
    /// A reload or a change of scale is under way.
    pub reloading: bool,
    /// A stop is, which may take so long as a whole.
    pub stopping: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Reloading,
    Stopping,
}

/// A change of which the service manager keeps account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Ready,
    /// Since when.
    Reloading(Moment),
    /// How long that may take.
    Stopping(Duration),
}

impl Change {
    fn lines(self) -> String {
        match self {
            Self::Ready => "READY=1\n".to_owned(),
            Self::Reloading(since) => {
                format!("RELOADING=1\nMONOTONIC_USEC={}\n", since.as_nanos() / 1000)
            }
            Self::Stopping(within) => {
                format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", (within + STOP_MARGIN).as_micros())
            }
        }
    }
}

/// Signs of life, for a service manager that watches.
#[derive(Clone, Copy, Debug)]
struct Pings {
    every: Duration,
    next: Moment,
}

/// What is to be told, and what was.
#[derive(Debug)]
pub struct Notices {
    phase: Phase,
    seen: Option<View>,
    /// Why the last reload failed, if it did.
    failure: Option<String>,
    /// Not told yet, the oldest first; never more than three.
    changes: VecDeque<Change>,
    /// The human text, as it should be.
    text: String,
    /// As it was told last.
    told: String,
    pings: Option<Pings>,
    /// The last message did not get through.
    try_again_at: Option<Moment>,
}

impl Notices {
    /// Nothing is told yet. Who watches wants to hear of us at least once `within` that time.
    #[must_use]
    pub fn new(now: Moment, within: Option<Duration>) -> Self {
        // Half of it, as sd_watchdog_enabled(3) recommends. Nobody means to be called all the time.
        let pings =
            within.map(|within| Pings { every: (within / 2).max(Duration::from_millis(1)), next: now });
        Self {
            phase: Phase::Starting,
            seen: None,
            failure: None,
            changes: VecDeque::new(),
            text: String::new(),
            told: String::new(),
            pings,
            try_again_at: None,
        }
    }

    /// A reload, or a change of scale, begins: perhaps to end before the next look. `now` is not before whatever
    /// asked for it: a service manager takes an older one for another.
    pub fn handle_reload(&mut self, now: Moment) {
        self.failure = None;
        self.seen = None;
        match self.phase {
            // Those who wait for the first READY take it for that of the reload.
            Phase::Starting | Phase::Stopping => return,
            Phase::Reloading => self.tell(Change::Ready),
            Phase::Serving => {}
        }
        self.phase = Phase::Reloading;
        self.tell(Change::Reloading(now));
    }

    /// The last reload, or change of scale, has failed.
    pub fn handle_failure(&mut self, why: &str) {
        self.failure = Some(why.to_owned());
        self.seen = None;
    }

    /// How the system is now; `listen` says where it listens.
    pub fn handle_view(&mut self, view: View, listen: impl FnOnce() -> String) {
        if self.seen.replace(view) == Some(view) {
            return;
        }
        // With nobody to serve that is no service: then it is for whoever waits to lose patience.
        let has_started = view.principal && view.untried == 0 && view.ready > 0;
        match (self.phase, view.stopping) {
            (Phase::Starting | Phase::Serving | Phase::Reloading, Some(within)) => {
                self.phase = Phase::Stopping;
                self.tell(Change::Stopping(within));
            }
            (Phase::Starting, None) if has_started => self.serves(),
            (Phase::Reloading, None) if !view.reloading => self.serves(),
            (Phase::Starting | Phase::Serving | Phase::Reloading | Phase::Stopping, _) => {}
        }
        self.text = self.describe(view, listen);
        if self.text != self.told {
            self.try_again_at = None;
        }
    }

    fn serves(&mut self) {
        self.phase = Phase::Serving;
        self.tell(Change::Ready);
    }

    fn tell(&mut self, change: Change) {
        match change {
            // Nobody needs to know how it got here.
            Change::Stopping(_) => self.changes.clear(),
            // Of reloads of which nothing was heard, the last one matters.
            Change::Reloading(_) => {
                self.changes.retain(|known| *known == Change::Ready);
                self.changes.truncate(1);
            }
            Change::Ready => {}
        }
        self.changes.push_back(change);
        self.try_again_at = None;
        debug_assert!(self.changes.len() <= 3);
    }

    /// What is to be sent now, if anything; then say how that went ([`Notices::handle_sent`]).
    #[must_use]
    pub fn poll_message(&self, now: Moment) -> Option<String> {
        if self.try_again_at.is_some_and(|at| at > now) {
            return None;
        }
        let mut message = self.changes.front().map_or_else(String::new, |change| change.lines());
        if self.sends_text() {
            message += &format!("STATUS={}\n", self.text);
        }
        if self.pings.is_some_and(|pings| pings.next <= now) {
            message += "WATCHDOG=1\n";
        }
        (!message.is_empty()).then_some(message)
    }

    /// The text goes with the last of the changes, for it tells what they have come to.
    fn sends_text(&self) -> bool {
        self.changes.len() <= 1 && self.text != self.told
    }

    /// Whether the message has got through.
    pub fn handle_sent(&mut self, now: Moment, got_through: bool) {
        if !got_through {
            let after = self.pings.map_or(TRY_AGAIN_AFTER, |pings| pings.every.min(TRY_AGAIN_AFTER));
            self.try_again_at = Some(now + after);
            return;
        }
        self.try_again_at = None;
        if self.sends_text() {
            self.told.clone_from(&self.text);
        }
        self.changes.pop_front();
        if let Some(pings) = &mut self.pings
            && pings.next <= now
        {
            pings.next = now + pings.every;
        }
    }

    /// When [`Notices::poll_message`] has something new to say, should nothing happen before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        // What is not held up was sent when it came up. News may have become stale meanwhile.
        let has_news = !self.changes.is_empty() || self.text != self.told;
        let news = self.try_again_at.filter(|_| has_news);
        let next = self.pings.map(|pings| pings.next).into_iter().chain(news).min();
        next.map(|next| self.try_again_at.map_or(next, |again| again.max(next)))
    }

    fn describe(&self, view: View, listen: impl FnOnce() -> String) -> String {
        let View { ready, wanted, .. } = view;
        let mut text = match self.phase {
            Phase::Stopping => return "stopping".to_owned(),
            Phase::Starting => "starting: ".to_owned(),
            Phase::Reloading => "reloading: ".to_owned(),
            Phase::Serving => String::new(),
        };
        if !view.principal {
            text += "no principal ready, ";
        }
        text += &format!("{ready} of {wanted} secondaries ready");
        if view.given_up > 0 {
            text += &format!(", {} cannot start", view.given_up);
        }
        if view.drained > 0 {
            text += &format!(", {} drained", view.drained);
        }
        text += &format!(", listening on {}", listen());
        if let Some(why) = &self.failure {
            text += &format!("; the last reload failed: {why}");
        }
        one_line(&text)
    }
}

/// A line ends a message's field, so a text has none in it.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    line.truncate(line.floor_char_boundary(LONGEST_TEXT));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: View = View {
        principal: true,
        ready: 4,
        wanted: 4,
        given_up: 0,
        untried: 0,
        drained: 0,
        reloading: false,
        stopping: None,
    };

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    fn look(notices: &mut Notices, view: View) {
        notices.handle_view(view, || "127.0.0.1:2222".to_owned());
    }

    /// All that is sent at that time, and gets through.
    fn sent(notices: &mut Notices, now: Moment) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(message) = notices.poll_message(now) {
            all.push(message);
            notices.handle_sent(now, true);
        }
        all
    }

    fn started(within: Option<Duration>) -> Notices {
        let mut notices = Notices::new(at(0), within);
        look(&mut notices, ALL);
        assert_eq!(
            sent(&mut notices, at(0))[0].lines().take(2).collect::<Vec<_>>(),
            ["READY=1", "STATUS=4 of 4 secondaries ready, listening on 127.0.0.1:2222"]
        );
        notices
    }

    #[test]
    fn it_is_ready_when_every_slot_was_tried_and_one_serves() {
        let mut notices = Notices::new(at(0), None);
        for view in [
            View { principal: false, ready: 0, untried: 4, ..ALL },
            View { ready: 3, untried: 1, ..ALL },
            View { principal: false, ..ALL },
            View { ready: 0, given_up: 4, ..ALL },
        ] {
            look(&mut notices, view);
            let said = sent(&mut notices, at(1)).concat();
            assert!(said.starts_with("STATUS=starting: "), "{said}");
        }
        look(&mut notices, View { ready: 3, given_up: 1, ..ALL });
        assert_eq!(
            sent(&mut notices, at(2)),
            ["READY=1\nSTATUS=3 of 4 secondaries ready, 1 cannot start, listening on 127.0.0.1:2222\n"]
        );
    }

    #[test]
    fn the_text_changes_with_the_state_and_is_told_once() {
        let mut notices = started(None);
        look(&mut notices, ALL);
        assert_eq!((sent(&mut notices, at(1)), notices.poll_timeout()), (vec![], None));
        look(&mut notices, View { ready: 3, ..ALL });
        let said = sent(&mut notices, at(2));
        assert_eq!(said, ["STATUS=3 of 4 secondaries ready, listening on 127.0.0.1:2222\n"]);
        look(&mut notices, View { principal: false, ready: 3, wanted: 3, drained: 1, ..ALL });
        let said = sent(&mut notices, at(3)).concat();
        assert!(said.contains("no principal ready, 3 of 3 secondaries ready, 1 drained"), "{said}");
    }

    #[test]
    fn a_reload_is_told_with_its_time_and_its_end_however_soon_that_comes() {
        let mut notices = started(None);
        notices.handle_reload(at(7));
        look(&mut notices, View { reloading: true, ..ALL });
        let said = sent(&mut notices, at(8));
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("RELOADING=1\nMONOTONIC_USEC=7000\nSTATUS=reloading: 4 of 4"),
            "{said:?}"
        );
        look(&mut notices, ALL);
        assert!(sent(&mut notices, at(9))[0].starts_with("READY=1\nSTATUS=4 of 4"));
        notices.handle_reload(at(10));
        notices.handle_failure("line 1:\nno");
        look(&mut notices, ALL);
        let said = sent(&mut notices, at(10));
        assert_eq!(said[0], "RELOADING=1\nMONOTONIC_USEC=10000\n");
        assert!(said[1].starts_with("READY=1\nSTATUS=4 of 4"), "{said:?}");
        assert!(said[1].ends_with("; the last reload failed: line 1: no\n"), "{said:?}");
        // One right after another: each is told.
        notices.handle_reload(at(11));
        notices.handle_reload(at(12));
        assert_eq!(sent(&mut notices, at(12)).concat().matches("READY=1").count(), 1);
        look(&mut notices, ALL);
        let said = sent(&mut notices, at(13));
        assert!(said[0].starts_with("READY=1\nSTATUS") && !said[0].contains("failed"), "{said:?}");
    }

    #[test]
    fn a_stop_is_told_last_with_the_time_that_it_may_take() {
        let stopping = View { stopping: Some(Duration::from_secs(15)), ..ALL };
        for reloading in [false, true] {
            let mut notices = started(None);
            if reloading {
                notices.handle_reload(at(1));
            }
            look(&mut notices, stopping);
            let said = sent(&mut notices, at(2));
            assert_eq!(said, ["STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000\nSTATUS=stopping\n"]);
            notices.handle_reload(at(3));
            look(&mut notices, View { principal: false, ready: 0, ..stopping });
            assert!(sent(&mut notices, at(4)).is_empty());
        }
    }

    #[test]
    fn who_watches_hears_twice_in_his_time_and_not_more_often() {
        let mut notices = started(Some(Duration::from_secs(2)));
        let mut heard = 0;
        for now in (0..10_000).step_by(10) {
            heard += sent(&mut notices, at(now)).concat().matches("WATCHDOG=1").count();
        }
        assert_eq!(heard, 9, "each second, the first apart");
        assert_eq!(notices.poll_timeout(), Some(at(10_000)));
        // Late, as after a stop of the process: at once, and the next in its own time.
        assert_eq!(sent(&mut notices, at(70_500)), ["WATCHDOG=1\n"]);
        assert_eq!(notices.poll_timeout(), Some(at(71_500)));
        assert!(started(Some(Duration::from_nanos(1))).poll_timeout() > Some(at(0)));
    }

    #[test]
    fn what_does_not_get_through_is_sent_again() {
        let mut notices = Notices::new(at(0), None);
        look(&mut notices, ALL);
        let message = notices.poll_message(at(0)).unwrap();
        notices.handle_sent(at(0), false);
        assert_eq!(notices.poll_message(at(999)), None);
        assert_eq!(notices.poll_timeout(), Some(at(1000)));
        assert_eq!(notices.poll_message(at(1000)), Some(message));
        notices.handle_sent(at(1000), false);
        // Reloads come and go meanwhile: the last one is told in the end, and news is tried at once.
        for round in 0..10 {
            notices.handle_reload(at(1001 + round));
            look(&mut notices, View { reloading: true, ..ALL });
            assert!(notices.poll_message(at(1001 + round)).is_some());
            notices.handle_sent(at(1001 + round), false);
            look(&mut notices, ALL);
        }
        let said = sent(&mut notices, at(1020));
        let begins: Vec<&str> = said.iter().filter_map(|message| message.lines().next()).collect();
        assert_eq!(begins, ["READY=1", "RELOADING=1", "READY=1"]);
        assert!(said[1].contains("MONOTONIC_USEC=1010000") && said[2].contains("STATUS=4 of 4"), "{said:?}");
    }

    #[test]
    fn news_that_is_stale_before_it_gets_through_is_not_waited_for() {
        for within in [None, Some(Duration::from_secs(100))] {
            let mut notices = started(within);
            look(&mut notices, View { ready: 3, ..ALL });
            assert!(notices.poll_message(at(1)).is_some());
            notices.handle_sent(at(1), false);
            assert_eq!(notices.poll_timeout(), Some(at(1001)));
            look(&mut notices, ALL);
            assert_eq!(notices.poll_timeout(), within.map(|within| at(0) + within / 2));
            assert_eq!(notices.poll_message(at(2000)), None);
        }
    }

    #[test]
    fn a_text_is_one_line_of_bounded_length() {
        let mut notices = started(None);
        notices.handle_failure(&"é\n".repeat(5000));
        look(&mut notices, ALL);
        let said = sent(&mut notices, at(1)).concat();
        assert!(said.lines().count() == 1 && said.len() < 1100, "{}", said.len());
    }
}
