//! Whether request types can be served as they are configured.

use std::path::PathBuf;
use std::time::Duration;

use humantime_serde::re::humantime::format_duration;

use crate::config::check::{LONGEST_TIME, Wrong, between, quoted, written, wrong};
use crate::config::{Config, Handler, Registered, Request, Size};
use crate::os::program;
use crate::page::principal::MAX_TYPES;
use crate::wire::client::is_type_name;

/// Commands of one type that one secondary may run at once.
const MAX_PARALLEL: usize = 4096;
const LONGEST_MESSAGE: Size = Size(1 << 30);
/// Variables that tell a command whom it serves.
const SET_FOR_EACH_JOB: [&str; 7] =
    ["PROTO", "TCPLOCALIP", "TCPLOCALPORT", "TCPREMOTEIP", "TCPREMOTEPORT", "OSPS_TYPE", "OSPS_JOB"];

impl Config {
    /// Checks each request type; to be served, with the handlers that are registered.
    pub(super) fn check_requests(&self, to_serve_with: Option<Registered<'_>>) -> Result<(), Wrong> {
        between("the number of [[request]]", self.request.len(), 1, MAX_TYPES)?;
        for (index, request) in self.request.iter().enumerate() {
            let name = &request.name;
            if !is_type_name(name) {
                let wanted = "must be 1 to 64 of A-Z a-z 0-9 _ . - and no word of the protocol";
                return wrong("request.name", quoted(name), wanted);
            }
            if self.request[..index].iter().any(|other| other.name == *name) {
                return wrong("request.name", quoted(name), "is there twice: names must differ");
            }
            let is_known = match (&request.handler, to_serve_with) {
                (Handler::Registered(handler), Some(Registered::Names(names))) => {
                    check_registered(name, handler, names)?;
                    true
                }
                // What a handler has no use for is no mistake beside a name that may be one.
                (Handler::Registered(_), Some(Registered::Unknown) | None) => false,
                (Handler::Delay | Handler::Echo | Handler::Block | Handler::Exec, _) => true,
            };
            if is_known {
                check_delay(request)?;
            }
            check_settings(request)?;
            check_time(request, "request.time_limit", request.time_limit, Duration::from_millis(1))?;
            if request.handler == Handler::Exec {
                check_command(request)?;
                check_mode(request)?;
                check_limits(request)?;
                check_user(request, self.user.as_deref())?;
                check_landlock(request)?;
            } else if is_known && let Some(key) = request.command_keys().next() {
                let wanted =
                    format!("is of no use in request \"{name}\": only handler = \"exec\" runs a command");
                return wrong(&format!("request.{key}"), request.written(key), wanted);
            }
        }
        Ok(())
    }
}

fn check_registered(request: &str, handler: &str, names: &[&str]) -> Result<(), Wrong> {
    if names.contains(&handler) {
        return Ok(());
    }
    let wanted = format!("in request \"{request}\": {}", Handler::unknown(names));
    wrong("request.handler", quoted(&handler), wanted)
}

fn check_delay(request: &Request) -> Result<(), Wrong> {
    let (name, handler) = (&request.name, &request.handler);
    let waits = matches!(handler, Handler::Delay | Handler::Block);
    match request.delay {
        None if waits => {
            let wanted = format!("missing in request \"{name}\": its handler needs one, such as \"20ms\"");
            wrong("request.delay", "(none)", wanted)
        }
        Some(delay) if waits && delay > LONGEST_TIME => {
            wrong("request.delay", written(delay), format!("in request \"{name}\": must be at most 365 days"))
        }
        Some(delay) if !waits => {
            let wanted = format!("is of no use in request \"{name}\": {} does not wait", handler.name());
            wrong("request.delay", written(delay), wanted)
        }
        Some(_) | None => Ok(()),
    }
}

fn check_settings(request: &Request) -> Result<(), Wrong> {
    let name = &request.name;
    if !request.settings.is_empty() && !matches!(request.handler, Handler::Registered(_)) {
        let wanted = format!(
            "is of no use in request \"{name}\": only handlers that a program has registered have settings"
        );
        return wrong("request.settings", request.written("settings"), wanted);
    }
    // Servers are told their configuration as JSON.
    if request.settings.values().any(has_odd_number) {
        let wanted = format!("in request \"{name}\": numbers must be finite");
        return wrong("request.settings", &request.settings, wanted);
    }
    Ok(())
}

