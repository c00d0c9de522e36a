//! The Debian package: built, installed in a throw-away copy of this machine, run there with and without systemd,
//! upgraded while a client is served, removed, purged.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod machine;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use common::{eventually, example};
use machine::{ACCOUNTS, Machine};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CONFIGURATION: &str = "/etc/osps/osps.toml";

/// Where the release build of these tests stands: their own, for it is not optimised as a real one is, to save time.
fn target() -> PathBuf {
    Path::new(ROOT).join("target/package")
}

/// A command of cargo for the release build of these tests.
fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(arguments).current_dir(ROOT).env("CARGO_TARGET_DIR", target());
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
    cargo
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The programs, installed by cargo: the directory where they are.
fn installed() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = target().join("installed");
        let mut install = cargo(&["install", "--locked", "--force", "--no-track", "--path", ".", "--root"]);
        succeeds(install.arg(&directory));
        directory.join("bin")
    })
}

/// The package, built as docs/install.md says, of what cargo has built for [`installed`].
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        installed();
        succeeds(Command::new(example("generate-docs")).arg("target/packaging").current_dir(ROOT));
        let package = target().join("osps.deb");
        // Compressed with less effort than a real one.
        succeeds(cargo(&["deb", "--no-build", "--locked", "--fast", "--output"]).arg(&package));
        package
    })
}

/// A client inside a machine that is in the middle of an exchange.
struct Client(Child);

impl Client {
    fn start(machine: &Machine, arguments: &str) -> Self {
        let mut client = machine.shell(&format!("exec osps-client --follow {arguments}"));
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(client.spawn().unwrap())
    }

    /// Sends a line to `echo` and waits until it is back.
    fn say(&mut self, line: &str) {
        self.0.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut back = String::new();
        // What it may read ahead is nothing: the server says only what it was told.
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut back).unwrap();
        assert_eq!(back, line);
    }

    /// Ends the exchange, of whose end the principal has to tell.
    fn ends_well(mut self) {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().unwrap();
        let news = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && news.contains("fintraitement"), "{news}");
    }
}

fn status(machine: &Machine) -> Option<Value> {
    let status = machine.run(&format!("osps status --json --config {CONFIGURATION}")).ok()?;
    let status: Value = serde_json::from_str(&status).unwrap();
    let ready = |server: &Value| server["state"] == "ready" || server["state"] == "draining";
    status["servers"].as_array().unwrap().iter().all(ready).then_some(status)
}

fn install(machine: &Machine) -> String {
    fs::copy(package(), machine.path("tmp/osps.deb")).unwrap();
    machine.must("dpkg -i /tmp/osps.deb 2>&1")
}

/// Nothing of the package is there any more.
fn nothing_is_left(machine: &Machine) {
    assert_eq!(machine.left_behind(), Vec::<String>::new());
    assert!(!machine.has("run/osps"));
    for file in ACCOUNTS {
        let now = fs::read_to_string(machine.path(file)).unwrap();
        assert!(
            now == fs::read_to_string(Path::new("/").join(file)).unwrap(),
            "{file} is not as it was:\n{now}"
        );
    }
    assert!(machine.run("dpkg -s osps").is_err());
}

