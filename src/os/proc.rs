//! What `/proc` tells of a process (proc_pid_stat(5)).

use std::fs::{File, read_to_string};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use crate::core::supervision::RunState;

/// Part of `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Field 3, as a letter.
    pub letter: char,
    /// Field 22: when it started, in clock ticks after boot. With the pid it names a
    /// process for ever.
    pub start_time: u64,
}

/// Reads `/proc/<pid>/stat`.
///
/// # Errors
/// `NotFound` where there is no such process; `InvalidData` where the file is not
/// what its manual says.
pub fn stat(pid: u32) -> io::Result<Stat> {
    let text = read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The second field is a name in parentheses, which may hold anything: fields count
/// from the last closing one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let letter = fields.next()?.chars().next()?;
    let start_time = fields.nth(22 - 4)?.parse().ok()?;
    Some(Stat { letter, start_time })
}

impl Stat {
    /// The letter, understood.
    #[must_use]
    pub fn run_state(self) -> RunState {
        match self.letter {
            'R' => RunState::Running,
            'T' | 't' => RunState::Stopped,
            'Z' | 'X' | 'x' => RunState::Gone,
            _ => RunState::Waiting,
        }
    }
}

/// The kernel function in which a process waits (`/proc/<pid>/wchan`); empty where the kernel
/// does not tell, or it runs.
#[must_use]
pub fn wchan(pid: u32) -> String {
    let name = read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    if name == "0" { String::new() } else { name }
}

/// The children of this process that run the same program as it does: all its servers, and
/// those who came to it as orphans. Nobody where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`).
#[must_use]
pub fn children_of_same_program() -> Vec<u32> {
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).map(|exe| (exe.dev(), exe.ino()));
    let Ok(own) = program("self") else {
        return Vec::new();
    };
    let children = read_to_string(format!("/proc/self/task/{}/children", std::process::id()));
    let children = children.unwrap_or_default();
    let of_same = children.split_ascii_whitespace().filter(|pid| program(pid).is_ok_and(|exe| exe == own));
    of_same.filter_map(|pid| pid.parse().ok()).collect()
}

/// The CPU clock of a process, `/proc/<pid>/schedstat`, kept open.
#[derive(Debug)]
pub struct CpuClock {
    file: Option<File>,
}

impl CpuClock {
    /// Opens it; where the kernel has none (`CONFIG_SCHED_INFO`), nothing will be told.
    #[must_use]
    pub fn open(pid: u32) -> Self {
        Self { file: File::open(format!("/proc/{pid}/schedstat")).ok() }
    }

    /// CPU time used so far: the first field, nanoseconds.
    #[must_use]
    pub fn read(&self) -> Option<Duration> {
        let mut buffer = [0; 64];
        let length = self.file.as_ref()?.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_confuses_nobody() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("17 (a) R (b) S {}\n", fields.join(" "));
        assert_eq!(parse_stat(&text), Some(Stat { letter: 'S', start_time: 22 }));
        assert_eq!(parse_stat("17 (a"), None);
    }

    #[test]
    fn this_process_is_running_and_has_used_some_cpu() {
        let stat = stat(std::process::id()).unwrap();
        assert!(stat.start_time > 0);
        assert!(matches!(stat.run_state(), RunState::Running | RunState::Waiting));
        assert!(CpuClock::open(std::process::id()).read() > Some(Duration::ZERO));
    }
}
