//! Whether this machine has what commands need: programs, users, paths, as who will use them sees them.

use std::path::{Path, PathBuf};

use crate::config::check::{Wrong, known, quoted, wrong};
use crate::config::{Config, Handler, Landlock, Request};
use crate::os::process::Identity;
use crate::os::{account, landlock, privileges, proc, process, program};

impl Config {
    /// Checks what commands need on this machine.
    pub(super) fn look_for_commands(&self) -> Result<(), Wrong> {
        for request in self.request.iter().filter(|request| request.handler == Handler::Exec) {
            look_for_user(request)?;
            let program = self.find_program(request)?;
            look_for_files(request)?;
            look_for_paths(request, &program)?;
        }
        Ok(())
    }
}

impl Config {
    /// The program of a request's command: it can be executed, where it is to be and by whom.
    fn find_program(&self, request: &Request) -> Result<PathBuf, Wrong> {
        let refused = |(key, value, why): (&str, String, String)| {
            wrong(&format!("request.{key}"), value, format!("in request \"{}\": {why}", request.name))
        };
        let identity = match self.identity_of(request) {
            Ok(identity) => identity.filter(|identity| identity.uid != 0),
            Err(why) => return refused(("user", quoted(&request.user.as_deref().unwrap_or_default()), why)),
        };
        let Some(identity) = identity else {
            return look_for_program(request, "").or_else(refused);
        };
        let user = request.user.as_ref().or(self.user.as_ref());
        let by = user.map_or_else(String::new, |user| format!(" by user \"{user}\""));
        match privileges::try_as(&identity, || look_for_program(request, &by)) {
            Ok(found) => found.or_else(refused),
            Err(error) => {
                let why = format!("this process cannot become uid {}: {error}", identity.uid);
                refused(("user", quoted(&user.map_or("", String::as_str)), why))
            }
        }
    }

    /// As whom a request's command runs, where not as this process.
    fn identity_of(&self, request: &Request) -> Result<Option<Identity>, String> {
        match &request.user {
            Some(user) if rustix::process::geteuid().is_root() => {
                account::identity(user).map(Some).map_err(|error| format!("user \"{user}\": {error}"))
            }
            Some(_) | None => self.identity(),
        }
    }
}

/// As whoever this process is just now. What is wrong: the key, its value, and why.
fn look_for_program(request: &Request, by: &str) -> Result<PathBuf, (&'static str, String, String)> {
    if let Some(directory) = &request.directory {
        let entered = program::can_be_entered(directory);
        let why = |error| ("directory", format!("{directory:?}"), format!("cannot be entered{by}: {error}"));
        entered.map_err(why)?;
    }
    let name = request.command.first().map_or("", String::as_str);
    let place = if name.contains('/') { "" } else { " in PATH" };
    let why = |error| ("command", format!("{name:?}"), format!("cannot be executed{by}: {error}{place}"));
    let candidates = request.programs().map_err(why)?;
    program::find(&candidates).map(Path::to_owned).map_err(why)
}

/// What the kernel allows this process, it allows its commands.
fn look_for_files(request: &Request) -> Result<(), Wrong> {
    let most = process::most_descriptors();
    let of_kernel = proc::most_descriptors_of_any();
    match request.open_files {
        Some(files) if files > of_kernel => {
            let wanted = format!(
                "in request \"{}\": the kernel allows {of_kernel} at most (/proc/sys/fs/nr_open)",
                request.name
            );
            wrong("request.open_files", files, wanted)
        }
        Some(files) if files > most && !rustix::process::geteuid().is_root() => {
            let wanted = format!("in request \"{}\": the hard limit of this process is {most}", request.name);
            wrong("request.open_files", files, wanted)
        }
        Some(_) | None => Ok(()),
    }
}

fn look_for_user(request: &Request) -> Result<(), Wrong> {
    let name = &request.name;
    let own = rustix::process::geteuid();
    match known("request.user", request.user.as_deref(), account::user)? {
        Some((user, account)) if !own.is_root() && account.uid != own.as_raw() => {
            let wanted = format!("in request \"{name}\": only root can become another user");
            wrong("request.user", quoted(&user), wanted)
        }
        Some((user, account)) if account.uid == 0 && request.processes.is_some() => {
            let wanted = format!("in request \"{name}\": the number of root's processes has no limit");
            wrong("request.user", quoted(&user), wanted)
        }
        Some(_) | None => Ok(()),
    }
}

/// Where the command may read and write exists, and the kernel can hold it to that.
fn look_for_paths(request: &Request, program: &Path) -> Result<(), Wrong> {
    let name = &request.name;
    if !request.is_confined() {
        return Ok(());
    }
    let lists = [("request.read", &request.read), ("request.write", &request.write)];
    for (key, paths) in lists {
        for path in paths.iter().flatten() {
            if !path.is_absolute() || !path.exists() {
                let wanted = format!("in request \"{name}\": must be an absolute path that exists");
                return wrong(key, format!("{path:?}"), wanted);
            }
        }
    }
    if !request.may_execute(program) {
        let wanted = format!(
            "in request \"{name}\": {} is below none of these, nor could it be executed",
            program.display()
        );
        return wrong("request.read", format!("{:?}", request.read.as_deref().unwrap_or_default()), wanted);
    }
    if request.landlock != Some(Landlock::Optional) && !landlock::is_supported() {
        let wanted = format!(
            "in request \"{name}\": this kernel has no Landlock; landlock = \"optional\" serves without it"
        );
        return wrong("request.landlock", "\"required\"", wanted);
    }
    Ok(())
}

impl Request {
    fn may_execute(&self, program: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let program = real(program);
        self.read.iter().flatten().any(|path| program.starts_with(real(path)))
    }
}
