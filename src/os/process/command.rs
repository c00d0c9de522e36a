//! The start of a command: any program, with what it shall have and nothing else.
//!
//! The child shares this process's memory until it executes the program (`vfork(2)`): nothing is
//! copied, so a start costs the same however much memory a server has, and what failed comes back
//! as it is. This process waits meanwhile. A program on a file system that hangs thus freezes its
//! secondary, and the watchdog replaces that.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::process::{Resource, getpid, getppid, getrlimit};
use thiserror::Error;

use crate::os::process::Strings;
use crate::os::process::dispositions::{self, ALL, SIGSET_BYTES};

/// More than the child's few system calls need.
const STACK_WORDS: usize = 8 * 1024;

/// What a command is started with each time.
#[derive(Debug)]
pub struct Plan {
    /// Where its program may stand, by absolute paths: the first that can be executed is.
    pub programs: Vec<PathBuf>,
    /// Its arguments, its name first.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory; that of this process where none is given.
    pub directory: Option<PathBuf>,
    /// Soft and hard limits by the kernel's number of the resource (`RLIMIT_CPU`..).
    pub limits: Vec<(u32, u64, u64)>,
    /// As whom it runs, where not as this process.
    pub identity: Option<Identity>,
    /// Whether it gains nothing by what it executes.
    pub no_new_privs: bool,
    /// Where it may read and write ([`crate::os::landlock::ruleset`]).
    pub ruleset: Option<OwnedFd>,
}

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The other groups that it is in.
    pub groups: Vec<u32>,
}

/// Why a command was not started.
#[derive(Debug, Error)]
#[error("cannot {step}: {source}")]
pub struct NotStarted {
    /// What failed.
    pub step: &'static str,
    /// Why.
    pub source: io::Error,
}

/// A command that can be started any number of times.
#[derive(Debug)]
pub struct Command {
    plan: Plan,
    programs: Vec<CString>,
    arguments: Strings,
    environment: Strings,
    directory: Option<CString>,
    /// The hard limit of locks of this process.
    most_locks: u64,
    stack: Vec<u128>,
}

impl Command {
    /// Prepares what is the same at each start.
    ///
    /// # Errors
    /// Where a string has a zero byte.
    pub fn new(plan: Plan) -> io::Result<Self> {
        let variables = plan.environment.iter().map(|(name, value)| assignment(name.clone(), value));
        Ok(Self {
            programs: plan.programs.iter().map(|program| c_string(program)).collect::<io::Result<_>>()?,
            arguments: Strings::new(plan.arguments.iter())?,
            environment: Strings::new(variables)?,
            directory: plan.directory.as_deref().map(c_string).transpose()?,
            most_locks: getrlimit(Resource::Locks).maximum.unwrap_or(u64::MAX),
            stack: vec![0; STACK_WORDS],
            plan,
        })
    }

