//! The tables of the page.
//!
//! On a narrow screen a row becomes a card, by CSS. A browser that is told to lay out a row as something else
//! takes it for no row any more, so each part says what it is (`role`).

use std::time::Duration;

use crate::core::moment::Moment;
use crate::observer::chart::{HALF, NEARLY_ALL, Picture, RATE, Scale, Span, TROUBLE, coarse};
use crate::observer::figures;
use crate::observer::health::silence_of_watchdog;
use crate::observer::history::{History, shown_types};
use crate::observer::html::Html;
use crate::status::{Death, Server, ServerState, Status, Usage};

/// Rows for servers at most, those in trouble first.
const MOST_SERVERS: usize = 100;
/// Obituaries on the page; `/status.json` has more.
const MOST_DEATHS: usize = 12;
/// Ports of a type that are shown one by one.
const MOST_PORTS: usize = 6;

/// A column: its heading, its class, and what stands before a value where there are no columns.
type Column = (&'static str, &'static str, &'static str);

/// A table that is being written.
struct Table {
    html: Html,
    columns: &'static [Column],
}

impl Table {
    fn new(caption: &'static str, columns: &'static [Column]) -> Self {
        let mut html = Html::default();
        html.raw("<table role=\"table\"><caption>").raw(caption).raw("</caption>");
        html.raw("<thead role=\"rowgroup\"><tr role=\"row\">");
        for (heading, class, _) in columns {
            html.raw("<th scope=\"col\" role=\"columnheader\" class=\"").raw(class).raw("\">");
            html.raw(heading).raw("</th>");
        }
        html.raw("</tr></thead><tbody role=\"rowgroup\">");
        Self { html, columns }
    }

    /// A row: its head, then a cell for each other column.
    fn row(&mut self, class: &'static str, head: &Html, cells: &[Html]) {
        debug_assert_eq!(cells.len() + 1, self.columns.len());
        self.html.raw("<tr role=\"row\" class=\"").raw(class).raw("\"><th scope=\"row\" role=\"rowheader\">");
        self.html.append(head).raw("</th>");
        for ((_, class, label), cell) in self.columns.iter().skip(1).zip(cells) {
            self.html.raw("<td role=\"cell\" class=\"").raw(class).raw("\" data-label=\"").raw(label);
            self.html.raw("\"><div>").append(cell).raw("</div></td>");
        }
        self.html.raw("</tr>");
    }

    fn done(mut self) -> Html {
        self.html.raw("</tbody></table>");
        self.html
    }
}

fn text(text: &str) -> Html {
    let mut html = Html::default();
    html.text(text);
    html
}

fn or_dash(value: Option<String>) -> Html {
    let mut html = Html::default();
    match value {
        Some(value) => html.text(&value),
        None => html.raw("<span class=\"none dash\">–</span>"),
    };
    html
}

/// Zero is there to be passed over.
fn count(number: u64) -> Html {
    let mut html = Html::default();
    match number {
        0 => html.raw("<span class=\"none\">0</span>"),
        number => html.text(&figures::count(number)),
    };
    html
}

/// A link to where all is, for what the page has no room for.
fn left_out(html: &mut Html, number: usize, words: &'static str) {
    if number > 0 {
        html.around("<p class=\"note\">… and ", &figures::count(number as u64), " ").raw(words);
        html.raw(": see <a href=\"status.json\">status.json</a></p>");
    }
}

const PROCESSES: &[Column] = &[
    ("Process", "who", "Process"),
    ("State", "state", "State"),
    ("Pid", "number", "Pid"),
    ("Jobs/s", "number", "Jobs/s"),
    ("Open", "number", "Open"),
    ("CPU", "number", "CPU"),
    ("Memory", "number", "Memory"),
    ("Round trip", "number", "Round trip"),
    ("Restarts", "number", "Restarts"),
    ("Kills", "number", "Kills"),
];

/// The tree of processes.
pub fn processes(status: &Status, history: &History) -> Html {
    let mut table = Table::new("Processes", PROCESSES);
    watchdog(&mut table, status, history);
    let mut servers: Vec<&Server> = status.servers.iter().collect();
    let too_many = servers.len().saturating_sub(MOST_SERVERS);
    if too_many > 0 {
        servers.sort_by_key(|server| (server.slot != 0 && server.state == ServerState::Ready, server.slot));
        servers.truncate(MOST_SERVERS);
    }
    servers.sort_by_key(|server| (server.slot, server.state == ServerState::Draining, server.incarnation));
    for server in servers.into_iter().chain(&status.observer) {
        row_of(&mut table, server, history);
    }
    let mut html = table.done();
    left_out(&mut html, too_many, "more");
    html
}

/// It takes no jobs, and nobody probes it.
fn watchdog(table: &mut Table, status: &Status, history: &History) {
    let [cpu, memory] = usage(Some(status.pid), status.watchdog, history);
    let none = || or_dash(None);
    let pid = text(&status.pid.to_string());
    let state = match silence_of_watchdog(status) {
        Some(_) => state(ServerState::Suspect, "it probes nobody"),
        None if status.stopping => state(ServerState::Draining, ""),
        None => state(ServerState::Ready, ""),
    };
    table.row(
        "level0",
        &text("watchdog"),
        &[state, pid, none(), none(), cpu, memory, none(), none(), none()],
    );
}

fn row_of(table: &mut Table, server: &Server, history: &History) {
    let is_predecessor = server.slot > 0 && server.state == ServerState::Draining;
    let (class, rate) = match (server.role, is_predecessor) {
        (_, true) => ("level2 leaving", None),
        ("secondary", false) => ("level2", history.slot_rate(server.slot)),
        ("principal", false) => ("level1", history.total().back().map(|sample| sample.rate)),
        (_, false) => ("level1", None),
    };
    let mut name = who(server.role, server.slot);
    if is_predecessor {
        name.raw(" <span class=\"aside\">predecessor</span>");
    }
    let [cpu, memory] = usage(server.pid, server.usage, history);
    // The observer has connections, and no jobs.
    let open = if server.role == "observer" { or_dash(None) } else { count(server.open) };
    let of_slot = |number| if is_predecessor { or_dash(None) } else { count(number) };
    let mut restarts = of_slot(server.restarts);
    if server.recycled > 0 {
        restarts.around(" <span class=\"aside\">", &figures::count(server.recycled), " recycled</span>");
    }
    let cells = [
        state(server.state, server.reason.unwrap_or_default()),
        or_dash(server.pid.map(|pid| pid.to_string())),
        or_dash(rate.map(figures::rate)),
        open,
        cpu,
        memory,
        or_dash(server.rtt_us.map(|micros| figures::time(Duration::from_micros(micros)))),
        restarts,
        of_slot(server.kills),
    ];
    table.row(class, &name, &cells);
}

/// The principal and the observer need no number.
fn who(role: &str, slot: u16) -> Html {
    let mut html = text(role);
    if slot > 0 {
        html.raw(" ").text(&slot.to_string());
    }
    html
}

/// A state in a word, with a sign whose form differs as well as its colour.
fn state(state: ServerState, why: &str) -> Html {
    let word = state.as_str();
    let mut html = Html::default();
    html.raw("<span class=\"sign ").raw(word).raw("\" aria-hidden=\"true\"></span>").raw(word);
    if !why.is_empty() {
        html.around(" <span class=\"aside\">", why, "</span>");
    }
    html
}

fn usage(pid: Option<u32>, usage: Usage, history: &History) -> [Html; 2] {
    let cores = pid.and_then(|pid| history.cores(pid));
    [or_dash(cores.map(figures::share)), or_dash(usage.memory_bytes.map(figures::bytes))]
}

const REQUESTS: &[Column] = &[
    ("Type", "who", "Type"),
    ("Jobs/s", "number", "Jobs/s"),
    ("Lately", "picture half", ""),
    ("Served in", "number time", "Served in"),
    ("Lately", "picture", ""),
    ("Waited", "number time", "Waited"),
    ("Done", "number", "Done"),
    ("Failed", "number", "Failed"),
    ("Expired", "number", "Expired"),
    ("Ports", "ports", "Ports"),
];

/// Request types, each with its last minutes.
pub fn requests(now: Moment, status: &Status, history: &History) -> Html {
    let mut table = Table::new("Request types", REQUESTS);
    let shown = shown_types(status);
    for name in &shown {
        if let Some(cells) = request(now, name, status, history) {
            table.row("", &text(name), &cells);
        }
    }
    let mut html = table.done();
    left_out(&mut html, status.requests.len() - shown.len(), "that had fewer jobs");
    html
}

fn request(now: Moment, name: &str, status: &Status, history: &History) -> Option<[Html; 9]> {
    let ends = status.requests.get(name)?;
    let span = Span::of(now, history.total());
    let series = history.of_type(name).map(coarse).unwrap_or_default();
    let rate = history.of_type(name).and_then(|series| Some(series.back()?.rate));
    let scale = Scale::of_rates(&series);
    let rates = Picture::new(now, span, &series, &scale, &format!("Jobs per second, {}", span.words));
    let rates = rates.area("fill", RATE, None).line("rate", RATE).line("trouble", TROUBLE);
    let scale = Scale::of_times(&series);
    let times = Picture::new(now, span, &series, &scale, &format!("Service times, {}", span.words));
    let times = times.area("band", NEARLY_ALL, Some(HALF)).line("half", HALF).line("nearly", NEARLY_ALL);
    let quantiles = history.quantiles(name);
    Some([
        or_dash(rate.map(figures::rate)),
        rates.done(),
        both(quantiles.service),
        times.done(),
        both(quantiles.wait),
        count(ends.done),
        count(ends.failed),
        count(ends.expired),
        ports(name, status),
    ])
}

/// A median, and what 99 of a hundred do not exceed.
fn both(quantiles: Option<(Duration, Duration)>) -> Html {
    let Some((half, nearly_all)) = quantiles else { return or_dash(None) };
    let mut html = text(&figures::time(half));
    html.around(" <span class=\"aside\">p99\u{a0}", &figures::time(nearly_all), "</span>");
    html
}

fn ports(name: &str, status: &Status) -> Html {
    let ports: Vec<String> =
        status.servers.iter().filter_map(|server| server.ports.get(name)).map(ToString::to_string).collect();
    let shown = ports.len().min(MOST_PORTS);
    let mut html = text(&ports[..shown].join(" "));
    if shown < ports.len() {
        html.around(
            " <span class=\"aside\">and ",
            &figures::count((ports.len() - shown) as u64),
            " more</span>",
        );
    }
    html
}

const OBITUARIES: &[Column] = &[
    ("Who", "who", "Who"),
    ("Pid", "number", "Pid"),
    ("When", "when", "When"),
    ("Cause", "cause", "Cause"),
    ("Why and how", "why", "Why and how"),
    ("Jobs", "number", "Jobs"),
];

/// Who has died, the latest first.
pub fn obituaries(status: &Status) -> Html {
    let mut html = Html::default();
    if status.obituaries.is_empty() {
        html.raw("<h2>Obituaries</h2><p class=\"note\">No process has died.</p>");
        return html;
    }
    let mut table = Table::new("Obituaries", OBITUARIES);
    for death in status.obituaries.iter().take(MOST_DEATHS) {
        let when = format!("{} ago", figures::age(death.ms_ago));
        let cause = if death.cause.is_empty() { "is being killed" } else { &death.cause };
        let pid = text(&death.pid.to_string());
        let cells = [pid, text(&when), text(cause), why(death), count(death.jobs)];
        table.row("", &who(death.role, death.slot), &cells);
    }
    html.append(&table.done());
    left_out(&mut html, status.obituaries.len().saturating_sub(MOST_DEATHS), "before them");
    html
}

fn why(death: &Death) -> Html {
    let mut words = Vec::new();
    words.extend(death.killed.map(|killed| format!("killed: {killed}")));
    words.extend(death.state.map(|state| format!("state {state}")));
    words.extend(death.wchan.as_ref().map(|wchan| format!("in {wchan}")));
    words.extend(
        death.answered_ms_before.map(|before| format!("last answer {} before", figures::age(before))),
    );
    or_dash((!words.is_empty()).then(|| words.join(", ")))
}
