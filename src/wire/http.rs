//! HTTP/1.1 as far as the observer speaks it: heads of requests in, responses out (RFC 9110, RFC 9112), and
//! server-sent events (the HTML standard, section 9.2).
//!
//! What is asked for is only looked at, so there are `GET` and `HEAD`, and no request has a body.

use std::fmt::Write as _;

use thiserror::Error;

/// The longest head of a request, from its first byte to the empty line.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// The longest target of a request.
pub const MAX_TARGET_BYTES: usize = 2 * 1024;
/// The most header fields of a request.
const MAX_FIELDS: usize = 100;

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for: a path as it was sent, without query, host and escapes undone.
    pub path: String,
    /// Whether only the head of the answer is wanted.
    pub is_head: bool,
    /// What the client would like to get: all its `Accept` fields, joined by commas.
    pub accept: String,
    /// Whether the connection may stay open after the answer.
    pub keep_alive: bool,
    /// Whether it is of HTTP/1.0, where a connection that stays open has to be announced.
    pub is_old: bool,
}

/// Why a request cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Not HTTP.
    #[error("this is no HTTP request: {0}")]
    Malformed(httparse::Error),
    /// It ended before its empty line.
    #[error("the request ended in the middle of its head")]
    CutOff,
    /// No `Host`, or more than one.
    #[error("an HTTP/1.1 request has exactly one Host field")]
    Host,
    /// No number, or several.
    #[error("Content-Length is not one number")]
    Length,
    /// Neither `GET` nor `HEAD`.
    #[error("there is nothing here but to be read: GET and HEAD")]
    Method,
    /// The head took too long.
    #[error("the head of the request did not come within 10 s")]
    TooSlow,
    /// It has a body.
    #[error("a request here has no body")]
    Body,
    /// The target is too long.
    #[error("the target of the request is longer than 2 KiB")]
    TargetTooLong,
    /// It expects something unheard of.
    #[error("no expectation but 100-continue is known")]
    Expectation,
    /// The head is too long.
    #[error("the head of the request is longer than 8 KiB, or has more than 100 fields")]
    HeadTooLong,
    /// Not HTTP/1.
    #[error("only HTTP/1.1 and HTTP/1.0 are spoken here")]
    Version,
}

impl Fault {
    /// The status code that says so.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) | Self::CutOff | Self::Host | Self::Length => 400,
            Self::Method => 405,
            Self::TooSlow => 408,
            Self::Body => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeadTooLong => 431,
            Self::Version => 505,
        }
    }
}

/// The first request of `input` and the length of its head; `None` where more has to come. What stands after
/// it is not looked at, so the answer does not depend on how much of it is there already.
///
/// # Errors
/// Why it cannot be answered.
pub fn parse_request(input: &[u8]) -> Result<Option<(Request, usize)>, Fault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let within = &input[..input.len().min(MAX_HEAD_BYTES)];
    match head.parse(within) {
        Ok(httparse::Status::Complete(length)) => Ok(Some((understand(&head)?, length))),
        Ok(httparse::Status::Partial) if within.len() < MAX_HEAD_BYTES => Ok(None),
        // The line of the request alone may be too long: then the target is.
        Ok(httparse::Status::Partial) => Err(if within.contains(&b'\n') && !is_long(head.path) {
            Fault::HeadTooLong
        } else {
            Fault::TargetTooLong
        }),
        Err(httparse::Error::TooManyHeaders) => Err(Fault::HeadTooLong),
        Err(httparse::Error::Version) => Err(Fault::Version),
        Err(error) => Err(Fault::Malformed(error)),
    }
}

fn is_long(target: Option<&str>) -> bool {
    target.is_some_and(|target| target.len() > MAX_TARGET_BYTES)
}

fn understand(head: &httparse::Request<'_, '_>) -> Result<Request, Fault> {
    let is_head = match head.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Fault::Method),
    };
    if is_long(head.path) {
        return Err(Fault::TargetTooLong);
    }
    let is_old = head.version == Some(0);
    let hosts = values(head, "host").count();
    if hosts > 1 || (hosts == 0 && !is_old) {
        return Err(Fault::Host);
    }
    no_body(head)?;
    if values(head, "expect").any(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(Fault::Expectation);
    }
    let has_option = |option: &[u8]| {
        let mut options = values(head, "connection").flat_map(|value| value.split(|&byte| byte == b','));
        options.any(|word| word.trim_ascii().eq_ignore_ascii_case(option))
    };
    let accept: Vec<_> = values(head, "accept").map(String::from_utf8_lossy).collect();
    Ok(Request {
        path: path(head.path.unwrap_or_default()).to_owned(),
        is_head,
        accept: accept.join(","),
        keep_alive: !has_option(b"close") && (!is_old || has_option(b"keep-alive")),
        is_old,
    })
}

fn no_body(head: &httparse::Request<'_, '_>) -> Result<(), Fault> {
    if values(head, "transfer-encoding").next().is_some() {
        return Err(Fault::Body);
    }
    let mut lengths = values(head, "content-length");
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            if length.iter().all(|&digit| digit == b'0') { Ok(()) } else { Err(Fault::Body) }
        }
        _ => Err(Fault::Length),
    }
}

/// The values of a field.
fn values<'a>(head: &'a httparse::Request<'_, '_>, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let fields = head.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    fields.map(|field| field.value.trim_ascii())
}

