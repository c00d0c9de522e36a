//! A system whose watchdog is PID 1, as in a container: strangers' orphans are its children too.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{REQUESTS, System, eventually, request, say};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A system in a PID namespace of its own. Pids in its status mean something only in there.
struct Inside {
    system: System,
    /// The pid of its watchdog out here.
    init: u32,
}

impl Inside {
    fn start() -> Self {
        let system = System::start_by("secondaries = 2", REQUESTS, |command| {
            let mut unshare = Command::new("sh");
            let script = "exec unshare --pid --fork --kill-child --mount-proc \"$@\" >>stdout 2>>stderr";
            unshare.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
            unshare
        });
        let unshare = system.watchdog.id();
        let init = eventually("PID 1", || {
            let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
            children.split_ascii_whitespace().next()?.parse().ok()
        });
        let inside = Self { system, init };
        inside.until("all servers ready", |servers| servers.iter().all(|server| server["state"] == "ready"));
        inside
    }

    /// Runs a command in there; what it says, if it succeeds.
    fn run(&self, command: &Command) -> Option<String> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--pid", "--mount", "--target", &self.init.to_string(), "--"]);
        let output = nsenter.arg(command.get_program()).args(command.get_args()).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn shell(&self, script: &str) -> Option<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        self.run(&shell)
    }

    /// Waits until the servers satisfy `condition`, the principal first.
    fn until(&self, what: &str, condition: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually(what, || {
            let status = self.run(&self.system.tool(&["status", "--json"]))?;
            let status: Value = serde_json::from_str(&status).unwrap();
            let servers = status["servers"].as_array().unwrap().clone();
            condition(&servers).then_some(servers)
        })
    }

    /// Starts a process whose parent ends at once: its pid in there, once it is PID 1's child.
    fn orphan(&self) -> String {
        let pid = self.shell("(sleep 1000 <&- >/dev/null 2>&1 & echo $!)").unwrap().trim().to_owned();
        eventually("a new parent", || self.shell(&format!("grep -q '^PPid:.1$' /proc/{pid}/status")));
        pid
    }

    fn serves(&self) {
        let listening = self.until("a principal", |servers| servers[0]["state"] == "ready");
        assert_eq!(listening.len(), 3);
        let page = self.run(&self.system.tool(&["status", "--json"])).unwrap();
        let page: Value = serde_json::from_str(&page).unwrap();
        let address = page["listen"][0].as_str().unwrap().parse().unwrap();
        assert_eq!(say(&mut request(address, "echo"), "x"), "x");
    }
}

#[test]
#[ignore = "needs root: makes a PID namespace"]
fn as_pid_1_it_reaps_the_orphans_of_strangers_survives_its_servers_and_stops() {
    let mut inside = Inside::start();
    inside.serves();
    let orphan = inside.orphan();
    inside.shell(&format!("kill -9 {orphan}")).unwrap();
    eventually("that the orphan is reaped", || inside.shell(&format!("! test -e /proc/{orphan}")));
    for slot in [1, 0] {
        let before = inside.until("all", |servers| servers.iter().all(|server| server["state"] == "ready"));
        let pid = &before[slot]["pid"];
        inside.shell(&format!("kill -9 {pid}")).unwrap();
        inside.until("a successor", |servers| {
            servers[slot]["state"] == "ready" && servers[slot]["pid"] != *pid && servers.len() == 3
        });
        eventually("that it is reaped", || inside.shell(&format!("! test -e /proc/{pid}")));
        inside.serves();
    }
    eventually("that no zombie is left", || inside.shell("! grep -qs '^State:.Z' /proc/[0-9]*/status"));
    // One that lives holds up no stop: the kernel ends it with its namespace.
    inside.orphan();
    let init = inside.init;
    inside.system.signal(init, Signal::SIGTERM);
    assert_eq!(inside.system.ended().code(), Some(0));
    assert!(!inside.system.has_processes());
    assert_eq!(inside.system.files(), ["lock"]);
}
