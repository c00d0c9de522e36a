//! The command line of `osps-stress`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::client::configured_address;
use super::{Common, duration, fail, load_for_tools, parse, print, rundir};
use crate::client::Endpoint;
use crate::core::moment::Moment;
use crate::exit::{Code, Failure};
use crate::os::clock;
use crate::status;
use crate::stress::faults::Faults;
use crate::stress::herd::{Herd, Last};
use crate::stress::load::{Load, Target};
use crate::stress::mix::Share;
use crate::stress::record::{Parcel, Record};
use crate::stress::report::{self, Report};
use crate::stress::watch::{Watch, write_line};
use crate::stress::{Expect, Plan, Until, plot};

/// Several processes begin together, once all are there.
const HERD_STARTS_AFTER: Duration = Duration::from_millis(300);
const MAX_CLIENTS: u64 = 1 << 20;
const MAX_PAYLOAD: u64 = 64 << 20;

#[derive(Debug, Parser)]
#[command(
    name = "osps-stress",
    version,
    about = "Loads a server with many clients and tells honestly what became of their requests",
    long_about = "Loads a server with many clients and tells honestly what became of their requests. A request is all \
                  of it: to ask the principal for a port, to connect to it, to send, and to read the whole answer.\n\n\
                  Without --rate each client asks again when it was served (a closed loop). With --rate requests \
                  begin at their moments whatever the server does (an open loop), and the time of each counts from \
                  the moment when it should have begun: so a server that stalls hides nothing.",
    after_help = "Ctrl-C ends it early, with a report; again: at once. Exit codes: 0 no request has failed; 64 usage; \
                  69 some have, or a limit is in the way; 70 internal; 73 a file cannot be written; 78 configuration."
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Where the principal listens: HOST:PORT or unix:PATH [default: as configured, 127.0.0.1:2222]
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<Endpoint>,
    /// The type of work; with =WEIGHT, and several times, for a mix
    #[arg(long = "type", value_name = "TYPE[=WEIGHT]", default_value = "echo")]
    kinds: Vec<Share>,
    /// Clients at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=MAX_CLIENTS))]
    clients: u64,
    /// Requests in a second, whatever the server does: an open loop
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// How long requests begin [default: 10s, where --count is not given]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "count")]
    duration: Option<Duration>,
    /// How many requests begin
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How long it takes until all clients have begun, or the whole rate is reached
    #[arg(long, value_name = "TIME", value_parser = duration)]
    ramp: Option<Duration>,
    /// A new control connection for each request, where else each client keeps one
    #[arg(long)]
    renew: bool,
    /// Bytes to send with each request, a newline at their end
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u64).range(0..=MAX_PAYLOAD))]
    size: u64,
    /// What to send, in place of --size bytes; a newline is added
    #[arg(long, value_name = "TEXT", conflicts_with = "size")]
    data: Option<String>,
    /// When an answer is complete
    #[arg(long, value_enum, default_value_t = Expect::End)]
    expect: Expect,
    /// How long a request may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Loopback addresses to connect from, 127.0.0.1 and the next [default: one for each 64 clients]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    sources: Option<u32>,
    /// Processes that share the clients
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    processes: u16,
    /// Kill or freeze random servers of the system on this machine, so many a second on average
    #[arg(long, value_name = "RATE", value_parser = rate)]
    faults: Option<f64>,
    /// The report as one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Write the distribution of the latencies, for the tools of HdrHistogram
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Draw latency by percentile, and rate, failures and faults over time
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Show nothing while it runs
    #[arg(long)]
    quiet: bool,
    /// Compare two reports that --json has printed; loads nothing
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"])]
    compare: Option<Vec<PathBuf>>,
    /// One of several processes: which, and the moment when it begins
    #[arg(long, hide = true, num_args = 2)]
    part: Option<Vec<u64>>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1e-3..=1e7).contains(&rate) => Ok(rate),
        Ok(_) | Err(_) => Err("must be a number from 0.001 to 10000000, in a second".to_owned()),
    }
}

/// Runs `osps-stress`.
#[must_use]
pub fn osps_stress() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().collect();
    match parse::<Arguments>("osps-stress", &given) {
        Ok(arguments) => run(&arguments, &given).unwrap_or_else(|failure| fail("osps-stress", &failure)),
        Err(code) => code,
    }
}

fn run(arguments: &Arguments, given: &[OsString]) -> Result<ExitCode, Failure> {
    if let Some(files) = &arguments.compare {
        return compare(&files[0], &files[1]);
    }
    let target = target(arguments)?;
    let plan = plan(arguments, &target)?;
    if let Some(part) = &arguments.part {
        return run_part(arguments, &plan, &target, part);
    }
    for file in [&arguments.hdr, &arguments.plot].into_iter().flatten() {
        // Better now than after a minute of work.
        write(file, "")?;
    }
    let watch = Watch::for_people(arguments.quiet, faults(arguments)?);
    let (record, watch, took) = if arguments.processes == 1 {
        plan.claim_descriptors()?;
        Load::new(&plan, &target, watch, clock::now()).run().map_err(loop_failure)?
    } else {
        let start = clock::now() + HERD_STARTS_AFTER;
        let each =
            (0..arguments.processes).map(|index| part_arguments(given, index, start)).collect::<Vec<_>>();
        Herd::run(&plan, &each, watch, start).map_err(loop_failure)?
    };
    let report = Report::new(&plan, &record, watch.close(), took);
    show(arguments, &plan, &record, &report)?;
    Ok(if report.is_clean() { Code::Ok.into() } else { Code::Unavailable.into() })
}

fn loop_failure(error: io::Error) -> Failure {
    Failure::internal("run the event loop", &error)
}