#[test]
#[ignore = "takes minutes: a release build"]
fn cargo_install_brings_three_programs_that_run() {
    for program in ["osps", "osps-client", "osps-stress"] {
        let version = succeeds(Command::new(installed().join(program)).arg("--version"));
        assert_eq!(version, format!("{program} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
#[ignore = "needs cargo-deb, dpkg, lintian and mandoc; takes minutes: a release build"]
fn the_package_says_what_it_is_and_lintian_and_mandoc_find_no_error() {
    let field = |name: &str| succeeds(Command::new("dpkg-deb").arg("--field").arg(package()).arg(name));
    assert_eq!(field("Package"), "osps\n");
    assert_eq!(field("Version"), format!("{}-1\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(field("Architecture"), succeeds(Command::new("dpkg").arg("--print-architecture")));
    assert!(field("Depends").contains("libc6") && field("Depends").contains("adduser"));
    let found = Command::new("lintian").arg(package()).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(!found.lines().any(|line| line.starts_with("E:")), "{found}");
    for page in fs::read_dir(Path::new(ROOT).join("target/packaging/man")).unwrap() {
        succeeds(Command::new("mandoc").args(["-T", "lint", "-W", "error"]).arg(page.unwrap().path()));
    }
}

#[test]
#[ignore = "needs root, systemd, dpkg, overlayfs and cargo-deb; takes minutes: a release build"]
fn systemd_runs_it_an_upgrade_cuts_off_nobody_and_a_purge_leaves_nothing() {
    let machine = Machine::with_systemd();
    install(&machine);
    let first = eventually("a running service", || status(&machine));
    let watchdog = first["pid"].clone();
    assert_eq!(machine.must("systemctl show --value --property MainPID osps"), format!("{watchdog}\n"));
    assert_eq!(machine.must("systemctl is-enabled osps"), "enabled\n");
    assert_eq!(machine.must(&format!("stat -c %U /proc/{watchdog}")), "osps\n");
    assert_eq!(machine.must("stat -c '%U %a' /run/osps"), "osps 700\n");
    assert_eq!(machine.must("osps-client echo --data hello"), "hello");

    // An upgrade while a client is served, with a configuration that its admin has changed.
    let mut client = Client::start(&machine, "echo");
    client.say("before\n");
    let sum = "\\n[[request]]\\nname = \"sum\"\\nhandler = \"exec\"\\ncommand = [\"sha256sum\"]\\n";
    machine.must(&format!("printf '{sum}' >> {CONFIGURATION}"));
    install(&machine);
    let second = eventually("a reloaded service", || status(&machine));
    assert_eq!(second["pid"], watchdog);
    assert_ne!(second["servers"][0]["pid"], first["servers"][0]["pid"]);
    assert!(machine.must("osps-client sum --data hello").starts_with("2cf24dba"));
    client.say("after\n");
    client.ends_well();

    // One that cannot take over, with a configuration that is wrong, and that is right again.
    let refuse = "mkdir -p /run/systemd/system/osps.service.d && \
                  printf '[Service]\\nExecReload=\\nExecReload=/bin/false\\n' > /run/systemd/system/osps.service.d/a.conf";
    machine.must(refuse);
    machine.must(&format!("cp {CONFIGURATION} {CONFIGURATION}~ && echo nonsense = 1 >> {CONFIGURATION}"));
    assert!(install(&machine).contains("the old version goes on"));
    assert_eq!(machine.must("systemctl show --value --property MainPID osps"), format!("{watchdog}\n"));
    machine.must(&format!("cp {CONFIGURATION}~ {CONFIGURATION}"));
    assert!(install(&machine).contains("restarting it"));
    let third = eventually("a restarted service", || status(&machine));
    assert_ne!(third["pid"], watchdog);

    // One that its admin has stopped and disabled stays so.
    machine.must("rm -r /run/systemd/system/osps.service.d && systemctl disable --now osps 2>&1");
    install(&machine);
    assert!(machine.run("systemctl is-active osps").is_err());
    machine.must("systemctl enable --now osps 2>&1 && systemctl enable osps.socket 2>&1");

    machine.must("dpkg -r osps 2>&1");
    assert!(machine.run("systemctl is-active osps").is_err() && !machine.has("usr/bin/osps"));
    assert!(machine.has("etc/osps/osps.toml"), "only a purge removes the configuration");
    machine.must("dpkg -P osps 2>&1");
    nothing_is_left(&machine);
}

#[test]
#[ignore = "needs root, dpkg, overlayfs and cargo-deb; takes minutes: a release build"]
fn without_systemd_its_user_runs_it_by_hand_and_a_purge_leaves_nothing() {
    let machine = Machine::without_systemd();
    machine.must("rm -rf /run/systemd && ip link set lo up");
    install(&machine);
    for file in ["usr/share/man/man1/osps.1.gz", "usr/share/man/man5/osps.toml.5.gz", "etc/osps/osps.toml"] {
        assert!(machine.has(file), "{file}");
    }
    let completed = "set -- && . /usr/share/bash-completion/completions/osps && COMP_WORDS=(osps rel) COMP_CWORD=1 && \
                     _osps osps rel osps && echo ${COMPREPLY[@]}";
    assert_eq!(machine.must(&format!("bash -c '{completed}'")), "reload\n");
    machine.must("install -d -o osps -g osps -m 700 /run/osps");
    let run = "setpriv --reuid osps --regid osps --init-groups osps --config /etc/osps/osps.toml";
    let mut watchdog = machine.shell(&format!("exec {run}"));
    let mut watchdog =
        watchdog.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("a running system", || status(&machine));
    let mut client = Client::start(&machine, "echo");
    client.say("before\n");
    install(&machine);
    machine.must("osps reload --config /etc/osps/osps.toml");
    client.say("after\n");
    client.ends_well();
    assert!(watchdog.try_wait().unwrap().is_none(), "whoever has started it decides when it ends");
    machine.must("dpkg -P osps 2>&1");
    assert!(watchdog.wait().unwrap().success());
    nothing_is_left(&machine);
}
