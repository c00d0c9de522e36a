//! The command line of `osps-client`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Parser;

use super::{Common, duration, fail, load_for_tools, parse};
use crate::client::{Client, ClientError, Endpoint, Event, Input, Limits, Mode, Output, Policy, Step};
use crate::exit::{Code, Failure};
use crate::os::listener;
use crate::os::log::Lines;
use crate::os::process::file_of;

#[derive(Debug, Parser)]
#[command(
    name = "osps-client",
    version,
    about = "Asks a principal for a type of work and talks to the secondary that it names",
    long_about = "Asks a principal for a type of work, connects to the secondary that it names, sends the input, \
                  and shows what comes back while it comes. At the end of the input it ends its sending side \
                  and waits until the secondary closes.",
    after_help = "Exit codes: 0 done, or nobody reads the output any more; 64 usage; 69 refused, unreachable, \
                  broken off, or a followed job that failed; 70 the input cannot be read or the output not \
                  written; 78 configuration.",
    after_long_help = "What failed is tried again, after a pause that doubles each time (10ms at first), at most \
                       --retries times and in the first 30s, where that is safe: not a byte of answer has come, \
                       and all input that was sent can be sent again. So can --data and a file always, and what \
                       comes through a pipe or from a terminal while it is no more than 256 KiB. An unknown type, \
                       a silence of --timeout and a job that its handler ends badly are not tried again.\n\n\
                       Without --follow an answer counts as complete when the secondary closes the connection \
                       after it has taken all input; a secondary that dies just then does the same. With --follow \
                       the principal's word counts: \"fintraitement\" or \"errtraitement\".\n\n\
                       Exit codes:\n  \
                       0   done, or nobody reads the output any more (with --follow: only after \"fintraitement\")\n  \
                       64  usage\n  \
                       69  refused, unreachable, broken off, or a followed job that failed\n  \
                       70  the input cannot be read, or the output cannot be written\n  \
                       78  configuration"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Where the principal listens: HOST:PORT or unix:PATH [default: as configured, 127.0.0.1:2222]
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<Endpoint>,
    /// The type of work
    #[arg(value_name = "TYPE")]
    kind: String,
    /// What to send [default: standard input]
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// How often to ask and exchange, over one control connection
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Ask for a tracked job and show on standard error what becomes of it
    #[arg(long)]
    follow: bool,
    /// How long each step may take: to connect, to be answered, and the longest silence of a secondary
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    timeout: Duration,
    /// How often to try again what failed, where that is safe
    #[arg(long, default_value_t = Policy::default().tries - 1, value_name = "N")]
    retries: u32,
}

/// Runs `osps-client`.
#[must_use]
pub fn osps_client() -> Code {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match parse::<Arguments>("osps-client", &arguments) {
        Ok(arguments) => run(&arguments).unwrap_or_else(|failure| fail("osps-client", &failure)),
        Err(code) => code,
    }
}

fn run(arguments: &Arguments) -> Result<Code, Failure> {
    let at = match &arguments.at {
        Some(at) => at.clone(),
        None => configured_address(&arguments.common)?,
    };
    let mut client = Client::at(at);
    client.limits = Limits::each(arguments.timeout);
    client.policy.tries = arguments.retries.saturating_add(1);
    if arguments.follow {
        let mut stderr = Lines::stderr();
        client.observe(move |event| stderr.line(line_of(&event).as_bytes()));
    }
    match ask_and_exchange(arguments, &mut client) {
        Ok(()) => Ok(Code::Ok),
        // Whoever reads has seen enough (`osps-client ... | head -1`).
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            let code = if arguments.follow { Code::Unavailable } else { Code::Ok };
            Ok(code)
        }
        Err(error) => Err(Failure::new(code_of(&error), error)),
    }
}

/// What `--follow` shows.
fn line_of(event: &Event<'_>) -> String {
    match event {
        Event::News(news) => format!("{news}\n"),
        Event::Retry { error, pause, .. } => format!("osps-client: {error}; trying again in {pause:.0?}\n"),
    }
}

fn code_of(error: &ClientError) -> Code {
    match error.step() {
        Step::Arguments => Code::Usage,
        Step::Connect | Step::Request | Step::Open | Step::Exchange | Step::Follow => Code::Unavailable,
        Step::Input | Step::Output => Code::Internal,
    }
}

fn ask_and_exchange(arguments: &Arguments, client: &mut Client) -> Result<(), ClientError> {
    let mode = if arguments.follow { Mode::Tracked } else { Mode::Plain };
    // Not `io::stdout()`, which waits for whole lines.
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(ClientError::Output)?;
    let mut exchange = |input: &mut Input<'_>| {
        let mut writer = &stdout;
        let mut output = Output::watched(&mut writer, stdout.as_fd());
        client.stream(mode, &arguments.kind, input, &mut output).map(drop)
    };
    if let Some(data) = &arguments.data {
        return (0..arguments.repeat).try_for_each(|_| exchange(&mut Input::bytes(data.as_bytes())));
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(ClientError::Input)?;
    let is_file = stdin.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file && arguments.repeat == 1 {
        return exchange(&mut Input::stream(stdin));
    }
    let mut file = if is_file { stdin } else { spooled(stdin).map_err(ClientError::Input)? };
    let start = file.stream_position().map_err(ClientError::Input)?;
    for _ in 0..arguments.repeat {
        file.seek(SeekFrom::Start(start)).map_err(ClientError::Input)?;
        let file = file.try_clone().map_err(ClientError::Input)?;
        exchange(&mut Input::file(file).map_err(ClientError::Input)?)?;
    }
    Ok(())
}

/// All that a pipe brings, in a file without a name, so that it can be sent again and again.
fn spooled(mut stdin: File) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    // Not every file system knows files without a name: then it has to be memory.
    let nameless = open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(match nameless {
        Ok(file) => file,
        Err(_) => file_of("osps-client-input", b"")?,
    });
    io::copy(&mut stdin, &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// Where the configured system listens, for who is on the same machine.
pub fn configured_address(common: &Common) -> Result<Endpoint, Failure> {
    let config = load_for_tools(common)?;
    let address = config.listen.tcp().next();
    let address = address.ok_or_else(|| Failure::new(Code::Config, "listen: no address"))?;
    Ok(Endpoint::Tcp(listener::reachable(address).to_string()))
}
