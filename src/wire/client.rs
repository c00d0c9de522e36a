//! The words of the control connection: request types, and the answers to them.
//!
//! `docs/protocol.md` tells the whole protocol; the state machine that speaks it is
//! [`crate::core::conversation`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

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

/// What stands before the type in the requests that are lines only.
const TRACK: &[u8] = b"suivi ";
const ADDRESS: &[u8] = b"adresse ";

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
        Self::of(names.into_iter().enumerate())
    }

    /// Types with these indices; others, which are not offered any more, may have those between.
    #[must_use]
    pub fn of<'a>(types: impl IntoIterator<Item = (TypeIndex, &'a str)>) -> Self {
        let mut sorted: Vec<(String, TypeIndex)> =
            types.into_iter().map(|(index, name)| (name.to_owned(), index)).collect();
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
        if bytes.starts_with(TRACK) || bytes.starts_with(ADDRESS) {
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

/// What a client wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// `TYPE`: the port.
    Port,
    /// `suivi TYPE`: the port and a jeton, then what becomes of the job.
    Tracked,
    /// `adresse TYPE`: host and port.
    Address,
}

/// A request for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Of which type.
    pub kind: TypeIndex,
    /// How it is to be answered.
    pub form: Form,
}

/// Understands a complete request, its line ending removed.
///
/// # Errors
/// The name, where no type has it.
pub fn parse_request<'a>(request: &'a [u8], types: &Types) -> Result<Request, &'a [u8]> {
    let (form, name) = if let Some(name) = request.strip_prefix(TRACK) {
        (Form::Tracked, name)
    } else if let Some(name) = request.strip_prefix(ADDRESS) {
        (Form::Address, name)
    } else {
        (Form::Port, request)
    };
    types.find(name).map(|kind| Request { kind, form }).ok_or(name)
}

/// Where secondaries are reached, as `adresse` tells it: a name or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name that clients look up.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Reads a host without a port: a name of letters, digits, `-` and `.`, or an address (IPv6
    /// with or without brackets).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Some(Self::Address(address));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        (text.len() <= 253 && text.split('.').all(is_label)).then(|| Self::Name(text.to_owned()))
    }

    /// This host with a port: `HOST:PORT`, IPv6 in brackets.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        match self {
            Self::Name(name) => format!("{name}:{port}"),
            Self::Address(address) => SocketAddr::new(*address, port).to_string(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
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
    /// Longer than [`MAX_REQUEST_BYTES`].
    TooLong,
    /// A line that was begun had no newline after that time.
    Incomplete(Duration),
    /// That many connections come from the client's address already.
    TooManyConnections(usize),
    /// All places are taken, and none of them goes for another connection of that address.
    NoPlace,
    /// Every secondary has `max_jobs` open jobs.
    AllFull,
    /// Its network has so many open jobs that what is left is for others.
    OverShare,
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
            Self::TooLong => write!(f, "request too long: the limit is {MAX_REQUEST_BYTES} bytes"),
            Self::Incomplete(within) => write!(f, "request incomplete: no newline within {within:?}"),
            Self::TooManyConnections(most) => {
                write!(f, "busy: more than {most} connections from your address")
            }
            Self::NoPlace => f.write_str("busy: no place for another connection from your address"),
            Self::AllFull => f.write_str("busy: every secondary has as many jobs as it may have"),
            Self::OverShare => {
                f.write_str("busy: your address has its share of open jobs; the rest is for others")
            }
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
    fn a_request_names_its_type_and_how_it_is_to_be_answered() {
        let types = Types::new(["a", "b"]);
        let request = |form| Ok(Request { kind: 1, form });
        assert_eq!(parse_request(b"b", &types), request(Form::Port));
        assert_eq!(parse_request(b"suivi b", &types), request(Form::Tracked));
        assert_eq!(parse_request(b"adresse b", &types), request(Form::Address));
        assert_eq!(parse_request(b"suivi  b", &types), Err(&b" b"[..]));
        assert_eq!(parse_request(b"suivi", &types), Err(&b"suivi"[..]));
        assert_eq!(parse_request(b"b ", &types), Err(&b"b "[..]));
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for (text, with_port) in [
            ("work.example.org", "work.example.org:9"),
            ("192.0.2.1", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:9"),
            ("[2001:db8::1]", "[2001:db8::1]:9"),
        ] {
            assert_eq!(Host::parse(text).unwrap().with_port(9), with_port);
        }
        for text in ["", "a b", "a:1", "a..b", "[a]", "é", &"x".repeat(64)] {
            assert_eq!(Host::parse(text), None, "{text:?}");
        }
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
