//! A worker: answers each message with the same in upper case. Some messages make it misbehave,
//! and so do its arguments, for the tests:
//! `worker [slow MILLISECONDS] [jobs COUNT] [end CODE]`.

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
        "close" => {
            // What takes this process's place can close what the standard library keeps open.
            let hangs = ["-c", "exec >&- <&-; sleep 3600"];
            let error =
                std::os::unix::process::CommandExt::exec(std::process::Command::new("sh").args(hangs));
            return Err(error);
        }
        "stderr" => {
            eprintln!("{rest}");
            eprint!("without an end");
            answer(0, b"said")?;
        }
        "failed" => answer(FAILED, rest.as_bytes())?,
        "pid" => answer(0, std::process::id().to_string().as_bytes())?,
        "child" => {
            // With a session of its own where that is asked for, so that it is in no group of ours, and
            // without our environment.
            let mut child = std::process::Command::new(if rest.is_empty() { "env" } else { "setsid" });
            if rest == "bare" {
                child.env_clear();
            }
            let child = child.args(["sleep", "3600"]).spawn()?;
            answer(0, child.id().to_string().as_bytes())?;
        }
        "deaf" => {
            // It has answered, closes its input, and stays.
            answer(0, b"what?")?;
            let stays = ["-c", "exec <&-; sleep 3600"];
            let error =
                std::os::unix::process::CommandExt::exec(std::process::Command::new("sh").args(stays));
            return Err(error);
        }
        "bytes" => answer(0, &vec![b'x'; rest.parse().unwrap_or(0)])?,
        "length" => answer(0, rest.len().to_string().as_bytes())?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[expect(clippy::disallowed_methods, reason = "a worker may block: it is a process of its own")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
