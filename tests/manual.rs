//! What is made of the command lines for people: manual pages and completions; and the configuration that packages
//! bring.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../packaging/generate/main.rs"]
#[allow(dead_code, reason = "what a program begins with")]
mod generate;

use std::collections::BTreeSet;
use std::fs;

use common::osps;
use osps::config::Config;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/osps.toml");

/// The file of that name below `man/` or `completions/`, as it is generated now.
fn generated(name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    generate::write(dir.path()).unwrap();
    fs::read_to_string(dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a page says, without the marks of roff.
fn page(name: &str) -> String {
    let text = generated(&format!("man/{name}"));
    ["\\fB", "\\fI", "\\fR"].iter().fold(text, |text, font| text.replace(font, "")).replace("\\-", "-")
}

/// Every command below this one, itself first, as it is typed.
fn all_commands(command: &clap::Command, typed: &str) -> Vec<(String, clap::Command)> {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    let below = below.flat_map(|below| all_commands(below, &format!("{typed} {}", below.get_name())));
    [(typed.to_owned(), command.clone())].into_iter().chain(below).collect()
}

/// The long names of its options that are shown.
fn options(command: &clap::Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
    shown.filter_map(|argument| argument.get_long().map(|long| format!("--{long}"))).collect()
}

#[test]
fn every_command_and_option_has_its_place_in_the_manual() {
    for program in osps::cli::commands() {
        let name = program.get_name().to_owned();
        let text = page(&format!("{name}.1"));
        assert!(text.contains(&format!("\"osps {}\"", env!("CARGO_PKG_VERSION"))), "{name}: its version");
        for (typed, command) in all_commands(&program, &name) {
            let begins = |part: &&str| part.lines().next().unwrap().starts_with(&typed);
            let place = if typed == name { Some(&*text) } else { text.split("\n.SS\n").skip(1).find(begins) };
            let place = place.unwrap_or_else(|| panic!("{typed:?} is missing"));
            for option in options(&command) {
                assert!(place.contains(&format!("\n{option}")), "{typed:?} has no {option}:\n{place}");
            }
            for argument in command.get_positionals() {
                let value = argument.get_value_names().unwrap()[0].as_str();
                assert!(place.contains(value), "{typed:?} has no {value}:\n{place}");
            }
        }
        for section in ["NAME", "SYNOPSIS", "OPTIONS", "ENVIRONMENT", "FILES", "EXAMPLES"] {
            assert!(text.contains(&format!(".SH {section}\n")), "{name} has no {section}");
        }
    }
}

#[test]
fn the_manual_knows_every_exit_code_that_the_help_names() {
    let codes = |text: &str| -> BTreeSet<u8> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.filter_map(|word| word.parse().ok()).filter(|code| (64..79).contains(code)).collect()
    };
    for program in osps::cli::commands() {
        let help = program.get_after_help().unwrap().to_string();
        let text = page(&format!("{}.1", program.get_name()));
        let (_, section) = text.split_once("\n.SH EXIT STATUS\n").unwrap();
        let section = section.split("\n.SH ").next().unwrap();
        assert_eq!(codes(section), codes(&help), "{}", program.get_name());
        assert!(codes(section).len() > 2 && section.contains("\n.B 0\n"));
    }
}

#[test]
fn every_command_and_option_is_completed_in_every_shell() {
    for program in osps::cli::commands() {
        let name = program.get_name().to_owned();
        for file in [format!("{name}.bash"), format!("_{name}"), format!("{name}.fish")] {
            let text = generated(&format!("completions/{file}"));
            for (typed, command) in all_commands(&program, &name) {
                let last = typed.split(' ').next_back().unwrap();
                assert!(text.contains(last), "{file} has no {last}");
                for option in options(&command) {
                    let fish = format!("-l {}", option.trim_start_matches('-'));
                    assert!(
                        text.contains(&option) || text.contains(&fish),
                        "{file}: {typed:?} has no {option}"
                    );
                }
            }
        }
    }
}

/// The shipped configuration with all that is commented out in force.
fn all_in_force() -> String {
    let text = fs::read_to_string(SHIPPED).unwrap();
    let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let lines = text.lines().map(|line| if is_setting(line) { &line[1..] } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_configuration_is_the_default_one_and_osps_check_accepts_it() {
    // As for root without a session, whose runtime directory is what the package makes.
    let mut default: toml::Table = toml::from_str(&Config::default().to_toml().unwrap()).unwrap();
    default.insert("runtime_dir".to_owned(), "/run/osps".into());
    let check = osps().args(["check", "--config", SHIPPED]).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    let in_force: toml::Table = toml::from_str(&String::from_utf8(check.stdout).unwrap()).unwrap();
    assert_eq!(in_force, default);
}

#[test]
fn what_the_shipped_configuration_shows_are_the_defaults_and_examples_that_check() {
    // A request type has a user of its own only where the whole has none.
    let text =
        all_in_force().replacen("\nuser = ", "\n# user = ", 1).replacen("\ngroup = ", "\n# group = ", 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("osps.toml");
    fs::write(&path, &text).unwrap();
    let shown = Config::load_for_tools(Some(&path), None).unwrap();
    let shown: toml::Table = toml::from_str(&shown.to_toml().unwrap()).unwrap();
    let default: toml::Table = toml::from_str(&Config::default().to_toml().unwrap()).unwrap();
    for (key, value) in &default {
        match (key.as_str(), value) {
            // They depend on the machine and on whose process it is.
            ("secondaries" | "runtime_dir", _) => {}
            ("request", value) => {
                let (shown, default) = (shown["request"].as_array().unwrap(), value.as_array().unwrap());
                assert_eq!(&shown[..default.len()], &default[..]);
            }
            (key, value) => assert_eq!(&shown[key], value, "{key}"),
        }
    }
}

/// What can stand in a table: the error for what cannot says so.
fn known_keys(table: &str) -> Vec<String> {
    let error = toml::from_str::<Config>(&format!("{table}\nnonsense = 1\n")).unwrap_err().to_string();
    let (_, known) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_of_the_configuration_is_in_the_shipped_one_and_in_the_manual() {
    let (manual, shipped) = (page("osps.toml.5"), all_in_force());
    let sections: Vec<&str> = shipped.split("\n[").collect();
    let has = |section: &str, key: &str| section.contains(&format!("\n{key} = "));
    let mut tables = 0;
    for key in known_keys("") {
        let headers = [format!("[{key}]"), format!("[[{key}]]")];
        let Some(header) = headers.iter().find(|header| shipped.contains(&format!("\n{header}\n"))) else {
            assert!(has(sections[0], &key), "{key} is not in {SHIPPED}");
            assert!(has(&manual, &key), "{key} is not in osps.toml(5)");
            continue;
        };
        tables += 1;
        assert!(manual.contains(&format!(".SS {header}\n")), "{header} is not in osps.toml(5)");
        let head = format!("{}\n", &header[1..]);
        let of_table: Vec<&&str> = sections.iter().filter(|section| section.starts_with(&head)).collect();
        for key in known_keys(header) {
            assert!(of_table.iter().any(|section| has(section, &key)), "{header} {key} is not in {SHIPPED}");
            assert!(has(&manual, &key), "{header} {key} is not in osps.toml(5)");
        }
    }
    assert!(tables >= 2, "watchdog and request at least");
}

#[test]
fn the_changelog_of_the_package_is_of_this_version() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/debian/changelog");
    let text = fs::read_to_string(path).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.starts_with(&format!("osps ({version}-1) ")), "{text}");
}
