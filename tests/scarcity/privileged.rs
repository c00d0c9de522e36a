//! What only root can take away: room in a file system of its own (tmpfs(5)), processes and
//! memory of a control group (cgroups(7)).

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::common::{REQUESTS, System, eventually};
use crate::memory::{greedy, overfeed};
use crate::room::{cannot_be_created, is_replaced_in_the_end};
use crate::{PATIENT, echo, ends_well, logged, patient, remove_spares, replaced};

/// A small file system of its own, until it is dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn of(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size},mode=700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir.path()).status();
        assert!(mount.unwrap().success());
        Self(dir)
    }

    /// A system whose runtime directory this is.
    fn system(&self, top: &str) -> System {
        System::start_by(top, &format!("{PATIENT}{REQUESTS}"), |command| {
            let config = PathBuf::from(command.get_args().last().unwrap());
            symlink(self.0.path(), config.with_file_name("run")).unwrap();
            command
        })
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
#[ignore = "mounts a file system: needs root"]
fn a_start_on_a_full_file_system_says_so_and_leaves_nothing() {
    for size in ["4k", "8k", "64k", "128k"] {
        let tmpfs = Tmpfs::of(size);
        cannot_be_created(tmpfs.system("secondaries = 2"));
    }
}

#[test]
#[ignore = "mounts a file system: needs root"]
fn a_secondary_is_replaced_when_the_file_system_has_room_again() {
    let tmpfs = Tmpfs::of("1m");
    let system = tmpfs.system("secondaries = 2");
    system.all_ready();
    // Its block is free only when nobody has it open: the dead one leaves no room for its successor.
    let has_spares = || system.files().iter().filter(|name| name.starts_with(".spare")).count() == 8;
    eventually("files for two successors", || has_spares().then_some(()));
    let pages = ["secondary1.page", ".spare1.page", ".spare2.page"];
    let _held = pages.map(|page| fs::File::open(system.rundir().join(page)).unwrap());
    let mut file = fs::File::create(system.rundir().join("filler")).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    remove_spares(&system);
    system.signal(system.pid(1), Signal::SIGKILL);
    logged(&system, "cannot start secondary 1");
    is_replaced_in_the_end(system, || file.set_len(0).unwrap());
}

/// A control group for processes of a test; for root only.
struct Group(PathBuf);

impl Group {
    /// Version 1 has a hierarchy for each controller; version 2 has one, and this process must
    /// stand in a group whose children may have the controller.
    fn new(controller: &str) -> Self {
        let v1 = PathBuf::from("/sys/fs/cgroup").join(controller);
        let root = if v1.is_dir() { v1 } else { PathBuf::from("/sys/fs/cgroup") };
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        let group = root.join(format!("osps-test-{}-{controller}", std::process::id()));
        fs::create_dir(&group).unwrap();
        Self(group)
    }

    /// Sets the one of these files that the version at hand has.
    fn set(&self, files: &[&str], value: &str) {
        let path = files.iter().map(|file| self.0.join(file)).find(|path| path.exists()).unwrap();
        fs::write(path, value).unwrap();
    }

    /// Moves a process in.
    fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("an empty group", || fs::remove_dir(&self.0).ok());
    }
}

#[test]
#[ignore = "makes a control group: needs root and a writable /sys/fs/cgroup"]
fn a_group_without_room_for_another_process_gets_one_when_it_has() {
    let group = Group::new("pids");
    let system = patient(2);
    for pid in system.pids() {
        group.add(pid);
    }
    let (first, principal) = (system.pid(1), system.pid(0));
    group.set(&["pids.max"], "1");
    system.signal(first, Signal::SIGKILL);
    logged(&system, "cannot start secondary 1");
    echo(&system);
    system.signal(principal, Signal::SIGKILL);
    logged(&system, "cannot start principal");
    group.set(&["pids.max"], "max");
    replaced(&system, 0, principal);
    system.all_ready();
    ends_well(system);
}

#[test]
#[ignore = "makes a control group: needs root and a writable /sys/fs/cgroup"]
fn a_secondary_that_the_kernel_kills_for_its_memory_dies_with_its_own_jobs_only() {
    let group = Group::new("memory");
    let system = patient(2);
    let exchanges = greedy(system.address(), 16);
    let first = system.pid(1);
    let spared = System::server(&system.status(), 2)["open"].as_u64().unwrap();
    group.add(first);
    group.set(&["memory.max", "memory.limit_in_bytes"], "65536");
    overfeed(&system, &exchanges, "cause=\"signal 9\"");
    replaced(&system, 1, first);
    let status = system.until("the dead one's jobs", |status| status["ledger"]["failed"] == 16 - spared);
    assert_eq!(System::server(&status, 2)["open"], spared);
    drop(exchanges);
    ends_well(system);
}
