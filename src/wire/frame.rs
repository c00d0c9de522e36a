//! The frames that a secondary and a worker exchange over the worker's standard input and output.
//!
//! A frame is a length (4 bytes, big-endian) and as many bytes. The secondary sends one for each
//! job, the worker answers each with one. The top bit of an answer's length says that the job has
//! failed, though there is something for its client.

use thiserror::Error;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 4;
/// The longest payload that can be framed.
pub const LONGEST_PAYLOAD: usize = (FAILED - 1) as usize;
const FAILED: u32 = 1 << 31;

/// Begins a message: room for the header, which [`finish`] fills in once the payload stands behind it.
#[must_use]
pub fn begin() -> Vec<u8> {
    vec![0; HEADER_BYTES]
}

/// Makes a frame of a message that was begun by [`begin`].
///
/// # Panics
/// Where it has no room for the header, or is longer than can be framed.
pub fn finish(message: &mut [u8]) {
    let length = message.len() - HEADER_BYTES;
    assert!(length <= LONGEST_PAYLOAD, "{length} bytes cannot be framed");
    let length = u32::try_from(length).unwrap_or(0);
    message[..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// What a worker has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the client.
    pub payload: Vec<u8>,
    /// Whether the worker says that the job has failed.
    pub failed: bool,
}

/// A worker broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Wrong {
    /// It announced more than may be.
    #[error("it announces an answer of {length} bytes: {limit} are allowed")]
    TooLong {
        /// So many.
        length: usize,
        /// So many may be.
        limit: usize,
    },
    /// It wrote more than its answer.
    #[error("it wrote more than one answer")]
    Excess,
    /// It wrote what cannot be an answer: it has no message, or not all of one.
    #[error("it wrote without having been asked")]
    Unasked,
}

/// Collects one answer, in whatever pieces it comes.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have come.
    begun: usize,
    /// What has come of the payload: never more than was really sent, whatever was announced.
    payload: Vec<u8>,
}

impl Decoder {
    /// For answers of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(LONGEST_PAYLOAD), header: [0; HEADER_BYTES], begun: 0, payload: Vec::new() }
    }

    /// Takes what was read; gives the answer once it is complete, and is then ready for the next.
    ///
    /// # Errors
    /// [`Wrong`]. Nothing that follows can be understood.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, Wrong> {
        let taken = bytes.len().min(HEADER_BYTES - self.begun);
        self.header[self.begun..self.begun + taken].copy_from_slice(&bytes[..taken]);
        self.begun += taken;
        bytes = &bytes[taken..];
        if self.begun < HEADER_BYTES {
            return Ok(None);
        }
        let header = u32::from_be_bytes(self.header);
        let length = (header & !FAILED) as usize;
        if length > self.limit {
            return Err(Wrong::TooLong { length, limit: self.limit });
        }
        if bytes.len() > length - self.payload.len() {
            return Err(Wrong::Excess);
        }
        self.payload.extend_from_slice(bytes);
        if self.payload.len() < length {
            return Ok(None);
        }
        self.begun = 0;
        Ok(Some(Answer { payload: std::mem::take(&mut self.payload), failed: header & FAILED != 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(payload: &[u8], failed: bool) -> Vec<u8> {
        let mut frame = begin();
        frame.extend_from_slice(payload);
        finish(&mut frame);
        frame[0] |= u8::from(failed) << 7;
        frame
    }

    #[test]
    fn a_message_is_its_length_and_its_bytes() {
        assert_eq!(answer(b"hello", false), b"\0\0\0\x05hello");
        assert_eq!(answer(b"", false), b"\0\0\0\0");
        assert_eq!(answer(&[7; 258], true)[..5], [0x80, 0, 1, 2, 7]);
    }

    #[test]
    fn what_is_announced_takes_no_room_before_it_comes() {
        let mut decoder = Decoder::new(1 << 30);
        assert_eq!(decoder.feed(&(1_u32 << 30).to_be_bytes()), Ok(None));
        assert_eq!(decoder.payload.capacity(), 0);
    }

    #[test]
    fn too_much_is_refused_as_soon_as_it_shows() {
        let mut decoder = Decoder::new(5);
        assert_eq!(decoder.feed(&[0, 0, 0, 6]), Err(Wrong::TooLong { length: 6, limit: 5 }));
        let mut decoder = Decoder::new(usize::MAX);
        assert_eq!(decoder.feed(b"\0\0\0\x02ab\0"), Err(Wrong::Excess));
        let mut decoder = Decoder::new(2);
        assert_eq!(decoder.feed(b"\0\0\0\x02a"), Ok(None));
        assert_eq!(decoder.feed(b"bc"), Err(Wrong::Excess));
    }

    proptest! {
        #[test]
        fn answers_are_read_however_they_are_cut(
            answers in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 1..5),
            pieces in prop::collection::vec(1usize..50, 1..20),
        ) {
            let mut decoder = Decoder::new(300);
            let mut pieces = pieces.iter().cycle();
            for (payload, failed) in answers {
                let frame = answer(&payload, failed);
                let (mut rest, mut read) = (&frame[..], None);
                while !rest.is_empty() {
                    prop_assert_eq!(&read, &None, "complete too early");
                    let (piece, behind) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
                    read = decoder.feed(piece).unwrap();
                    rest = behind;
                }
                prop_assert_eq!(read, Some(Answer { payload, failed }));
            }
        }

        #[test]
        fn garbage_never_takes_more_room_than_the_limit(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
            limit in 0usize..200,
        ) {
            let mut decoder = Decoder::new(limit);
            for piece in pieces {
                match decoder.feed(&piece) {
                    Ok(Some(answer)) => prop_assert!(answer.payload.len() <= limit),
                    Ok(None) => prop_assert!(decoder.payload.len() <= limit),
                    Err(_) => break,
                }
            }
        }
    }
}
