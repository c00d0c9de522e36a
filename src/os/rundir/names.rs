//! Which files of a runtime directory are of a run, and go with it.

/// What a dead watchdog's page is called while its run is cleaned up.
pub(super) const OLD_PAGE: &str = "watchdog.old.page";

/// Names that every run makes.
const NAMES: [&str; 8] = [
    "watchdog.pid",
    "control",
    "watchdog.page",
    "principal.page",
    "observer.page",
    "orders.principal",
    "orders.observer",
    OLD_PAGE,
];

/// Whether a run of osps makes files of that name (the lock apart, which stays).
#[must_use]
pub fn is_of_a_run(name: &str) -> bool {
    let numbered = |prefix: &str, suffix: &str| {
        name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix)).is_some_and(|middle| {
            !middle.is_empty() && middle.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
    };
    NAMES.contains(&name)
        || numbered("secondary", ".page")
        || numbered("secondary", ".jobs")
        || numbered("dwtube", "")
        || numbered("wdtube", "")
        || numbered("orders.", "")
        || numbered("orders.principal.", "")
}

#[cfg(test)]
mod tests {
    use crate::os::rundir::Rundir;
    use std::fs;

    #[test]
    fn cleaning_removes_what_a_run_makes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let rundir = Rundir::prepare(dir.path(), None).unwrap();
        let ours = [
            "control",
            "watchdog.pid",
            "watchdog.page",
            "principal.page",
            "orders.principal",
            "observer.page",
            "orders.observer",
            "orders.1",
            "orders.1.7",
            "secondary1.page",
            "secondary1.7.page",
            "secondary12.jobs",
            "dwtube1",
            "wdtube1.7",
        ];
        let others = ["lock", "notes.txt", "dwtube", "secondary.page", "secondaryx.page", "osps.toml"];
        for name in ours.iter().chain(&others) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        rundir.clean().unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = others.map(str::to_owned);
        expected.sort();
        assert_eq!(left, expected);
    }
}
