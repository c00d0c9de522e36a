//! The command lines of the binaries: arguments in, exit code out.

mod client;
mod control;
mod stress;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, ConfigError, DEFAULT_FILE, PassedAddresses, Registered};
use crate::exit::{Code, Failure};
use crate::handler::Registry;
use crate::os::output;
use crate::os::rundir::Rundir;
use crate::role;
use crate::role::watchdog::{Passed, Sources};
use crate::status;
use crate::top;
use crate::wire::control::{self as wire, Request};
use crate::wire::logline::{Format, Logging};

pub use client::osps_client;
pub use stress::osps_stress;

const TOP_HELP: &str = "Keys: q quits, ? explains the others and the columns. It reads shared memory and /proc, and \
                        asks nobody: it works while servers hang. Without colours where NO_COLOR is set or TERM \
                        names a terminal that has none, in ASCII where the locale is not UTF-8. Where standard output \
                        is no terminal, or TERM is \"dumb\", it prints what \"osps status\" prints and ends.";

#[derive(Debug, Parser)]
#[command(
    name = "osps",
    version,
    about = "A process-supervised TCP server: watchdog, principal and secondaries",
    long_about = "A process-supervised TCP server. Without a command it runs in the foreground: a watchdog \
                  starts the principal, the principal starts the secondaries. Stop it with Ctrl-C or \"osps stop\".",
    after_help = "Logs go to standard error; RUST_LOG sets their level (default info), --log-format or log_format their \
                  format, access_log = true a record for each job. \
                  Exit codes: 0, 64 usage, 69 unavailable, 70 internal, 71 a server that could not be executed, \
                  73 cannot create, 75 already running, 77 no permission, 78 configuration."
)]
struct Osps {
    #[command(flatten)]
    common: Common,
    /// For whom the log is written, over what the configuration says (log_format): people, or programs
    #[arg(long, global = true, value_name = "FORMAT", value_parser = format())]
    log_format: Option<Format>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Common {
    /// Configuration file [default: ./osps.toml if it is there, else built-in defaults]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the shared files, over what the configuration says; who asks a running system reads none then
    #[arg(long, global = true, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate the configuration and print it as it would be in force; binds nothing
    Check,
    /// Show what each process is doing, from shared memory
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what each process is doing, live in the terminal; where there is none, once
    #[command(after_help = TOP_HELP)]
    Top {
        /// How long from one look to the next, at least 100ms
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
        interval: Duration,
    },
    /// Stop the running system gracefully and wait until it has ended; again: at once
    Stop,
    /// Take over a changed configuration and a new program: principal and secondaries are replaced, and no client notices
    Reload,
    /// Run so many secondaries from now on, until a reload or a start says otherwise; no client notices
    Scale {
        /// How many
        #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
        secondaries: u16,
    },
    /// Replace the secondary of a slot by a new one and wait until that serves; the old one finishes what it has
    Restart {
        /// The number of the secondary, as "osps status" shows it
        #[arg(value_name = "SLOT", value_parser = clap::value_parser!(u16).range(1..=1024))]
        slot: u16,
    },
    /// Give a slot no more jobs and wait until its secondary has finished what it has; it stays empty until "osps restart"
    Drain {
        /// The number of the secondary, as "osps status" shows it
        #[arg(value_name = "SLOT", value_parser = clap::value_parser!(u16).range(1..=1024))]
        slot: u16,
    },
    /// Set what all processes log, and wait until they know
    Log {
        /// off, error, warn, info, debug, trace; or default: as they were started
        #[arg(value_name = "LEVEL", value_parser = Level::parse)]
        level: Level,
    },
    /// Exchange pings and pongs between a principal and one secondary in a private directory
    Pingpong {
        /// Number of exchanges
        #[arg(long, default_value_t = 10_000, value_name = "N")]
        count: u64,
    },
}

/// A level of the log; none: as at the start.
#[derive(Clone, Copy, Debug)]
struct Level(Option<wire::Level>);

impl Level {
    fn parse(text: &str) -> Result<Self, String> {
        wire::level(text).map(Self)
    }
}

/// What `osps`, `osps-client` and `osps-stress` can be told, in this order: for manual pages and completions.
#[must_use]
pub fn commands() -> [clap::Command; 3] {
    [Osps::command(), client::Arguments::command(), stress::Arguments::command()]
}

/// A format of the log.
fn format() -> impl TypedValueParser<Value = Format> {
    let names = PossibleValuesParser::new(Format::ALL.map(|(_, name)| name));
    names.map(|name| Format::named(&name).unwrap_or_default())
}

/// Runs `osps`, or a program of one's own that is `osps` with these handlers.
#[must_use]
pub fn osps(registry: &Registry) -> Code {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Roles come first and plain: a server that is being replaced should start at once.
    let text: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let (who, done) = match text.as_slice() {
        [_, "principal"] => ("osps principal".to_owned(), role::principal::run(registry)),
        [_, "secondary", slot] => (format!("osps secondary {slot}"), role::secondary::run(registry)),
        [_, "observer"] => ("osps observer".to_owned(), role::observer::run()),
        [_, "pingpong-secondary", dir] => {
            ("osps pingpong".to_owned(), role::pingpong::run_secondary(Path::new(dir)))
        }
        _ => {
            let program = program(&arguments);
            match parse::<Osps>(&program, &arguments) {
                Ok(osps) => (program, run(osps, registry)),
                Err(code) => return code,
            }
        }
    };
    crate::os::log::finish();
    done.unwrap_or_else(|failure| fail(&who, &failure))
}

fn run(osps: Osps, registry: &Registry) -> Result<Code, Failure> {
    if let Some(name) = registry.wrong_name() {
        let message =
            format!("this program cannot register a handler as {name:?}: the name is taken, or none");
        return Err(Failure::new(Code::Internal, message));
    }
    let Common { config, runtime_dir } = &osps.common;
    let rundir = || rundir(&osps.common);
    let ask = |request| control::ask(&rundir()?, request);
    let load = |passed: &PassedAddresses| {
        let (file, runtime_dir) = (config.as_deref(), runtime_dir.as_deref());
        let names = registry.names();
        let loaded = Config::load_passed(file, runtime_dir, Some(Registered::Names(&names)), passed);
        loaded.map(|config| in_format(config, osps.log_format)).map_err(config_failure)
    };
    // Before anything is begun, not by the tools: to make a handler may take a while.
    let try_handlers = |config: Config| match registry.check(&config) {
        Ok(()) => Ok(config),
        Err(error) => Err(Failure::new(Code::Config, error)),
    };
    match osps.command {
        None => {
            // Who cannot start says so in the format that was asked for.
            let format = osps.log_format.unwrap_or_default();
            crate::os::log::set_logging(Logging { format, access: false });
            let passed = Passed::take()?;
            let addresses = passed.addresses();
            let config = load(&addresses)?;
            crate::os::log::set_logging(config.logging());
            let config = try_handlers(config)?;
            let sources = sources(&osps.common, osps.log_format, addresses.as_in(&config));
            role::watchdog::run(config, sources, passed)
        }
        Some(Command::Check) => {
            let toml = try_handlers(load(&PassedAddresses::default())?)?
                .to_toml()
                .map_err(|error| Failure::new(Code::Config, error))?;
            print(&toml)
        }
        Some(Command::Status { json }) => {
            let status = status::read(&rundir()?)?;
            if json {
                let json = status.to_json().map_err(|error| Failure::internal("write JSON", &error))?;
                print(&format!("{json}\n"))
            } else {
                print(&status.to_text())
            }
        }
        Some(Command::Top { interval }) => {
            let rundir = rundir()?;
            if top::has_terminal() {
                top::run(&rundir, interval)
            } else {
                print(&status::read(&rundir)?.to_text())
            }
        }
        Some(Command::Stop) => control::stop(&rundir()?),
        Some(Command::Reload) => ask(Request::Reload),
        Some(Command::Scale { secondaries }) => ask(Request::Scale(secondaries)),
        Some(Command::Restart { slot }) => ask(Request::Restart(slot)),
        Some(Command::Drain { slot }) => ask(Request::Drain(slot)),
        Some(Command::Log { level }) => ask(Request::Log(level.0)),
        Some(Command::Pingpong { count }) => role::pingpong::run(count),
    }
}

/// What was said on the command line is over what the file says.
fn in_format(config: Config, format: Option<Format>) -> Config {
    Config { log_format: format.unwrap_or(config.log_format), ..config }
}

/// Where a reload finds what is to be in force then: handlers are tried by the new principal.
fn sources(common: &Common, format: Option<Format>, passed: PassedAddresses) -> Sources {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    // What was found at the start is read again, and no other.
    let found = Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists());
    let (file, runtime_dir) = (common.config.clone().or(found), common.runtime_dir.clone());
    let file = file.as_ref().map(absolute);
    let configuration = move || {
        // The watchdog must not wait for whoever writes into a pipe.
        let path = file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let message = format!("{}: no regular file", path.display());
            return Err(Failure::new(Code::Config, message));
        }
        // Which handlers there are is for the new program to say.
        let (file, runtime_dir) = (file.as_deref(), runtime_dir.as_deref());
        let loaded = Config::load_passed(file, runtime_dir, Some(Registered::Unknown), &passed);
        loaded.map(|config| in_format(config, format)).map_err(config_failure)
    };
    Sources { configuration: Box::new(configuration), program: executed() }
}

