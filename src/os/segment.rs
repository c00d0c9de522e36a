//! Shared-memory segments: a file, mapped by several processes, seen as 64-bit words.
//!
//! Every word is an [`AtomicU64`]. There are no structures to overlay and no padding:
//! what a word means is told in [`crate::page`], by plain arithmetic on indices that
//! the slice checks. `hexdump -e '8/8 "%016x " "\n"'` shows a segment as it is.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate};

const WORD_BYTES: usize = size_of::<AtomicU64>();

/// Zero bytes of this process's own, which take no room until they are touched: what malloc(3) gives
/// may have been used before, and is then zeroed at once.
///
/// # Errors
/// What `mmap(2)` says.
pub fn scratch(bytes: usize) -> io::Result<MmapMut> {
    MmapMut::map_anon(bytes)
}

/// A mapped segment; dereferences to its words.
#[derive(Debug)]
pub struct Segment {
    map: MmapRaw,
}

impl Segment {
    /// Creates a file of `words` zero words, mode 0600, and maps it. The blocks are
    /// allocated before the mapping: on a full disk this fails here, while touching a hole
    /// of a sparse file later would raise SIGBUS (mmap(2)).
    ///
    /// # Errors
    /// What `open(2)` (`AlreadyExists` included), `fallocate(2)` or `mmap(2)` say.
    pub fn create(path: &Path, words: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let bytes = u64::try_from(words * WORD_BYTES).map_err(io::Error::other)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&file, bytes)?,
            Err(error) => return Err(error.into()),
        }
        Self::map(&file)
    }

    /// Maps a file for reading and writing, in its whole length.
    ///
    /// # Errors
    /// What `mmap(2)` says; `InvalidData` where the file is empty or its length is no
    /// multiple of 8.
    pub fn map(file: &File) -> io::Result<Self> {
        let length = checked_length(file)?;
        Ok(Self { map: MmapOptions::new().len(length).map_raw(file)? })
    }

    /// Maps a file for reading only: a store into it would be a crash.
    ///
    /// # Errors
    /// As [`Segment::map`].
    pub fn map_read_only(file: &File) -> io::Result<Self> {
        let length = checked_length(file)?;
        Ok(Self { map: MmapOptions::new().len(length).map_raw_read_only(file)? })
    }
}

impl Deref for Segment {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let words = self.map.len() / WORD_BYTES;
        // SAFETY: the mapping lives as long as `self`, is page-aligned (hence aligned for
        // `AtomicU64`) and `words * 8` bytes long. Other processes store into it at any
        // time, which atomics allow, and any bit pattern is a valid `AtomicU64`. Files are
        // never truncated while mapped. A read-only mapping is only ever loaded from, with
        // relaxed word-sized loads, which std's atomics document as sound for such memory.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), words) }
    }
}

fn checked_length(file: &File) -> io::Result<usize> {
    let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if bytes == 0 || bytes % WORD_BYTES != 0 {
        let what = format!("a segment of {bytes} bytes: not a positive multiple of {WORD_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(bytes)
}

/// For file systems without `fallocate(2)`: writing allocates just as well.
fn write_zeros(mut file: &File, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut file).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_are_one_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let one = Segment::create(&path, 1000).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let other = Segment::map(&file).unwrap();
        let reader = Segment::map_read_only(&File::open(&path).unwrap()).unwrap();
        assert_eq!((one.len(), other.len(), reader.len()), (1000, 1000, 1000));
        one[999].store(42, Ordering::Release);
        assert_eq!(other[999].load(Ordering::Acquire), 42);
        assert_eq!(reader[999].load(Ordering::Relaxed), 42);
        assert_eq!(other[998].load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_file_of_wrong_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        for bytes in [&b""[..], b"1234567"] {
            std::fs::write(&path, bytes).unwrap();
            let error = Segment::map(&File::open(&path).unwrap()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let again = Segment::create(&path, 1).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }
}
