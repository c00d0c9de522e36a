//! Where data ports come from.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Error, Expected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::LAST_LOW_PORT;

/// Where data ports come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataPorts {
    /// `"2223-2999"`: the first free ones of a range.
    Range(RangeInclusive<u16>),
    /// `"0"`: whatever the kernel gives.
    Kernel,
}

impl fmt::Display for DataPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => write!(f, "{}-{}", range.start(), range.end()),
            Self::Kernel => f.write_str("0"),
        }
    }
}

impl Serialize for DataPorts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DataPorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Ports)
    }
}

struct Ports;

impl Visitor<'_> for Ports {
    type Value = DataPorts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a range of ports above {LAST_LOW_PORT}, lowest first, such as \"2223-2999\", or \"0\" to let the kernel choose"
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<DataPorts, E> {
        if text == "0" {
            return Ok(DataPorts::Kernel);
        }
        let bounds = text.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
        });
        match bounds {
            Some((first, last)) if first > LAST_LOW_PORT && first <= last => {
                Ok(DataPorts::Range(first..=last))
            }
            _ => Err(E::custom(format_args!("must be {}", &self as &dyn Expected))),
        }
    }
}