/// The path under which this program was executed, symbolic links and all: they may lead to another by the next
/// reload. Where that cannot be told, the path that it really has.
fn executed() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let own = identity(Path::new("/proc/self/exe"))?;
    let name = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let candidates: Vec<PathBuf> = if name.components().count() > 1 {
        std::path::absolute(&name).into_iter().collect()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join(&name)).collect()
    };
    let found = candidates
        .into_iter()
        .find(|path| path.is_absolute() && identity(path).is_ok_and(|file| file == own));
    found.map_or_else(std::env::current_exe, Ok)
}

/// The configuration, as far as it concerns who connects to a running system.
fn load_for_tools(common: &Common) -> Result<Config, Failure> {
    Config::load_for_tools(common.config.as_deref(), common.runtime_dir.as_deref()).map_err(config_failure)
}

/// A time on a command line.
fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime_serde::re::humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("must be longer than zero".to_owned()) } else { Ok(time) }
}

/// How often `osps top` may look.
fn interval(text: &str) -> Result<Duration, String> {
    let (least, most) = (top::LEAST_INTERVAL, top::MOST_INTERVAL);
    let interval = duration(text)?;
    if (least..=most).contains(&interval) {
        Ok(interval)
    } else {
        let [least, most] = [least, most].map(humantime_serde::re::humantime::format_duration);
        Err(format!("must be from {least} to {most}"))
    }
}

