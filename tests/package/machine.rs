//! A throw-away copy of this machine, with an init of its own: what is installed there is installed nowhere else.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::common::eventually;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/package/machine.sh");

/// What tools for packages and accounts, and systemd, keep for themselves, below the root.
const OF_TOOLS: [&str; 6] =
    ["var/lib/dpkg", "var/lib/systemd", "var/cache", "var/log", "etc/machine-id", "etc/.pwd.lock"];
/// What an account is made and unmade in: the same afterwards.
pub const ACCOUNTS: [&str; 4] = ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"];

/// The copy.
pub struct Machine {
    script: Child,
    /// Where the script has its directories, as seen from here.
    directory: PathBuf,
    /// PID 1 of the copy.
    init: u32,
    /// What differs from this machine before anything is installed.
    before: Vec<String>,
    _mount_point: tempfile::TempDir,
}

impl Machine {
    /// A copy in which systemd runs.
    pub fn with_systemd() -> Self {
        let machine = Self::start(&["/lib/systemd/systemd", "--system", "--unit=multi-user.target"]);
        eventually("that systemd runs", || machine.run("systemctl is-system-running").ok());
        machine
    }

    /// A copy in which nothing runs.
    pub fn without_systemd() -> Self {
        Self::start(&["sleep", "infinity"])
    }

    fn start(init: &[&str]) -> Self {
        let mount_point = tempfile::tempdir().unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--uts", "--ipc", "sh", SCRIPT]).arg(mount_point.path()).args(init);
        let mut script = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let parent: u32 = line.trim().parse().unwrap_or_else(|_| panic!("no copy of this machine: {line:?}"));
        let directory = PathBuf::from(format!("/proc/{}/root{}", script.id(), mount_point.path().display()));
        let init = eventually("PID 1", || {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
            children.split_ascii_whitespace().next()?.parse().ok()
        });
        let mut machine = Self { script, directory, init, before: Vec::new(), _mount_point: mount_point };
        eventually("that PID 1 is in its root", || machine.run("true").ok());
        machine.before = machine.changes();
        assert!(machine.run("command -v osps").is_err(), "osps is installed on this machine");
        machine
    }

    /// A shell in there, for commands that are still to be told.
    pub fn shell(&self, script: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.init.to_string()]);
        nsenter.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root"]);
        nsenter.args([
            "env",
            "-i",
            "--chdir=/",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]);
        nsenter.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", script]);
        nsenter
    }

    /// Runs a script in there: what it prints.
    ///
    /// # Errors
    /// All that it has said, where it fails.
    pub fn run(&self, script: &str) -> Result<String, Output> {
        let output = self.shell(script).stdin(Stdio::null()).output().unwrap();
        if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(output) }
    }

    /// Runs a script that has to succeed.
    pub fn must(&self, script: &str) -> String {
        self.run(script).unwrap_or_else(|output| panic!("{script}: {output:?}"))
    }

    /// A file or directory in there, for a look from here. Absolute links would lead out.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.join("root").join(path)
    }

    /// Whether something is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// What is there now and was not before, and what was and is not, but for what tools keep.
    pub fn left_behind(&self) -> Vec<String> {
        let mut changes = self.changes();
        changes.retain(|change| !self.before.contains(change));
        changes
    }

    /// Every file and directory that this machine does not have, and every one that only this machine has.
    fn changes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let top = self.directory.join("changes");
        let mut directories = vec![top.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&top).unwrap();
                if OF_TOOLS.iter().any(|of_tools| name.starts_with(of_tools)) {
                    continue;
                }
                let metadata = path.symlink_metadata().unwrap();
                if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                    found.push(format!("/{} is gone", name.display()));
                } else if Path::new("/").join(name).symlink_metadata().is_err() {
                    found.push(format!("/{} is new", name.display()));
                }
                if metadata.is_dir() {
                    directories.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.script.stdin.take());
        self.script.wait().unwrap();
    }
}
