//! Several processes that load together: each has its part of the clients, and tells on a pipe how it goes
//! and, in the end, what became of its requests.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::core::moment::Moment;
use crate::os::clock;
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::stress::Plan;
use crate::stress::record::{Failed, Parcel, Record};
use crate::stress::watch::{Glance, Watch};

/// The last line that a process tells.
#[derive(Debug, Serialize, Deserialize)]
pub struct Last {
    /// What became of its requests.
    pub record: Parcel,
    /// How long it took.
    pub took: Duration,
}

/// A process and what it has told.
struct Member {
    child: Child,
    pipe: File,
    id: SourceId,
    /// What has come of a line.
    line: Vec<u8>,
    glance: Glance,
    last: Option<Last>,
    open: bool,
}

/// All processes.
pub struct Herd<'a> {
    plan: &'a Plan,
    members: Vec<Member>,
    watch: Watch,
    start: Moment,
    show_at: Moment,
    interrupted: bool,
}

impl<'a> Herd<'a> {
    /// Runs so many processes of this program, with these arguments and their number, until they have ended.
    ///
    /// # Errors
    /// One could not be started, or has ended without a word.
    pub fn run(
        plan: &'a Plan,
        arguments: &[Vec<OsString>],
        watch: Watch,
        start: Moment,
    ) -> io::Result<(Record, Watch, Duration)> {
        let mut reactor = Reactor::new(&[Signal::INT, Signal::TERM])?;
        let mut herd = Self { plan, members: Vec::new(), watch, start, show_at: start, interrupted: false };
        for arguments in arguments {
            herd.start_member(reactor.handle(), arguments)?;
        }
        reactor.run(&mut herd)?;
        herd.sum()
    }

    fn start_member(&mut self, reactor: &mut Handle<usize>, arguments: &[OsString]) -> io::Result<()> {
        let mut command = Command::new("/proc/self/exe");
        // A group of its own: Ctrl-C comes to this process, which hands it on.
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let pipe = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let pipe = File::from(OwnedFd::from(pipe));
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let key = self.members.len();
        let id = reactor.register(&mut SourceFd(&pipe.as_raw_fd()), key, Interest::READABLE)?;
        let glance = Glance::default();
        self.members.push(Member { child, pipe, id, line: Vec::new(), glance, last: None, open: true });
        Ok(())
    }

    /// What all have told, added up.
    fn sum(mut self) -> io::Result<(Record, Watch, Duration)> {
        let mut record = Record::new(self.plan.shares.iter().map(|share| share.kind.as_str()));
        let mut took = Duration::ZERO;
        let mut lost = Vec::new();
        for member in &mut self.members {
            if member.open {
                // It was told to end twice, and has not.
                let _ = member.child.kill();
            }
            let exit = member.child.wait()?;
            match member.last.take() {
                Some(last) => {
                    record.add(&Record::from(last.record));
                    took = took.max(last.took);
                }
                None => lost.push((exit, member.glance)),
            }
        }
        if took.is_zero() {
            took = clock::now().since(self.start);
        }
        for (exit, glance) in lost {
            let what =
                format!("a process of osps-stress has ended early ({exit}): {} were served", glance.served);
            record.fail(0, Failed::Lost, || what, took);
        }
        record.end(took);
        Ok((record, self.watch, took))
    }
}

impl Member {
    /// Reads what is there. Returns whether there may be more.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 * 1024];
        match self.pipe.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(length) => {
                for piece in buffer[..length].split_inclusive(|&byte| byte == b'\n') {
                    self.line.extend_from_slice(piece);
                    if piece.ends_with(b"\n") {
                        self.understand();
                    }
                }
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    fn understand(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Ok(glance) = serde_json::from_slice(&line) {
            self.glance = glance;
        } else if let Ok(last) = serde_json::from_slice(&line) {
            self.last = Some(last);
        }
    }
}

impl Drop for Member {
    /// Whoever has not told its last word is not wanted any more.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Role for Herd<'_> {
    type Key = usize;

    fn on_signal(&mut self, reactor: &mut Handle<usize>, _: Signal) {
        if std::mem::replace(&mut self.interrupted, true) {
            reactor.stop();
        }
        for member in self.members.iter().filter(|member| member.open) {
            let pid = i32::try_from(member.child.id()).ok().and_then(Pid::from_raw);
            // It was not reaped: the pid is nobody else's.
            let _ = pid.map(|pid| kill_process(pid, Signal::INT));
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<usize>, _: SourceId, key: usize, _: Ready) -> Progress {
        let member = &mut self.members[key];
        match member.read() {
            Ok(true) => Progress::Again,
            Ok(false) if member.open => Progress::Drained,
            Ok(false) | Err(_) => {
                member.open = false;
                reactor.deregister(&mut SourceFd(&member.pipe.as_raw_fd()), member.id);
                if self.members.iter().all(|member| !member.open) {
                    reactor.stop();
                }
                Progress::Drained
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.show_at)
    }

    fn on_deadline(&mut self, reactor: &mut Handle<usize>) {
        let mut all = Glance::default();
        for Member { glance, .. } in &self.members {
            all.served += glance.served;
            all.failed += glance.failed;
            all.under_way += glance.under_way;
            // Of parts that are alike the worst is near the whole.
            all.p99_us = all.p99_us.max(glance.p99_us);
        }
        let now = reactor.now();
        self.show_at = now + self.watch.show_all(now.since(self.start), self.plan, all);
    }

    fn settle(&mut self, _: &mut Handle<usize>) {}
}
