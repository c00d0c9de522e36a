//! What may be tried again, and when: no I/O, no clock, no dice of its own.
//!
//! A request is repeated only where nobody can have noticed the first: no byte of the exchange
//! was answered, the cause may pass, and all that was sent can be sent once more.

use std::time::Duration;

use crate::client::news::Reason;

/// How often and how long a call is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Tries in all, the first one included; 0 counts as 1. Default: 8.
    pub tries: u32,
    /// No try begins later than this after the first. Default: 30 s.
    pub within: Duration,
    /// The pause after the first try that fails; it doubles with each further one. Default: 10 ms.
    pub first_pause: Duration,
    /// The longest pause. Default: 2 s.
    pub longest_pause: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tries: 8,
            within: Duration::from_secs(30),
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(2),
        }
    }
}

impl Policy {
    /// One try only.
    #[must_use]
    pub fn once() -> Self {
        Self { tries: 1, ..Self::default() }
    }

    /// The pause before the next try, after so many that `failed` in `elapsed` since the
    /// beginning of the first; `None` where there shall be no further one. `dice` is any random
    /// number: half of the pause is certain and half is diced, so that clients that failed
    /// together do not come back together.
    #[must_use]
    pub fn pause(&self, failed: u32, elapsed: Duration, dice: u64) -> Option<Duration> {
        if failed >= self.tries {
            return None;
        }
        let doubled = 2u32.saturating_pow(failed.saturating_sub(1));
        let longest = self.first_pause.saturating_mul(doubled).min(self.longest_pause);
        let half = longest / 2;
        let diced = half.mul_f64(dice as f64 / u64::MAX as f64).min(half);
        let pause = half + diced;
        (elapsed.saturating_add(pause) <= self.within).then_some(pause)
    }
}

/// What a refusal means for whoever was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `unknown request type ...`: asking again is of no use.
    Unknown,
    /// `busy: ...`: later.
    Busy,
    /// `stopping`: after the restart, if there is one.
    Stopping,
    /// `request too long ...`, `request incomplete ...`, or words that this client does not know.
    Other,
}

impl Refusal {
    /// Understands the words behind `-1`.
    #[must_use]
    pub fn of(words: &str) -> Self {
        if words.starts_with("unknown request type") {
            Self::Unknown
        } else if words.starts_with("busy:") {
            Self::Busy
        } else if words == "stopping" {
            Self::Stopping
        } else {
            Self::Other
        }
    }
}

/// Why a try failed, as far as trying again is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody accepts the connection, be it the principal's or the secondary's.
    Unreachable,
    /// The control connection broke, or was silent, before the request was answered.
    Unanswered,
    /// The principal answered `-1`.
    Refused(Refusal),
    /// The data connection was closed or reset.
    Broken,
    /// The secondary was silent for too long: it may be at work.
    Silent,
    /// A tracked job ended with `errtraitement`.
    Failed(Reason),
    /// The control connection broke before it told the end of a tracked job.
    Unfollowed,
    /// Nothing that passes: wrong arguments, a peer that says nonsense, the caller's own input
    /// or output.
    Lasting,
}

/// What is known of a try that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Why.
    pub trouble: Trouble,
    /// Whether a byte of an answer was seen.
    pub answered: bool,
    /// Whether all input that was taken can be sent once more.
    pub replayable: bool,
}

impl Evidence {
    /// Whether a further try is safe and may help.
    #[must_use]
    pub fn allows_retry(&self) -> bool {
        !self.answered && self.replayable && self.trouble.may_pass()
    }
}

