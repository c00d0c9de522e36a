//! What of a configuration can change while the system runs.

use std::collections::BTreeSet;

use crate::config::{Config, Handler, Request};

impl Config {
    /// Whether a running system with the other configuration can go on with this one.
    ///
    /// # Errors
    /// Names every key that is another and cannot be, in words for whoever wrote them.
    pub fn may_follow(&self, before: &Self) -> Result<(), String> {
        let fixed = [
            ("the hosts of listen", self.listen.hosts() != before.listen.hosts()),
            ("max_jobs", self.max_jobs != before.max_jobs),
            ("runtime_dir", self.runtime_dir != before.runtime_dir),
            ("user", self.user != before.user),
            ("group", self.group != before.group),
        ];
        let changed: Vec<&str> =
            fixed.into_iter().filter(|&(_, is_other)| is_other).map(|(key, _)| key).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let verb = if changed.len() == 1 && !changed[0].ends_with("listen") { "has" } else { "have" };
        Err(format!("{} {verb} changed, which takes a stop and a start", changed.join(" and ")))
    }

    /// As it is for who serves some of the request types only: the others keep their places and names, and nothing
    /// is made, started or looked for because of them.
    #[must_use]
    pub fn only_with(mut self, serves: impl Fn(usize) -> bool) -> Self {
        for (place, request) in self.request.iter_mut().enumerate() {
            if !serves(place) {
                *request = Request::new(&request.name, Handler::Echo);
            }
        }
        self
    }

    /// Puts the request types in the order of those that the system had before, for jobs name them by their place.
    /// Those that are not offered any more keep theirs, with what was said of them, for the jobs that they still
    /// have. Returns their places.
    pub fn take_places(&mut self, before: &[Request]) -> BTreeSet<usize> {
        let mut retired = BTreeSet::new();
        let mut offered = std::mem::take(&mut self.request);
        for (place, old) in before.iter().enumerate() {
            match offered.iter().position(|request| request.name == old.name) {
                Some(found) => self.request.push(offered.remove(found)),
                None => {
                    retired.insert(place);
                    self.request.push(old.clone());
                }
            }
        }
        self.request.append(&mut offered);
        retired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_cannot_change_is_named() {
        let before = config("secondaries = 2\nclaim_within = \"5s\"");
        let other = "secondaries = 3\nclaim_within = \"1s\"\nmax_clients = 7\nlisten = \"127.0.0.1:3333\"";
        assert_eq!(config(other).may_follow(&before), Ok(()));
        assert_eq!(
            config("max_jobs = 7").may_follow(&before).unwrap_err(),
            "max_jobs has changed, which takes a stop and a start"
        );
        assert_eq!(
            config("listen = \"127.0.0.2:2222\"\nuser = \"nobody\"").may_follow(&before).unwrap_err(),
            "the hosts of listen and user have changed, which takes a stop and a start"
        );
    }

    #[test]
    fn request_types_keep_their_places_and_new_ones_come_last() {
        let with = |names: &[&str]| {
            let request = |name: &&str| format!("[[request]]\nname = \"{name}\"\nhandler = \"echo\"\n");
            config(&names.iter().map(request).collect::<String>())
        };
        let names =
            |config: &Config| config.request.iter().map(|known| known.name.clone()).collect::<Vec<_>>();
        let before = with(&["a", "b", "c"]);
        let mut after = with(&["d", "c", "a"]);
        assert_eq!(after.take_places(&before.request), [1].into());
        assert_eq!(names(&after), ["a", "b", "c", "d"]);
        let one = after.clone().only_with(|place| place == 3);
        assert_eq!(names(&one), names(&after));
        let mut last = with(&["b", "e"]);
        assert_eq!(last.take_places(&after.request), [0, 2, 3].into());
        assert_eq!(names(&last), ["a", "b", "c", "d", "e"]);
    }
}
