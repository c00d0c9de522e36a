//! Lines, put together from input that comes in pieces.

/// Takes input as it comes and gives lines, for [`Session::on_input`](crate::handler::Session::on_input).
///
/// ```
/// use osps::handler::Lines;
///
/// let mut lines = Lines::default();
/// lines.add(b"one\r\ntw");
/// assert_eq!(lines.next().as_deref(), Some("one"));
/// assert_eq!(lines.next(), None);
/// lines.add(b"o\n");
/// assert_eq!(lines.next().as_deref(), Some("two"));
/// ```
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// What comes before was given already.
    begin: usize,
    /// What comes between `begin` and here holds no newline.
    seen: usize,
}

impl Lines {
    /// A longer line is given in pieces of this length: nobody can make a server keep more.
    pub const LONGEST: usize = 64 * 1024;

    /// Adds what has come.
    pub fn add(&mut self, input: &[u8]) {
        self.bytes.drain(..self.begin);
        self.seen -= self.begin;
        self.begin = 0;
        self.bytes.extend_from_slice(input);
    }

    /// The unfinished line at the end, if there is one: for
    /// [`Session::on_end`](crate::handler::Session::on_end).
    pub fn rest(&mut self) -> Option<String> {
        let rest = &self.bytes[self.begin..];
        let line = (!rest.is_empty()).then(|| String::from_utf8_lossy(rest).into_owned());
        *self = Self::default();
        line
    }
}

impl Iterator for Lines {
    type Item = String;

    /// The next whole line, without its ending. What is no UTF-8 is replaced.
    fn next(&mut self) -> Option<String> {
        let newline = self.bytes[self.seen..].iter().position(|&byte| byte == b'\n');
        let end = newline.map(|newline| self.seen + newline);
        let (end, next) = match end {
            Some(end) if end - self.begin <= Self::LONGEST => (end, end + 1),
            _ if self.bytes.len() - self.begin > Self::LONGEST => {
                (self.begin + Self::LONGEST, self.begin + Self::LONGEST)
            }
            Some(_) | None => {
                self.seen = self.bytes.len();
                return None;
            }
        };
        let line = &self.bytes[self.begin..end];
        let line = if next > end { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        let line = String::from_utf8_lossy(line).into_owned();
        (self.begin, self.seen) = (next, next);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_that_is_too_long_comes_in_pieces() {
        let mut lines = Lines::default();
        let long = "x".repeat(Lines::LONGEST);
        lines.add(long.as_bytes());
        assert_eq!(lines.next(), None, "its newline may come next");
        lines.add(b"yz\na");
        assert_eq!(lines.next(), Some(long));
        assert_eq!(lines.next().as_deref(), Some("yz"));
        assert_eq!(lines.next(), None);
        assert_eq!(lines.rest().as_deref(), Some("a"));
        assert_eq!(lines.rest(), None);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_input_is_cut(text in "[a\r\n]{0,40}", cuts in prop::collection::vec(0usize..9, 0..20)) {
            let (mut lines, mut found, mut left) = (Lines::default(), Vec::new(), text.as_bytes());
            for cut in cuts.into_iter().chain([text.len()]) {
                let (piece, rest) = left.split_at(cut.min(left.len()));
                lines.add(piece);
                found.extend(lines.by_ref());
                left = rest;
            }
            found.extend(lines.rest());
            let expected: Vec<&str> = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
                Some(line) => line.strip_suffix('\r').unwrap_or(line),
                None => line,
            }).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
