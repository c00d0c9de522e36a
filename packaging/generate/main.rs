//! Writes the manual pages and the shell completions into a directory: `cargo run --example generate-docs -- DIR`.
//!
//! The command lines come from clap, the keys of osps.toml(5) from `packaging/osps.toml`, and what no program knows
//! from the templates in `packaging/man/`.

mod page;
mod settings;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::Shell;

/// Templates, by the page that each is for.
const TEMPLATES: [(&str, &str); 3] = [
    ("osps", include_str!("../man/osps.1.in")),
    ("osps-client", include_str!("../man/osps-client.1.in")),
    ("osps-stress", include_str!("../man/osps-stress.1.in")),
];
const CONFIGURATION: &str = include_str!("../osps.toml");
const CONFIGURATION_TEMPLATE: &str = include_str!("../man/osps.toml.5.in");

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: generate-docs DIRECTORY");
        return ExitCode::from(64);
    };
    let directory = PathBuf::from(directory);
    match write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate-docs: {}: {error}", directory.display());
            ExitCode::from(73)
        }
    }
}

/// Writes all of it, the pages into `man/` and the rest into `completions/` below that directory.
///
/// # Errors
/// A directory or file cannot be written.
pub fn write(directory: &Path) -> io::Result<()> {
    write_pages(&directory.join("man"))?;
    write_completions(&directory.join("completions"))
}

fn write_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for command in osps::cli::commands() {
        let name = command.get_name().to_owned();
        let template =
            TEMPLATES.iter().find(|(page, _)| *page == name).map_or(page::GENERATED, |(_, text)| text);
        fs::write(directory.join(format!("{name}.1")), page::of_program(&command, template)?)?;
    }
    let text = page::of_file("osps.toml", &settings::roff(CONFIGURATION), CONFIGURATION_TEMPLATE);
    fs::write(directory.join("osps.toml.5"), text)
}

fn write_completions(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for mut command in osps::cli::commands() {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let file = clap_complete::Generator::file_name(&shell, &name);
            clap_complete::generate(shell, &mut command, &name, &mut File::create(directory.join(file))?);
        }
    }
    Ok(())
}
