//! The Unix socket `control`: tools ask for things, one a line ([`crate::wire::control`]).
//!
//! Only the owner of the runtime directory and root are listened to, as the kernel tells who they are (unix(7),
//! SO_PEERCRED). `stop` is obeyed at once; all else waits for its turn ([`super::tasks`]).

use std::io::{self, Read, Write};

use mio::Interest;
use mio::net::UnixStream;

use crate::os::process;
use crate::os::reactor::{Handle, Progress, SourceId};
use crate::role::watchdog::{Key, Watchdog};
use crate::wire::control::{Answer, Request};
use crate::wire::lines::{Lines, MAX_LINE_BYTES};

/// Tools connected at once; one more, and the one that has been there longest without waiting for anything must go.
const MAX_TOOLS: usize = 16;
/// Of these may wait for what they have asked for; the others' places are for whoever asks for a stop.
const MAX_WAITING: usize = 12;
/// What one tool may wait for at once.
const MAX_REQUESTS: usize = 8;
const TOO_MANY: &[u8] = b"error too many tools are connected\n";

/// A tool that is connected.
pub struct ControlClient {
    stream: UnixStream,
    id: SourceId,
    /// Which tool it is, in the order of their coming.
    serial: u64,
    /// It has asked for a stop.
    stops: bool,
    lines: Lines,
}

impl Watchdog {
    pub(super) fn accept_control(&mut self, reactor: &mut Handle<Key>) -> Progress {
        loop {
            match self.control.0.accept() {
                Ok((mut stream, _)) => {
                    if !process::is_of_us(&stream) {
                        let _ = stream
                            .write_all(b"error only the owner of the runtime directory is listened to\n");
                        continue;
                    }
                    if self.control_clients.len() >= MAX_TOOLS && !self.drop_an_idle_tool(reactor) {
                        let _ = stream.write_all(TOO_MANY);
                        continue;
                    }
                    self.tools_so_far += 1;
                    let serial = self.tools_so_far;
                    let entry = self.control_clients.vacant_entry();
                    let key = Key::ControlClient(entry.key());
                    match reactor.register(&mut stream, key, Interest::READABLE) {
                        Ok(id) => {
                            let lines = Lines::default();
                            entry.insert(ControlClient { stream, id, serial, stops: false, lines });
                        }
                        Err(error) => log::warn!("cannot watch a tool: {error}"),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Drained,
                Err(error) => {
                    // It waits in the backlog, of which the kernel tells only once.
                    self.tools_wait = true;
                    if self.control_trouble.is_news(reactor.now()) {
                        log::warn!("cannot accept a tool, trying again at each probe: {error}");
                    }
                    return Progress::Drained;
                }
            }
        }
    }

    pub(super) fn on_control_client(&mut self, reactor: &mut Handle<Key>, key: usize) -> Progress {
        let Some(tool) = self.control_clients.get_mut(key) else {
            return Progress::Drained;
        };
        let mut buffer = [0; MAX_LINE_BYTES];
        let mut requests = Vec::new();
        let open = match tool.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                tool.lines.feed(&buffer[..length], |line| requests.push(line.to_vec()));
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Drained,
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        };
        let client = tool.id;
        for request in requests {
            self.obey_tool(reactor, client, &request);
        }
        if open {
            return Progress::Again;
        }
        self.part_with(reactor, key);
        Progress::Drained
    }

    fn part_with(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let mut tool = self.control_clients.remove(key);
        self.tasks.forget(tool.id);
        reactor.deregister(&mut tool.stream, tool.id);
    }

    /// Parts with the oldest of those who wait for nothing. Returns whether there was one.
    fn drop_an_idle_tool(&mut self, reactor: &mut Handle<Key>) -> bool {
        let Self { control_clients, tasks, .. } = self;
        let idle = control_clients.iter().filter(|(_, tool)| !tool.stops && tasks.of(tool.id) == 0);
        let Some((key, _)) = idle.min_by_key(|(_, tool)| tool.serial) else {
            return false;
        };
        let _ = self.control_clients[key].stream.write_all(TOO_MANY);
        self.part_with(reactor, key);
        true
    }

    fn obey_tool(&mut self, reactor: &mut Handle<Key>, client: SourceId, request: &[u8]) {
        match Request::parse(request) {
            Ok(Request::Stop) => {
                self.ask_to_stop(reactor, "osps stop");
                if let Some((_, tool)) = self.control_clients.iter_mut().find(|(_, tool)| tool.id == client) {
                    tool.stops = true;
                }
                self.say_to_tool(client, "stopping\n");
            }
            Ok(_) if self.tasks.of(client) >= MAX_REQUESTS => {
                let why = format!("{MAX_REQUESTS} requests of this tool are not done yet: no more at once");
                self.answer_tool(Some(client), &Answer::Error(why));
            }
            Ok(_) if self.tasks.of(client) == 0 && self.tasks.tools() >= MAX_WAITING => {
                let why = format!("{MAX_WAITING} tools wait for what they have asked for: no more at once");
                self.answer_tool(Some(client), &Answer::Error(why));
            }
            Ok(request) => self.push_task(Some(client), request),
            Err(why) => self.answer_tool(Some(client), &Answer::Error(why)),
        }
    }

    /// Answers a tool, or whoever sent a signal.
    pub(super) fn answer_tool(&mut self, client: Option<SourceId>, answer: &Answer) {
        match (client, answer) {
            (Some(client), answer) => self.say_to_tool(client, &answer.to_string()),
            (None, Answer::Progress(text) | Answer::Done(text)) => log::info!("reload: {text}"),
            (None, Answer::Error(why)) => log::warn!("reload: {why}"),
        }
    }

    fn say_to_tool(&mut self, client: SourceId, line: &str) {
        if let Some((_, tool)) = self.control_clients.iter_mut().find(|(_, tool)| tool.id == client) {
            tool.say(line);
        }
    }

    pub(super) fn tell_control_clients(&mut self, line: &str) {
        self.control_clients.iter_mut().for_each(|(_, tool)| tool.say(line));
    }
}

impl ControlClient {
    /// A tool that does not read its few answers is not kept waiting for the rest: its connection ends.
    fn say(&mut self, line: &str) {
        if self.stream.write_all(line.as_bytes()).is_err() {
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
