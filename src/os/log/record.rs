//! Records as lines.

use std::fmt::Display;
use std::time::UNIX_EPOCH;

use humantime_serde::re::humantime::format_rfc3339_millis;
use log::kv::{Error, Key, Value, VisitSource, VisitValue};

use crate::os::clock;
use crate::os::log::{ACCESS, OBITUARY};
use crate::wire::logline::{self, Format, Object, Speaker, Text};

/// The line of a record. For programs its fields are members of an object.
pub fn line_of(record: &log::Record<'_>, speaker: &Speaker, format: Format) -> Text {
    let time = format_rfc3339_millis(UNIX_EPOCH + clock::unix_time());
    let (level, message) = (record.level(), record.args());
    if format == Format::Human {
        return logline::human(&time, level.as_str(), speaker, message);
    }
    let mut object = Object::begin(&time, name_of(level), speaker);
    let name = match record.target() {
        ACCESS => Some("access"),
        OBITUARY => Some("obituary"),
        _ => None,
    };
    let fields = record.key_values();
    if fields.count() > 0 {
        object.record(name.unwrap_or("fields"), |object| {
            // A field that cannot be told is left out.
            let _ = fields.visit(&mut Members(object));
        });
    }
    // There may be many of these, and all that the text says stands in the fields.
    let message = if record.target() == ACCESS { &"access" as &dyn Display } else { message };
    object.end(message)
}

/// A level as programs, and `osps log`, name it.
fn name_of(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

/// A line of the log about itself.
pub struct Notice<'a> {
    /// How bad it is.
    pub level: log::Level,
    /// So many of something.
    pub number: Option<(&'static str, u64)>,
    /// In words.
    pub message: &'a dyn Display,
}

impl Notice<'_> {
    /// Its line.
    pub fn line(&self, speaker: &Speaker, format: Format) -> Text {
        let time = format_rfc3339_millis(UNIX_EPOCH + clock::unix_time());
        let &Self { level, number, message } = self;
        if format == Format::Human {
            return logline::human(&time, level.as_str(), speaker, message);
        }
        let mut object = Object::begin(&time, name_of(level), speaker);
        if let Some((what, number)) = number {
            object.number(what, &number);
        }
        object.end(message)
    }
}

/// Writes fields of a record as members of an object.
struct Members<'a>(&'a mut Object);

impl<'kvs> VisitSource<'kvs> for Members<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        value.visit(Member(self.0, key.as_str()))
    }
}

struct Member<'a>(&'a mut Object, &'a str);

impl<'v> VisitValue<'v> for Member<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.0.text(self.1, &value);
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.0.number(self.1, &value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.0.number(self.1, &value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), Error> {
        if value.is_finite() {
            self.0.number(self.1, &value);
        }
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.0.number(self.1, &value);
        Ok(())
    }
}
