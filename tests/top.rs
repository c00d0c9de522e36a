//! `osps top` in a pseudo-terminal: what it shows, what keys do, and how it leaves the terminal.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use common::{REQUESTS, System, eventually};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// Long enough to be seen as suspect, on a loaded machine too.
const TIMES: &str = "[watchdog]\nperiod = \"100ms\"\nsuspect_after = \"300ms\"\nkill_after = \"4s\"\n";
/// Nobody is killed.
const PATIENT: &str = "[watchdog]\nperiod = \"100ms\"\nsuspect_after = \"50s\"\nkill_after = \"60s\"\n";

fn system(times: &str) -> System {
    System::start("secondaries = 2", &format!("{REQUESTS}\n{times}"))
}

/// What is written when a screen is complete: all attributes are reset.
const END: &[u8] = b"\x1b[0m";

/// A terminal in which a program runs.
struct Terminal {
    master: File,
    slave: File,
    /// Its modes before the program began.
    before: String,
    emulator: vt100::Parser,
    /// All that was written to it, and how much of that the emulator has seen.
    written: Vec<u8>,
    seen: usize,
    program: Child,
}

/// The modes of a terminal, to compare them.
fn modes(terminal: &File) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn some(length: u16) -> NonZero<u16> {
    NonZero::new(length).unwrap()
}

/// A terminal that knows colours and all characters, but for what these variables say.
fn environment<'a>(command: &'a mut Command, variables: &[(&str, &str)]) -> &'a mut Command {
    for name in ["NO_COLOR", "LC_ALL", "LC_CTYPE"] {
        command.env_remove(name);
    }
    let usual = [("TERM", "xterm-256color"), ("LANG", "C.UTF-8")];
    command.envs(usual).envs(variables.iter().copied())
}

impl Terminal {
    fn open(mut command: Command, (columns, rows): (u16, u16), variables: &[(&str, &str)]) -> Self {
        // Closed in whatever another test starts meanwhile: a terminal is gone when nobody has its master.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave =
            File::options().read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(path).unwrap();
        tcsetwinsize(&master, size(columns, rows)).unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        let (master, before) = (File::from(master), modes(&slave));
        let end = || Stdio::from(slave.try_clone().unwrap());
        environment(&mut command, variables).stdin(end()).stdout(end()).stderr(end()).process_group(0);
        let program = command.spawn().unwrap();
        let emulator = vt100::Parser::new(some(rows), some(columns), 0);
        Self { master, slave, before, emulator, written: Vec::new(), seen: 0, program }
    }

    /// `osps top` of a system, ten times a second.
    fn top(system: &System, size: (u16, u16), variables: &[(&str, &str)]) -> Self {
        Self::open(system.tool(&["top", "--interval", "100ms"]), size, variables)
    }

    /// Takes what was written, up to the end of the next screen: none is looked at half drawn, none is passed over.
    /// Returns whether there was a whole one.
    fn follow(&mut self) -> bool {
        loop {
            let unseen = &self.written[self.seen..];
            if let Some(end) = unseen.windows(END.len()).position(|bytes| bytes == END) {
                self.show(self.seen + end + END.len());
                return true;
            }
            if !self.receive() {
                return false;
            }
        }
    }

    /// Takes all that was written.
    fn drain(&mut self) {
        while self.receive() {}
        self.show(self.written.len());
    }

    fn show(&mut self, end: usize) {
        self.emulator.process(&self.written[self.seen..end]);
        self.seen = end;
    }

