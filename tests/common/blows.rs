//! What befalls servers, done to them from outside, and clients that keep them busy meanwhile.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};

use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use osps::os::proc;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{connect, job, read_once, say};

/// What is done to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// It burns CPU and does nothing else: see [`spin`].
    Spin,
}

impl Blow {
    /// Whether it can be struck on this machine.
    pub fn is_possible(self) -> bool {
        self != Self::Spin || cfg!(target_arch = "x86_64")
    }

    /// Strikes; when it returns, the process does nothing any more.
    pub fn strike(self, pid: u32) {
        let signal = |signal| kill(raw(pid), signal).unwrap();
        match self {
            Self::Kill => signal(Signal::SIGKILL),
            Self::Stop => signal(Signal::SIGSTOP),
            Self::Spin => return spin(pid),
        }
        // On another core it goes on until the signal gets there; on this one it needs the core to die.
        while proc::stat(pid).is_ok_and(|stat| !matches!(stat.letter, 'T' | 'Z' | 'X')) {
            std::thread::yield_now();
        }
    }
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

/// Makes a process spin: writes a jump to itself where it is about to go on. It stays in
/// state R and answers nothing. The page is its own copy then (ptrace(2), `PTRACE_POKETEXT`):
/// no other process of the same program is concerned.
#[cfg(target_arch = "x86_64")]
pub fn spin(pid: u32) {
    const JUMP_TO_ITSELF: u64 = 0xfeeb;
    let pid = raw(pid);
    ptrace::seize(pid, Options::empty()).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    let mut registers = ptrace::getregs(pid).unwrap();
    // Else a system call that was interrupted would be made again first, two bytes before.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers).unwrap();
    let at = std::ptr::without_provenance_mut::<()>(usize::try_from(registers.rip).unwrap());
    let code = ptrace::read(pid, at as AddressType).unwrap().cast_unsigned();
    let code = code & !0xffff | JUMP_TO_ITSELF;
    ptrace::write(pid, at as AddressType, code.cast_signed()).unwrap();
    ptrace::detach(pid, None).unwrap();
}

/// Elsewhere nobody has written down yet how a jump to itself looks.
#[cfg(not(target_arch = "x86_64"))]
pub fn spin(_: u32) {
    unimplemented!("only on x86_64")
}

/// Has so many jobs given at this very port. Those given elsewhere meanwhile are claimed and
/// ended: the least loaded secondary comes first.
pub fn give_jobs_at(control: &mut TcpStream, kind: &str, port: u16, jobs: usize) {
    let mut elsewhere = Vec::new();
    let mut given = 0;
    while given < jobs {
        match job(control, kind) {
            at if at == port => given += 1,
            at => elsewhere.push(at),
        }
    }
    let ip = control.peer_addr().unwrap().ip();
    for port in elsewhere {
        drop(connect(SocketAddr::new(ip, port)));
    }
}

/// Does something while clients exchange on these connections all the time, until they break.
pub fn while_busy<T>(clients: Vec<TcpStream>, act: impl FnOnce() -> T) -> T {
    let cut = Cut(clients.iter().map(|client| client.try_clone().unwrap()).collect());
    std::thread::scope(|scope| {
        let _cut = cut;
        for mut client in clients {
            assert_eq!(say(&mut client, "here"), "here");
            scope.spawn(move || while exchange(&mut client).is_ok_and(|length| length > 0) {});
        }
        act()
    })
}

fn exchange(client: &mut TcpStream) -> std::io::Result<usize> {
    std::io::Write::write_all(client, b"busy")?;
    read_once(client, &mut [0; 64])
}

/// Ends the exchanges, also where a test fails: their threads are waited for.
struct Cut(Vec<TcpStream>);

impl Drop for Cut {
    fn drop(&mut self) {
        for client in &self.0 {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Processes that leave nothing of a core to others. They die with this, and by themselves after 20
/// seconds of CPU each, should the test be killed.
pub struct Hogs(Vec<Child>);

impl Hogs {
    /// Locks a process up on one core with so many hogs, all of them served before it.
    pub fn around(pid: u32, hogs: usize) -> Self {
        let known = |pid: u32| rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
        let allowed = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| allowed.is_set(core)).unwrap();
        let mut only = CpuSet::new();
        only.set(core);
        let pin = |pid| sched_setaffinity(known(pid), &only).unwrap();
        pin(pid);
        setpriority_process(known(pid), 19).unwrap();
        let spin = || Command::new("sh").args(["-c", "ulimit -t 20; while :; do :; done"]).spawn().unwrap();
        let hogs = Self((0..hogs).map(|_| spin()).collect());
        hogs.0.iter().for_each(|hog| pin(hog.id()));
        hogs
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}
