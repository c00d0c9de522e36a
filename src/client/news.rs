//! What a control connection says: answers, and news of tracked jobs in between. No I/O.

use std::collections::VecDeque;
use std::fmt;

use crate::wire::jeton::Jeton;

/// The longest line that a principal sends, its newline not counted; longer ones are nonsense.
pub const MAX_LINE_BYTES: usize = 4096;
/// So many tracked jobs may one control connection have whose end was not told, or was told and
/// not taken yet.
pub const MAX_FOLLOWED: usize = 1024;
/// The longest reason that is kept.
const MAX_REASON_BYTES: usize = 128;

/// Why a tracked job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody came for it in time.
    Expired,
    /// Its secondary died.
    SecondaryLost,
    /// It was cut off: the system stops, or its secondary had to end.
    Stopping,
    /// The data connection was reset.
    ConnectionLost,
    /// The client took nothing of what was sent to it.
    ConnectionTimedOut,
    /// Anything else, such as `exit 3` or `time limit`, in the server's words.
    Other(String),
}

impl Reason {
    fn parse(words: &str) -> Self {
        match words {
            "expired" => Self::Expired,
            "secondary lost" => Self::SecondaryLost,
            "stopping" => Self::Stopping,
            "connection lost" => Self::ConnectionLost,
            "connection timed out" => Self::ConnectionTimedOut,
            other => Self::Other(other.chars().filter(char::is_ascii).take(MAX_REASON_BYTES).collect()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::SecondaryLost => "secondary lost",
            Self::Stopping => "stopping",
            Self::ConnectionLost => "connection lost",
            Self::ConnectionTimedOut => "connection timed out",
            Self::Other(words) => words,
        })
    }
}

/// What has become of a tracked job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// `debuttraitement`: the exchange has begun.
    Began,
    /// `fintraitement`: it came to a good end.
    Done,
    /// `errtraitement`: it did not.
    Failed(Reason),
}

/// One line of news. Shown as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Of which job.
    pub jeton: Jeton,
    /// What has become of it.
    pub fate: Fate,
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jeton = self.jeton;
        match &self.fate {
            Fate::Began => write!(f, "debuttraitement {jeton}"),
            Fate::Done => write!(f, "fintraitement {jeton}"),
            Fate::Failed(reason) => write!(f, "errtraitement {jeton} {reason}"),
        }
    }
}

/// A line of a control connection, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// News of a job.
    News(News),
    /// The answer to the oldest request that has none.
    Answer(String),
}

impl Line {
    /// Understands a line without its newline.
    ///
    /// # Errors
    /// The line, where it begins like news and is none.
    pub fn parse(line: &str) -> Result<Self, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let news = match (word, rest.split_once(' ')) {
            ("debuttraitement", None) => (rest, Fate::Began),
            ("fintraitement", None) => (rest, Fate::Done),
            ("errtraitement", Some((jeton, reason))) => (jeton, Fate::Failed(Reason::parse(reason))),
            ("debuttraitement" | "fintraitement" | "errtraitement", _) => return Err(line.to_owned()),
            _ => return Ok(Self::Answer(line.to_owned())),
        };
        let (jeton, fate) = news;
        let jeton = Jeton::parse(jeton.as_bytes()).ok_or_else(|| line.to_owned())?;
        Ok(Self::News(News { jeton, fate }))
    }
}

/// Cuts what a control connection says into lines, within bounds.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Before this, all lines were taken.
    start: usize,
    /// Before this, there is no newline.
    searched: usize,
}

impl Lines {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete line, without its newline.
    ///
    /// # Errors
    /// What is wrong with it: too long, or no text.
    pub fn next(&mut self) -> Result<Option<&str>, &'static str> {
        let found = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n');
        let end = found.map_or(self.bytes.len(), |at| self.searched + at);
        if end - self.start > MAX_LINE_BYTES {
            return Err("a line that does not end");
        }
        self.searched = end;
        if found.is_none() {
            return Ok(None);
        }
        let line = &self.bytes[self.start..end];
        self.start = end + 1;
        self.searched = end + 1;
        std::str::from_utf8(line).map(Some).map_err(|_| "a line that is no text")
    }
}

/// The tracked jobs of one control connection, and what was told of them and not taken yet.
#[derive(Debug, Default)]
pub struct Followed {
    open: Vec<Open>,
    told: VecDeque<News>,
}

#[derive(Debug)]
struct Open {
    jeton: Jeton,
    began: bool,
    /// Nobody wants to know any more.
    forgotten: bool,
}