    fn receive(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            Ok(length) => {
                self.written.extend_from_slice(&bytes[..length]);
                length > 0
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            // Whoever wrote has closed the terminal.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn lines(&self) -> Vec<String> {
        let (_, columns) = self.emulator.screen().size();
        self.emulator.screen().rows(0, columns.get()).map(|row| row.trim_end().to_owned()).collect()
    }

    /// Waits until the screen satisfies `condition`, and returns it.
    fn until(&mut self, what: &str, condition: impl Fn(&[String]) -> bool) -> Vec<String> {
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                while self.follow() {
                    let lines = self.lines();
                    if condition(&lines) {
                        return Some(lines);
                    }
                }
                None
            })
        }));
        seen.unwrap_or_else(|panic| {
            eprintln!("--- the screen ---\n{}", self.lines().join("\n"));
            std::panic::resume_unwind(panic)
        })
    }

    /// Waits until a line satisfies `condition`, and returns it.
    fn line(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let lines = self.until(what, |lines| lines.iter().any(|line| condition(line)));
        lines.into_iter().find(|line| condition(line)).unwrap()
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        tcsetwinsize(&self.master, size(columns, rows)).unwrap();
        self.emulator.screen_mut().set_size(some(rows), some(columns));
        // The terminal would send it by itself, were it the one that controls the program.
        self.signal(Signal::SIGWINCH);
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.program.id().try_into().unwrap())
    }

    /// Waits until the program has ended.
    fn ended(&mut self) -> ExitStatus {
        let status = eventually("the end of the program", || {
            self.drain();
            self.program.try_wait().unwrap()
        });
        self.drain();
        status
    }

    /// Makes sure that the terminal is as it was.
    fn is_given_back(&self) {
        assert_eq!(modes(&self.slave), self.before);
        let screen = self.emulator.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor(), "its screen, its cursor");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// A row of the table, by the name at its beginning.
fn row<'a>(lines: &'a [String], name: &str) -> Option<Vec<&'a str>> {
    let begins = |line: &&String| line.starts_with(name) && !line.contains("killed");
    lines.iter().find(begins).map(|line| line[name.len()..].split_whitespace().collect())
}

fn stress(system: &System) -> Load {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    let at = system.address().to_string();
    command.args(["--at", &at, "--rate", "100", "--clients", "4", "--duration", "300s", "--quiet"]);
    Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// A load that ends with the test.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shows_a_frozen_secondary(columns: u16, rows: u16) {
    let system = system(TIMES);
    let _load = stress(&system);
    let mut top = Terminal::top(&system, (columns, rows), &[]);
    let is_some = |text: &str| text.parse::<f64>().is_ok_and(|rate| rate > 0.0);
    let lines = top.until("rates and latencies", |lines| {
        let kind = row(lines, "echo ").is_some_and(|cells| is_some(cells[0]) && cells[4].ends_with('s'));
        kind && row(lines, "secondary 1").is_some_and(|cells| cells[0] == "ready" && is_some(cells[3]))
    });
    assert!(lines[0].starts_with(&format!("osps {}  up ", env!("CARGO_PKG_VERSION"))), "{}", lines[0]);
    assert!(lines[0].contains(&format!("on {}", system.address())) && lines[0].ends_with("every 100ms"));
    assert!(lines[1].contains(" accepted = ") && lines[1].ends_with(" open"), "{}", lines[1]);
    assert!(lines[2].contains("clients: "), "{}", lines[2]);
    assert!(lines.last().unwrap().starts_with("q quit  ? help"));
    let pid = system.pid(1);
    assert_eq!(row(&lines, "secondary 1").unwrap()[2], pid.to_string());
    top.until("bars", |lines| lines[3..6].iter().any(|line| line.contains(['█', '▇', '▆', '▅'])));
    system.signal(pid, Signal::SIGSTOP);
    top.until("a suspect that is stopped", |lines| {
        row(lines, "secondary 1").is_some_and(|cells| cells[..2] == ["suspect", "T"])
    });
    let died = |line: &str| line.starts_with("secondary 1 ") && line.contains(&format!(" {pid} "));
    // All of it where there is room.
    let why = if columns > 100 { ", last answer " } else { "killed: stopped, no answer within kill_after" };
    top.line("an obituary", |line| died(line) && line.contains(why));
    top.until("its successor", |lines| {
        row(lines, "secondary 1").is_some_and(|cells| cells[0] == "ready" && cells[2] != pid.to_string())
    });
    top.press("q");
    assert!(top.ended().success());
    top.is_given_back();
}

#[test]
fn a_frozen_secondary_is_a_suspect_and_then_an_obituary() {
    shows_a_frozen_secondary(80, 24);
}

#[test]
fn so_it_is_in_a_large_terminal() {
    shows_a_frozen_secondary(200, 50);
}