/// Where the running system is that a tool asks, which needs no configuration that checks.
fn rundir(common: &Common) -> Result<Rundir, Failure> {
    let (file, given) = (common.config.as_deref(), common.runtime_dir.as_deref());
    let found = Config::find_runtime_dir(file, given).map_err(|error| {
        let way_out = if given.is_none() { "; --runtime-dir does without it" } else { "" };
        Failure::new(Code::Config, format!("{error}{way_out}"))
    })?;
    Ok(Rundir::at(&found))
}

fn config_failure(error: ConfigError) -> Failure {
    Failure::new(Code::Config, error.to_string().trim_end())
}

/// The name of this program, for people.
fn program(arguments: &[OsString]) -> String {
    let path = arguments.first().map(Path::new);
    let name = path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "osps".to_owned())
}

/// Parses a command line; help and version are no errors, the rest is a usage error.
fn parse<T: CommandFactory + FromArgMatches>(program: &str, arguments: &[OsString]) -> Result<T, Code> {
    let command = T::command().bin_name(program);
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| T::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let printed = error.print();
        if error.use_stderr() {
            return Code::Usage;
        }
        output::written(printed).map_or_else(|failure| fail(program, &failure), |()| Code::Ok)
    })
}

fn print(text: &str) -> Result<Code, Failure> {
    output::print(text).map(|()| Code::Ok)
}

fn fail(program: &str, failure: &Failure) -> Code {
    crate::os::log::last_words(program, failure);
    failure.code
}
