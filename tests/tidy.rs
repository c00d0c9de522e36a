//! The rules of the house that no compiler checks.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a directory whose names end so, with their text.
fn files(below: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(below)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} below {below}");
    found
}

/// Fails with every line of these files that contains one of the words outside comments.
fn forbid(files: &[(PathBuf, String)], words: &[&str], why: &str) {
    let mut wrong = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if words.iter().any(|word| code.contains(word)) {
                wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{why}:\n{}", wrong.join("\n"));
}

#[test]
fn the_core_the_wire_and_the_site_do_no_io() {
    let io = [
        "std::fs",
        "std::os",
        "std::process",
        "std::thread",
        "std::time::Instant",
        "SystemTime",
        "TcpStream",
        "UdpSocket",
        "mio::",
        "nix::",
        "rustix::",
        "libc::",
        "log::",
        "crate::os",
        "crate::page",
        "crate::role",
        "crate::handler",
        "crate::config",
        "println!",
    ];
    forbid(&files("src/core", ".rs"), &io, "core is pure");
    forbid(&files("src/wire", ".rs"), &io, "wire is pure");
    forbid(&files("src/observer", ".rs"), &io, "what the observer says is pure");
}

#[test]
fn the_layers_look_down_only() {
    forbid(
        &files("src/os", ".rs"),
        &["crate::role", "crate::page", "crate::handler", "crate::config"],
        "os is below",
    );
    forbid(&files("src/page", ".rs"), &["crate::role", "crate::handler", "crate::config"], "page is below");
    forbid(
        &files("src/handler", ".rs"),
        &["crate::role", "crate::os", "crate::page"],
        "handlers see no system",
    );
}

#[test]
fn the_client_knows_no_server() {
    let client = files("src/client", ".rs");
    let servers = ["crate::role", "crate::page", "crate::handler", "crate::config", "mio::", "thread::"];
    forbid(&client, &servers, "the client is for everybody");
    let decisions: Vec<_> = client
        .into_iter()
        .filter(|(path, _)| path.ends_with("retry.rs") || path.ends_with("news.rs"))
        .collect();
    assert_eq!(decisions.len(), 2);
    forbid(&decisions, &["std::io", "std::net", "rustix::", "crate::os"], "what is decided does no I/O");
}

#[test]
fn unsafe_stands_in_two_modules() {
    let is_allowed = |path: &Path| path == "src/os/segment.rs" || path.starts_with("src/os/process");
    let others: Vec<_> = files("src", ".rs").into_iter().filter(|(path, _)| !is_allowed(path)).collect();
    forbid(&others, &["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"], "unsafe");
}

#[test]
fn nothing_is_left_to_be_done() {
    let mut all = files("src", ".rs");
    all.extend(files("bin", ".rs"));
    forbid(
        &all,
        &["todo!", "unimplemented!", "dbg!", "Token(0)", "Rc<RefCell", "Arc<Mutex", "static mut"],
        "no",
    );
    for (path, text) in all {
        for word in ["TODO", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{} has a {word}", path.display());
        }
    }
}

#[test]
fn the_state_machines_forget_no_case() {
    let text = fs::read_to_string(root().join("src/core/supervision.rs")).unwrap();
    let step = &text[text.find("pub fn step").unwrap()..text.find("fn kill").unwrap()];
    assert!(!step.contains("_ =>"), "step must name every pair of state and input");
}

#[test]
fn files_and_functions_stay_short() {
    let mut all = files("src", ".rs");
    all.extend(files("bin", ".rs"));
    all.extend(files("examples", ".rs"));
    all.extend(files("tests", ".rs"));
    all.extend(files("benches", ".rs"));
    all.extend(files("fuzz/fuzz_targets", ".rs"));
    all.extend(files("packaging", ".rs"));
    for (path, text) in all {
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() <= MAX_FILE_LINES, "{} has {} lines", path.display(), lines.len());
        assert!(text.starts_with("//!") || path.ends_with("tree/tests.rs"), "{} has no head", path.display());
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let begins = ["fn ", "pub fn ", "pub(super) fn ", "const fn ", "pub const fn "];
            if !begins.iter().any(|begin| code.starts_with(begin)) || !line_opens_body(&lines, start) {
                continue;
            }
            let closing = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[start..].iter().position(|line| *line == closing).unwrap_or(0);
            assert!(length <= MAX_FUNCTION_LINES, "{}:{}: {length} lines", path.display(), start + 1);
        }
    }
}

