//! A line of the log, for people or for programs; never longer than one write to a pipe keeps whole.
//!
//! For people: `2026-01-31T12:00:00.000Z WARN  secondary 2.7[4711]: what it says`. For programs: one JSON object.
//! Where there is no room for all, texts are cut, and an object stays one.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Serialize};

use crate::core::name::Name;

/// One write is atomic up to this length on a pipe (pipe(7)), in bytes with the newline.
pub const LONGEST_LINE: usize = 4096;
/// What stands where something was cut.
const CUT: &str = "...";
/// Of a field of a record; the message may have all the room that is left.
const LONGEST_FIELD: usize = 1024;
/// `,"message":"` and `..."}` and the newline: an object has room for them from the start.
const MESSAGE_BYTES: usize = 18;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// For whom lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// For programs: JSON, an object a line.
    Json,
}

impl Format {
    /// All of them, by their names.
    pub const ALL: [(Self, &str); 2] = [(Self::Human, "human"), (Self::Json, "json")];

    /// The format of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|&(format, _)| format)
    }
}

/// What a configuration says of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Logging {
    /// For whom.
    #[serde(rename = "log_format")]
    pub format: Format,
    /// Whether there is a record of each job that has ended.
    #[serde(rename = "access_log")]
    pub access: bool,
}

impl Logging {
    /// In a byte of memory, never zero: bit 0 is set, bit 1 for JSON, bit 2 for records of jobs.
    #[must_use]
    pub fn pack(self) -> u8 {
        1 | u8::from(self.format == Format::Json) << 1 | u8::from(self.access) << 2
    }

    /// What a byte says; `None`: nothing.
    #[must_use]
    pub fn unpack(byte: u8) -> Option<Self> {
        let format = if byte & 2 == 0 { Format::Human } else { Format::Json };
        (byte & 1 != 0).then_some(Self { format, access: byte & 4 != 0 })
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// `None`: the watchdog.
    pub name: Option<Name>,
    /// Its pid.
    pub pid: u32,
}

impl Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "{name}[{}]", self.pid),
            None => write!(f, "watchdog[{}]", self.pid),
        }
    }
}

/// Text with an end: what goes beyond is left out.
pub struct Text {
    bytes: [u8; LONGEST_LINE],
    length: usize,
    limit: usize,
    is_cut: bool,
}

impl Text {
    /// With room for so many bytes, at most [`LONGEST_LINE`].
    #[must_use]
    pub fn with_room(limit: usize) -> Self {
        Self { bytes: [0; LONGEST_LINE], length: 0, limit: limit.min(LONGEST_LINE), is_cut: false }
    }

    /// What has found room.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The same.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// All of a piece, or nothing of it, and nothing more.
    fn push(&mut self, piece: &[u8]) {
        let end = self.length + piece.len();
        self.is_cut |= end > self.limit;
        if !self.is_cut {
            self.bytes[self.length..end].copy_from_slice(piece);
            self.length = end;
        }
    }

    /// As [`Text::push`], where it is known that there is room: it was kept.
    fn push_kept(&mut self, piece: &str) {
        self.limit += piece.len();
        (self.is_cut, self.limit) = (false, self.limit.min(LONGEST_LINE));
        self.push(piece.as_bytes());
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.limit - self.length;
        if text.len() <= room || self.is_cut {
            self.push(text.as_bytes());
        } else {
            self.push(&text.as_bytes()[..text.floor_char_boundary(room)]);
            self.is_cut = true;
        }
        Ok(())
    }
}

/// A line for people, with its newline.
#[must_use]
pub fn human(time: &dyn Display, level: &str, speaker: &Speaker, message: &dyn Display) -> Text {
    let mut line = Text::with_room(LONGEST_LINE - CUT.len() - 1);
    // A text has room for all, or cuts it: it never fails.
    let _ = write!(line, "{time} {level:<5} {speaker}: {message}");
    let is_cut = line.is_cut;
    line.push_kept(if is_cut { CUT } else { "" });
    line.push_kept("\n");
    line
}

/// A line for programs: an object, to which members are added before its message closes it.
pub struct Object {
    line: Text,
    is_empty: bool,
}

