//! What the watchdog tells all processes of the log, in one word.

use crate::page::HEADER_WORDS;
use crate::page::watchdog::WatchdogPage;
use crate::wire::control::Level;
use crate::wire::logline::Logging;

const LOG_AT: usize = HEADER_WORDS + 5;

impl WatchdogPage {
    /// At which level all are to log; `None`: as they were started.
    #[must_use]
    pub fn log_level(&self) -> Option<Level> {
        let [index, ..] = self.page.get(LOG_AT).to_le_bytes();
        Level::ALL.get(usize::from(index).checked_sub(1)?).map(|&(level, _)| level)
    }

    /// Tells everybody at which level to log.
    pub fn set_log_level(&self, level: Option<Level>) {
        let how = self.page.get(LOG_AT) & !0xff;
        self.page.set(LOG_AT, how | level.map_or(0, |level| level as u64 + 1));
    }

    /// For whom all are to write the log, and whether with records of jobs; `None`: as they were started.
    #[must_use]
    pub fn logging(&self) -> Option<Logging> {
        let [_, how, ..] = self.page.get(LOG_AT).to_le_bytes();
        Logging::unpack(how)
    }

    /// Tells everybody so.
    pub fn set_logging(&self, logging: Logging) {
        let level = self.page.get(LOG_AT) & 0xff;
        self.page.set(LOG_AT, level | u64::from(logging.pack()) << 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Access;
    use crate::page::watchdog::Directory;

    #[test]
    fn level_and_format_stand_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watchdog.page");
        let page = WatchdogPage::create(&path, 1, &Directory::default()).unwrap();
        let reader = WatchdogPage::attach(&path, Access::ReadOnly).unwrap();
        let all = || (reader.log_level(), reader.logging());
        assert_eq!(all(), (None, None));
        page.set_log_level(Some(Level::Trace));
        page.set_logging(Logging::default());
        assert_eq!(all(), (Some(Level::Trace), Some(Logging::default())));
        page.set_log_level(None);
        assert_eq!(all(), (None, Some(Logging::default())));
    }
}
