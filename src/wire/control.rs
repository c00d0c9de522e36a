//! What tools ask of the watchdog over the socket `control`, and what they are told: one line each.
//!
//! | request | does |
//! |---|---|
//! | `stop` | ends the system gracefully; again: at once. Answered `stopping`, and `stopped` when all have ended |
//! | `restart SLOT` | a new secondary takes the slot, the old one finishes what it has |
//! | `drain SLOT` | the secondary of the slot finishes what it has, and the slot stays empty until `restart SLOT` |
//! | `reload` | a new principal, with the configuration and the program as they are now, takes over; then all secondaries are replaced |
//! | `scale N` | so many secondaries: new ones are started, or those with the highest numbers leave |
//! | `log LEVEL` | all processes log at that level from now on; `default`: as they were started |
//!
//! All but `stop` are answered by any number of lines `progress TEXT`, and in the end by `done TEXT` or
//! `error TEXT`.

use std::fmt;

/// What is logged: this, and what is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    Off,
    /// What should not be.
    Error,
    /// What somebody should know of.
    Warn,
    /// What happens now and then.
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// All of them, as people write them.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Off, "off"),
        (Self::Error, "error"),
        (Self::Warn, "warn"),
        (Self::Info, "info"),
        (Self::Debug, "debug"),
        (Self::Trace, "trace"),
    ];
}

/// What a tool asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End.
    Stop,
    /// A new secondary for this slot.
    Restart(u16),
    /// Take what is in the configuration and in the program now.
    Reload,
    /// So many secondaries.
    Scale(u16),
    /// None for this slot, until one is asked for.
    Drain(u16),
    /// What is logged; `None`: what the environment said at the start.
    Log(Option<Level>),
}

impl Request {
    /// Understands a line, its newline removed.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let text = line.trim_ascii().escape_ascii().to_string();
        let mut words = text.split(' ');
        let (word, argument, rest) = (words.next().unwrap_or(""), words.next(), words.next());
        let slot = |argument: Option<&str>| {
            argument
                .and_then(|slot| slot.parse().ok())
                .ok_or_else(|| format!("\"{text}\": a number of a slot is wanted, 1 for the first secondary"))
        };
        let request = match word {
            "stop" if argument.is_none() => Self::Stop,
            "reload" if argument.is_none() => Self::Reload,
            "scale" => {
                let number = argument.and_then(|number| number.parse().ok()).filter(|&number| number > 0);
                Self::Scale(number.ok_or_else(|| format!("\"{text}\": a number of secondaries is wanted"))?)
            }
            "restart" => Self::Restart(slot(argument)?),
            "drain" => Self::Drain(slot(argument)?),
            "log" => Self::Log(level(argument.unwrap_or(""))?),
            _ => {
                return Err(format!(
                    "unknown request \"{text}\"; known: stop, reload, scale N, restart SLOT, drain SLOT, log LEVEL"
                ));
            }
        };
        match rest {
            None => Ok(request),
            Some(_) => Err(format!("\"{text}\": too many words")),
        }
    }
}

/// A level as people write it; `None` for `default`.
///
/// # Errors
/// Says which there are.
pub fn level(text: &str) -> Result<Option<Level>, String> {
    let known = Level::ALL.into_iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    match known {
        Some((level, _)) => Ok(Some(level)),
        None if text == "default" => Ok(None),
        None => {
            let names = Level::ALL.map(|(_, name)| name).join(", ");
            Err(format!("\"{text}\" is no level; there are: {names}, default"))
        }
    }
}

impl fmt::Display for Request {
    /// As it is written on the line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => write!(f, "stop"),
            Self::Reload => write!(f, "reload"),
            Self::Scale(secondaries) => write!(f, "scale {secondaries}"),
            Self::Restart(slot) => write!(f, "restart {slot}"),
            Self::Drain(slot) => write!(f, "drain {slot}"),
            Self::Log(None) => write!(f, "log default"),
            Self::Log(Some(level)) => {
                let name = Level::ALL.into_iter().find(|(known, _)| known == level);
                write!(f, "log {}", name.map_or("", |(_, name)| name))
            }
        }
    }
}

/// What a tool is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// How far it is.
    Progress(String),
    /// It is done.
    Done(String),
    /// It cannot be done, or was given up.
    Error(String),
}

impl Answer {
    /// Understands a line, its newline removed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (word, text) = line.split_once(' ').unwrap_or((line, ""));
        let text = text.to_owned();
        match word {
            "progress" => Some(Self::Progress(text)),
            "done" => Some(Self::Done(text)),
            "error" => Some(Self::Error(text)),
            _ => None,
        }
    }
}

impl fmt::Display for Answer {
    /// As a line, newline included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Progress(text) => writeln!(f, "progress {text}"),
            Self::Done(text) => writeln!(f, "done {text}"),
            Self::Error(text) => writeln!(f, "error {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let levels = [None, Some(Level::Off), Some(Level::Trace)];
        let requests = [Request::Stop, Request::Restart(3), Request::Drain(1024)];
        for request in requests.into_iter().chain(levels.map(Request::Log)) {
            assert_eq!(Request::parse(request.to_string().as_bytes()), Ok(request));
        }
        for answer in [Answer::Progress("a b".into()), Answer::Done("c".into()), Answer::Error("d e".into())]
        {
            assert_eq!(Answer::parse(answer.to_string().trim_end()), Some(answer));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, why) in [
            ("", "unknown request \"\""),
            ("stop now", "unknown request"),
            ("restart", "a number of a slot is wanted"),
            ("drain x", "\"drain x\": a number"),
            ("drain 70000", "a number of a slot"),
            ("restart 1 2", "too many words"),
            ("log", "\"\" is no level"),
            ("log loud", "\"loud\" is no level; there are: off, error, warn"),
            ("log \u{1}", "\\x01"),
        ] {
            let error = Request::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line:?}: {error}");
        }
        assert_eq!(Answer::parse("stopped"), None);
    }
}
