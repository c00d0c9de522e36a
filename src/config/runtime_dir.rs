//! Where the shared files stand, which is all that tools want to know of a configuration.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::check::{Wrong, wrong};
use crate::config::{Config, ConfigError, file};

/// `sun_path` holds 108 bytes, the closing zero included (unix(7)); `/control` takes 8.
const MAX_RUNTIME_DIR_BYTES: usize = 99;

/// Of a configuration, this key alone: whoever asks a running system must not depend on what else somebody has
/// written there since.
#[derive(Deserialize)]
struct Excerpt {
    #[serde(default = "default_runtime_dir")]
    runtime_dir: PathBuf,
}

impl Config {
    /// Where a running system has its files, for who asks it: the directory that is `given`, and then no file is
    /// read; else what [`Config::load`] would find, whatever is wrong with other keys.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn find_runtime_dir(file: Option<&Path>, given: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let file = Self::file_or_default(file);
        let (source_name, path) = match (given, file) {
            (Some(given), _) => ("--runtime-dir".to_owned(), given.to_owned()),
            (None, Some(file)) => {
                let Excerpt { runtime_dir } = file::parse(file)?;
                (file.display().to_string(), runtime_dir)
            }
            (None, None) => ("built-in defaults".to_owned(), default_runtime_dir()),
        };
        check(&path).map_err(|wrong| wrong.of(&source_name))?;
        Ok(path)
    }
}

/// Whether that can be a runtime directory.
pub(super) fn check(path: &Path) -> Result<(), Wrong> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let wrong = |wanted: String| wrong("runtime_dir", format_args!("{path:?}"), wanted);
    if bytes.is_empty() || bytes.contains(&0) {
        return wrong("must be the path of a directory, such as \"/run/osps\"".to_owned());
    }
    if bytes.len() > MAX_RUNTIME_DIR_BYTES {
        let length = bytes.len();
        return wrong(format!("is {length} bytes long; a Unix socket in it allows {MAX_RUNTIME_DIR_BYTES}"));
    }
    Ok(())
}

/// `$XDG_RUNTIME_DIR/osps`, else `/run/osps` for root, else `/tmp/osps-<uid>`.
pub(super) fn default_runtime_dir() -> PathBuf {
    let uid = rustix::process::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("osps"),
        None if uid.is_root() => PathBuf::from("/run/osps"),
        None => PathBuf::from(format!("/tmp/osps-{}", uid.as_raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the system of a configuration of that text is.
    fn find(text: &str) -> Result<PathBuf, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osps.toml");
        std::fs::write(&path, text).unwrap();
        Config::find_runtime_dir(Some(&path), None).map_err(|error| error.to_string())
    }

    #[test]
    fn no_other_key_of_the_file_matters() {
        let wrong = "listen = 5\nsecundaries = 4\nclaim_within = \"soon\"\n[[request]]\nhandler = 1\n";
        let text = format!("runtime_dir = \"/run/o\"\n{wrong}");
        assert_eq!(find(&text), Ok(PathBuf::from("/run/o")));
        assert_eq!(find(wrong), Ok(default_runtime_dir()));
        for (text, part) in [
            ("listen = ", "line 1: listen ="),
            ("listen = 5\nruntime_dir = 5", "line 2: runtime_dir = 5"),
            ("runtime_dir = \"\"", "osps.toml: runtime_dir = \"\": must be the path of a directory"),
        ] {
            let error = find(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn where_the_directory_is_given_no_file_is_read() {
        let missing = Path::new("/nonexistent.toml");
        let find = |given| Config::find_runtime_dir(Some(missing), given).map_err(|error| error.to_string());
        assert_eq!(find(Some(Path::new("/run/o"))), Ok(PathBuf::from("/run/o")));
        assert!(find(None).unwrap_err().contains("/nonexistent.toml"));
        let long = "x".repeat(100);
        assert!(find(Some(Path::new(&long))).unwrap_err().contains("is 100 bytes long"));
    }
}