impl Followed {
    /// Whether a further job may be followed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.open.len() + self.told.len() < MAX_FOLLOWED
    }

    /// A tracked job was given.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&mut self, jeton: Jeton) -> Result<(), &'static str> {
        if self.open.iter().any(|open| open.jeton == jeton) {
            return Err("the jeton of a job that is open");
        }
        self.open.push(Open { jeton, began: false, forgotten: false });
        Ok(())
    }

    /// Takes what was told: one start at most, then one end, of a job that is open.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, news: News) -> Result<(), &'static str> {
        let Some(at) = self.open.iter().position(|open| open.jeton == news.jeton) else {
            return Err("news of a job that is not open here");
        };
        if news.fate == Fate::Began && std::mem::replace(&mut self.open[at].began, true) {
            return Err("a second start of one job");
        }
        if !self.open[at].forgotten {
            self.told.push_back(news.clone());
        }
        if news.fate != Fate::Began {
            self.open.swap_remove(at);
        }
        Ok(())
    }

    /// What was told first and not taken yet, of that job or of any.
    pub fn next(&mut self, of: Option<Jeton>) -> Option<News> {
        let at = self.told.iter().position(|news| of.is_none_or(|jeton| news.jeton == jeton))?;
        self.told.remove(at)
    }

    /// Whether news of that job, or of any, are still to come.
    #[must_use]
    pub fn expects(&self, of: Option<Jeton>) -> bool {
        self.open.iter().any(|open| of.is_none_or(|jeton| open.jeton == jeton))
    }

    /// Throws away what was told of a job, and what will be.
    pub fn forget(&mut self, jeton: Jeton) {
        self.told.retain(|news| news.jeton != jeton);
        if let Some(open) = self.open.iter_mut().find(|open| open.jeton == jeton) {
            open.forgotten = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "00112233445566778899aabbccddeeff";
    const B: &str = "ffeeddccbbaa99887766554433221100";

    fn news(line: &str) -> News {
        match Line::parse(line) {
            Ok(Line::News(news)) => news,
            other => panic!("{line:?} is {other:?}"),
        }
    }

    #[test]
    fn news_and_answers_are_told_apart_and_news_are_shown_as_they_came() {
        for words in ["debuttraitement A", "fintraitement A", "errtraitement A secondary lost"] {
            let line = words.replace('A', A);
            assert_eq!(news(&line).to_string(), line);
        }
        let failed = |reason| Fate::Failed(reason);
        for (words, reason) in [
            ("expired", Reason::Expired),
            ("secondary lost", Reason::SecondaryLost),
            ("stopping", Reason::Stopping),
            ("connection lost", Reason::ConnectionLost),
            ("connection timed out", Reason::ConnectionTimedOut),
            ("exit 3", Reason::Other("exit 3".to_owned())),
        ] {
            assert_eq!(news(&format!("errtraitement {A} {words}")).fate, failed(reason));
        }
        for answer in ["2223", "-1 stopping", "127.0.0.1:2223", "", &format!("2223 {A}")] {
            assert_eq!(Line::parse(answer), Ok(Line::Answer(answer.to_owned())));
        }
    }

    #[test]
    fn what_begins_like_news_and_is_none_is_nonsense() {
        for line in [
            "debuttraitement",
            "fintraitement ",
            "fintraitement 12",
            &format!("fintraitement {A} well"),
            &format!("errtraitement {A}"),
            &format!("errtraitement {} expired", &A[1..]),
        ] {
            assert_eq!(Line::parse(line), Err(line.to_owned()));
        }
    }

    #[test]
    fn each_job_has_one_start_at_most_and_one_end() {
        let mut followed = Followed::default();
        let [a, b] = [A, B].map(|text| Jeton::parse(text.as_bytes()).unwrap());
        let begin = news(&format!("debuttraitement {A}"));
        let end = news(&format!("fintraitement {A}"));
        assert!(followed.take(begin.clone()).is_err(), "it is not open");
        followed.open(a).unwrap();
        followed.open(b).unwrap();
        assert!(followed.open(a).is_err());
        followed.take(begin.clone()).unwrap();
        assert!(followed.take(begin.clone()).is_err(), "a second start");
        followed.take(end.clone()).unwrap();
        assert!(followed.take(end.clone()).is_err(), "a second end");
        assert!(followed.expects(None) && followed.expects(Some(b)) && !followed.expects(Some(a)));
        let lost = news(&format!("errtraitement {B} secondary lost"));
        followed.take(lost.clone()).unwrap();
        assert_eq!(followed.next(Some(b)), Some(lost), "each job has its own news");
        assert_eq!(followed.next(None), Some(begin));
        assert_eq!(followed.next(None), Some(end));
        assert_eq!(followed.next(None), None);
    }

    #[test]
    fn a_forgotten_job_is_told_no_more_and_still_counts_until_its_end() {
        let mut followed = Followed::default();
        let a = Jeton::parse(A.as_bytes()).unwrap();
        followed.open(a).unwrap();
        followed.take(news(&format!("debuttraitement {A}"))).unwrap();
        followed.forget(a);
        assert_eq!(followed.next(None), None);
        assert!(followed.expects(Some(a)));
        followed.take(news(&format!("errtraitement {A} expired"))).unwrap();
        assert_eq!(followed.next(None), None);
        assert!(!followed.expects(None));
    }

    fn numbered(number: usize) -> Jeton {
        Jeton::from_bytes((number as u128).to_be_bytes())
    }

    #[test]
    fn so_many_jobs_are_followed_and_no_more() {
        let mut followed = Followed::default();
        for number in 0..MAX_FOLLOWED {
            assert!(followed.has_room());
            followed.open(numbered(number)).unwrap();
        }
        assert!(!followed.has_room());
        followed.take(News { jeton: numbered(7), fate: Fate::Done }).unwrap();
        assert!(!followed.has_room(), "its news were not taken");
        followed.next(None).unwrap();
        assert!(followed.has_room());
    }

    /// Feeds the chunks, taking all lines after each; the lines, or what was wrong.
    fn split(chunks: &[&[u8]]) -> Result<Vec<String>, &'static str> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk);
            while let Some(line) = lines.next()? {
                out.push(line.to_owned());
            }
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn segmentation_changes_no_line(text in "[a-z\n ]{0,200}", cuts in prop::collection::vec(0usize..200, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let mut expected: Vec<&str> = text.split('\n').collect();
            expected.pop();
            prop_assert_eq!(split(&chunks).unwrap(), expected);
        }

        #[test]
        fn any_line_is_understood_or_refused(line in ".{0,100}") {
            let _ = Line::parse(&line);
            let _ = Line::parse(&format!("errtraitement {A} {line}"));
        }
    }

    #[test]
    fn a_line_that_does_not_end_or_is_no_text_is_nonsense() {
        let long = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(split(&[&long, b"\n"]).unwrap().len(), 1);
        assert!(split(&[&long, b"x"]).is_err());
        assert!(split(&[b"\xff\n"]).is_err());
    }
}