fn has_odd_number(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => !number.is_finite(),
        toml::Value::Array(values) => values.iter().any(has_odd_number),
        toml::Value::Table(table) => table.values().any(has_odd_number),
        toml::Value::String(_)
        | toml::Value::Integer(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => false,
    }
}

fn check_time(request: &Request, key: &str, time: Option<Duration>, least: Duration) -> Result<(), Wrong> {
    match time {
        Some(time) if !(least..=LONGEST_TIME).contains(&time) => {
            let wanted = format!(
                "in request \"{}\": must be from {} to 365 days",
                request.name,
                format_duration(least)
            );
            wrong(key, written(time), wanted)
        }
        Some(_) | None => Ok(()),
    }
}

/// There is a command, and what is handed to it can be handed over.
fn check_command(request: &Request) -> Result<(), Wrong> {
    let name = &request.name;
    if request.command.is_empty() {
        let wanted = format!("missing in request \"{name}\": exec needs one, such as [\"sha256sum\"]");
        return wrong("request.command", "[]", wanted);
    }
    if request.command[0].is_empty() {
        let wanted = format!("in request \"{name}\": the first word names the program");
        return wrong("request.command", request.written("command"), wanted);
    }
    if request.command.iter().any(|word| word.contains('\0')) {
        return wrong("request.command", format!("{:?}", request.command), "must not contain a zero byte");
    }
    for (key, value) in &request.environment {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            let wanted =
                format!("in request \"{name}\": a variable has a name without \"=\", and no zero byte");
            return wrong("request.environment", format!("{key:?} = {value:?}"), wanted);
        }
        if SET_FOR_EACH_JOB.contains(&key.as_str()) {
            let wanted = format!("in request \"{name}\": osps sets it itself, for each job");
            return wrong("request.environment", format!("{key:?}"), wanted);
        }
    }
    Ok(())
}

