//! The commands in the FIFO pair of principal and secondary, one per line.
//!
//! They are doorbells: the job table is the truth, and a lost line loses no job.

use std::io::Write as _;
use std::net::IpAddr;

use crate::core::job::JobNumber;
use crate::wire::lines::MAX_LINE_BYTES;

/// A job, named by where it stands and which it is: a stale line names no living job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobRef {
    /// Index in the job table.
    pub index: u32,
    /// The job's number.
    pub number: JobNumber,
}

/// A command in `dwtube<n>` (principal to secondary) or `wdtube<n>` (back).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Principal: a job waits at this index of your table.
    Job(JobRef),
    /// Principal: no job is left for you; end.
    Stop,
    /// Principal: leave your place to a successor, and take as long as you need for what you have.
    Leave,
    /// Either: lines were lost because the FIFO was full; look through the table.
    Resync,
    /// Secondary: my loop runs.
    Ready,
    /// Secondary: I finish what I have and end; another may take my place.
    Draining,
    /// Secondary: I have served for long enough: as `draining`, but I may take as long as I need.
    Recycling,
    /// Secondary: the exchange of this job has begun.
    Debut(JobRef),
    /// Secondary: it came to a good end.
    Fin(JobRef),
    /// Secondary: it came to a bad end.
    Err(JobRef),
    /// Secondary: somebody came without a job, and all are let in: give one.
    Uninvited {
        /// The request type of the port.
        kind: u16,
        /// Who came.
        client: IpAddr,
    },
    /// Principal, in `osps pingpong`.
    Ping(u64),
    /// Secondary, in `osps pingpong`.
    Pong(u64),
}

/// A line that is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Command {
    /// Appends the command, newline included.
    pub fn write_to(self, line: &mut Vec<u8>) {
        let mut job = |word, JobRef { index, number }: JobRef| writeln!(line, "{word} {index} {number}");
        let written = match self {
            Self::Job(of) => job("job", of),
            Self::Debut(of) => job("debuttraitement", of),
            Self::Fin(of) => job("fintraitement", of),
            Self::Err(of) => job("errtraitement", of),
            Self::Stop => writeln!(line, "stop"),
            Self::Leave => writeln!(line, "leave"),
            Self::Resync => writeln!(line, "resync"),
            Self::Ready => writeln!(line, "ready"),
            Self::Draining => writeln!(line, "draining"),
            Self::Recycling => writeln!(line, "recycling"),
            Self::Uninvited { kind, client } => writeln!(line, "uninvited {kind} {client}"),
            Self::Ping(number) => writeln!(line, "ping {number}"),
            Self::Pong(number) => writeln!(line, "pong {number}"),
        };
        debug_assert!(written.is_ok(), "writing to a Vec does not fail");
    }

    /// Understands one line, its newline removed.
    ///
    /// # Errors
    /// [`Malformed`], where it is no command or has more or fewer words than it should.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        if line.len() > MAX_LINE_BYTES {
            return Err(Malformed);
        }
        let mut words = line.split(|&byte| byte == b' ');
        let word = words.next().ok_or(Malformed)?;
        let command = match word {
            b"job" => Self::Job(job_ref(&mut words)?),
            b"debuttraitement" => Self::Debut(job_ref(&mut words)?),
            b"fintraitement" => Self::Fin(job_ref(&mut words)?),
            b"errtraitement" => Self::Err(job_ref(&mut words)?),
            b"stop" => Self::Stop,
            b"leave" => Self::Leave,
            b"resync" => Self::Resync,
            b"ready" => Self::Ready,
            b"draining" => Self::Draining,
            b"recycling" => Self::Recycling,
            b"uninvited" => Self::Uninvited {
                kind: u16::try_from(number(words.next())?).map_err(|_| Malformed)?,
                client: address(words.next())?,
            },
            b"ping" => Self::Ping(number(words.next())?),
            b"pong" => Self::Pong(number(words.next())?),
            _ => return Err(Malformed),
        };
        match words.next() {
            None => Ok(command),
            Some(_) => Err(Malformed),
        }
    }
}

fn job_ref<'a>(words: &mut impl Iterator<Item = &'a [u8]>) -> Result<JobRef, Malformed> {
    let index = u32::try_from(number(words.next())?).map_err(|_| Malformed)?;
    Ok(JobRef { index, number: number(words.next())? })
}

fn number(word: Option<&[u8]>) -> Result<u64, Malformed> {
    let digits = word.filter(|word| word.iter().all(u8::is_ascii_digit)).ok_or(Malformed)?;
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(Malformed)
}

fn address(word: Option<&[u8]>) -> Result<IpAddr, Malformed> {
    word.and_then(|word| std::str::from_utf8(word).ok()?.parse().ok()).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commands() -> impl Strategy<Value = Command> {
        let of = (any::<u32>(), any::<u64>()).prop_map(|(index, number)| JobRef { index, number });
        prop_oneof![
            of.clone().prop_map(Command::Job),
            of.clone().prop_map(Command::Debut),
            of.clone().prop_map(Command::Fin),
            of.prop_map(Command::Err),
            any::<u64>().prop_map(Command::Ping),
            any::<u64>().prop_map(Command::Pong),
            (any::<u16>(), any::<IpAddr>()).prop_map(|(kind, client)| Command::Uninvited { kind, client }),
            Just(Command::Stop),
            Just(Command::Leave),
            Just(Command::Resync),
            Just(Command::Ready),
            Just(Command::Draining),
            Just(Command::Recycling),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(command in commands()) {
            let mut line = Vec::new();
            command.write_to(&mut line);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert_eq!(Command::parse(&line), Ok(command));
        }

        #[test]
        fn garbage_is_refused_or_understood_but_never_a_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::parse(&line);
        }
    }

    #[test]
    fn a_command_has_exactly_its_words() {
        for line in [
            "",
            "job",
            "job 1",
            "job 1 2 3",
            "job -1 2",
            "job 1 +2",
            "stop now",
            "jobs 1 2",
            "job 4294967296 1",
        ] {
            assert_eq!(Command::parse(line.as_bytes()), Err(Malformed), "{line:?}");
        }
    }
}