#[test]
fn it_works_while_everybody_hangs() {
    let system = system(PATIENT);
    let mut top = Terminal::top(&system, (80, 24), &[]);
    top.line("the table", |line| line.starts_with("secondary 2"));
    system.until("an answer", |status| System::server(status, 0)["answered_ms_ago"].is_u64());
    for pid in system.pids() {
        system.signal(pid, Signal::SIGSTOP);
    }
    let lines = top.until("that all are stopped", |lines| {
        let is_stopped = |name| row(lines, name).is_some_and(|cells| cells[1] == "T");
        ["watchdog", "principal", "secondary 1", "secondary 2"].into_iter().all(is_stopped)
    });
    assert!(lines[0].ends_with("WATCHDOG STOPPED"), "{}", lines[0]);
    assert_eq!(row(&lines, "watchdog").unwrap()[0], "stopped");
    top.until("that answers are long ago", |lines| {
        row(lines, "principal").is_some_and(|cells| cells[8].ends_with('s') && !cells[8].ends_with("ms"))
    });
    top.press("/principal\r");
    top.line("a filter", |line| line.starts_with("── 1 of 4 processes"));
    // No thread was started for the keys.
    let tasks = fs::read_dir(format!("/proc/{}/task", top.pid())).unwrap();
    assert_eq!(tasks.count(), 1);
    top.press("\x03");
    assert!(top.ended().success());
    top.is_given_back();
}

#[test]
fn another_size_is_drawn_anew() {
    let system = system(PATIENT);
    let mut top = Terminal::top(&system, (80, 24), &[]);
    top.until("a screen", |lines| lines[23].starts_with("q quit  ? help  < > sort: slot"));
    top.resize(200, 50);
    let lines = top.until("a large screen", |lines| {
        lines[49].ends_with("up down scroll") && lines[0].chars().count() == 200
    });
    assert!(lines.iter().any(|line| line.contains("PROBE RTT  ANSWERED  RESTARTS")), "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.contains("q quit")).count(), 1, "{lines:#?}");
    top.resize(40, 10);
    top.until("a small screen", |lines| {
        lines[4] == "SERVER      STATE    JOBS/S OPEN CPU%" && lines[9].starts_with("q quit  ? help")
    });
    top.resize(1, 1);
    top.until("one cell", |lines| lines == ["o"]);
    top.resize(80, 24);
    top.until("the first screen", |lines| {
        lines[23].ends_with("+ - interval") && lines.iter().any(|line| line.ends_with("RST KILL FAIL"))
    });
}

#[test]
fn keys_sort_filter_pause_and_explain() {
    let system = System::start("secondaries = 12", &format!("{REQUESTS}\n{PATIENT}"));
    let mut top = Terminal::top(&system, (80, 24), &[]);
    let names = |lines: &[String]| -> Vec<String> {
        let begins = |line: &&String| {
            ["watchdog ", "principal ", "secondary "].iter().any(|name| line.starts_with(name))
        };
        lines.iter().filter(begins).map(|line| line[..12].trim_end().to_owned()).collect()
    };
    top.until("a table by slot", |lines| names(lines).starts_with(&["watchdog".into(), "principal".into()]));
    top.press("r");
    top.until("the other way round", |lines| names(lines).first().is_some_and(|name| name == "secondary 12"));
    top.press("r\x1b[6~");
    top.until("the end of the table", |lines| {
        names(lines).last().is_some_and(|name| name == "secondary 12") && lines[23].ends_with("-14 of 14")
    });
    top.press("\x1b[H>>");
    top.until("another order, the oldest first", |lines| {
        lines[23].contains("sort: pid  r reverse")
            && names(lines).first().is_some_and(|name| name == "watchdog")
    });
    top.press("/secondary 7");
    top.until("a filter", |lines| {
        names(lines) == ["secondary 7"] && lines[23].starts_with("/secondary 7_  Enter keep  Esc clear")
    });
    top.press("\x1b");
    top.until("no filter", |lines| names(lines).len() > 5 && lines[23].starts_with("q quit"));
    top.press("p");
    top.line("a pause", |line| line.ends_with("PAUSED"));
    top.press("p+");
    top.line("a longer interval", |line| line.ends_with("every 200ms"));
    top.press("?");
    top.line("an explanation", |line| line.starts_with("q Esc Ctrl-C  quit"));
    top.press("x\x1b");
    assert!(top.ended().success(), "Esc quits");
    top.is_given_back();
}

#[test]
fn a_system_that_ends_and_comes_back_is_looked_at_all_the_while() {
    let mut system = system(PATIENT);
    let mut top = Terminal::top(&system, (80, 24), &[]);
    top.line("the table", |line| line.starts_with("secondary 2"));
    assert!(system.stop().success());
    let title = top.line("that it is gone", |line| line.contains("NOT RUNNING for "));
    assert!(title.contains("no osps is running in "), "{title}");
    system.start_again();
    let (watchdog, pid) = (system.watchdog.id().to_string(), system.pid(2).to_string());
    top.until("the new one", |lines| {
        let is = |name, pid: &str| row(lines, name).is_some_and(|cells| cells[2] == pid);
        lines[0].contains("  up ") && is("watchdog", &watchdog) && is("secondary 2", &pid)
    });
    top.press("q");
    assert!(top.ended().success());
}

#[test]
fn whatever_ends_it_the_terminal_is_as_it_was() {
    let system = system(PATIENT);
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut top = Terminal::top(&system, (80, 24), &[]);
        top.line("the table", |line| line.starts_with("secondary 2"));
        assert!(modes(&top.slave) != top.before, "keys come one by one");
        top.signal(signal);
        assert_eq!(top.ended().signal(), Some(signal as i32));
        top.is_given_back();
    }
}

#[test]
fn it_ends_when_its_terminal_is_gone() {
    let system = system(PATIENT);
    let mut top = Terminal::top(&system, (80, 24), &[]);
    top.line("the table", |line| line.starts_with("secondary 2"));
    top.master = File::open("/dev/null").unwrap();
    assert!(!top.ended().success());
}

#[test]
fn it_stops_as_a_job_of_a_shell_and_goes_on() {
    let system = system(PATIENT);
    let mut top = Terminal::top(&system, (80, 24), &[]);
    for _ in 0..2 {
        top.line("the table", |line| line.starts_with("secondary 2"));
        top.press("\x1a");
        let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
        let pid = top.pid();
        let stopped = eventually("that it has stopped", || {
            top.drain();
            waitpid(pid, Some(flags)).ok().filter(|status| *status != WaitStatus::StillAlive)
        });
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGTSTP));
        top.drain();
        top.is_given_back();
        top.signal(Signal::SIGCONT);
        eventually("that it has the terminal again", || {
            top.drain();
            (modes(&top.slave) != top.before && top.emulator.screen().alternate_screen()).then_some(())
        });
    }
    top.press("q");
    assert!(top.ended().success());
    top.is_given_back();
}

