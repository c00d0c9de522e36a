//! Configurations: what is accepted is printed and read as the same; what is not is refused in
//! one line.
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use osps::config::Config;

fuzz_target!(|text: &str| {
    match load(text) {
        Ok(config) => {
            let printed = config.to_toml().expect("what was read from TOML is printed as TOML");
            let again = load(&printed).unwrap_or_else(|why| panic!("{why}\n{printed}"));
            assert_eq!(again, config, "{printed}");
        }
        Err(why) => {
            assert!(!why.is_empty() && !why.contains('\n') && !why.chars().any(char::is_control), "{why:?}");
        }
    }
});

fn load(text: &str) -> Result<Config, String> {
    let path = place();
    std::fs::write(&path, text).expect("a directory for temporary files");
    Config::load(Some(&path), None).map_err(|error| error.to_string())
}

/// A file of this process, in memory where that is possible.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    directory.join(format!("osps-fuzz-{}.toml", std::process::id()))
}
