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

use crate::core::mark::{Mark, Tree, Whose};
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

/// What a process bears that a secondary of that tree has started, or whatever that has started.
#[must_use]
pub fn mark_of(pid: u32, tree: Tree) -> Option<Mark> {
    mark_in_limits(pid, tree).or_else(|| mark_in_environment(pid, tree))
}

fn mark_in_limits(pid: u32, tree: Tree) -> Option<Mark> {
    Mark::from_limits(proc::lock_limits(pid).ok()?, tree)
}

/// Who may not raise the limits that it was started with cannot mark by them: its commands are known
/// by what they were told, for as long as they keep it.
fn mark_in_environment(pid: u32, tree: Tree) -> Option<Mark> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        let entries = &mut environment.split(|&byte| byte == 0);
        let found = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        found.and_then(|value| std::str::from_utf8(value).ok())
    };
    if value("OSPS_RUN")? != tree.to_string() {
        return None;
    }
    let (slot, incarnation) = value("OSPS_SECONDARY")?.split_once('.')?;
    let number = |name| value(name).and_then(|number| number.parse().ok());
    let whose = number("OSPS_JOB").map(Whose::job).or_else(|| number("OSPS_WORKER").map(Whose::worker))?;
    Some(Mark { slot: slot.parse().ok()?, incarnation: incarnation.parse().ok()?, whose })
}

/// All processes that bear the mark of a tree, each with its start time.
///
/// # Errors
/// What `readdir(3)` says of `/proc`.
pub fn of_tree(tree: Tree) -> io::Result<Vec<(u32, u64)>> {
    let all = read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let marked = all.filter(|&pid| mark_of(pid, tree).is_some());
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
    use rustix::process::{Resource, Rlimit, prlimit};
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    const TREE: Tree = Tree { pid: 7, start_time: 8 };

    fn said_pid(shell: &mut Child) -> u32 {
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn who_has_a_session_of_its_own_is_found_below_and_by_its_environment() {
        let variables = [("OSPS_RUN", "7.8"), ("OSPS_SECONDARY", "2.3"), ("OSPS_JOB", "9")];
        let mut shell = Command::new("sh");
        shell.args(["-c", "setsid sleep 600 & echo $!; wait"]).envs(variables);
        let mut shell = shell.stdout(Stdio::piped()).spawn().unwrap();
        let sleeper = said_pid(&mut shell);
        assert_eq!(below(shell.id())[0], (sleeper, shell.id()));
        // Before its own program it shows the shell's environment, or none.
        let is_sleep =
            || std::fs::read_to_string(format!("/proc/{sleeper}/comm")).is_ok_and(|name| name == "sleep\n");
        while !is_sleep() || mark_of(sleeper, TREE).is_none() {
            std::thread::yield_now();
        }
        let mark = Mark { slot: 2, incarnation: 3, whose: Whose::job(9) };
        assert_eq!(mark_of(sleeper, TREE), Some(mark));
        assert_eq!(mark_of(sleeper, Tree { pid: 7, start_time: 9 }), None);
        assert!(!signal(sleeper, &[1], Signal::KILL), "it is no child of that one");
        assert!(signal(sleeper, &[shell.id()], Signal::KILL));
        assert!(shell.wait().unwrap().code().is_some());
    }

    #[test]
    fn a_limit_marks_whoever_has_shed_all_else() {
        let mark = Mark { slot: 2, incarnation: 3, whose: Whose::worker(9) };
        let mut shell = Command::new("sh");
        shell.args(["-c", "read go; env -i setsid sleep 600 & echo $!; wait"]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (soft, hard) = mark.limits(TREE);
        let limits = Rlimit { current: Some(soft), maximum: Some(hard) };
        let pid = rustix::process::Pid::from_child(&shell);
        prlimit(Some(pid), Resource::Locks, limits).unwrap();
        shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let sleeper = said_pid(&mut shell);
        // The subshell is the sleeper once it has executed that.
        assert_eq!(mark_of(sleeper, TREE), Some(mark));
        assert!(signal(sleeper, &[shell.id()], Signal::KILL));
        assert!(shell.wait().unwrap().code().is_some());
    }
}
