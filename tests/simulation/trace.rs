//! What happened, in words; costs nothing where nobody wants to read it.

use std::fmt;

use osps::core::moment::Moment;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Nobody listens where this is false.
    on: bool,
    lines: Vec<(Moment, String)>,
}

impl Trace {
    pub fn new(on: bool) -> Self {
        Self { on, lines: Vec::new() }
    }

    pub fn note(&mut self, now: Moment, words: impl FnOnce() -> String) {
        if self.on {
            self.lines.push((now, words()));
        }
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// The last so many lines.
    pub fn tail(&self, lines: usize) -> Self {
        Self { on: self.on, lines: self.lines[self.lines.len().saturating_sub(lines)..].to_vec() }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (now, words) in &self.lines {
            writeln!(f, "{now} {words}")?;
        }
        Ok(())
    }
}