fn check_mode(request: &Request) -> Result<(), Wrong> {
    if let Some(parallel) = request.max_parallel {
        between("request.max_parallel", parallel as usize, 1, MAX_PARALLEL)?;
    }
    match request.max_message {
        Some(size) if !request.is_persistent() => {
            let wanted = format!(
                "is of no use in request \"{}\": only mode = \"persistent\" has messages",
                request.name
            );
            wrong("request.max_message", quoted(&size), wanted)
        }
        Some(size) if size.0 == 0 || size > LONGEST_MESSAGE => {
            wrong("request.max_message", quoted(&size), format!("must be from 1 to {LONGEST_MESSAGE}"))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_limits(request: &Request) -> Result<(), Wrong> {
    let name = &request.name;
    check_time(request, "request.cpu_time", request.cpu_time, Duration::from_secs(1))?;
    if let Some(time) = request.cpu_time
        && time.subsec_nanos() != 0
    {
        let wanted = format!("in request \"{name}\": the kernel counts whole seconds");
        return wrong("request.cpu_time", written(time), wanted);
    }
    for (key, value, least) in [
        ("request.address_space", request.address_space.map(|size| size.0), 1 << 20),
        ("request.open_files", request.open_files, 3),
        ("request.file_size", request.file_size.map(|size| size.0), 0),
        ("request.processes", request.processes, 1),
    ] {
        if let Some(value) = value
            && value < least
        {
            return wrong(key, value, format!("in request \"{name}\": must be at least {least}"));
        }
    }
    Ok(())
}

/// Only a tree that keeps root can give a type a user of its own.
fn check_user(request: &Request, user_of_all: Option<&str>) -> Result<(), Wrong> {
    let name = &request.name;
    match (&request.user, request.processes) {
        (None, Some(processes)) => {
            let wanted = format!(
                "in request \"{name}\": counts all processes of a user, so the command needs a user of its own \
                 (key \"user\", as root)"
            );
            wrong("request.processes", processes, wanted)
        }
        (Some(user), _) if user_of_all.is_some() => {
            let wanted =
                format!("in request \"{name}\": the whole tree gives up root for the top-level user");
            wrong("request.user", quoted(user), wanted)
        }
        (Some(_) | None, _) => Ok(()),
    }
}

fn check_landlock(request: &Request) -> Result<(), Wrong> {
    if request.landlock.is_some() && !request.is_confined() {
        let wanted = format!("is of no use in request \"{}\" without read or write", request.name);
        return wrong("request.landlock", request.written("landlock"), wanted);
    }
    Ok(())
}

impl Request {
    /// Where the program of its command may stand.
    ///
    /// # Errors
    /// What `getcwd(2)` says.
    pub fn programs(&self) -> std::io::Result<Vec<PathBuf>> {
        let name = self.command.first().map_or("", String::as_str);
        let path =
            self.environment.get("PATH").map(std::ffi::OsString::from).or_else(|| std::env::var_os("PATH"));
        let here = std::env::current_dir()?;
        let directory = self.directory.as_ref().map_or(here.clone(), |directory| here.join(directory));
        Ok(program::candidates(name, path.as_deref(), &directory))
    }

    /// What stands at a key, as it is written in the configuration.
    fn written(&self, key: &str) -> String {
        let table = toml::Table::try_from(self).unwrap_or_default();
        // What stands in an environment may be a secret.
        let value = table.get(key).filter(|_| key != "environment");
        value.map_or_else(|| "(given)".to_owned(), toml::Value::to_string)
    }

    /// Whether it may not read and write everywhere.
    #[must_use]
    pub fn is_confined(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    /// A key that it has and for which a registered handler has no use.
    pub(crate) fn useless_to_registered(&self) -> Option<&'static str> {
        self.delay.map(|_| "delay").or_else(|| self.command_keys().next())
    }

    /// The keys that it has of those which only a command needs.
    fn command_keys(&self) -> impl Iterator<Item = &'static str> {
        let keys = [
            ("command", !self.command.is_empty()),
            ("mode", self.mode.is_some()),
            ("max_parallel", self.max_parallel.is_some()),
            ("max_message", self.max_message.is_some()),
            ("directory", self.directory.is_some()),
            ("environment", !self.environment.is_empty()),
            ("user", self.user.is_some()),
            ("cpu_time", self.cpu_time.is_some()),
            ("address_space", self.address_space.is_some()),
            ("open_files", self.open_files.is_some()),
            ("file_size", self.file_size.is_some()),
            ("processes", self.processes.is_some()),
            ("no_new_privs", self.no_new_privs),
            ("read", self.read.is_some()),
            ("write", self.write.is_some()),
            ("landlock", self.landlock.is_some()),
        ];
        keys.into_iter().filter_map(|(key, is_there)| is_there.then_some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a request of that text.
    fn check(request: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osps.toml");
        std::fs::write(&path, format!("[[request]]\nname = \"work\"\n{request}\n")).unwrap();
        Config::load(Some(&path), None).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_with_all_that_it_can_have_survives_being_printed() {
        let text = "[[request]]\nname = \"sum\"\nhandler = \"exec\"\ncommand = [\"sort\", \"-n\"]\n\
                    time_limit = \"10s\"\nmode = \"persistent\"\nmax_parallel = 2\nmax_message = \"1MiB\"\n\
                    directory = \"/tmp\"\nenvironment = { LC_ALL = \"C\" }\ncpu_time = \"5s\"\n\
                    address_space = \"256MiB\"\nopen_files = 64\nfile_size = 4096\nno_new_privs = true\n\
                    read = [\"/usr\", \"/bin\"]\nwrite = [\"/tmp\"]\nlandlock = \"optional\"\n";
        let config: Config = toml::from_str(text).unwrap();
        config.check("text", Some(Registered::Names(&[]))).map_err(|error| error.to_string()).unwrap();
        assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn settings_of_a_registered_handler_reach_whoever_is_told_the_configuration() {
        let settings = "a = 1.5\nb = [1, 1979-05-27T07:32:00Z]\nc = { d = \"e\", f = true }";
        let text = format!(
            "[[request]]\nname = \"a\"\nhandler = \"mine\"\n[request.settings]\n{settings}\n\
             [[request]]\nname = \"b\"\nhandler = \"mine\"\n"
        );
        let config: Config = toml::from_str(&text).unwrap();
        assert!(config.check("text", Some(Registered::Names(&["yours"]))).is_err());
        config
            .check("text", Some(Registered::Names(&["yours", "mine"])))
            .map_err(|error| error.to_string())
            .unwrap();
        assert_eq!(config.request[0].settings, settings.parse().unwrap());
        assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
        let odd = text.replace("1.5", "[nan]");
        let error = toml::from_str::<Config>(&odd)
            .unwrap()
            .check("text", Some(Registered::Names(&["mine"])))
            .unwrap_err()
            .to_string();
        assert!(error.contains("request.settings") && error.contains("finite"), "{error}");
    }

    #[test]
    fn a_handler_with_a_wrong_name_is_the_mistake_and_not_what_only_the_right_one_would_need() {
        let delayed = "[[request]]\nname = \"a\"\nhandler = \"delai\"\ndelay = \"1s\"\n";
        let command = "[[request]]\nname = \"a\"\nhandler = \"exek\"\ncommand = [\"sort\"]\n";
        for (text, handler, key) in [(delayed, "delai", "delay"), (command, "exek", "command")] {
            let config: Config = toml::from_str(text).unwrap();
            let check = |known| config.check("text", known).map_err(|error| error.to_string());
            let unknown = check(Some(Registered::Names(&["mine"]))).unwrap_err();
            let wanted =
                format!("text: request.handler = \"{handler}\": in request \"a\": there is no such handler");
            assert!(unknown.starts_with(&wanted) && unknown.ends_with("exec, mine"), "{unknown}");
            // Who does not know the handlers does not take it for a registered one.
            assert_eq!([check(None), check(Some(Registered::Unknown))], [Ok(()), Ok(())]);
            let useless = check(Some(Registered::Names(&[handler]))).unwrap_err();
            assert!(useless.starts_with(&format!("text: request.{key} = ")), "{useless}");
            assert_eq!(config.request[0].useless_to_registered(), Some(key));
        }
    }

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        let exec = |rest: &str| format!("handler = \"exec\"\ncommand = [\"sort\"]\n{rest}");
        for (request, wanted) in [
            ("handler = \"exec\"".to_owned(), &["request.command", "work", "sha256sum"][..]),
            (
                "handler = \"exec\"\ncommand = [\"no such\"]".to_owned(),
                &["request.command", "no such", "PATH"],
            ),
            (
                "handler = \"exec\"\ncommand = [\"/etc/passwd\"]".to_owned(),
                &["/etc/passwd", "cannot be executed"],
            ),
            ("handler = \"exec\"\ncommand = [\"\"]".to_owned(), &["request.command", "[\"\"]", "program"]),
            ("handler = \"exec\"\ncommand = \"sort\"".to_owned(), &["command", "list", "sort"]),
            ("handler = \"echo\"\ncommand = [\"sort\"]".to_owned(), &["request.command", "exec"]),
            (
                "handler = \"echo\"\ntime_limit = \"0s\"".to_owned(),
                &["request.time_limit = \"0s\"", "from 1ms"],
            ),
            ("handler = \"mine\"".to_owned(), &["request.handler", "mine", "echo"]),
            (
                "handler = \"echo\"\nsettings = { a = 1 }".to_owned(),
                &["request.settings = { a = 1 }", "registered"],
            ),
            ("handler = \"echo\"\nsettings = 5".to_owned(), &["settings = 5", "a table is wanted"]),
            (exec("delay = \"1s\""), &["request.delay", "exec does not wait"]),
            (exec("mode = \"forever\""), &["mode", "forever", "persistent"]),
            (exec("max_parallel = 0"), &["request.max_parallel", "from 1 to"]),
            (exec("max_message = \"1KiB\""), &["request.max_message", "persistent"]),
            (exec("mode = \"persistent\"\nmax_message = 0"), &["request.max_message", "from 1 to"]),
            (exec("max_message = \"1KB\""), &["max_message", "1KB", "64MiB"]),
            (exec("directory = \"/no/such\""), &["request.directory", "/no/such"]),
            (exec("environment = { \"A=B\" = \"c\" }"), &["request.environment", "A=B"]),
            (exec("environment = { PROTO = \"UDP\" }"), &["request.environment", "PROTO", "itself"]),
            (exec("user = \"no such user\""), &["request.user", "no such user", "not known"]),
            (exec("cpu_time = \"1500ms\""), &["request.cpu_time", "whole seconds"]),
            (exec("address_space = \"1KiB\""), &["request.address_space", "at least"]),
            (exec("processes = 5"), &["request.processes", "user"]),
            (exec("landlock = \"optional\""), &["request.landlock = \"optional\"", "read"]),
            (exec("max_parallel = -1"), &["max_parallel = -1", "a whole number above 0"]),
            (exec("read = [\"usr\"]"), &["request.read", "usr", "absolute"]),
            (exec("write = [\"/no/such\"]"), &["request.write", "/no/such"]),
            (exec("read = [\"/etc\"]"), &["request.read", "/etc", "sort"]),
        ] {
            let error = check(&request).unwrap_err();
            for part in wanted {
                assert!(error.contains(part), "{request}: {error:?} does not name {part:?}");
            }
        }
        check(&exec("")).unwrap();
    }
}
