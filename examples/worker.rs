//! A worker: answers each message with the same in upper case. Some messages make it misbehave,
//! and so do its arguments, for the tests:
//! `worker [slow MILLISECONDS] [jobs COUNT] [end CODE] [elsewhere 0] [headless 0]`.

#![allow(unsafe_code)] // some of that misbehaviour is a system call that nobody wraps

use std::io::{self, Read, Write};
use std::time::Duration;

/// The top bit of an answer's length: the job has failed.
const FAILED: u32 = 1 << 31;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut jobs = u64::MAX;
    for pair in arguments.chunks(2) {
        let number = pair.get(1).and_then(|number| number.parse().ok()).unwrap_or(0);
        match pair[0].as_str() {
            "slow" => sleep(Duration::from_millis(number)),
            "jobs" => jobs = number,
            "headless" => return headless(),
            "elsewhere" => {
                leave_group()?;
                sleep(Duration::from_secs(3600));
            }
            "end" => std::process::exit(i32::try_from(number).unwrap_or(1)),
            _ => {}
        }
    }
    for _ in 0..jobs {
        let Some(message) = read_message()? else {
            break;
        };
        let text = String::from_utf8_lossy(&message).into_owned();
        let (word, rest) = text.split_once(' ').unwrap_or((text.as_str(), ""));
        if !misbehave(word, rest)? {
            answer(0, &message.to_ascii_uppercase())?;
        }
    }
    Ok(())
}

/// Out of the group that it leads, into that of its parent.
fn leave_group() -> io::Result<()> {
    unsafe extern "C" {
        fn getppid() -> i32;
        fn getpgid(pid: i32) -> i32;
        fn setpgid(pid: i32, group: i32) -> i32;
    }
    // SAFETY: plain system calls with numbers.
    match unsafe { setpgid(0, getpgid(getppid())) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first thread ends, another goes on: a zombie that lives.
#[expect(clippy::disallowed_methods, reason = "a process that misbehaves")]
fn headless() -> io::Result<()> {
    unsafe extern "C" {
        fn syscall(number: i64, ...) -> i64;
    }
    const EXIT: i64 = if cfg!(target_arch = "x86_64") { 60 } else { 93 };
    std::thread::spawn(|| sleep(Duration::from_secs(3600)));
    // SAFETY: ends this thread alone (exit(2)), which nobody waits for.
    unsafe { syscall(EXIT, 0_i64) };
    Ok(())
}

/// The next message; `None` where the secondary wants no more.
fn read_message() -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 4];
    match io::stdin().read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut message = vec![0; u32::from_be_bytes(header) as usize];
    io::stdin().read_exact(&mut message)?;
    Ok(Some(message))
}

fn answer(flag: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    say(&[&(flag | length).to_be_bytes(), payload].concat())
}

fn say(bytes: &[u8]) -> io::Result<()> {
    io::stdout().write_all(bytes)?;
    io::stdout().flush()
}

/// Does what a worker must not do, or seldom does. Returns whether the message asked for that.
fn misbehave(word: &str, rest: &str) -> io::Result<bool> {
    match word {
        "crash" => std::process::abort(),
        "exit" => std::process::exit(rest.parse().unwrap_or(1)),
        "hang" => sleep(Duration::from_secs(3600)),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "half" => {
            say(b"\0\0\0\x08half")?;
            std::process::exit(5);
        }
        "huge" => say(&0x7fff_ffff_u32.to_be_bytes())?,
        "garbage" => say(&[0xff; 1000])?,
        "twice" => {
            answer(0, b"once")?;
            answer(0, b"twice")?;
        }
        "ahead" => {
            answer(0, b"now")?;
            sleep(Duration::from_millis(300));
            answer(0, b"of what comes next")?;
            sleep(Duration::from_secs(3600));
        }
        "both" => say(b"\0\0\0\x01a\0\0\0\x01b")?,
        "close" | "last" | "deaf" => return become_shell(word),
        "stderr" => {
            eprintln!("{rest}");
            eprint!("without an end");
            answer(0, b"said")?;
        }
        "failed" => answer(FAILED, rest.as_bytes())?,
        "pid" => answer(0, std::process::id().to_string().as_bytes())?,
        "child" => answer(0, start_child(rest)?.to_string().as_bytes())?,
        "elsewhere" => {
            leave_group()?;
            if rest == "stay" {
                sleep(Duration::from_secs(3600));
            }
            answer(0, b"moved")?;
        }
        "bytes" => answer(0, &vec![b'x'; rest.parse().unwrap_or(0)])?,
        "length" => answer(0, rest.len().to_string().as_bytes())?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// A child; with a session of its own where that is asked for, so that it is in no group of ours, and
/// perhaps without our environment, or as a zombie that lives.
fn start_child(how: &str) -> io::Result<u32> {
    let mut child = std::process::Command::new(if how.is_empty() { "env" } else { "setsid" });
    match how {
        "headless" => child.arg(std::env::current_exe()?).args(["headless", "0"]),
        "bare" => child.env_clear().args(["sleep", "3600"]),
        _ => child.args(["sleep", "3600"]),
    };
    Ok(child.stdout(std::process::Stdio::null()).spawn()?.id())
}

/// What takes this process's place can close what the standard library keeps open.
fn become_shell(word: &str) -> io::Result<bool> {
    let script = match word {
        "close" => "exec >&- <&-; sleep 3600",
        // It closes its input, thinks, and answers.
        "last" => "exec <&-; sleep 0.3; printf '\\000\\000\\000\\010the last'",
        // It has answered, closes its input, and stays.
        _ => {
            answer(0, b"what?")?;
            "exec <&-; sleep 3600"
        }
    };
    let mut shell = std::process::Command::new("sh");
    Err(std::os::unix::process::CommandExt::exec(shell.args(["-c", script])))
}

#[expect(clippy::disallowed_methods, reason = "a worker may block: it is a process of its own")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