    /// Starts it with these as standard input, output and error, which stay open here, with
    /// `more` in its environment, and with that mark, as the soft and the hard limit that it is. It leads a process group of its own, has default
    /// dispositions and no signal blocked, and is killed when this process dies. Returns its pid,
    /// which is free again only once this process has reaped it.
    ///
    /// # Errors
    /// [`NotStarted`]. A child that had come so far has ended and is to be reaped.
    pub fn start(
        &mut self,
        streams: [BorrowedFd<'_>; 3],
        more: &[(&str, String)],
        mark: (u64, u64),
    ) -> Result<u32, NotStarted> {
        let failed = |step, source| NotStarted { step, source };
        let more = more.iter().map(|(name, value)| assignment(OsString::from(name), value.as_ref()));
        let more = Strings::new(more).map_err(|error| failed("prepare its environment", error))?;
        let environment = self.environment.followed_by(&more);
        let mut birth = Birth {
            command: self,
            environment: environment.as_ptr(),
            streams: streams.map(|stream| stream.as_raw_fd()),
            mark,
            parent: getpid(),
            failed: None,
        };
        // A signal for us must not end the child.
        let before = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(|error| failed("block signals", error.into()))?;
        let child = birth.give();
        let _ = before.thread_set_mask();
        let why = birth.failed.take();
        match (child, why) {
            (Ok(child), None) => Ok(child),
            (Ok(_), Some((step, error))) => Err(failed(step, error.into())),
            (Err(error), _) => Err(failed("create a process", error.into())),
        }
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// `NAME=value`.
fn assignment(mut name: OsString, value: &std::ffi::OsStr) -> OsString {
    name.push("=");
    name.push(value);
    name
}

/// All that the child needs.
struct Birth<'a> {
    command: &'a mut Command,
    environment: *const *const c_char,
    streams: [RawFd; 3],
    /// Soft and hard limit ([`crate::core::mark`]).
    mark: (u64, u64),
    parent: rustix::process::Pid,
    /// Written by the child where it does not come to execute the program.
    failed: Option<(&'static str, Errno)>,
}

impl Birth<'_> {
    /// Has a child live through [`Birth::execute`]; comes back when that is over. Returns its pid.
    fn give(&mut self) -> Result<u32, Errno> {
        let stack = self.command.stack.as_mut_ptr_range().end.cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let birth = ptr::from_mut(self).cast::<c_void>();
        // SAFETY: the stack lives in `self.command`, is aligned to 16 bytes, grows down from its
        // end and is used by nobody else. The child shares our memory, but this thread, the only
        // one, does not go on before the child has executed a program or ended (CLONE_VFORK), so
        // what it reads and writes through `birth` has one user at a time, and outlives it. It
        // does nothing but system calls and stores: no allocation, no lock, no unwinding.
        let child = unsafe { libc::clone(live, stack, flags, birth) };
        Errno::result(child).map(|child| u32::try_from(child).unwrap_or(0))
    }

    /// What the child does, up to the first failure.
    fn execute(&self) -> Result<Infallible, (&'static str, Errno)> {
        let plan = &self.command.plan;
        let check = |step, result: c_int| Errno::result(result).map(drop).map_err(|error| (step, error));
        // SAFETY: in all of the blocks below: plain system calls with numbers, and with pointers
        // into memory that the parent keeps until the child is through.
        unsafe {
            check("lead a process group", libc::setpgid(0, 0))?;
            for (number, stream) in (0..).zip(self.streams) {
                check("take its standard streams", libc::dup2(stream, number))?;
            }
        }
        for &limit in &plan.limits {
            set_limit(limit).map_err(|error| ("limit its resources", error))?;
        }
        let (soft, hard) = self.mark;
        let marked = set_limit((libc::RLIMIT_LOCKS, soft, hard));
        // A tree that was itself started by a command of another tree may not raise what that has marked.
        let marked = marked.or_else(|_| set_limit((libc::RLIMIT_LOCKS, soft, self.command.most_locks)));
        marked.map_err(|error| ("mark it", error))?;
        if let Some(identity) = &plan.identity {
            identity.assume()?;
        }
        if let Some(directory) = &self.command.directory {
            // SAFETY: as above.
            check("change to its directory", unsafe { libc::chdir(directory.as_ptr()) })?;
        }
        self.confine()?;
        // A command expects the defaults.
        let reset = dispositions::reset(ALL, &[Signal::SIGKILL, Signal::SIGSTOP], &[]);
        reset.map_err(|error| ("reset its signals", Errno::from_raw(error.into_raw())))?;
        // SAFETY: as above.
        unsafe {
            let (none_blocked, null) = (0_u64, ptr::null_mut::<u64>());
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const none_blocked,
                null,
                SIGSET_BYTES,
            );
        }
        Err(("execute it", self.execute_first()))
    }

    /// Executes the first program that can be, as execvp(3) does. Comes back where none can, and says why.
    fn execute_first(&self) -> Errno {
        let mut why = Errno::ENOENT;
        for program in &self.command.programs {
            // SAFETY: as above. The strings and both vectors end as execve(2) wants them to.
            unsafe {
                libc::execve(program.as_ptr(), self.command.arguments.pointers.as_ptr(), self.environment);
            }
            match Errno::last() {
                Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::ELOOP => {}
                Errno::EACCES => why = Errno::EACCES,
                other => return other,
            }
        }
        why
    }

    /// Ties its life to its parent's, and gives up what it shall not have.
    fn confine(&self) -> Result<(), (&'static str, Errno)> {
        let plan = &self.command.plan;
        // SAFETY: as above.
        let asked = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Errno::result(asked).map_err(|error| ("ask for the parent-death signal", error))?;
        if getppid() != Some(self.parent) {
            return Err(("start: its secondary has died", Errno::ESRCH));
        }
        if plan.no_new_privs || plan.ruleset.is_some() {
            // SAFETY: as above.
            let given_up = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            Errno::result(given_up).map_err(|error| ("give up new privileges", error))?;
        }
        if let Some(ruleset) = &plan.ruleset {
            // SAFETY: as above.
            let confined = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
            Errno::result(confined).map_err(|error| ("be confined by Landlock", error))?;
        }
        // SAFETY: as above. The child has a table of descriptors of its own (no CLONE_FILES). A
        // kernel without this call (before 5.9) answers with an error; all of ours are
        // close-on-exec anyway.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
        Ok(())
    }
}

impl Identity {
    /// System calls of one thread, not the C library's functions: those would have every thread of
    /// the process that this memory belongs to do the same.
    fn assume(&self) -> Result<(), (&'static str, Errno)> {
        // SAFETY: plain system calls; the list of groups is as long as is said.
        let groups = unsafe { libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) };
        Errno::result(groups).map_err(|error| ("take its groups", error))?;
        // SAFETY: as above.
        let group = unsafe { libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) };
        Errno::result(group).map_err(|error| ("take its group", error))?;
        // SAFETY: as above.
        let user = unsafe { libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) };
        Errno::result(user).map_err(|error| ("become its user", error))?;
        Ok(())
    }
}

