//! What the first bytes of a data connection tell, on a port where a tracked job waits.
//!
//! Who begins with `jeton JETON` and a newline claims that job and nothing else; whoever says
//! something else, or nothing for a while, is plain; but who is silent and has no plain job may
//! be a slow tracked one, and is heard for a second. The bytes are looked at, not taken: a
//! handler gets all that a plain client says, and what follows the line of a tracked one.

use std::time::Duration;

use crate::core::moment::Moment;
use crate::wire::jeton::Jeton;

/// How long a connection is silent before it is taken for a plain one.
pub const SILENCE: Duration = Duration::from_millis(50);
/// How long one may be silent that has no plain job: a machine that is loaded may stop a client
/// between its connect and its first word.
pub const SLOW: Duration = Duration::from_secs(1);
/// So many bytes decide: the longest line that claims a job, its ending included.
pub const DECIDING_BYTES: usize = WORD.len() + Jeton::DIGITS + 2;

const WORD: &[u8] = b"jeton ";

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes may come: look again when they do, or at that moment.
    Wait(Moment),
    /// It has no jeton.
    Plain,
    /// It is silent, and plain if a plain job waits for it. Else it may be a slow one that comes for
    /// a tracked job: look again when it says something, or at that moment.
    Silent(Moment),
    /// It claims this job; its line is so many bytes long.
    Tracked {
        /// By its jeton.
        jeton: Jeton,
        /// To be taken before the handler's turn.
        line_bytes: usize,
    },
    /// It says that it has a jeton, but that is none.
    Wrong,
}

/// A connection that is undecided yet.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    since: Moment,
    /// When something came last.
    quiet_since: Moment,
    seen_bytes: usize,
}

impl Arrival {
    /// It has just been accepted.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self { since: now, quiet_since: now, seen_bytes: 0 }
    }

    /// Since when it is here.
    #[must_use]
    pub fn since(&self) -> Moment {
        self.since
    }

    /// Judges by what stands in the connection now, up to [`DECIDING_BYTES`]. `ended`: nothing
    /// more will come. A line that claims a job must be whole within `claim_within`.
    pub fn judge(&mut self, now: Moment, bytes: &[u8], ended: bool, claim_within: Duration) -> Verdict {
        if bytes.len() > self.seen_bytes {
            self.seen_bytes = bytes.len();
            self.quiet_since = now;
        }
        let Some(rest) = bytes.strip_prefix(WORD) else {
            let (silent_at, until) = (self.quiet_since + SILENCE, self.since + claim_within.min(SLOW));
            return if ended || !WORD.starts_with(bytes) {
                Verdict::Plain
            } else if now < silent_at {
                Verdict::Wait(silent_at)
            } else if now < until {
                Verdict::Silent(until)
            } else {
                Verdict::Plain
            };
        };
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            let until = self.since + claim_within;
            let may_become = bytes.len() < DECIDING_BYTES && !ended && now < until;
            return if may_become { Verdict::Wait(until) } else { Verdict::Wrong };
        };
        let text = rest[..length].strip_suffix(b"\r").unwrap_or(&rest[..length]);
        match Jeton::parse(text) {
            Some(jeton) => Verdict::Tracked { jeton, line_bytes: WORD.len() + length + 1 },
            None => Verdict::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &str = "jeton 000102030405060708090a0b0c0d0e0f\n";
    const WITHIN: Duration = Duration::from_secs(5);

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn judge(millis: u64, bytes: &str, ended: bool) -> Verdict {
        Arrival::new(at(0)).judge(at(millis), bytes.as_bytes(), ended, WITHIN)
    }

    #[test]
    fn a_line_with_a_jeton_claims_and_what_follows_is_left() {
        let bytes: [u8; 16] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let claims = |line_bytes| Verdict::Tracked { jeton: Jeton::from_bytes(bytes), line_bytes };
        assert_eq!(judge(0, LINE, false), claims(39));
        assert_eq!(judge(0, &LINE.replace('\n', "\r\n"), true), claims(40));
        assert_eq!(judge(0, &format!("{LINE}x"), false), claims(39));
    }

    #[test]
    fn silence_and_other_words_are_plain() {
        assert_eq!(judge(0, "", false), Verdict::Wait(at(50)));
        assert_eq!(judge(49, "", false), Verdict::Wait(at(50)));
        assert_eq!(Arrival::new(at(0)).judge(at(50), b"", false, WITHIN), Verdict::Silent(at(1000)));
        assert_eq!(judge(1000, "", false), Verdict::Plain);
        assert_eq!(judge(0, "", true), Verdict::Plain);
        assert_eq!(judge(0, "jetons", false), Verdict::Plain);
        assert_eq!(judge(0, "x", false), Verdict::Plain);
        let mut arrival = Arrival::new(at(0));
        assert_eq!(arrival.judge(at(40), b"jet", false, WITHIN), Verdict::Wait(at(90)));
        assert_eq!(arrival.judge(at(89), b"jet", false, WITHIN), Verdict::Wait(at(90)));
        assert_eq!(arrival.judge(at(90), b"jet", false, WITHIN), Verdict::Silent(at(1000)));
        assert!(matches!(arrival.judge(at(99), LINE.as_bytes(), false, WITHIN), Verdict::Tracked { .. }));
    }

    #[test]
    fn a_jeton_that_is_none_is_wrong() {
        for line in ["jeton \n", "jeton 12\n", &LINE.replace('0', "g"), &format!("jeton {}", "0".repeat(40))]
        {
            assert_eq!(judge(0, line, false), Verdict::Wrong, "{line:?}");
        }
        assert_eq!(judge(0, "jeton 00", true), Verdict::Wrong);
        assert_eq!(judge(0, "jeton 00", false), Verdict::Wait(at(5000)));
        assert_eq!(judge(5000, "jeton 00", false), Verdict::Wrong);
    }

    proptest! {
        /// However the line is cut, it claims in the end, and before that is waited for.
        #[test]
        fn a_line_may_come_in_pieces(cut in 0usize..39) {
            let mut arrival = Arrival::new(at(0));
            let first = arrival.judge(at(1), &LINE.as_bytes()[..cut], false, WITHIN);
            prop_assert!(matches!(first, Verdict::Wait(_)), "{:?}", first);
            let whole = arrival.judge(at(2), LINE.as_bytes(), false, WITHIN);
            let claims = matches!(whole, Verdict::Tracked { line_bytes: 39, .. });
            prop_assert!(claims, "{:?}", whole);
        }
    }
}
