//! What is where: answers requests from what was read of the status.

use std::time::Duration;

use crate::core::moment::Moment;
use crate::observer::health::Health;
use crate::observer::history::History;
use crate::observer::metrics::{self, Format};
use crate::observer::page;
use crate::status::Status;
use crate::wire::http::{self, Body, Request, Response};

/// The observer's site.
#[derive(Debug, Default)]
pub struct Site {
    status: Option<Result<Status, String>>,
    /// The watchdog that was seen last, and when it was started, since 1970-01-01 00:00 UTC. It is not computed
    /// anew each time: then it would change with every step of the wall clock.
    started: Option<(u32, Duration)>,
    history: History,
}

impl Site {
    /// Takes the status as it was read just now, or the reason why it could not be; `unix_time` is the time since
    /// 1970-01-01 00:00 UTC. Meant to be called once a second, and before an answer that is to be fresh.
    pub fn handle_status(&mut self, now: Moment, unix_time: Duration, status: Result<Status, String>) {
        if let Ok(status) = &status {
            self.history.handle_status(now, status);
            if self.started.is_none_or(|(pid, _)| pid != status.pid) {
                let started = unix_time.saturating_sub(Duration::from_millis(status.uptime_ms));
                self.started = Some((status.pid, started));
            }
        }
        self.status = Some(status);
    }

    /// The event for all who have subscribed, as it is sent.
    #[must_use]
    pub fn event(&self, now: Moment) -> String {
        http::event("status", &page::event(now, self.status(), &self.history))
    }

    /// The response to a request.
    #[must_use]
    pub fn respond(&self, now: Moment, request: &Request) -> Response {
        match request.path.as_str() {
            "/" => self.page(now),
            "/events" => Response::events(),
            "/metrics" => self.metrics(Format::wanted(&request.accept)),
            "/healthz" => self.healthz(),
            "/readyz" => self.readyz(),
            "/status.json" => self.status_json(),
            // The page brings its own; who asks for another only wants to know that there is none.
            "/favicon.ico" => Response::text(204, ""),
            _ => Response::text(404, "there is: / /status.json /metrics /healthz /readyz /events\n"),
        }
    }

    fn status(&self) -> Result<&Status, &str> {
        match &self.status {
            Some(Ok(status)) => Ok(status),
            Some(Err(reason)) => Err(reason),
            None => Err("Nothing was read yet"),
        }
    }

    fn page(&self, now: Moment) -> Response {
        Response {
            status: if self.status().is_ok() { 200 } else { 503 },
            content_type: "text/html; charset=utf-8",
            policy: page::POLICY,
            body: Body::Text(page::page(now, self.status(), &self.history)),
        }
    }

    fn metrics(&self, format: Format) -> Response {
        let started = self.started.map(|(_, started)| started).unwrap_or_default();
        let text = self.status().map_err(str::to_owned);
        match text
            .and_then(|status| metrics::render(status, started, format).map_err(|error| error.to_string()))
        {
            Ok(text) => Response { content_type: format.content_type(), ..Response::text(200, text) },
            Err(reason) => unavailable(&reason),
        }
    }

    /// Whether this process works and sees a system.
    fn healthz(&self) -> Response {
        match self.status() {
            Ok(_) => Response::text(200, "ok\n"),
            Err(reason) => unavailable(reason),
        }
    }

    /// Whether clients get ports.
    fn readyz(&self) -> Response {
        let health = Health::of(self.status());
        let (status, word) = if health.is_ready() { (200, "ready") } else { (503, "not ready") };
        let mut text = format!("{word}: {}\n", health.summary);
        for trouble in &health.troubles {
            text.push_str(trouble);
            text.push('\n');
        }
        Response::text(status, text)
    }

    /// What `osps status --json` prints.
    fn status_json(&self) -> Response {
        let json = self.status().map_err(str::to_owned);
        match json.and_then(|status| status.to_json().map_err(|error| error.to_string())) {
            Ok(json) => {
                let body = Body::Text(format!("{json}\n"));
                Response { content_type: "application/json", body, ..Response::text(200, "") }
            }
            Err(reason) => unavailable(&reason),
        }
    }
}

fn unavailable(reason: &str) -> Response {
    Response::text(503, format!("{reason}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::example;
    use crate::status::ServerState;

    const NOW: Moment = Moment::from_nanos(5_000_000_000);
    const UNIX_TIME: Duration = Duration::from_secs(1_700_000_000);

    fn get(site: &Site, path: &str) -> (u16, String) {
        let request = Request {
            path: path.into(),
            is_head: false,
            accept: String::new(),
            keep_alive: true,
            is_old: false,
        };
        let Response { status, body, .. } = site.respond(NOW, &request);
        let Body::Text(text) = body else { panic!("events at {path}") };
        (status, text)
    }

    fn site(status: Result<Status, &str>) -> Site {
        let mut site = Site::default();
        site.handle_status(NOW, UNIX_TIME, status.map_err(str::to_owned));
        site
    }

    #[test]
    fn all_is_there_and_nothing_else() {
        let (site, status) = (site(Ok(example::status())), example::status());
        assert_eq!(get(&site, "/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(get(&site, "/readyz"), (200, "ready: Both secondaries serve\n".to_owned()));
        assert_eq!(get(&site, "/status.json"), (200, status.to_json().unwrap() + "\n"));
        assert!(get(&site, "/").1.starts_with("<!DOCTYPE html>"));
        assert!(get(&site, "/metrics").1.contains("\nosps_start_time_seconds 1699996275.0\n"));
        assert_eq!(get(&site, "/favicon.ico").0, 204);
        for path in ["", "/x", "//", "/status.json/", "/../etc/passwd", "/%2e%2e", "*"] {
            assert_eq!(get(&site, path).0, 404, "{path}");
        }
    }

    #[test]
    fn without_a_status_the_reason_is_told() {
        for (site, reason) in [
            (site(Err("no osps is running")), "no osps is running"),
            (Site::default(), "Nothing was read yet"),
        ] {
            for path in ["/", "/metrics", "/healthz", "/readyz", "/status.json"] {
                let (status, text) = get(&site, path);
                assert!(status == 503 && text.contains(reason), "{path}: {status} {text}");
            }
            assert!(site.event(NOW).contains(reason));
        }
    }

    #[test]
    fn who_is_not_ready_says_what_is_missing() {
        let mut status = example::status();
        (status.servers[1].state, status.servers[2].state) = (ServerState::Suspect, ServerState::Down);
        let expected =
            "not ready: No secondary serves\nsecondary 1 does not answer probes\nsecondary 2 is down\n"
                .to_owned();
        assert_eq!(get(&site(Ok(status)), "/readyz"), (503, expected));
    }

    #[test]
    fn the_start_of_a_system_does_not_move_with_the_wall_clock() {
        let started = |site: &Site| {
            let (_, text) = get(site, "/metrics");
            text.lines().find(|line| line.starts_with("osps_start_time_seconds ")).unwrap().to_owned()
        };
        let mut site = site(Ok(example::status()));
        let before = started(&site);
        site.handle_status(NOW, UNIX_TIME + Duration::from_secs(77), Ok(example::status()));
        assert_eq!(started(&site), before);
        site.handle_status(
            NOW,
            UNIX_TIME + Duration::from_secs(77),
            Ok(Status { pid: 7, ..example::status() }),
        );
        assert_ne!(started(&site), before, "another watchdog");
    }
}
