//! Reads transcripts: `tests/vectors/README.md` tells the format.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What clients and an operator do, and what is to come of it.
#[derive(Clone)]
pub struct Transcript {
    /// File, line and title.
    pub name: String,
    pub steps: Vec<Step>,
}

/// One line of a transcript.
#[derive(Clone)]
pub struct Step {
    pub line: usize,
    /// As it is written.
    pub text: String,
    /// Which connection.
    pub who: String,
    pub act: Act,
}

#[derive(Clone)]
pub enum Act {
    Control,
    Data { host: Option<String>, port: String, elsewhere: bool },
    Send { parts: Vec<Part>, may_be_cut: bool },
    Expect(Vec<Part>),
    Silent(Duration),
    Ends,
    Closes,
    Resets,
    Floods,
    Closed,
    Wait(Duration),
    Operator(String),
}

/// A piece of what is sent or expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Bytes(Vec<u8>),
    /// What was captured under that name, or is now.
    Variable {
        name: String,
        /// Captured anew.
        anew: bool,
        /// In capitals.
        upper: bool,
    },
}

/// Values by name.
pub type Variables = HashMap<String, Vec<u8>>;

/// The transcripts of a file.
pub fn read(path: &Path) -> Vec<Transcript> {
    let text = fs::read_to_string(path).unwrap();
    let file = path.file_name().unwrap().to_str().unwrap();
    let mut transcripts: Vec<Transcript> = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        if let Some(title) = text.strip_prefix("== ") {
            let directory = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
            let name = format!("tests/vectors/{directory}/{file}:{line}: {title}");
            transcripts.push(Transcript { name, steps: Vec::new() });
        } else if !text.is_empty() && !text.starts_with('#') {
            let step = step(line, text).unwrap_or_else(|| panic!("{}:{line}: {text}", path.display()));
            transcripts.last_mut().unwrap().steps.push(step);
        }
    }
    transcripts
}

/// The transcripts in a document: what stands between fences that name a configuration. There
/// two spaces and `#` begin a remark.
pub fn read_document(path: &Path, configurations: &[&str]) -> Vec<(String, Transcript)> {
    let text = fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    let mut under_way: Option<(String, Transcript)> = None;
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        match (text.strip_prefix("```"), &mut under_way) {
            (Some(_), Some(_)) => found.extend(under_way.take()),
            (Some(configuration), None) if configurations.contains(&configuration) => {
                let name = format!("{}:{line}", path.display());
                under_way = Some((configuration.to_owned(), Transcript { name, steps: Vec::new() }));
            }
            (None, Some((_, transcript))) => {
                let text = text.split("  #").next().unwrap().trim_end();
                let step = step(line, text).unwrap_or_else(|| panic!("{}:{line}: {text}", path.display()));
                transcript.steps.push(step);
            }
            (Some(_) | None, None) => {}
        }
    }
    found
}

fn step(line: usize, text: &str) -> Option<Step> {
    let mut words = text.splitn(3, ' ');
    let (who, verb, rest) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let act = match (who, verb) {
        ("wait", time) => Act::Wait(duration(time)?),
        ("operator", what) => Act::Operator(what.to_owned()),
        (_, "control") => Act::Control,
        (_, "data") => data(rest)?,
        (_, "silent") => Act::Silent(duration(rest)?),
        (_, "ends") => Act::Ends,
        (_, "closes") => Act::Closes,
        (_, "resets") => Act::Resets,
        (_, "floods") => Act::Floods,
        (_, "closed") => Act::Closed,
        _ => {
            let parts = repeated(&verb[2..], rest)?;
            match &verb[..2] {
                "->" => Act::Send { parts, may_be_cut: true },
                "=>" => Act::Send { parts, may_be_cut: false },
                "<-" => Act::Expect(parts),
                _ => return None,
            }
        }
    };
    Some(Step { line, text: text.to_owned(), who: who.to_owned(), act })
}

fn duration(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(millis) => Some(Duration::from_millis(millis.parse().ok()?)),
        None => Some(Duration::from_secs(text.strip_suffix('s')?.parse().ok()?)),
    }
}