impl Object {
    /// An object with who says something, when, and at which level.
    #[must_use]
    pub fn begin(time: &dyn Display, level: &str, speaker: &Speaker) -> Self {
        let mut object = Self { line: Text::with_room(LONGEST_LINE - MESSAGE_BYTES), is_empty: true };
        object.line.push(b"{");
        object.text("time", time);
        object.text("level", &level);
        object.text("role", &speaker.name.map_or("watchdog", |name| name.role.as_str()));
        if let Some(Name { slot, incarnation, .. }) = speaker.name {
            if slot != 0 {
                object.number("slot", &slot);
            }
            object.number("incarnation", &incarnation);
        }
        object.number("pid", &speaker.pid);
        object
    }

    /// Adds a text.
    pub fn text(&mut self, key: &str, value: &dyn Display) {
        let room = self.line.limit;
        // For what closes it.
        self.line.limit = room.saturating_sub(CUT.len() + 1);
        if self.key(key, "\"") {
            self.line.limit = self.line.limit.min(self.line.length + LONGEST_FIELD);
            self.escaped(value);
            self.line.limit = room;
            self.line.push(b"\"");
        }
        self.line.limit = room;
    }

    /// Adds a number, or `true` or `false`.
    pub fn number(&mut self, key: &str, value: &dyn Display) {
        let (before, was_empty) = (self.line.length, self.is_empty);
        if self.key(key, "") {
            let _ = write!(self.line, "{value}");
            if std::mem::take(&mut self.line.is_cut) {
                (self.line.length, self.is_empty) = (before, was_empty);
            }
        }
    }

    /// Adds an object of that name.
    pub fn record(&mut self, key: &str, fill: impl FnOnce(&mut Self)) {
        // For what closes it.
        self.line.limit -= 1;
        if self.key(key, "{") {
            self.is_empty = true;
            fill(self);
            self.line.push_kept("}");
            self.is_empty = false;
        } else {
            self.line.limit += 1;
        }
    }

    /// Adds the message, and ends object and line.
    #[must_use]
    pub fn end(mut self, message: &dyn Display) -> Text {
        self.line.limit = LONGEST_LINE - CUT.len() - 3;
        if self.key("message", "\"") {
            self.escaped(message);
            self.line.push_kept("\"");
        }
        self.line.push_kept("}");
        self.line.push_kept("\n");
        self.line
    }

    /// Begins a member. Returns whether there was room; if not, nothing has begun.
    fn key(&mut self, key: &str, opening: &str) -> bool {
        let before = self.line.length;
        let comma = if self.is_empty { "" } else { "," };
        for piece in [comma, "\"", key, "\":", opening] {
            self.line.push(piece.as_bytes());
        }
        if std::mem::take(&mut self.line.is_cut) {
            self.line.length = before;
            return false;
        }
        self.is_empty = false;
        true
    }

    /// Writes a text as it stands in a JSON string (RFC 8259), as much of it as there is room for; marks a cut.
    fn escaped(&mut self, text: &dyn Display) {
        let _ = write!(Escaped(&mut self.line), "{text}");
        if std::mem::take(&mut self.line.is_cut) {
            self.line.push_kept(CUT);
        }
    }
}

