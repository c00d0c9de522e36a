//! Where the principal listens, and with it on which hosts the data ports are bound.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::de::{Error, Expected, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What an address in a configuration may look like.
const ADDRESS: &str = "an address such as \"127.0.0.1:2222\", \"[::]:2222\" or \"unix:/run/osps/principal\"";
/// What the path of a Unix socket begins with.
const UNIX: &str = "unix:";

/// One control listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `IP:PORT` or `[IPv6]:PORT`; port 0: whatever the kernel gives.
    Tcp(SocketAddr),
    /// `unix:/path`
    Unix(PathBuf),
}

impl Address {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(UNIX) {
            Some(path) => Some(Self::Unix(PathBuf::from(path))),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    /// Whether not both can be bound.
    pub(crate) fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => covers_port(*one, *other) || covers_port(*other, *one),
            (Self::Unix(one), Self::Unix(other)) => one == other,
            (Self::Tcp(_), Self::Unix(_)) | (Self::Unix(_), Self::Tcp(_)) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// One address, or a list of them.
#[derive(Clone, Debug, Eq)]
pub struct Listen {
    addresses: Vec<Address>,
    /// Whoever wrote the configuration says so.
    is_given: bool,
}

impl PartialEq for Listen {
    fn eq(&self, other: &Self) -> bool {
        self.addresses == other.addresses
    }
}

impl Listen {
    /// The addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Those of sockets that are there already.
    pub(super) fn passed(addresses: &[Address]) -> Self {
        Self { addresses: addresses.to_vec(), is_given: false }
    }

    /// Sockets of these addresses are there already: they are the addresses, unless the configuration has some.
    ///
    /// # Errors
    /// The first that is not among those of the configuration.
    pub(super) fn adopt<'a>(&mut self, passed: &'a [Address]) -> Result<(), &'a Address> {
        if self.is_given {
            return passed.iter().find(|address| !self.addresses.contains(address)).map_or(Ok(()), Err);
        }
        if !passed.is_empty() {
            *self = Self::passed(passed);
        }
        Ok(())
    }

    /// Those that are no paths.
    pub fn tcp(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().filter_map(|address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        })
    }

    /// The hosts on which every data port is bound, each with port 0: those of the addresses, each
    /// once; "any address" of a family stands for all of that family, for they would be in its way.
    #[must_use]
    pub fn hosts(&self) -> Vec<SocketAddr> {
        let mut hosts: Vec<SocketAddr> = Vec::new();
        for mut host in self.tcp() {
            host.set_port(0);
            if !hosts.iter().any(|other| covers(*other, host)) {
                hosts.retain(|other| !covers(host, *other));
                hosts.push(host);
            }
        }
        hosts
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self { addresses: vec![Address::Tcp(address)], is_given: false }
    }
}

/// Whether whoever is bound to `one` takes what is for `other`, their ports apart.
pub(super) fn covers(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() && one.is_ipv4() == other.is_ipv4();
    any || (one.ip(), scope(one)) == (other.ip(), scope(other))
}

/// Whether whoever is bound to `one` takes what is for `other`.
pub(super) fn covers_port(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && other.port() != 0 && covers(one, other)
}

/// On which interface a link-local address is meant.
fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

/// IPv4 written as IPv6: no socket that is for IPv6 only can be bound to it.
pub(super) fn is_mapped(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.addresses.as_slice() {
            [one] => serializer.collect_str(one),
            all => serializer.collect_seq(all.iter().map(ToString::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Addresses)
    }
}

struct Addresses;

impl<'de> Visitor<'de> for Addresses {
    type Value = Listen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ADDRESS}, or a list of such addresses")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Listen, E> {
        let wrong = || E::custom(format_args!("must be {}", &self as &dyn Expected));
        Ok(Listen { addresses: vec![Address::parse(text).ok_or_else(wrong)?], is_given: true })
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Listen, E> {
        Err(E::invalid_type(Unexpected::Signed(number), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Listen, A::Error> {
        let mut addresses = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            // The list may be longer than the line that an error shows.
            let wrong = || A::Error::custom(format_args!("\"{text}\" must be {ADDRESS}"));
            addresses.push(Address::parse(&text).ok_or_else(wrong)?);
        }
        Ok(Listen { addresses, is_given: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(addresses: &[&str]) -> Listen {
        let addresses = addresses.iter().map(|text| Address::parse(text).unwrap()).collect();
        Listen { addresses, is_given: true }
    }

    #[test]
    fn data_ports_are_bound_once_where_all_addresses_are_reached() {
        for (addresses, hosts) in [
            (&["127.0.0.1:2222", "unix:/x"][..], &["127.0.0.1:0"][..]),
            (&["unix:/x", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:3"], &["127.0.0.1:0", "127.0.0.2:0"]),
            (&["127.0.0.1:1", "[::1]:1", "0.0.0.0:2"], &["[::1]:0", "0.0.0.0:0"]),
            (&["[::]:1", "[::1]:2", "192.0.2.1:1"], &["[::]:0", "192.0.2.1:0"]),
            (&["[fe80::1%2]:1", "[fe80::1%3]:1"], &["[fe80::1%2]:0", "[fe80::1%3]:0"]),
        ] {
            let bound: Vec<String> = listen(addresses).hosts().iter().map(ToString::to_string).collect();
            assert_eq!(bound, hosts, "{addresses:?}");
        }
    }

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in ["127.0.0.1:2222", "[::1]:0", "unix:/run/osps/principal"] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "localhost:1", "127.0.0.1", "::1:2222", "/run/x", "unix"] {
            assert_eq!(Address::parse(text), None, "{text:?}");
        }
    }
}
