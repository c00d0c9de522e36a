//! What of a configuration can change while the system runs.

use crate::config::Config;

impl Config {
    /// Whether a running system with the other configuration can go on with this one.
    ///
    /// # Errors
    /// Names every key that is another and cannot be, in words for whoever wrote them.
    pub fn may_follow(&self, before: &Self) -> Result<(), String> {
        let names = |config: &Self| -> Vec<String> {
            config.request.iter().map(|request| request.name.clone()).collect()
        };
        let fixed = [
            ("listen", self.listen != before.listen),
            ("data_ports", self.data_ports != before.data_ports),
            ("secondaries", self.secondaries != before.secondaries),
            ("max_jobs", self.max_jobs != before.max_jobs),
            ("runtime_dir", self.runtime_dir != before.runtime_dir),
            ("user", self.user != before.user),
            ("group", self.group != before.group),
            ("the names of the [[request]]s, or their order,", names(self) != names(before)),
        ];
        let changed: Vec<&str> =
            fixed.into_iter().filter(|&(_, is_other)| is_other).map(|(key, _)| key).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let verb = if changed.len() == 1 { "has" } else { "have" };
        Err(format!("{} {verb} changed, which takes a stop and a start", changed.join(" and ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_change_is_named() {
        let config = |text: &str| toml::from_str::<Config>(text).unwrap();
        let before = config("secondaries = 2\nclaim_within = \"5s\"");
        assert_eq!(
            config("secondaries = 2\nclaim_within = \"1s\"\nmax_clients = 7").may_follow(&before),
            Ok(())
        );
        assert_eq!(
            config("secondaries = 3").may_follow(&before).unwrap_err(),
            "secondaries has changed, which takes a stop and a start"
        );
        let both = config("secondaries = 2\nmax_jobs = 7\n[[request]]\nname = \"x\"\nhandler = \"echo\"");
        assert_eq!(
            both.may_follow(&before).unwrap_err(),
            "max_jobs and the names of the [[request]]s, or their order, have changed, which takes a stop and a start"
        );
    }
}