/// `$PORT`, `$HOST:$PORT`, perhaps ` elsewhere`.
fn data(text: &str) -> Option<Act> {
    let (address, elsewhere) = text.strip_suffix(" elsewhere").map_or((text, false), |rest| (rest, true));
    let (host, port) = address.rsplit_once(':').map_or((None, address), |(host, port)| (Some(host), port));
    let name = |text: &str| Some(text.strip_prefix('$')?.to_owned());
    let host = host.map(|host| name(host).ok_or(())).transpose().ok()?;
    Some(Act::Data { host, port: name(port)?, elsewhere })
}

/// The parts of a text, as often as `*N` says.
fn repeated(times: &str, text: &str) -> Option<Vec<Part>> {
    let times = if times.is_empty() { 1 } else { times.strip_prefix('*')?.parse().ok()? };
    let once = parts(text)?;
    Some(std::iter::repeat_n(once, times).flatten().collect())
}

fn parts(mut text: &str) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    while let Some(first) = text.chars().next() {
        let length = match first {
            '$' => {
                let sign = &text[1..=usize::from(text[1..].starts_with(['?', '^']))];
                let name = &text[1 + sign.len()..];
                let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
                let end = name.find(|c| !is_name(c)).unwrap_or(name.len());
                let (anew, upper) = (sign == "?", sign == "^");
                parts.push(Part::Variable { name: name[..end].to_owned(), anew, upper });
                1 + sign.len() + end
            }
            '\\' => {
                let (byte, length) = escape(&text[1..])?;
                push(&mut parts, &[byte]);
                1 + length
            }
            _ => {
                let length = text.find(['$', '\\']).unwrap_or(text.len());
                push(&mut parts, &text.as_bytes()[..length]);
                length
            }
        };
        text = &text[length..];
    }
    Some(parts)
}

fn push(parts: &mut Vec<Part>, bytes: &[u8]) {
    match parts.last_mut() {
        Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
        _ => parts.push(Part::Bytes(bytes.to_vec())),
    }
}

/// What follows a backslash, and how long that is.
fn escape(text: &str) -> Option<(u8, usize)> {
    match text.as_bytes().first()? {
        b'n' => Some((b'\n', 1)),
        b'r' => Some((b'\r', 1)),
        b't' => Some((b'\t', 1)),
        b'\\' => Some((b'\\', 1)),
        b'x' => Some((u8::from_str_radix(text.get(1..3)?, 16).ok()?, 3)),
        _ => None,
    }
}

impl Part {
    /// The bytes to send, or to expect.
    pub fn value(&self, variables: &Variables) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Variable { name, upper: true, .. } => variables[name].to_ascii_uppercase(),
            Self::Variable { name, .. } => variables[name].clone(),
        }
    }
}

impl Transcript {
    /// Every step, by its place, and byte at which something may be cut in two.
    pub fn cuts(&self) -> Vec<(usize, usize)> {
        let length = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len(),
            // Nothing but jetons is sent.
            Part::Variable { .. } => 32,
        };
        let sent = self.steps.iter().enumerate().filter_map(|(index, step)| match &step.act {
            Act::Send { parts, may_be_cut: true } => Some((index, parts.iter().map(length).sum())),
            _ => None,
        });
        sent.flat_map(|(index, length)| (1..length).map(move |byte| (index, byte))).collect()
    }

    /// The same with lines sent at once that are sent one after the other here, if any are:
    /// where only their answers stand between them, and none names what an answer gave.
    pub fn merged(&self) -> Option<Self> {
        let mut steps: Vec<Step> = Vec::new();
        // Where the lines of a connection are that one more may be added to.
        let mut open: Option<usize> = None;
        let mut changed = false;
        for step in &self.steps {
            let lines = whole_lines(step);
            match (open, &step.act) {
                (Some(at), _) if lines.is_some() && steps[at].who == step.who => {
                    if let Act::Send { parts, .. } = &mut steps[at].act {
                        push(parts, lines.unwrap_or_default());
                        changed = true;
                    }
                    continue;
                }
                (Some(at), Act::Expect(_)) if steps[at].who == step.who => {}
                _ => open = lines.map(|_| steps.len()),
            }
            steps.push(step.clone());
        }
        changed.then(|| Self { name: format!("{}, merged", self.name), steps })
    }
}

/// The bytes of a step that sends whole lines, however they are cut.
fn whole_lines(step: &Step) -> Option<&[u8]> {
    match &step.act {
        Act::Send { parts, may_be_cut: true } => match parts.as_slice() {
            [Part::Bytes(bytes)] => bytes.ends_with(b"\n").then_some(bytes),
            _ => None,
        },
        _ => None,
    }
}