/// A resource with its soft and hard limit. Limits are of a process, not of its memory: the parent keeps
/// its own.
fn set_limit((resource, soft, hard): (u32, u64, u64)) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let null = ptr::null_mut::<libc::rlimit64>();
    // SAFETY: a plain system call that reads `limit`.
    let set = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, null) };
    Errno::result(set).map(drop)
}

/// The child, on its own stack in our memory.
extern "C" fn live(birth: *mut c_void) -> c_int {
    // SAFETY: `Birth::give` passes itself, and waits.
    let birth = unsafe { &mut *birth.cast::<Birth<'_>>() };
    let Err(failed) = birth.execute();
    birth.failed = Some(failed);
    // SAFETY: ends the child at once: no destructor or exit handler of the parent runs.
    unsafe { libc::_exit(127) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::pidfd::{Exit, Pidfd};
    use std::fs::File;
    use std::io::{Read, pipe};
    use std::os::fd::AsFd;
    use std::time::Duration;

    const MARK: (u64, u64) = (1 << 20, 1 << 21);

    fn plan(words: &[&str]) -> Plan {
        Plan {
            programs: vec![PathBuf::from("/bin/sh")],
            arguments: words.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
            directory: None,
            limits: Vec::new(),
            identity: None,
            no_new_privs: false,
            ruleset: None,
        }
    }

    /// What a shell script says and how it ends.
    fn run(script: &str, change: impl FnOnce(&mut Plan)) -> (String, Exit) {
        let mut plan = plan(&["sh", "-c", script]);
        change(&mut plan);
        let (mut read, write) = pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let mut command = Command::new(plan).unwrap();
        let streams = [null.as_fd(), write.as_fd(), write.as_fd()];
        let child = command.start(streams, &[("OSPS_JOB", "7".to_owned())], MARK).unwrap();
        drop(write);
        let mut said = String::new();
        read.read_to_string(&mut said).unwrap();
        let child = Pidfd::of_child(child).unwrap();
        assert!(child.ends_within(Duration::from_secs(60)));
        (said, child.reap().unwrap().unwrap())
    }

    #[test]
    fn a_command_has_its_streams_its_environment_and_a_group_of_its_own() {
        let script = "read line; echo \"$OSPS_JOB:$GREETING:$line\"; \
                      set -- $(cat /proc/$$/stat); test $1 = $5 && echo leads; set -- /proc/$$/fd/*; echo $#; exit 3";
        let (said, exit) = run(script, |plan| plan.environment.push(("GREETING".into(), "hello".into())));
        // The directory that the shell looks through is the fourth.
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["7:hello:", "leads", "4"]);
        assert_eq!(exit, Exit::Code(3));
    }

    #[test]
    fn signals_are_as_a_command_expects_them() {
        let (said, _) = run("exec grep -E 'Sig(Blk|Ign)' /proc/self/status", |_| {});
        let masks = said.split_whitespace().skip(1).step_by(2);
        assert_eq!(masks.collect::<Vec<_>>(), ["0000000000000000"; 2], "{said}");
    }

    #[test]
    fn it_is_limited_and_works_where_it_should() {
        let script = "pwd; ulimit -n; ulimit -H -n; grep NoNewPrivs /proc/$$/status; \
                      sed -n 's/Max file locks//p' /proc/self/limits";
        let (said, _) = run(script, |plan| {
            plan.directory = Some("/".into());
            plan.limits.push((libc::RLIMIT_NOFILE, 20, 30));
            plan.no_new_privs = true;
        });
        let said: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(said, ["/", "20", "30", "NoNewPrivs:", "1", "1048576", "2097152", "locks"]);
    }

    #[test]
    fn what_fails_is_told_and_leaves_no_running_child() {
        let null = File::open("/dev/null").unwrap();
        let streams = [null.as_fd(); 3];
        let why = |change: fn(&mut Plan)| {
            let mut plan = plan(&["sh"]);
            change(&mut plan);
            let error = Command::new(plan).unwrap().start(streams, &[], MARK).unwrap_err();
            (error.step, error.source.kind())
        };
        let missing = why(|plan| plan.programs = vec!["/no/such/program".into()]);
        assert_eq!(missing, ("execute it", io::ErrorKind::NotFound));
        let forbidden = why(|plan| plan.programs = vec!["/etc/passwd".into(), "/no/such/program".into()]);
        assert_eq!(forbidden, ("execute it", io::ErrorKind::PermissionDenied));
        let nowhere = why(|plan| plan.directory = Some("/no/such/directory".into()));
        assert_eq!(nowhere, ("change to its directory", io::ErrorKind::NotFound));
    }

    #[test]
    fn a_confined_command_reads_nothing_else() {
        if !crate::os::landlock::is_supported() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let script = format!("cat {}/secret; echo y > {}/new", dir.path().display(), dir.path().display());
        let read = ["/bin", "/usr", "/lib", "/lib64", "/etc"].map(PathBuf::from);
        let read: Vec<PathBuf> = read.into_iter().filter(|path| path.exists()).collect();
        let ruleset = crate::os::landlock::ruleset(&read, &[]).unwrap();
        let (said, exit) = run(&script, |plan| plan.ruleset = Some(ruleset));
        assert!(said.contains("ermission denied"), "{said}");
        assert_ne!(exit, Exit::Code(0));
        assert!(!dir.path().join("new").exists());
        let ruleset = crate::os::landlock::ruleset(&read, &[dir.path().to_owned()]).unwrap();
        let (said, exit) = run(&script, |plan| plan.ruleset = Some(ruleset));
        assert_eq!((said.as_str(), exit), ("x", Exit::Code(0)));
        assert!(dir.path().join("new").exists());
    }
}
