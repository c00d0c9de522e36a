//! Commands that ask the watchdog for something.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::exit::{Code, Failure};
use crate::os::rundir::Rundir;
use crate::status;
use crate::wire::control::{Answer, Request};

/// How soon a watchdog acknowledges.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often `osps stop` looks whether the watchdog has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Asks for something and waits until it is done. How far it is goes to standard error, what was done to standard
/// output.
///
/// # Errors
/// A [`Failure`] with the watchdog's reason, or why it could not be asked.
pub fn ask(rundir: &Rundir, request: Request) -> Result<Code, Failure> {
    status::require_running(rundir)?;
    let path = rundir.control();
    let failed = |error: io::Error| cannot_ask(&path, &error);
    let mut watchdog = UnixStream::connect(&path).map_err(failed)?;
    say(&mut watchdog, &format!("{request}\n")).map_err(failed)?;
    watchdog.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    let lines = watchdog.try_clone().map_err(failed)?;
    for line in BufReader::new(lines).lines() {
        let line = line.map_err(|error| cannot_hear(&path, &error))?;
        // It may take as long as exchanges that are under way.
        watchdog.set_read_timeout(None).map_err(failed)?;
        match Answer::parse(&line) {
            // Whoever reads that may have seen enough.
            Some(Answer::Progress(text)) => drop(writeln!(io::stderr(), "{text}")),
            Some(Answer::Done(text)) => return super::print(&format!("{text}\n")),
            Some(Answer::Error(text)) => return Err(Failure::new(Code::Unavailable, text)),
            None => return Err(Failure::internal("understand the watchdog", &line)),
        }
    }
    Err(Failure::new(Code::Unavailable, "the connection to the watchdog broke before it was done"))
}

/// Asks the watchdog to stop and waits until it has: then its lock is free.
///
/// # Errors
/// A [`Failure`] where it could not be asked, or did not obey.
pub fn stop(rundir: &Rundir) -> Result<Code, Failure> {
    status::require_running(rundir)?;
    let path = rundir.control();
    let said = ask_to_stop(&path).map_err(|error| cannot_hear(&path, &error))?;
    if let Some(error) = said.lines().find_map(|line| line.strip_prefix("error ")) {
        return Err(Failure::new(Code::Unavailable, error));
    }
    while rundir.is_locked().unwrap_or(false) {
        pause(LOOK_EVERY);
    }
    if !said.lines().any(|line| line == "stopped") {
        let message = "the watchdog ended before it had stopped the others";
        return Err(Failure::new(Code::Unavailable, message));
    }
    Ok(Code::Ok)
}

/// Says `stop` and collects what the watchdog says until it ends, after all others.
fn ask_to_stop(path: &Path) -> io::Result<String> {
    let mut watchdog = UnixStream::connect(path)?;
    watchdog.set_read_timeout(Some(ANSWER_WITHIN))?;
    say(&mut watchdog, "stop\n")?;
    let mut first = [0; 256];
    let length = watchdog.read(&mut first)?;
    // A graceful stop takes as long as the exchanges under way.
    watchdog.set_read_timeout(None)?;
    let mut said = String::from_utf8_lossy(&first[..length]).into_owned();
    if said.starts_with("error ") {
        return Ok(said);
    }
    watchdog.read_to_string(&mut said)?;
    Ok(said)
}

/// Asks. Who is turned away can say nothing any more, but hears why.
fn say(watchdog: &mut UnixStream, line: &str) -> io::Result<()> {
    match watchdog.write_all(line.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn cannot_hear(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let message = format!(
                "the watchdog does not answer within {ANSWER_WITHIN:?}: is it stopped? It will do it when it goes on"
            );
            Failure::new(Code::Unavailable, message)
        }
        _ => cannot_ask(path, error),
    }
}

fn cannot_ask(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => Code::NoPermission,
        _ => Code::Unavailable,
    };
    Failure::new(code, format!("cannot ask the watchdog at {}: {error}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "a tool that waits for another process, no server")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
