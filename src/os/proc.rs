//! What the kernel tells of a process (proc_pid_stat(5)).

use std::fs::read_to_string;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::core::supervision::RunState;

/// Part of `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Field 3, as a letter.
    pub letter: char,
    /// Field 4: the pid of its parent.
    pub parent: u32,
    /// Field 5: the process group; 0 where it is one of outside this PID namespace.
    pub group: i32,
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
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let start_time = fields.nth(22 - 6)?.parse().ok()?;
    Some(Stat { letter, parent, group, start_time })
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

/// CPU time that all threads of a process have used (fields 14 and 15), also of one that has
/// ended and is not reaped.
///
/// # Errors
/// As [`stat`].
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let text = read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace().skip(14 - 3).take(2));
    let ticks: Option<u64> = fields.and_then(|fields| fields.map(|field| field.parse::<u64>().ok()).sum());
    let ticks = ticks.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// How many descriptors the kernel lets any process have (`/proc/sys/fs/nr_open`, proc_sys_fs(5)).
#[must_use]
pub fn most_descriptors_of_any() -> u64 {
    let text = read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

/// The soft and the hard limit of file locks of a process (`/proc/<pid>/limits`), which the kernel keeps
/// but does not use: see [`crate::core::mark`].
///
/// # Errors
/// `NotFound` where there is no such process; `InvalidData` where the file is not what its manual says.
pub fn lock_limits(pid: u32) -> io::Result<(u64, u64)> {
    let limits = read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file locks"));
    let mut values = line
        .ok_or(io::ErrorKind::InvalidData)?
        .split_ascii_whitespace()
        .map(|value| if value == "unlimited" { Ok(u64::MAX) } else { value.parse() });
    match (values.next(), values.next()) {
        (Some(Ok(soft)), Some(Ok(hard))) => Ok((soft, hard)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether a process is about to end, or has ended: SIGKILL is on its way to it, or it is being
/// taken apart, for which a busy machine may need a while.
#[must_use]
pub fn is_dying(pid: u32) -> bool {
    let (Ok(status), Ok(stat)) =
        (read_to_string(format!("/proc/{pid}/status")), read_to_string(format!("/proc/{pid}/stat")))
    else {
        return true;
    };
    is_dying_by(&status, &stat)
}

fn is_dying_by(status: &str, stat: &str) -> bool {
    const SIGKILL: u64 = 1 << (9 - 1);
    const PF_EXITING: u64 = 0x4;
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    let killed = status.lines().filter_map(pending).any(|mask| mask & SIGKILL != 0);
    // Field 9: the kernel's flags of the process (include/linux/sched.h).
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(9 - 3));
    killed || flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// The kernel function in which a process waits (`/proc/<pid>/wchan`); empty where the kernel
/// does not tell, or it runs.
#[must_use]
pub fn wchan(pid: u32) -> String {
    let name = read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    if name == "0" { String::new() } else { name }
}

/// As whom a process runs: its effective user (`/proc/<pid>/status`), which the owner of
/// `/proc/<pid>` does not always tell (proc(5)).
///
/// # Errors
/// `NotFound` where there is no such process; `InvalidData` where the file is not what its manual
/// says.
pub fn user(pid: u32) -> io::Result<u32> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let user = users.and_then(|users| users.split_ascii_whitespace().nth(1)?.parse().ok());
    user.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The memory of a process that is resident, in bytes: the second field of `/proc/<pid>/statm`,
/// in pages (proc_pid_statm(5)).
///
/// # Errors
/// What reading it says.
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    let statm = read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: Option<u64> = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    Ok(pages.ok_or(io::ErrorKind::InvalidData)? * rustix::param::page_size() as u64)
}

/// The process group of a process, if it can be told.
#[must_use]
pub fn group(pid: u32) -> Option<u32> {
    stat(pid).ok().and_then(|stat| u32::try_from(stat.group).ok())
}

/// Whether a process runs the same program as this one; also where that cannot be told.
#[must_use]
pub fn is_same_program(pid: u32) -> bool {
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).map(|exe| (exe.dev(), exe.ino()));
    match (program("self"), program(&pid.to_string())) {
        (Ok(own), Ok(other)) => own == other,
        (Err(_), _) | (_, Err(_)) => true,
    }
}

/// The children of this process that run the same program as it does, or one of the others, told by device and
/// inode, in its process group: all
/// its servers, and those who came to it as orphans. A stranger's are in another group. Nobody where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`).
#[must_use]
pub fn children_of_same_program(others: &[(u64, u64)]) -> Vec<u32> {
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).map(|exe| (exe.dev(), exe.ino()));
    let Ok(own) = program("self") else {
        return Vec::new();
    };
    let children = read_to_string(format!("/proc/self/task/{}/children", std::process::id()));
    let children = children.unwrap_or_default();
    let of_same = children
        .split_ascii_whitespace()
        .filter(|pid| program(pid).is_ok_and(|exe| exe == own || others.contains(&exe)));
    let group = |pid| stat(pid).map(|stat| stat.group).ok();
    let ours = group(std::process::id());
    of_same.filter_map(|pid| pid.parse().ok()).filter(|&pid| group(pid) == ours).collect()
}

/// The CPU clock of a process (clock_getcpuclockid(3)): exact while it runs, too.
#[derive(Debug)]
pub struct CpuClock {
    /// `None` where there was no such process.
    id: Option<ClockId>,
}

impl CpuClock {
    /// The clock of whoever has this pid: it is the caller who knows that it is still the one that was meant.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let pid = i32::try_from(pid).map(Pid::from_raw).ok();
        Self { id: pid.and_then(|pid| clock_getcpuclockid(pid).ok()) }
    }

    /// CPU time used so far; `None` once it is reaped.
    #[must_use]
    pub fn read(&self) -> Option<Duration> {
        Some(clock_gettime(self.id?).ok()?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_confuses_nobody() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("17 (a) R (b) S {}\n", fields.join(" "));
        assert_eq!(parse_stat(&text), Some(Stat { letter: 'S', parent: 4, group: 5, start_time: 22 }));
        assert_eq!(parse_stat("17 (a"), None);
    }

    #[test]
    fn who_was_killed_is_dying_before_it_has_ended() {
        let stat = |flags: u64| format!("17 (osps) S 1 17 17 0 -1 {flags} 0 0");
        let status = |pending: &str| format!("Name:\tosps\nSigPnd:\t{pending}\nShdPnd:\t{pending}\n");
        assert!(!is_dying_by(&status("0000000000000000"), &stat(0x40_0100)));
        assert!(is_dying_by(&status("0000000000000100"), &stat(0x40_0100)));
        assert!(is_dying_by(&status("0000000000000000"), &stat(0x40_0104)));
        assert!(!is_dying(std::process::id()));
        assert!(is_dying(u32::MAX));
    }

    #[test]
    fn this_process_is_running_and_has_used_some_cpu() {
        let stat = stat(std::process::id()).unwrap();
        assert!(stat.start_time > 0);
        assert!(matches!(stat.run_state(), RunState::Running | RunState::Waiting));
        assert!(CpuClock::of(std::process::id()).read() > Some(Duration::ZERO));
    }
}