/// The path of a target in origin form or, as a proxy may send it, in absolute form (RFC 9112, section 3.2).
fn path(target: &str) -> &str {
    let without_host = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    without_host.split(['?', '#']).next().unwrap_or_default()
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// What kind of text the body is.
    pub content_type: &'static str,
    /// What a browser may do with it: the value of `Content-Security-Policy`.
    pub policy: &'static str,
    /// The text.
    pub body: Body,
}

/// What comes after the head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// This text.
    Text(String),
    /// Events, until either side closes.
    Events,
}

/// A browser may do nothing with it but show it.
pub const NO_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

impl Response {
    /// A response of plain text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Self { status, content_type, policy: NO_POLICY, body: Body::Text(body.into()) }
    }

    /// A response that goes on with events.
    #[must_use]
    pub fn events() -> Self {
        Self { status: 200, content_type: "text/event-stream", policy: NO_POLICY, body: Body::Events }
    }

    /// Writes the head, and the body unless only the head was asked for.
    pub(crate) fn write(&self, connection: Option<&str>, is_head: bool, output: &mut Vec<u8>) {
        let mut head = String::with_capacity(512);
        let Self { status, content_type, policy, body } = self;
        // Writing to a String does not fail.
        let _ = write!(head, "HTTP/1.1 {status} {}\r\n", reason(*status));
        match body {
            Body::Text(_) if *status == 204 => {}
            Body::Text(text) => {
                let _ = write!(head, "Content-Type: {content_type}\r\nContent-Length: {}\r\n", text.len());
            }
            // Its end is the end of the connection. nginx must not collect it.
            Body::Events => {
                let _ = write!(head, "Content-Type: {content_type}\r\nX-Accel-Buffering: no\r\n");
            }
        }
        if *status == 405 {
            head.push_str("Allow: GET, HEAD\r\n");
        }
        if let Some(connection) = connection {
            let _ = write!(head, "Connection: {connection}\r\n");
        }
        let _ = write!(head, "Content-Security-Policy: {policy}\r\n");
        head.push_str(
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\r\n",
        );
        output.extend_from_slice(head.as_bytes());
        if let Body::Text(text) = body
            && !is_head
        {
            output.extend_from_slice(text.as_bytes());
        }
    }
}

impl From<Fault> for Response {
    fn from(fault: Fault) -> Self {
        Self::text(fault.status(), format!("{fault}\n"))
    }
}

/// An event of that kind with this text, as it is sent.
#[must_use]
pub fn event(kind: &str, data: &str) -> String {
    let mut text = format!("event: {kind}\n");
    for line in data.split(['\r', '\n']) {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        // A client goes by the number (RFC 9112, section 4).
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &str) -> Result<Option<(Request, usize)>, Fault> {
        parse_request(input.as_bytes())
    }

    fn request(input: &str) -> Request {
        let (request, length) = parse(input).unwrap().unwrap();
        assert_eq!(length, input.len());
        request
    }

    #[test]
    fn what_a_browser_a_scraper_and_a_person_send() {
        let browser =
            request("GET /?x=1 HTTP/1.1\r\nHost: a:1\r\nAccept: text/html\r\naccept: */*;q=0.8\r\n\r\n");
        assert_eq!((&*browser.path, &*browser.accept), ("/", "text/html,*/*;q=0.8"));
        assert!(browser.keep_alive && !browser.is_head && !browser.is_old);
        let person = request("HEAD /healthz HTTP/1.0\n\n");
        assert!(person.is_head && person.is_old && !person.keep_alive);
        assert!(request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(!request("GET / HTTP/1.1\r\nHost: a\r\nConnection: te, close\r\n\r\n").keep_alive);
    }

    #[test]
    fn a_path_comes_without_query_and_host() {
        for (target, expected) in [
            ("/metrics", "/metrics"),
            ("/metrics?name=http://x/", "/metrics"),
            ("http://localhost:2221/readyz?verbose", "/readyz"),
            ("http://localhost", "/"),
            ("/a://b/c", "/a://b/c"),
            ("*", "*"),
        ] {
            assert_eq!(path(target), expected, "{target}");
        }
    }

    #[test]
    fn each_fault_has_its_status() {
        let long = "x".repeat(MAX_HEAD_BYTES);
        let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..MAX_TARGET_BYTES]);
        let field = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n");
        let fields = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS));
        for (input, status) in [
            ("\x16\x03\x01\x02", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 405),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: a-miracle\r\n\r\n", 417),
            (&target, 414),
            (&format!("GET /{long}"), 414),
            (&field, 431),
            (&fields, 431),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ] {
            assert_eq!(parse(input).unwrap_err().status(), status, "{input}");
        }
    }

    #[test]
    fn a_length_of_nothing_and_an_expectation_without_a_body_do_no_harm() {
        request("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\nExpect: 100-Continue\r\n\r\n");
    }

    #[test]
    fn the_longest_head_is_understood() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
        let input = format!("{head}{}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES - head.len() - 4));
        assert_eq!(input.len(), MAX_HEAD_BYTES);
        request(&input);
    }

    #[test]
    fn an_event_is_one_whatever_its_text() {
        assert_eq!(event("status", "{}"), "event: status\ndata: {}\n\n");
        assert_eq!(event("status", "a\n\nb"), "event: status\ndata: a\ndata: \ndata: b\n\n");
    }
}