/// Whether a function has a body of its own (a trait's method may have none, or all on one line).
fn line_opens_body(lines: &[&str], start: usize) -> bool {
    let end =
        lines[start..].iter().find(|line| line.ends_with('{') || line.ends_with(';') || line.ends_with('}'));
    end.is_some_and(|line| line.ends_with('{'))
}

#[test]
fn no_dependency_brings_an_async_runtime() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for name in ["tokio", "async-std", "smol", "async-io", "actix-rt"] {
        assert!(!lock.contains(&format!("name = \"{name}\"")), "{name} is in Cargo.lock");
    }
}

#[test]
fn what_the_documents_name_exists() {
    let mut documents = files("docs", ".md");
    for name in ["README.md", "CHANGELOG.md", "fuzz/README.md"] {
        documents.push((PathBuf::from(name), fs::read_to_string(root().join(name)).unwrap()));
    }
    for (path, text) in documents {
        let directory = root().join(path.parent().unwrap());
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                assert!(directory.join(target).exists(), "{} links to {target}", path.display());
            }
        }
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = [
                "src/",
                "tests/",
                "benches/",
                "docs/",
                "bin/",
                "examples/",
                "fuzz/fuzz_targets/",
                "fuzz/seeds/",
                "packaging/",
            ]
            .iter()
            .any(|top| quoted.starts_with(top));
            if is_path && !quoted.contains(['<', '*', ' ']) {
                let file = quoted.split("::").next().unwrap();
                assert!(root().join(file).exists(), "{} names {file}", path.display());
            }
        }
        for (name, file) in tests_named_in(&text) {
            let text = fs::read_to_string(root().join(&file)).unwrap();
            assert!(text.contains(&format!("fn {name}(")), "{} names test {name} in {file}", path.display());
        }
    }
}

#[test]
fn the_operator_finds_each_warning_of_the_servers_explained() {
    let document = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let (mut found, mut missing) = (0, Vec::new());
    for (path, text) in files("src", ".rs").into_iter().filter(|(path, _)| !path.starts_with("src/stress")) {
        let calls = ["log::warn!(", "log::error!("].iter().flat_map(|call| text.split(call).skip(1));
        for said in calls.filter(|arguments| arguments.contains('"')).map(literal) {
            // The longest of what stands between its values.
            let pieces = said.split('{').map(|piece| piece.split_once('}').map_or(piece, |(_, rest)| rest));
            let pieces = pieces.map(|piece| piece.trim_matches([' ', ':', ',', '"']));
            found += 1;
            if !document.contains(pieces.max_by_key(|piece| piece.len()).unwrap()) {
                missing.push(format!("{}: {said}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "docs/operations.md does not explain:\n{}", missing.join("\n"));
    assert!(found > 70, "only {found}: they are written in another way");
}

/// The first string literal of a piece of code.
fn literal(code: &str) -> String {
    let from = &code[code.find('"').unwrap() + 1..];
    let mut text = String::new();
    let mut letters = from.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, letters.peek()) {
            ('"', _) => break,
            // The line goes on.
            ('\\', Some('\n')) => while letters.next_if(|letter| letter.is_whitespace()).is_some() {},
            ('\\', _) => text.extend(letters.next()),
            (letter, _) => text.push(letter),
        }
    }
    text
}

/// Tests that a document names as `tests/file.rs::name` or `src/file.rs::name`.
fn tests_named_in(text: &str) -> Vec<(String, String)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let named = quoted.filter_map(|quoted| quoted.split_once(".rs::"));
    named.map(|(file, name)| (name.to_owned(), format!("{file}.rs"))).collect()
}
