//! The Unix socket `control`: tools of the same user ask for things, one word a line.
//!
//! `stop` is answered `stopping`, and, when everything has ended, `stopped`; what is not
//! understood is answered `error` and the reason. Only the owner of the runtime
//! directory and root get here: the directory is closed to others.

use std::io::{self, Read, Write};

use mio::Interest;
use mio::net::UnixStream;

use crate::core::moment::Moment;
use crate::os::reactor::{Handle, Progress, SourceId};
use crate::role::watchdog::{Key, Watchdog};
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
        for request in requests {
            let answer = self.obey_tool(reactor, &request);
            if let Some(tool) = self.control_clients.get_mut(key) {
                // A tool that does not read its few answers does not get them.
                let _ = tool.stream.write_all(answer.as_bytes());
            }
        }
        if open {
            return Progress::Again;
        }
        let mut tool = self.control_clients.remove(key);
        reactor.deregister(&mut tool.stream, tool.id);
        Progress::Drained
    }

    fn drop_oldest_tool(&mut self, reactor: &mut Handle<Key>) {
        let oldest = self.control_clients.iter().min_by_key(|(_, tool)| tool.since).map(|(key, _)| key);
        if let Some(key) = oldest {
            let mut tool = self.control_clients.remove(key);
            let _ = tool.stream.write_all(b"error too many tools are connected\n");
            reactor.deregister(&mut tool.stream, tool.id);
        }
    }

    fn obey_tool(&mut self, reactor: &mut Handle<Key>, request: &[u8]) -> String {
        match request.trim_ascii() {
            b"stop" => {
                self.ask_to_stop(reactor, "osps stop");
                "stopping\n".to_owned()
            }
            other => format!("error unknown request \"{}\"; known: stop\n", other.escape_ascii()),
        }
    }

    pub(super) fn tell_control_clients(&mut self, line: &str) {
        for (_, tool) in &mut self.control_clients {
            let _ = tool.stream.write_all(line.as_bytes());
        }
    }
}