/// Escapes what a JSON string may not have, and all that a terminal might obey.
struct Escaped<'a>(&'a mut Text);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|letter: char| matches!(letter, '"' | '\\') || letter.is_control()) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            let letter = from.chars().next().unwrap_or_default();
            self.escape(letter);
            rest = &from[letter.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

impl Escaped<'_> {
    fn escape(&mut self, letter: char) {
        match letter {
            '"' => self.0.push(b"\\\""),
            '\\' => self.0.push(b"\\\\"),
            '\n' => self.0.push(b"\\n"),
            '\t' => self.0.push(b"\\t"),
            other => {
                // No control character is beyond U+009F.
                let code = u8::try_from(other).unwrap_or_default();
                let [high, low] = [code >> 4, code & 0xf].map(|digit| HEX[usize::from(digit)]);
                self.0.push(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn speaker() -> Speaker {
        Speaker { name: Some(Name::secondary(2, 7)), pid: 4711 }
    }

    fn parsed(line: &Text) -> Value {
        let bytes = line.as_bytes();
        assert!(bytes.len() <= LONGEST_LINE && bytes.ends_with(b"}\n"), "{} bytes", bytes.len());
        assert_eq!(bytes.iter().filter(|byte| byte.is_ascii_control()).count(), 1, "one newline");
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn a_line_for_people_ends_with_its_newline_also_where_it_is_cut() {
        let line = human(&"now", "WARN", &speaker(), &"é says\nit");
        assert_eq!(line.as_bytes(), "now WARN  secondary 2.7[4711]: é says\nit\n".as_bytes());
        let watchdog = Speaker { name: None, pid: 1 };
        for length in [4000, 4066, 4067, 4068, 4069, 4070, 9000] {
            let said = "é".repeat(length / 2);
            let line = human(&"now", "ERROR", &watchdog, &said);
            let (text, all) =
                (std::str::from_utf8(line.as_bytes()).unwrap(), format!("now ERROR watchdog[1]: {said}\n"));
            assert!(text.len() <= LONGEST_LINE);
            let begins =
                text.strip_suffix("...\n").is_some_and(|begin| all.starts_with(begin) && all.len() > 4090);
            assert!(text == all || begins, "{length}");
        }
    }

    #[test]
    fn what_is_said_of_the_log_stands_in_a_byte() {
        for (format, access) in [(0, false), (0, true), (1, false), (1, true)] {
            let logging = Logging { format: Format::ALL[format].0, access };
            assert_eq!(Logging::unpack(logging.pack()), Some(logging));
        }
        assert_eq!(Logging::unpack(0), None);
    }

    #[test]
    fn an_object_has_who_when_what_and_the_fields_of_its_record() {
        let mut object = Object::begin(&"now", "warn", &speaker());
        object.record("access", |object| {
            object.text("type", &"echo");
            object.number("wait_ms", &0.25);
        });
        let found = parsed(&object.end(&"it \"says\"\n\u{1b}[2J\u{85}é"));
        let wanted = serde_json::json!({
            "time": "now", "level": "warn", "role": "secondary", "slot": 2, "incarnation": 7, "pid": 4711,
            "access": {"type": "echo", "wait_ms": 0.25}, "message": "it \"says\"\n\u{1b}[2J\u{85}é",
        });
        assert_eq!(found, wanted);
        let of = |name| parsed(&Object::begin(&"now", "info", &Speaker { name, pid: 1 }).end(&""));
        assert_eq!((&of(None)["role"], &of(None)["slot"]), (&"watchdog".into(), &Value::Null));
        let principal = of(Some(Name::principal(3)));
        assert_eq!((&principal["role"], &principal["slot"]), (&"principal".into(), &Value::Null));
        assert_eq!(principal["incarnation"], 3);
    }

    #[test]
    fn where_there_is_no_room_a_field_is_left_out_and_the_message_stays() {
        let mut object = Object::begin(&"now", "info", &speaker());
        object.record("fields", |object| {
            for number in 0..100 {
                object.text(&format!("text{number}"), &"\u{0}".repeat(100));
                object.number(&format!("number{number}"), &number);
            }
        });
        let found = parsed(&object.end(&"\"".repeat(9000)));
        let fields = found["fields"].as_object().unwrap();
        assert!(fields.len() < 30 && fields["number0"] == 0, "{found}");
        assert!(found["message"].as_str().unwrap().ends_with("..."), "{found}");
    }

    proptest! {
        #[test]
        fn whatever_is_said_a_line_is_an_object_that_says_it_or_its_beginning(
            message: String, times in 1usize..200, field: String, number: u64,
        ) {
            let message = message.repeat(times);
            let mut object = Object::begin(&"now", "info", &speaker());
            object.record("fields", |object| {
                object.text("first", &field);
                object.number("second", &number);
            });
            let found = parsed(&object.end(&message));
            let said = found["message"].as_str().unwrap();
            let is_cut = said.strip_suffix("...").is_some_and(|said| message.starts_with(said) && message.len() > 300);
            prop_assert!(said == message || is_cut, "{}", said);
            prop_assert_eq!(&found["fields"]["second"], &Value::from(number));
            prop_assert!(found["fields"]["first"] == field.as_str() || field.len() > 100);
        }
    }
}
