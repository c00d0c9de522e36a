//! What a terminal sends when keys are pressed.
//!
//! A key is a byte, or a sequence that begins with ESC (ECMA-48, section 5.4; `xterm`'s ctlseqs). Whether an ESC is
//! the key of that name or the beginning of a sequence, only time tells: over a network a sequence may arrive in
//! pieces.
//!
//! The reader of crossterm 0.29 waits for the rest of a sequence however long that takes, and reads for ever where
//! the terminal is gone; signals, and what is to be shown, cannot wait for it.

/// A key that was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable character of ASCII.
    Char(char),
    /// With the control key, as the lower-case letter.
    Control(char),
    /// Enter.
    Enter,
    /// Esc.
    Escape,
    /// Backspace.
    Backspace,
    /// An arrow.
    Up,
    /// An arrow.
    Down,
    /// An arrow.
    Left,
    /// An arrow.
    Right,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Home.
    Home,
    /// End.
    End,
}

const ESC: u8 = 0x1b;
/// No sequence is longer: what is, is garbage.
const LONGEST: usize = 32;

/// Turns bytes into keys.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a sequence.
    pending: Vec<u8>,
}

impl Decoder {
    /// Takes the next byte; what is no key that anybody waits for is nothing.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        if self.pending.is_empty() && byte != ESC {
            return plain(byte);
        }
        self.pending.push(byte);
        let sequence = self.pending.as_slice();
        let is_complete = match sequence {
            [ESC] | [ESC, b'[' | b'O'] => false,
            // The key, then the beginning of something else.
            [ESC, ESC] => {
                self.pending.pop();
                return Some(Key::Escape);
            }
            [ESC, b'[', .., last] => (0x40..=0x7e).contains(last),
            _ => true,
        };
        if !is_complete && sequence.len() < LONGEST {
            return None;
        }
        let key = special(sequence);
        self.pending.clear();
        key
    }

    /// Whether more bytes may decide what the last ones were.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing more has come in time.
    pub fn give_up(&mut self) -> Option<Key> {
        let was = std::mem::take(&mut self.pending);
        (was == [ESC]).then_some(Key::Escape)
    }
}

fn plain(byte: u8) -> Option<Key> {
    match byte {
        b'\r' | b'\n' => Some(Key::Enter),
        0x7f | 0x08 => Some(Key::Backspace),
        0x01..=0x1a => Some(Key::Control(char::from(byte - 1 + b'a'))),
        b' '..=b'~' => Some(Key::Char(char::from(byte))),
        _ => None,
    }
}

fn special(sequence: &[u8]) -> Option<Key> {
    let (parameter, last) = match sequence {
        [ESC, b'O', last] => (&[][..], *last),
        [ESC, b'[', parameters @ .., last] => {
            // What follows the first says which other keys were held down.
            (parameters.split(|&byte| byte == b';').next().unwrap_or_default(), *last)
        }
        _ => return None,
    };
    match (last, parameter) {
        (b'A', _) => Some(Key::Up),
        (b'B', _) => Some(Key::Down),
        (b'C', _) => Some(Key::Right),
        (b'D', _) => Some(Key::Left),
        (b'H', _) | (b'~', b"1" | b"7") => Some(Key::Home),
        (b'F', _) | (b'~', b"4" | b"8") => Some(Key::End),
        (b'~', b"5") => Some(Key::PageUp),
        (b'~', b"6") => Some(Key::PageDown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::default();
        let mut keys: Vec<Key> = bytes.iter().filter_map(|&byte| decoder.feed(byte)).collect();
        keys.extend(decoder.give_up());
        keys
    }

    #[test]
    fn plain_keys_and_those_with_control() {
        use Key::{Backspace, Char, Control, Enter};
        assert_eq!(
            keys(b"q/\r\x7f\x03\x1a"),
            [Char('q'), Char('/'), Enter, Backspace, Control('c'), Control('z')]
        );
        assert_eq!(keys("é\0q".as_bytes()), [Char('q')], "what nobody waits for is nothing");
    }

    #[test]
    fn the_keys_that_move_have_several_sequences() {
        use Key::{Down, End, Home, PageDown, PageUp, Up};
        assert_eq!(keys(b"\x1b[A\x1bOB\x1b[5~\x1b[6~"), [Up, Down, PageUp, PageDown]);
        assert_eq!(keys(b"\x1b[H\x1b[1~\x1bOF\x1b[4~"), [Home, Home, End, End]);
        assert_eq!(keys(b"\x1b[1;5A\x1b[5;2~"), [Up, PageUp], "with shift or control they are the same");
    }

    #[test]
    fn esc_is_a_key_when_nothing_follows() {
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        assert_eq!(keys(b"\x1b\x1b[A"), [Key::Escape, Key::Up]);
        let mut decoder = Decoder::default();
        assert_eq!((decoder.feed(0x1b), decoder.is_undecided()), (None, true));
        assert_eq!((decoder.feed(b'['), decoder.feed(b'A')), (None, Some(Key::Up)), "in pieces, too");
        assert!(!decoder.is_undecided());
    }

    #[test]
    fn other_sequences_are_passed_over_whole() {
        assert_eq!(keys(b"\x1b[<35;10;12Mq"), [Key::Char('q')], "a mouse");
        assert_eq!(keys(b"\x1b[200~q"), [Key::Char('q')], "a paste");
        assert_eq!(keys(b"\x1bx\x1b[15~q"), [Key::Char('q')], "Alt and a letter, F5");
        assert_eq!(keys(b"\x1b["), [], "a beginning to which nothing comes");
    }

    proptest! {
        #[test]
        fn garbage_is_never_kept_for_long(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            for byte in bytes {
                decoder.feed(byte);
                prop_assert!(decoder.pending.len() < LONGEST);
            }
            let _ = (0..LONGEST).map(|_| decoder.feed(b'x')).last();
            prop_assert_eq!(decoder.feed(b'q'), Some(Key::Char('q')));
        }
    }
}
