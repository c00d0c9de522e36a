//! Commands as services: what they get, how they end, and that nothing is left of them.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod limits;
mod lost;
mod serve;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use common::{System, connect, eventually};
use osps::core::mark::Tree;
use osps::os::{descendants, proc};

/// A system with these commands: a name, a script for `sh -c`, and more keys.
fn start(top: &str, commands: &[(&str, &str, &str)]) -> System {
    System::start(top, &requests(commands))
}

fn requests(commands: &[(&str, &str, &str)]) -> String {
    let request = |(name, script, more): &(&str, &str, &str)| {
        format!(
            "[[request]]\nname = \"{name}\"\nhandler = \"exec\"\n\
             command = [\"sh\", \"-c\", {script:?}]\n{more}\n"
        )
    };
    commands.iter().map(request).collect()
}

/// A control connection that follows its jobs.
struct Control {
    lines: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Control {
    fn new(system: &System) -> Self {
        let address = system.address();
        Self { lines: BufReader::new(connect(address)), address }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.strip_suffix('\n').unwrap_or_else(|| panic!("control ends after {line:?}")).to_owned()
    }

    /// A tracked job, claimed: its data connection and its jeton.
    fn begin(&mut self, kind: &str) -> (TcpStream, String) {
        let (data, jeton) = self.claim(kind, "");
        assert_eq!(self.line(), format!("debuttraitement {jeton}"));
        (data, jeton)
    }

    /// As [`Control::begin`], with input right behind the claim, and without waiting.
    fn claim(&mut self, kind: &str, input: &str) -> (TcpStream, String) {
        self.lines.get_mut().write_all(format!("suivi {kind}\n").as_bytes()).unwrap();
        let answer = self.line();
        let (port, jeton) = answer.split_once(' ').unwrap_or_else(|| panic!("{kind} is answered {answer:?}"));
        let mut data = connect(SocketAddr::new(self.address.ip(), port.parse().unwrap()));
        data.write_all(format!("jeton {jeton}\n{input}").as_bytes()).unwrap();
        (data, jeton.to_owned())
    }

    /// How a job has ended, which is the next thing that is told.
    fn end(&mut self, jeton: &str) -> String {
        let line = self.line();
        line.replace(&format!(" {jeton}"), "")
    }

    /// Runs a job without input; what it says and how it ends.
    fn run(&mut self, kind: &str) -> (String, String) {
        let (mut data, jeton) = self.begin(kind);
        data.shutdown(Shutdown::Write).unwrap();
        let said = rest(&mut data);
        (said, self.end(&jeton))
    }
}

/// What comes until the connection is closed, or broken off.
fn rest(data: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let _ = data.read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

/// By what the commands of a system are marked.
fn tree(system: &System) -> Tree {
    let pid = u32::try_from(system.status()["pid"].as_u64().unwrap()).unwrap();
    Tree { pid, start_time: proc::stat(pid).unwrap().start_time }
}

/// Processes of commands that live.
fn processes(tree: Tree) -> Vec<u32> {
    let all = descendants::of_tree(tree).unwrap().into_iter().map(|(pid, _)| pid);
    all.filter(|&pid| proc::stat(pid).is_ok_and(|stat| stat.letter != 'Z')).collect()
}

/// Waits until so many processes of commands live.
fn until_processes(tree: Tree, count: usize) -> Vec<u32> {
    eventually(&format!("{count} processes of commands"), || {
        Some(processes(tree)).filter(|pids| pids.len() == count)
    })
}