impl Trouble {
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable | Self::Unanswered | Self::Broken | Self::Unfollowed => true,
            Self::Refused(refusal) => match refusal {
                Refusal::Busy | Refusal::Stopping => true,
                Refusal::Unknown | Refusal::Other => false,
            },
            Self::Failed(reason) => match reason {
                Reason::Expired | Reason::SecondaryLost | Reason::ConnectionLost | Reason::Stopping => true,
                // The handler's own verdict, or a client that did not read: it would be the same again.
                Reason::ConnectionTimedOut | Reason::Other(_) => false,
            },
            Self::Silent | Self::Lasting => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn pauses_double_up_to_the_longest_and_dice_decide_half_of_each() {
        let policy = Policy { tries: 6, within: MS(60_000), first_pause: MS(10), longest_pause: MS(50) };
        let pauses = |dice| (1..=6).map(|failed| policy.pause(failed, MS(0), dice)).collect::<Vec<_>>();
        let millis = |all: [u64; 5]| all.map(|ms| Some(MS(ms))).into_iter().chain([None]).collect::<Vec<_>>();
        assert_eq!(pauses(u64::MAX), millis([10, 20, 40, 50, 50]));
        assert_eq!(pauses(0), millis([5, 10, 20, 25, 25]));
    }

    #[test]
    fn no_try_begins_when_its_time_is_over() {
        let policy = Policy { within: MS(100), ..Policy::default() };
        assert_eq!(policy.pause(1, MS(90), u64::MAX), Some(MS(10)));
        assert_eq!(policy.pause(1, MS(91), u64::MAX), None);
        assert_eq!(policy.pause(1, MS(91), 0), Some(MS(5)));
        assert_eq!(Policy::once().pause(1, MS(0), 0), None);
        assert_eq!(Policy { tries: 0, ..policy }.pause(1, MS(0), 0), None);
    }

    proptest! {
        #[test]
        fn whatever_the_policy_it_ends_and_never_overflows(tries in 0u32..2000, failed: u32, dice: u64,
                                                           first: u32, longest: u64, within: u64) {
            let policy = Policy {
                tries,
                within: Duration::from_nanos(within),
                first_pause: MS(first.into()),
                longest_pause: Duration::from_nanos(longest),
            };
            let pause = policy.pause(failed, Duration::ZERO, dice);
            prop_assert!(failed < tries || pause.is_none());
            prop_assert!(pause.is_none_or(|pause| pause <= policy.longest_pause && pause <= policy.within));
        }
    }

    fn every_trouble() -> Vec<(Trouble, bool)> {
        let refusals = [
            (Refusal::Unknown, false),
            (Refusal::Busy, true),
            (Refusal::Stopping, true),
            (Refusal::Other, false),
        ];
        let reasons = [
            (Reason::Expired, true),
            (Reason::SecondaryLost, true),
            (Reason::Stopping, true),
            (Reason::ConnectionLost, true),
            (Reason::ConnectionTimedOut, false),
            (Reason::Other("exit 3".to_owned()), false),
        ];
        let mut all = vec![
            (Trouble::Unreachable, true),
            (Trouble::Unanswered, true),
            (Trouble::Broken, true),
            (Trouble::Unfollowed, true),
            (Trouble::Silent, false),
            (Trouble::Lasting, false),
        ];
        all.extend(refusals.map(|(refusal, may)| (Trouble::Refused(refusal), may)));
        all.extend(reasons.map(|(reason, may)| (Trouble::Failed(reason), may)));
        all
    }

    #[test]
    fn what_may_pass_is_tried_again_unless_a_byte_was_answered_or_the_input_is_lost() {
        for (trouble, expected) in every_trouble() {
            for (answered, replayable) in [(false, true), (false, false), (true, true), (true, false)] {
                let evidence = Evidence { trouble: trouble.clone(), answered, replayable };
                let expected = expected && !answered && replayable;
                assert_eq!(evidence.allows_retry(), expected, "{evidence:?}");
            }
        }
    }

    #[test]
    fn refusals_are_known_by_their_first_words() {
        for (words, refusal) in [
            ("unknown request type \"busy: x\"; known: echo", Refusal::Unknown),
            ("busy: no secondary is ready", Refusal::Busy),
            ("busy: more than 3 connections from your address", Refusal::Busy),
            ("stopping", Refusal::Stopping),
            ("request too long: the limit is 256 bytes", Refusal::Other),
            ("request incomplete: no newline within 10s", Refusal::Other),
            ("", Refusal::Other),
        ] {
            assert_eq!(Refusal::of(words), refusal, "{words}");
        }
    }
}