/// The command line of one of several processes.
fn part_arguments(given: &[OsString], index: u16, start: Moment) -> Vec<OsString> {
    let part = [index.to_string(), start.as_nanos().to_string()].map(OsString::from);
    given.iter().skip(1).cloned().chain(["--part".into()]).chain(part).collect()
}

/// Loads as one of several processes, and tells the one that adds up.
fn run_part(arguments: &Arguments, plan: &Plan, target: &Target, part: &[u64]) -> Result<ExitCode, Failure> {
    let plan = plan.part(usize::try_from(part[0]).unwrap_or(0), usize::from(arguments.processes));
    plan.claim_descriptors()?;
    let load = Load::new(&plan, target, Watch::for_parent(), Moment::from_nanos(part[1]));
    let (record, _, took) = load.run().map_err(loop_failure)?;
    let last = Last { record: Parcel::from(&record), took };
    write_line(&last).map_err(|error| Failure::internal("tell what became of the requests", &error))?;
    Ok(Code::Ok.into())
}

fn target(arguments: &Arguments) -> Result<Target, Failure> {
    let at = match &arguments.at {
        Some(at) => at.clone(),
        None => configured_address(&arguments.common)?,
    };
    match at {
        Endpoint::Unix(path) => Ok(Target::Unix(path)),
        Endpoint::Tcp(at) => {
            let unknown = |why: &dyn std::fmt::Display| {
                Failure::new(Code::Unavailable, format!("cannot find {at}: {why}"))
            };
            // A name with several addresses means one server here: what is measured shall be one thing.
            let first = at.to_socket_addrs().map_err(|error| unknown(&error))?.next();
            first.map(Target::Tcp).ok_or_else(|| unknown(&"it has no address"))
        }
    }
}

fn plan(arguments: &Arguments, target: &Target) -> Result<Plan, Failure> {
    let clients = usize::try_from(arguments.clients).unwrap_or(usize::MAX);
    if clients < usize::from(arguments.processes) {
        let message =
            format!("--processes {}: must not be more than --clients {clients}", arguments.processes);
        return Err(Failure::new(Code::Usage, message));
    }
    let is_loopback = target.host().is_loopback() && target.host().is_ipv4();
    if arguments.sources.is_some() && !is_loopback {
        return Err(Failure::new(Code::Usage, "--sources: only 127.0.0.0/8 has addresses to spare"));
    }
    let mut payload = match &arguments.data {
        Some(text) => text.clone().into_bytes(),
        None => vec![b'x'; usize::try_from(arguments.size.saturating_sub(1)).unwrap_or(0)],
    };
    if arguments.data.is_some() || arguments.size > 0 {
        payload.push(b'\n');
    }
    if payload.is_empty() && arguments.expect != Expect::End {
        return Err(Failure::new(Code::Usage, "--expect: nothing comes back where nothing is sent"));
    }
    let until = match (arguments.duration, arguments.count) {
        (_, Some(count)) => Until::Count(count),
        (duration, None) => Until::Time(duration.unwrap_or(Duration::from_secs(10))),
    };
    let sources = arguments.sources.map(|sources| sources as usize);
    Ok(Plan {
        requests: arguments.kinds.iter().map(|share| format!("{}\n", share.kind).into_bytes()).collect(),
        shares: arguments.kinds.clone(),
        payload,
        expect: arguments.expect,
        clients,
        rate: arguments.rate,
        until,
        keep: !arguments.renew,
        timeout: arguments.timeout,
        ramp: arguments.ramp.unwrap_or_default(),
        sources: sources.unwrap_or_else(|| Plan::usual_sources(clients, target)),
        first_client: 0,
    })
}

/// Who strikes, where that is asked for: only a system that runs here can be struck.
fn faults(arguments: &Arguments) -> Result<Option<Faults>, Failure> {
    let Some(rate) = arguments.faults else {
        return Ok(None);
    };
    let rundir = rundir(&load_for_tools(&arguments.common)?);
    status::require_running(&rundir)?;
    Ok(Some(Faults::new(rundir, rate)))
}

fn show(arguments: &Arguments, plan: &Plan, record: &Record, report: &Report) -> Result<(), Failure> {
    if let Some(file) = &arguments.hdr {
        write(file, &report::distribution(record))?;
    }
    if let Some(file) = &arguments.plot {
        let title = title(plan, report);
        let svg = plot::svg(&title, record, report);
        write(file, &svg.map_err(|error| Failure::internal("draw the plot", &error))?)?;
    }
    let text = if arguments.json {
        let json = serde_json::to_string(report).map_err(|error| Failure::internal("write JSON", &error))?;
        format!("{json}\n")
    } else {
        report::text(plan, report, record)
    };
    print(&text).map(drop)
}

fn title(plan: &Plan, report: &Report) -> String {
    let kinds: Vec<&str> = plan.shares.iter().map(|share| share.kind.as_str()).collect();
    let looped = plan.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate}/s"));
    let failed: u64 = report.errors.values().sum();
    format!(
        "{}: {} clients, {looped}: {:.0}/s, {failed} failed of {}",
        kinds.join(", "),
        plan.clients,
        report.rate,
        report.ok + failed
    )
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| {
        Failure::new(Code::CannotCreate, format!("cannot write {}: {error}", file.display()))
    })
}

fn compare(first: &Path, second: &Path) -> Result<ExitCode, Failure> {
    let read = |file: &Path| {
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("{} is no report of osps-stress --json: {error}", file.display());
            Failure::new(Code::Unavailable, message)
        };
        let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
        serde_json::from_str::<Report>(&text).map_err(|error| failed(&error))
    };
    let (one, two) = (read(first)?, read(second)?);
    let name =
        |file: &Path| file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    print(&report::compare([&name(first), &name(second)], [&one, &two]))
}
