//! The words of the control connection: request types, and the answers to them.
//!
//! `docs/protocol.md` tells the whole protocol; the state machine that speaks it is
//! [`crate::core::conversation`].

use std::fmt;

/// The longest request in bytes, its line ending not counted.
pub const MAX_REQUEST_BYTES: usize = 256;
/// The longest name of a request type in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// How much of an unknown request, and of the list of known ones, an answer repeats.
const MAX_QUOTED_BYTES: usize = 64;
const MAX_LISTED_BYTES: usize = 512;

/// Words that begin a line of the protocol, and so cannot name a type.
pub const RESERVED_WORDS: [&str; 6] =
    ["suivi", "adresse", "jeton", "debuttraitement", "fintraitement", "errtraitement"];

/// The index of a request type in the configuration.
pub type TypeIndex = usize;

/// Whether a request type may have that name: `[A-Za-z0-9_.-]{1,64}`, no reserved word.
#[must_use]
pub fn is_type_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && !RESERVED_WORDS.contains(&name)
}

/// The request types that a server knows.
#[derive(Debug, Clone)]
pub struct Types {
    /// Sorted by name, so that a type stands right before those that extend it.
    sorted: Vec<(String, TypeIndex)>,
    listed: String,
}

/// What bytes without a newline may still become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// A known type that no longer known type extends.
    Complete(TypeIndex),
    /// Begins a word that is always followed by an argument and a newline.
    WaitsForNewline,
    /// Only silence tells whether it is complete.
    Open,
}

impl Types {
    /// Types in the order of the configuration: the first has index 0.
    #[must_use]
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut sorted: Vec<(String, TypeIndex)> =
            names.into_iter().enumerate().map(|(index, name)| (name.to_owned(), index)).collect();
        let mut listed = String::new();
        for (index, (name, _)) in sorted.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            if listed.len() + name.len() > MAX_LISTED_BYTES {
                listed.push_str(", ...");
                break;
            }
            listed.push_str(separator);
            listed.push_str(name);
        }
        sorted.sort();
        Self { sorted, listed }
    }

    /// The type of that name.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<TypeIndex> {
        let position = self.position(name).ok()?;
        Some(self.sorted[position].1)
    }

    /// What can be said of bytes that no newline follows yet.
    #[must_use]
    pub fn prefix(&self, bytes: &[u8]) -> Prefix {
        if bytes.starts_with(b"suivi ") || bytes.starts_with(b"adresse ") {
            return Prefix::WaitsForNewline;
        }
        match self.position(bytes) {
            Ok(position) if !self.is_extended(position) => Prefix::Complete(self.sorted[position].1),
            Ok(_) | Err(_) => Prefix::Open,
        }
    }

    fn position(&self, name: &[u8]) -> Result<usize, usize> {
        self.sorted.binary_search_by(|(known, _)| known.as_bytes().cmp(name))
    }

    /// In sorted order, whatever extends a name comes right after it.
    fn is_extended(&self, position: usize) -> bool {
        let name = &self.sorted[position].0;
        self.sorted.get(position + 1).is_some_and(|(next, _)| next.starts_with(name))
    }
}

/// One line of input, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A request for a plain job.
    Request(TypeIndex),
    /// No known type.
    Unknown,
    /// `suivi TYPE` or `adresse TYPE`, which this version does not serve.
    Unserved,
}

/// Understands a complete request, its line ending removed.
#[must_use]
pub fn parse_request(request: &[u8], types: &Types) -> Line {
    if request.starts_with(b"suivi ") || request.starts_with(b"adresse ") {
        return Line::Unserved;
    }
    types.find(request).map_or(Line::Unknown, Line::Request)
}

/// Why a request gets no port.
#[derive(Clone, Copy, Debug)]
pub enum Refusal<'a> {
    /// No such type.
    Unknown {
        /// What was asked for.
        asked: &'a [u8],
        /// What could have been asked for.
        types: &'a Types,
    },
    /// A word of the protocol that this version does not serve.
    Unserved {
        /// The whole request.
        asked: &'a [u8],
    },
    /// Longer than [`MAX_REQUEST_BYTES`].
    TooLong,
    /// Every secondary has `max_jobs` open jobs.
    AllFull,
    /// No secondary is ready.
    NoneReady,
    /// The server stops.
    Stopping,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { asked, types } => {
                write!(f, "unknown request type \"{}\"; known: {}", Quoted(asked), types.listed)
            }
            Self::Unserved { asked } => {
                write!(f, "not served by this version: \"{}\"", Quoted(asked))
            }
            Self::TooLong => write!(f, "request too long: the limit is {MAX_REQUEST_BYTES} bytes"),
            Self::AllFull => f.write_str("busy: every secondary has as many jobs as it may have"),
            Self::NoneReady => f.write_str("busy: no secondary is ready"),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

/// A client's bytes, safe to show: printable ASCII, bounded.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(MAX_QUOTED_BYTES)];
        write!(f, "{}", shown.escape_ascii())?;
        if shown.len() < self.0.len() { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words_of_bounded_length() {
        for name in ["a", "requetetype1", "a.b-c_D9", &"x".repeat(64)] {
            assert!(is_type_name(name), "{name}");
        }
        for name in ["", "a b", "é", "a\n", "suivi", "jeton", &"x".repeat(65)] {
            assert!(!is_type_name(name), "{name}");
        }
    }

    #[test]
    fn a_type_that_another_extends_is_not_complete_by_itself() {
        let types = Types::new(["sum", "sumall", "sum.x", "echo"]);
        assert_eq!(types.prefix(b"sum"), Prefix::Open);
        assert_eq!(types.prefix(b"sumall"), Prefix::Complete(1));
        assert_eq!(types.prefix(b"echo"), Prefix::Complete(3));
        assert_eq!(types.prefix(b"ech"), Prefix::Open);
        assert_eq!(types.prefix(b"suivi e"), Prefix::WaitsForNewline);
        assert_eq!(types.find(b"sum"), Some(0));
    }

    #[test]
    fn a_refusal_is_one_printable_line() {
        let types = Types::new(["a", "b"]);
        let refusal = Refusal::Unknown { asked: b"x\n\xff\"", types: &types };
        assert_eq!(refusal.to_string(), r#"unknown request type "x\n\xff\""; known: a, b"#);
        let long = Refusal::Unknown { asked: &[0; 200], types: &types };
        assert!(long.to_string().len() < 400);
    }
}
