//! The Unix socket `control`: tools ask for things, one a line ([`crate::wire::control`]).
//!
//! Only the owner of the runtime directory and root are listened to, as the kernel tells who they are (unix(7),
//! SO_PEERCRED). `stop` is obeyed at once; all else waits for its turn ([`super::tasks`]).

use std::io::{self, Read, Write};

use mio::Interest;
use mio::net::UnixStream;

use crate::core::moment::Moment;
use crate::os::process;
use crate::os::reactor::{Handle, Progress, SourceId};
use crate::role::watchdog::{Key, Watchdog};
use crate::wire::control::{Answer, Request};
use crate::wire::lines::{Lines, MAX_LINE_BYTES};

/// Tools connected at once; one more, and the one that has been there longest must go.
const MAX_TOOLS: usize = 16;

/// A tool that is connected.
pub struct ControlClient {
    stream: UnixStream,
    id: SourceId,
    since: Moment,
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
                    if self.control_clients.len() >= MAX_TOOLS {
                        self.drop_oldest_tool(reactor);
                    }
                    let entry = self.control_clients.vacant_entry();
                    let key = Key::ControlClient(entry.key());
                    match reactor.register(&mut stream, key, Interest::READABLE) {
                        Ok(id) => {
                            entry.insert(ControlClient {
                                stream,
                                id,
                                since: reactor.now(),
                                lines: Lines::default(),
                            });
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

    fn drop_oldest_tool(&mut self, reactor: &mut Handle<Key>) {
        let oldest = self.control_clients.iter().min_by_key(|(_, tool)| tool.since).map(|(key, _)| key);
        if let Some(key) = oldest {
            let _ = self.control_clients[key].stream.write_all(b"error too many tools are connected\n");
            self.part_with(reactor, key);
        }
    }

    fn obey_tool(&mut self, reactor: &mut Handle<Key>, client: SourceId, request: &[u8]) {
        match Request::parse(request) {
            Ok(Request::Stop) => {
                self.ask_to_stop(reactor, "osps stop");
                self.say_to_tool(client, "stopping\n");
            }
            Ok(request) => {
                if let Some(before) = self.tasks.push(client, request) {
                    let progress = format!("waits for its turn after \"{before}\"");
                    self.answer_tool(client, &Answer::Progress(progress));
                }
            }
            Err(why) => self.answer_tool(client, &Answer::Error(why)),
        }
    }

    pub(super) fn answer_tool(&mut self, client: SourceId, answer: &Answer) {
        self.say_to_tool(client, &answer.to_string());
    }

    /// A tool that does not read its few answers does not get them.
    fn say_to_tool(&mut self, client: SourceId, line: &str) {
        if let Some((_, tool)) = self.control_clients.iter_mut().find(|(_, tool)| tool.id == client) {
            let _ = tool.stream.write_all(line.as_bytes());
        }
    }

    pub(super) fn tell_control_clients(&mut self, line: &str) {
        for (_, tool) in &mut self.control_clients {
            let _ = tool.stream.write_all(line.as_bytes());
        }
    }
}
