//! Finding and ending processes that descend from a command, wherever they have gone: out of its
//! process group, out of its session, away from their parents.
//!
//! What tells a descendant is its parent, as long as that lives, then the mark that it has inherited
//! ([`crate::core::mark`]), then its process group. Where the kernel does
//! not tell who is whose child (`CONFIG_PROC_CHILDREN`), only process groups are found.

use std::fs::{read_dir, read_to_string};
use std::io;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::process::{Signal, kill_process_group};

use crate::core::mark::{Mark, Tree};
use crate::os::pidfd::{Exit, Pidfd};
use crate::os::proc;

/// More than any command has; a fork bomb that is faster is met again at the next look.
const MAX_FOUND: usize = 1 << 16;

/// The children of this process, those included that have ended and are not reaped.
#[must_use]
pub fn own_children() -> Vec<u32> {
    pids(&read_to_string("/proc/thread-self/children").unwrap_or_default())
}

fn children_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    // A child is listed with the thread that has made it.
    for thread in read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = read_to_string(thread.path().join("children"));
        found.extend(pids(&children.unwrap_or_default()));
    }
    found
}

fn pids(text: &str) -> Vec<u32> {
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// All below a process, each with the parent under which it was found.
#[must_use]
pub fn below(pid: u32) -> Vec<(u32, u32)> {
    let (mut found, mut next): (Vec<(u32, u32)>, usize) = (Vec::new(), 0);
    let mut parent = Some(pid);
    while let Some(of) = parent {
        let room = MAX_FOUND.saturating_sub(found.len());
        found.extend(children_of(of).into_iter().take(room).map(|child| (child, of)));
        parent = found.get(next).map(|(pid, _)| *pid);
        next += 1;
    }
    found
}

/// Sends a signal to a process that was found under one of these parents, unless its pid is
/// somebody else's by now. Returns whether it was there and is told.
pub fn signal(pid: u32, parents: &[u32], signal: Signal) -> bool {
    let Ok(pidfd) = Pidfd::of_child(pid) else {
        return false;
    };
    // After the pidfd was opened: who still has that parent is who was meant.
    if !proc::stat(pid).is_ok_and(|stat| parents.contains(&stat.parent)) {
        return false;
    }
    // Who has become another user by a set-user-ID program may be out of reach.
    let sent = pidfd.signal(signal);
    if let Err(error) = &sent {
        log::debug!("cannot send {signal:?} to {pid}: {error}");
    }
    sent.is_ok()
}

/// Sends a signal to a child of this process and to all below it. Returns whether the child was
/// there and is told.
pub fn signal_family(child: u32, signal: Signal) -> bool {
    let own = std::process::id();
    for (pid, parent) in below(child) {
        self::signal(pid, &[parent, own], signal);
    }
    self::signal(child, &[own], signal)
}

/// Sends a signal to the process group of a child that was not reaped yet: so long its number is
/// nobody else's.
pub fn signal_group(leader: u32, signal: Signal) {
    let group = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, signal)
    {
        log::debug!("cannot send {signal:?} to process group {leader}: {error}");
    }
}

/// What a process bears that a secondary has started, or whatever that has started.
#[must_use]
pub fn mark_of(pid: u32) -> Option<Mark> {
    Mark::from_soft_limit(proc::lock_limits(pid).ok()?.0)
}

/// All processes that bear the mark of a tree, each with its start time.
///
/// # Errors
/// What `readdir(3)` says of `/proc`.
pub fn of_tree(tree: Tree) -> io::Result<Vec<(u32, u64)>> {
    let all = read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_of_tree = |pid| proc::lock_limits(pid).is_ok_and(|(_, hard)| hard == tree.hard_limit());
    let marked = all.filter(|&pid| is_of_tree(pid));
    Ok(marked.filter_map(|pid| Some((pid, proc::stat(pid).ok()?.start_time))).collect())
}

/// A child that has ended, and how; it is not reaped.
///
/// # Errors
/// `waitid(2)`, where there is no child at all.
pub fn ended_child() -> io::Result<Option<(u32, Exit)>> {
    let options = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let pid = |pid: Pid| u32::try_from(pid.as_raw()).unwrap_or(0);
    Ok(match waitid(Id::All, options)? {
        WaitStatus::Exited(child, code) => Some((pid(child), Exit::Code(code))),
        WaitStatus::Signaled(child, signal, _) => Some((pid(child), Exit::Signal(signal as i32))),
        _ => None,
    })
}

/// Reaps a child that has ended.
pub fn reap(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mark::Start;
    use rustix::process::{Resource, Rlimit, prlimit};
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn who_has_shed_group_session_and_environment_is_found_below_and_by_its_mark() {
        let tree = Tree { pid: 7, start_time: 8 };
        let mark = Mark { slot: 2, incarnation: 3, start: Start::new(9) };
        let mut shell = Command::new("sh");
        shell.args(["-c", "read go; env -i setsid sleep 600 & echo $!; wait"]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let limits = Rlimit { current: Some(mark.soft_limit()), maximum: Some(tree.hard_limit()) };
        let pid = rustix::process::Pid::from_child(&shell);
        prlimit(Some(pid), Resource::Locks, limits).unwrap();
        shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let sleeper = line.trim().parse().unwrap();
        assert_eq!(below(shell.id())[0], (sleeper, shell.id()));
        assert_eq!(mark_of(sleeper), Some(mark));
        assert!(of_tree(tree).unwrap().iter().any(|&(pid, _)| pid == sleeper));
        assert!(of_tree(Tree { pid: 7, start_time: 9 }).unwrap().is_empty());
        assert!(!signal(sleeper, &[1], Signal::KILL), "it is no child of that one");
        assert!(signal(sleeper, &[shell.id()], Signal::KILL));
        assert!(shell.wait().unwrap().code().is_some());
    }
}
