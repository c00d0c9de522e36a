//! The status page in a real browser. `tests/browser/install.sh` installs what is needed.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{REQUESTS, System, installed};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A process with all that it has started: they are gone when the test is over, whatever becomes of it.
struct Group(Child);

impl Group {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).process_group(0).spawn().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn load(system: &System) -> Group {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    command.args([
        "--at",
        &system.address().to_string(),
        "--clients",
        "6",
        "--rate",
        "60",
        "--duration",
        "600s",
    ]);
    command.args([
        "--type",
        "requetetype1=3",
        "--type",
        "requetetype2=2",
        "--type",
        "echo=2",
        "--type",
        "sum",
    ]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Group::start(command)
}

/// Screenshots are left in `OSPS_PICTURES`, if that is set.
#[test]
#[ignore = "needs Chromium, chromedriver, Python and axe-core"]
fn the_status_page() {
    let sum = "[[request]]\nname = \"sum\"\nhandler = \"exec\"\ncommand = [\"sha256sum\"]\n";
    let system = System::start("secondaries = 4\nobserve = \"127.0.0.1:0\"", &[REQUESTS, sum].concat());
    let status = system.until("an observer", |status| status["observer"]["state"] == "ready");
    let _load = load(&system);
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/page.py"));
    command.arg(format!("http://{}", status["observe"][0].as_str().unwrap()));
    command.arg(installed("node_modules/axe-core/axe.min.js"));
    let pictures =
        std::env::var_os("OSPS_PICTURES").map_or_else(|| system.dir.path().to_owned(), PathBuf::from);
    command.arg(pictures);
    let mut browser = Group::start(command);
    // Each of its steps has a limit.
    let ended = browser.0.wait().unwrap();
    assert!(ended.success());
}
