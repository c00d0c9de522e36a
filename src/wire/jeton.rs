//! The jeton: the secret by which a tracked job is claimed and followed.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// 128 bits from the kernel's random source, written as 32 hex digits.
///
/// Comparing two takes the same time wherever they differ, so that nobody finds one out
/// digit by digit. They are looked up by their first 32 bits ([`Jeton::selector`]), which
/// timing may give away; the other 96 are only ever compared.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Jeton([u8; Self::BYTES]);

impl Jeton {
    /// Its length in memory.
    pub const BYTES: usize = 16;
    /// Its length in text.
    pub const DIGITS: usize = 2 * Self::BYTES;

    /// A jeton of these random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// As two words of shared memory; both are zero where there is none.
    #[must_use]
    pub fn from_words(words: [u64; 2]) -> Option<Self> {
        let [first, second] = words.map(u64::to_be_bytes);
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
        (words != [0, 0]).then_some(Self(bytes))
    }

    /// The words that [`Jeton::from_words`] takes.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        let all = u128::from_be_bytes(self.0);
        [all >> 64, all & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0))
    }

    /// The part by which it is looked up.
    #[must_use]
    pub fn selector(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// Understands 32 hex digits of either case.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; Self::DIGITS] = text.try_into().ok()?;
        let mut bytes = [0; Self::BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

impl PartialEq for Jeton {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Jeton {}

impl fmt::Display for Jeton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Logs must not give it away.
impl fmt::Debug for Jeton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jeton(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: [u8; 16]) {
            let jeton = Jeton::from_bytes(bytes);
            let text = jeton.to_string();
            prop_assert_eq!(text.len(), Jeton::DIGITS);
            prop_assert_eq!(Jeton::parse(text.as_bytes()), Some(jeton));
            prop_assert_eq!(Jeton::parse(text.to_uppercase().as_bytes()), Some(jeton));
            prop_assert_eq!(Jeton::from_words(jeton.words()), (bytes != [0; 16]).then_some(jeton));
        }

        #[test]
        fn garbage_is_no_jeton(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let hex = text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit);
            prop_assert_eq!(Jeton::parse(&text).is_some(), hex);
        }
    }

    #[test]
    fn it_is_not_shown_by_mistake() {
        assert_eq!(format!("{:?}", Jeton::from_bytes([7; 16])), "Jeton(..)");
    }
}
