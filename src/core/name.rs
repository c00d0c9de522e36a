//! The names of supervised processes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::job::Incarnation;

/// What a supervised process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Gives jobs to secondaries.
    Principal,
    /// Serves jobs.
    Secondary,
    /// Shows people and programs what all of them are doing.
    Observer,
}

impl Role {
    /// `principal`, `secondary` or `observer`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Secondary => "secondary",
            Self::Observer => "observer",
        }
    }
}

/// Names one process of the tree, for ever: no successor has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// What it is for.
    pub role: Role,
    /// 0 for the principal and the observer; secondaries count from 1.
    pub slot: u16,
    /// Which process in that slot.
    pub incarnation: Incarnation,
}

impl Name {
    /// The name of a principal.
    #[must_use]
    pub fn principal(incarnation: Incarnation) -> Self {
        Self { role: Role::Principal, slot: 0, incarnation }
    }

    /// The name of a secondary; slots count from 1.
    #[must_use]
    pub fn secondary(slot: u16, incarnation: Incarnation) -> Self {
        Self { role: Role::Secondary, slot, incarnation }
    }

    /// The name of an observer.
    #[must_use]
    pub fn observer(incarnation: Incarnation) -> Self {
        Self { role: Role::Observer, slot: 0, incarnation }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Principal => write!(f, "principal.{}", self.incarnation),
            Role::Observer => write!(f, "observer.{}", self.incarnation),
            Role::Secondary => write!(f, "secondary {}.{}", self.slot, self.incarnation),
        }
    }
}
