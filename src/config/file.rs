//! The file of a configuration: how it is read, and what is said where it cannot be.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::config::{ConfigError, Size, printable};

/// No configuration is longer: what never ends, as `/dev/zero` does, would take all memory.
const LONGEST: Size = Size(1 << 20);

/// What the file says, as far as `T` wants to know.
pub(super) fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = read(path)?;
    toml::from_str(&text).map_err(|error| parse_error(path, &text, &error))
}

/// Its text. It need not be a regular file: a pipe is read to its end.
fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LONGEST.0 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST.0 {
        return Err(ConfigError::TooLong { path: path.to_owned(), most: LONGEST });
    }
    String::from_utf8(bytes).map_err(|_| failed(io::Error::other("it is not UTF-8")))
}

/// One line: where, what stands there, what is wrong, and what would be right.
fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let line = text[..start].matches('\n').count() + 1;
    let found = text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
    let key = found.split('=').next().unwrap_or_default().trim();
    let wanted = match key {
        "claim_within" | "queue_within" | "client_idle" | "period" | "suspect_after" | "kill_after"
        | "start_within" | "grace" | "delay" | "time_limit" | "cpu_time" => {
            "; a time is written \"250ms\", \"10s\""
        }
        "secondaries" => "; a whole number from 1 to 1024 is wanted",
        "max_clients_per_address" | "max_jobs_served" => "; a whole number is wanted, 0 for no limit",
        "max_clients" | "max_jobs" | "max_parallel" | "open_files" | "processes" => {
            "; a whole number above 0 is wanted"
        }
        "max_memory" | "max_message" | "address_space" | "file_size" => {
            "; a size is written \"64MiB\" or 4096"
        }
        "command" => "; a list is wanted, the program first, such as [\"sort\", \"-n\"]",
        "environment" => "; a table is wanted, such as { LC_ALL = \"C\" }",
        "read" | "write" => "; a list of paths is wanted, such as [\"/usr\", \"/etc\"]",
        "user" | "group" => "; a name is wanted, in quotes",
        "no_new_privs" | "access_log" => "; true or false is wanted",
        "log_format" => "; \"human\" or \"json\" is wanted",
        "settings" => "; a table is wanted, such as { limit = 5 }",
        "runtime_dir" => "; a path such as \"/run/osps\" is wanted",
        _ => "",
    };
    ConfigError::Parse {
        path: path.to_owned(),
        line,
        what: printable(&error.message().trim().replace('\n', " ")),
        wanted: wanted.to_owned(),
        text: printable(&found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn addresses_and_ports_are_refused_under_their_own_key_which_is_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osps.toml");
        let address = "an address such as \"127.0.0.1:2222\", \"[::]:2222\" or \"unix:/run/osps/principal\"";
        let addresses = format!("{address}, or a list of such addresses");
        let ports = "a range of ports above 2222, lowest first, such as \"2223-2999\", or \"0\" to let the kernel choose";
        for (text, what) in [
            ("listen = \"localhost:23900\"", format!("must be {addresses}")),
            ("observe = \"localhost:23900\"", format!("must be {addresses}")),
            ("observe = \"\"", format!("must be {addresses}")),
            ("observe = \":99999\"", format!("must be {addresses}")),
            ("observe = 5", format!("invalid type: integer `5`, expected {addresses}")),
            ("observe = [\"127.0.0.1:1\", \"here\"]", format!("\"here\" must be {address}")),
            ("data_ports = \"2223\"", format!("must be {ports}")),
            ("data_ports = \"100-200\"", format!("must be {ports}")),
            ("data_ports = 5", format!("invalid type: integer `5`, expected {ports}")),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Config::load(Some(&path), None).unwrap_err().to_string();
            assert_eq!(error, format!("{}, line 1: {text}: {what}", path.display()));
        }
    }

    #[test]
    fn a_configuration_is_at_most_1_mib_long_and_one_that_never_ends_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osps.toml");
        let load = |path: &Path| Config::load(Some(path), None).map_err(|error| error.to_string());
        let comment = |length: usize| format!("#{}", "x".repeat(length - 1));
        std::fs::write(&path, comment(1 << 20)).unwrap();
        assert_eq!(load(&path), Ok(Config::default()));
        std::fs::write(&path, comment((1 << 20) + 1)).unwrap();
        for path in [&path, Path::new("/dev/zero")] {
            let wanted = format!("cannot read the configuration {}: it is longer than 1MiB", path.display());
            assert_eq!(load(path), Err(wanted));
        }
    }
}
