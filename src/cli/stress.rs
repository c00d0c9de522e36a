//! The command line of `osps-stress`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::client::configured_address;
use super::{Common, duration, fail, parse, print, rundir};
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
pub(super) struct Arguments {
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
pub fn osps_stress() -> Code {
    let given: Vec<OsString> = std::env::args_os().collect();
    match parse::<Arguments>("osps-stress", &given) {
        Ok(arguments) => run(&arguments, &given).unwrap_or_else(|failure| fail("osps-stress", &failure)),
        Err(code) => code,
    }
}

fn run(arguments: &Arguments, given: &[OsString]) -> Result<Code, Failure> {
    if let Some(files) = &arguments.compare {
        return compare(&files[0], &files[1]);
    }
    let target = target(arguments)?;
    let plan = plan(arguments, &target)?;
    if let Some(part) = &arguments.part {
        return run_part(arguments, &plan, &target, part);
    }
    plan.part(0, plan.processes).claim_descriptors()?;
    let watch = Watch::for_people(arguments.quiet, faults(arguments, &target)?);
    for file in [&arguments.hdr, &arguments.plot].into_iter().flatten() {
        // Better now than after a minute of work; what stands there is kept until then.
        let opened = fs::File::options().append(true).create(true).open(file);
        opened.map_err(|error| cannot_write(file, &error))?;
    }
    let (record, watch, took) = if arguments.processes == 1 {
        Load::new(&plan, &target, watch, clock::now()).run().map_err(loop_failure)?
    } else {
        let start = clock::now() + HERD_STARTS_AFTER;
        let each =
            (0..arguments.processes).map(|index| part_arguments(given, index, start)).collect::<Vec<_>>();
        Herd::run(&plan, &each, watch, start).map_err(loop_failure)?
    };
    let report = Report::new(&plan, &target, &record, watch.close(), took);
    show(arguments, &record, &report)?;
    Ok(if report.is_clean() { Code::Ok } else { Code::Unavailable })
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
fn run_part(arguments: &Arguments, plan: &Plan, target: &Target, part: &[u64]) -> Result<Code, Failure> {
    let plan = plan.part(usize::try_from(part[0]).unwrap_or(0), usize::from(arguments.processes));
    plan.claim_descriptors()?;
    let load = Load::new(&plan, target, Watch::for_parent(), Moment::from_nanos(part[1]));
    let (record, _, took) = load.run().map_err(loop_failure)?;
    let last = Last { record: Parcel::from(&record), took };
    write_line(&last).map_err(|error| Failure::internal("tell what became of the requests", &error))?;
    Ok(Code::Ok)
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
    let usage = |what: String| Err(Failure::new(Code::Usage, what));
    if arguments.sources.is_some_and(|sources| sources > 1) && !target.has_spare_sources() {
        let what = format!(
            "--sources: only a server at 127.0.0.0/8 can be reached from several addresses, not {target}"
        );
        return usage(what);
    }
    let twice = arguments
        .kinds
        .iter()
        .enumerate()
        .find(|(index, share)| arguments.kinds[..*index].iter().any(|before| before.kind == share.kind));
    if let Some((_, share)) = twice {
        return usage(format!("--type {}: is there twice; give it a weight: {}=2", share.kind, share.kind));
    }
    if let (Some(ramp), Some(duration)) = (arguments.ramp, arguments.duration)
        && ramp > duration
    {
        return usage(format!("--ramp {ramp:?}: must not be longer than --duration {duration:?}"));
    }
    if arguments.plot.is_some() && arguments.plot == arguments.hdr {
        return usage("--plot and --hdr: must be two files".to_owned());
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
        offset: Duration::ZERO,
        processes: usize::from(arguments.processes),
    })
}

/// Who strikes, where that is asked for: only a system that runs here can be struck, and only the one that is loaded.
fn faults(arguments: &Arguments, target: &Target) -> Result<Option<Faults>, Failure> {
    let Some(rate) = arguments.faults else {
        return Ok(None);
    };
    let rundir = rundir(&arguments.common)?;
    status::require_running(&rundir)?;
    let listen = status::read(&rundir)?.listen;
    if !listen.iter().any(|address| target.is_at(address)) {
        let running = format!("{}, which listens on {}", rundir.path().display(), listen.join(", "));
        let message =
            format!("--faults: {target} is not the system of {running}: give its --config or --runtime-dir");
        return Err(Failure::new(Code::Usage, message));
    }
    Ok(Some(Faults::new(rundir, rate)))
}

fn show(arguments: &Arguments, record: &Record, report: &Report) -> Result<(), Failure> {
    if let Some(file) = &arguments.hdr {
        write(file, &report::distribution(record))?;
    }
    if let Some(file) = &arguments.plot {
        let title = title(report);
        let svg = plot::svg(&title, record, report);
        write(file, &svg.map_err(|error| Failure::internal("draw the plot", &error))?)?;
    }
    let text = if arguments.json {
        let json = serde_json::to_string(report).map_err(|error| Failure::internal("write JSON", &error))?;
        format!("{json}\n")
    } else {
        report::text(report, record)
    };
    print(&text).map(drop)
}

fn title(report: &Report) -> String {
    let kinds: Vec<&str> = report.setting.types.keys().map(String::as_str).collect();
    let looped =
        report.setting.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate}/s"));
    let failed: u64 = report.errors.values().sum();
    format!(
        "{}: {} clients, {looped}: {:.0}/s, {failed} failed of {}",
        kinds.join(", "),
        report.setting.clients,
        report.rate,
        report.ok + failed
    )
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| cannot_write(file, &error))
}

fn cannot_write(file: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::CannotCreate, format!("cannot write {}: {error}", file.display()))
}

fn compare(first: &Path, second: &Path) -> Result<Code, Failure> {
    let read = |file: &Path| {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(Code::Unavailable, format!("{} {what}: {error}", file.display()))
        };
        let text = fs::read_to_string(file).map_err(|error| failed("cannot be read", &error))?;
        serde_json::from_str::<Report>(&text)
            .map_err(|error| failed("is no report of osps-stress --json", &error))
    };
    let (one, two) = (read(first)?, read(second)?);
    let name =
        |file: &Path| file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    print(&report::compare([&name(first), &name(second)], [&one, &two]))
}
