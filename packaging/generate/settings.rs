//! The keys of the configuration, from the file that documents them: `packaging/osps.toml`.
//!
//! Empty lines divide that file into entries. `# text` explains the settings below it; `#key = value` is a setting that
//! is not in force. The first entry is the head of the file.

use clap_mangen::roff::{Roff, bold, roman};

/// Settings and what explains them.
struct Entry<'a> {
    prose: String,
    settings: Vec<&'a str>,
}

impl<'a> Entry<'a> {
    fn parse(text: &'a str) -> Self {
        let (prose, settings): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("# "));
        Self {
            prose: prose.iter().map(|line| &line[2..]).collect::<Vec<_>>().join("\n"),
            settings: settings.iter().map(|line| line.strip_prefix('#').unwrap_or(line)).collect(),
        }
    }
}

/// A list of all keys, in sections by table.
pub fn roff(configuration: &str) -> Roff {
    let mut roff = Roff::new();
    let mut table = None;
    for entry in configuration.split("\n\n").skip(1).map(Entry::parse) {
        match entry.settings.first().filter(|line| line.starts_with('[')) {
            Some(header) => {
                if table.replace(*header) != Some(*header) {
                    roff.control("SS", [*header]);
                } else if !entry.prose.is_empty() {
                    roff.control("PP", []);
                }
                if !entry.prose.is_empty() {
                    roff.text([roman(entry.prose)]);
                }
                if entry.settings.len() > 1 {
                    example(&mut roff, &entry.settings);
                }
            }
            None => keys(&mut roff, &entry),
        }
    }
    roff
}

fn keys(roff: &mut Roff, entry: &Entry<'_>) {
    for (index, setting) in entry.settings.iter().enumerate() {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        roff.control(if index == 0 { "TP" } else { "TQ" }, []);
        roff.text([bold(key.trim()), roman(format!(" = {}", value.trim()))]);
    }
    roff.text([roman(&*entry.prose)]);
}

fn example(roff: &mut Roff, lines: &[&str]) {
    roff.control("PP", []).control("RS", []).control("nf", []);
    for line in lines {
        roff.text([roman(*line)]);
    }
    roff.control("fi", []).control("RE", []);
}