#[test]
fn a_plain_terminal_gets_plain_text() {
    let system = system(PATIENT);
    for variables in
        [&[("NO_COLOR", "1"), ("LANG", "C")][..], &[("TERM", "vt100"), ("LC_ALL", "de_DE.ISO-8859-1")]]
    {
        let mut top = Terminal::top(&system, (80, 24), variables);
        let lines = top.until("the table", |lines| lines.iter().any(|line| line.starts_with("secondary 2")));
        assert!(lines.iter().any(|line| line.starts_with("-- 4 processes: ")), "{lines:#?}");
        assert!(top.written.is_ascii());
        let screen = top.emulator.screen();
        for cell in (0..24).flat_map(|row| (0..80).filter_map(move |column| screen.cell(row, column))) {
            assert_eq!((cell.fgcolor(), cell.bgcolor()), (vt100::Color::Default, vt100::Color::Default));
        }
        assert!(screen.cell(0, 0).unwrap().inverse(), "what stands out does so without colours");
    }
}

#[test]
fn without_a_terminal_it_looks_once() {
    let system = system(PATIENT);
    let mut dumb = Terminal::top(&system, (80, 24), &[("TERM", "dumb")]);
    assert!(dumb.ended().success());
    let written = String::from_utf8(dumb.written.clone()).unwrap();
    assert!(written.starts_with("osps ") && written.contains("secondary 2") && !written.contains('\x1b'));
    let piped = environment(&mut system.tool(&["top"]), &[]).stdin(Stdio::null()).output().unwrap();
    assert!(piped.status.success());
    assert!(String::from_utf8(piped.stdout).unwrap().contains("\nsecondary 2 "));
}

#[test]
fn where_none_runs_it_says_so_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, code, says) in [
        (&[][..], 69, "no osps is running in"),
        (&["--interval", "99ms"][..], 64, "must be from 100ms to 1h"),
        (&["--interval", "soon"][..], 64, "--interval"),
    ] {
        let mut command = common::osps();
        command.arg("top").args(arguments).arg("--runtime-dir").arg(dir.path());
        let mut top = Terminal::open(command, (80, 24), &[]);
        assert_eq!(top.ended().code(), Some(code));
        let written = String::from_utf8(top.written.clone()).unwrap();
        assert!(written.contains(says) && !written.contains("\x1b[?1049h"), "{written}");
        top.is_given_back();
    }
}
