//! What happened, as a list that costs nothing until somebody reads it.

use std::fmt;

use osps::core::moment::Moment;
use osps::core::tree::Action;

use crate::world::{Event, Sight};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It happened in the world.
    World(Event),
    /// The core was told.
    Told(Sight),
    /// The core asked for it.
    Did(Action),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace(Vec<(Moment, Note)>);

impl Trace {
    pub fn note(&mut self, now: Moment, note: Note) {
        self.0.push((now, note));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The last so many lines.
    pub fn tail(&self, lines: usize) -> Self {
        Self(self.0[self.0.len().saturating_sub(lines)..].to_vec())
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (now, note) in &self.0 {
            match note {
                Note::World(event) => writeln!(f, "{now}         {event:?}")?,
                Note::Told(sight) => writeln!(f, "{now}   told  {sight:?}")?,
                Note::Did(Action::To(name, act)) => writeln!(f, "{now}     did {name}: {act:?}")?,
                Note::Did(action) => writeln!(f, "{now}     did {action:?}")?,
            }
        }
        Ok(())
    }
}
