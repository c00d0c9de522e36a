//! Splits what comes out of a FIFO or pipe into lines, within bounds.

/// The longest line that any FIFO of OSPS carries, its newline not counted. Every
/// write stays far below `PIPE_BUF` (4096), so that it is atomic (pipe(7)).
pub const MAX_LINE_BYTES: usize = 128;

/// Keeps the beginning of a line until its end arrives; lines are at most `MAX` bytes long.
#[derive(Debug, Default)]
pub struct Lines<const MAX: usize = MAX_LINE_BYTES> {
    partial: Vec<u8>,
    /// The line under way is too long: it is thrown away up to its newline.
    overlong: bool,
}

impl<const MAX: usize> Lines<MAX> {
    /// Hands each complete line to `line`, without its newline. Empty lines are passed over:
    /// every write begins with a newline, so that what a stranger left half-written spoils
    /// no line of ours. An over-long line is handed on cut off, so that its receiver finds it
    /// malformed and can count it.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(at) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = (&bytes[..at], &bytes[at + 1..]);
            if self.partial.is_empty() && head.len() <= MAX && !self.overlong {
                if !head.is_empty() {
                    line(head);
                }
            } else {
                self.keep(head);
                line(&self.partial);
                self.partial.clear();
                self.overlong = false;
            }
            bytes = rest;
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX + 1 - self.partial.len();
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.overlong |= self.partial.len() > MAX;
    }

    /// Nothing more will come: hands on what has no end yet.
    pub fn finish(&mut self, line: impl FnOnce(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
            self.partial.clear();
        }
        self.overlong = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (<Lines>::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, |line| out.push(line.to_vec()));
        }
        out
    }

    proptest! {
        #[test]
        fn segmentation_changes_nothing(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..600),
                                        cuts in prop::collection::vec(0usize..600, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected: Vec<Vec<u8>> = {
                let mut parts: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
                parts.pop();
                parts.into_iter().filter(|line| !line.is_empty()).map(|line| line[..line.len().min(MAX_LINE_BYTES + 1)].to_vec()).collect()
            };
            prop_assert_eq!(split(&chunks), expected);
        }
    }
}
