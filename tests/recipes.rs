//! The recipes of `docs/handlers.md`, run as they stand: a block of configuration that begins with
//! `# recipe: NAME`, then a block of commands with what they say.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::System;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/handlers.md");

/// A recipe of the document.
struct Recipe {
    name: String,
    configuration: String,
    /// Commands, each with what it prints.
    steps: Vec<(String, String)>,
}

fn recipes() -> Vec<Recipe> {
    let text = fs::read_to_string(DOCUMENT).unwrap();
    let mut recipes: Vec<Recipe> = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (kind, body) = block.split_once('\n').unwrap();
        match kind {
            "toml" if body.starts_with("# recipe: ") => {
                let name = body.lines().next().unwrap().trim_start_matches("# recipe: ").to_owned();
                recipes.push(Recipe { name, configuration: body.to_owned(), steps: Vec::new() });
            }
            "console" => recipes.last_mut().unwrap().steps.extend(steps(body)),
            _ => {}
        }
    }
    recipes
}

fn steps(console: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    for line in console.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => *output += &format!("{line}\n"),
            (None, None) => panic!("output before a command: {line}"),
        }
    }
    steps
}

/// A directory with the programs that recipes call, the client already told where the server is.
fn programs(system: &System, directory: &Path) -> PathBuf {
    let programs = directory.join("bin");
    fs::create_dir(&programs).unwrap();
    let client = programs.join("osps-client");
    let script =
        format!("#!/bin/sh\nexec {} --at {} \"$@\"\n", env!("CARGO_BIN_EXE_osps-client"), system.address());
    fs::write(&client, script).unwrap();
    fs::set_permissions(&client, PermissionsExt::from_mode(0o755)).unwrap();
    programs
}

fn run(recipe: &Recipe) {
    let root = env!("CARGO_MANIFEST_DIR");
    let configuration = recipe.configuration.replace("examples/", &format!("{root}/examples/"));
    let system = System::start("secondaries = 1", &configuration);
    let directory = tempfile::tempdir().unwrap();
    let programs = programs(&system, directory.path());
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    assert!(!recipe.steps.is_empty(), "{} is never tried", recipe.name);
    for (command, output) in &recipe.steps {
        let mut shell = Command::new("sh");
        let done = shell.args(["-c", command]).env("PATH", &path).current_dir(root).output().unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        assert_eq!(&said, output, "{}: {command}\n{}", recipe.name, String::from_utf8_lossy(&done.stderr));
    }
    system.books_are_exact();
}

fn needs_python(recipe: &Recipe) -> bool {
    recipe.configuration.contains("python3")
}

#[test]
fn the_recipes_do_what_they_say() {
    let recipes = recipes();
    assert!(recipes.len() >= 3, "only {} recipes are found", recipes.len());
    recipes.iter().filter(|recipe| !needs_python(recipe)).for_each(run);
}

#[test]
#[ignore = "needs python3"]
fn the_recipes_in_python_do_what_they_say() {
    recipes().iter().filter(|recipe| needs_python(recipe)).for_each(run);
}
