//! What a command may use: who uses more ends alone.

use crate::{Control, start};

#[test]
fn each_limit_ends_its_command_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large");
    let write = format!("exec head -c 100000 /dev/zero > {}", file.display());
    let write_on = format!("trap '' XFSZ; head -c 100000 /dev/zero > {} || exit 5", file.display());
    let system = start(
        "secondaries = 1",
        &[
            ("spins", "while :; do :; done", "cpu_time = \"1s\""),
            ("spins_on", "trap '' XCPU; while :; do :; done", "cpu_time = \"1s\""),
            ("writes", &write, "file_size = \"4KiB\""),
            ("writes_on", &write_on, "file_size = \"4KiB\""),
            ("opens", "exec 3</dev/null 4</dev/null 5</dev/null", "open_files = 4"),
            ("eats", "exec dd if=/dev/zero of=/dev/null bs=200M count=1", "address_space = \"64MiB\""),
            ("cat", "exec cat", ""),
        ],
    );
    let mut control = Control::new(&system);
    for (kind, end) in [
        ("spins", "errtraitement cpu limit"),
        ("spins_on", "errtraitement cpu limit"),
        ("writes", "errtraitement file size limit"),
        ("writes_on", "errtraitement exit 5"),
    ] {
        assert_eq!(control.run(kind), (String::new(), end.to_owned()), "{kind}");
        assert_eq!(file.metadata().map_or(0, |file| file.len()) % 4096, 0);
    }
    // Here the kernel only makes the command's own calls fail: it ends as it likes.
    for kind in ["opens", "eats"] {
        let (said, end) = control.run(kind);
        assert_eq!(said, "", "{kind}");
        assert!(end.starts_with("errtraitement exit "), "{kind}: {end}");
    }
    assert_eq!(control.run("cat").1, "fintraitement");
    assert_eq!(system.status()["servers"][1]["restarts"], 0);
    system.books_are_exact();
}

#[test]
fn a_confined_command_reads_and_writes_where_it_may() {
    if !osps::os::landlock::is_supported() {
        println!("this kernel has no Landlock");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    std::fs::create_dir(dir.path().join("shared")).unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    std::fs::write(dir.path().join("shared/public"), "public").unwrap();
    let system_paths: Vec<String> = ["/bin", "/usr", "/lib", "/lib64", "/etc", "/dev/null"]
        .into_iter()
        .filter(|path| std::path::Path::new(path).exists())
        .map(|path| format!("{path:?}"))
        .collect();
    let may_read = format!("read = [{}, \"{at}/shared\"]", system_paths.join(", "));
    let may_write = format!("read = [{}]\nwrite = [\"{at}/shared\"]", system_paths.join(", "));
    let script = format!(
        "cat {at}/shared/public; cat {at}/secret 2>&1 | grep -o denied; touch {at}/shared/new || exit 6"
    );
    let system = start(
        "secondaries = 1",
        &[("reads", &script, &may_read), ("writes", &script, &may_write), ("free", &script, "")],
    );
    let mut control = Control::new(&system);
    assert_eq!(control.run("reads"), ("publicdenied\n".to_owned(), "errtraitement exit 6".to_owned()));
    assert!(!dir.path().join("shared/new").exists());
    assert_eq!(control.run("writes"), ("publicdenied\n".to_owned(), "fintraitement".to_owned()));
    assert!(dir.path().join("shared/new").exists());
    assert_eq!(control.run("free").1, "fintraitement");
}

#[test]
#[ignore = "needs root: a command of another user"]
fn a_command_has_a_user_and_a_limit_of_processes_of_its_own() {
    let script = "id -u; id -g; for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo many";
    let whoami = "id -un; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status";
    let system = start(
        "secondaries = 1",
        &[
            ("bounded", script, "user = \"nobody\"\nprocesses = 4"),
            ("whoami", whoami, "user = \"nobody\"\nno_new_privs = true"),
        ],
    );
    let mut control = Control::new(&system);
    let nobody = osps::os::account::user("nobody").unwrap();
    let (said, end) = control.run("bounded");
    assert_eq!(said, format!("{}\n{}\n", nobody.uid, nobody.gid), "the ninth does not start");
    assert!(end.starts_with("errtraitement exit "), "{end}");
    let (said, end) = control.run("whoami");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["nobody", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]);
    assert_eq!(end, "fintraitement");
    system.books_are_exact();
}
