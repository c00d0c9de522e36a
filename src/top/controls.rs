//! What whoever looks has chosen, and what keys change of it.

use std::time::Duration;

use crate::top::keys::Key;
use crate::top::rows::Order;

/// The shortest interval between two readings.
pub const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// The longest.
pub const MOST_INTERVAL: Duration = Duration::from_secs(3600);
/// The intervals that keys choose, in milliseconds.
const INTERVALS_MS: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];
/// A filter is no longer: it has to fit on a line.
const LONGEST_FILTER: usize = 32;

/// What a key asks of who shows all this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To draw again.
    Draw,
    /// To end.
    Quit,
    /// To stop, as a job of the shell.
    Suspend,
}

/// What is chosen.
#[derive(Clone, Debug)]
pub struct Controls {
    /// By what the table is sorted.
    pub order: Order,
    /// The other way round.
    pub reversed: bool,
    /// What rows have to match.
    pub filter: String,
    /// Keys go to the filter.
    pub typing: bool,
    /// The row at the top of the table.
    pub first: usize,
    /// Rows that the table had room for, and rows that there were, when it was drawn last.
    pub shown: (usize, usize),
    /// Nothing is read.
    pub paused: bool,
    /// The keys are explained.
    pub help: bool,
    /// How long from one reading to the next.
    pub interval: Duration,
}

impl Controls {
    /// What is chosen at first.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self {
            order: Order::default(),
            reversed: false,
            filter: String::new(),
            typing: false,
            first: 0,
            shown: (0, 0),
            paused: false,
            help: false,
            interval,
        }
    }

    /// Takes a key.
    pub fn press(&mut self, key: Key) -> Asked {
        match key {
            Key::Control('c') => return Asked::Quit,
            Key::Control('z') => return Asked::Suspend,
            _ if self.typing => self.edit(key),
            // Whatever ends the explanation does nothing else.
            _ if self.help => self.help = false,
            Key::Char('q') => return Asked::Quit,
            // It undoes what was done with it before.
            Key::Escape if !self.filter.is_empty() => self.filter.clear(),
            Key::Escape => return Asked::Quit,
            _ => self.choose(key),
        }
        Asked::Draw
    }

    fn choose(&mut self, key: Key) {
        match key {
            Key::Char('<') | Key::Left => self.order = self.order.moved(-1),
            Key::Char('>') | Key::Right => self.order = self.order.moved(1),
            Key::Char('r') => self.reversed = !self.reversed,
            Key::Char('/') => self.typing = true,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('?' | 'h') => self.help = true,
            // Shifted or not.
            Key::Char('+' | '=') => self.interval = longer(self.interval),
            Key::Char('-') => self.interval = shorter(self.interval),
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::Down => self.first += 1,
            Key::PageUp => self.first = self.first.saturating_sub(self.shown.0.max(1)),
            Key::PageDown => self.first += self.shown.0.max(1),
            Key::Home => self.first = 0,
            Key::End => self.first = self.shown.1,
            Key::Char(_) | Key::Control(_) | Key::Enter | Key::Escape | Key::Backspace => {}
        }
        self.first = self.first.min(self.last_first());
    }

    fn edit(&mut self, key: Key) {
        match key {
            Key::Char(character) if self.filter.len() < LONGEST_FILTER => self.filter.push(character),
            // Back beyond the first character is out.
            Key::Backspace => self.typing = self.filter.pop().is_some(),
            Key::Enter => self.typing = false,
            Key::Control('u') => self.filter.clear(),
            Key::Escape => {
                self.filter.clear();
                self.typing = false;
            }
            _ => {}
        }
        self.first = 0;
    }

    /// Says how many rows the table has room for, and how many there are: the window is moved so that none of the
    /// room is left empty while rows are out of sight.
    pub fn fit(&mut self, room: usize, rows: usize) {
        self.shown = (room, rows);
        self.first = self.first.min(self.last_first());
    }

    /// The row at the top when the last one is in sight.
    fn last_first(&self) -> usize {
        self.shown.1.saturating_sub(self.shown.0)
    }
}

fn longer(interval: Duration) -> Duration {
    let steps = INTERVALS_MS.map(Duration::from_millis);
    steps.into_iter().find(|&step| step > interval).unwrap_or(interval)
}

fn shorter(interval: Duration) -> Duration {
    let steps = INTERVALS_MS.map(Duration::from_millis);
    steps.into_iter().rev().find(|&step| step < interval).unwrap_or(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controls() -> Controls {
        Controls::new(Duration::from_secs(1))
    }

    fn press(controls: &mut Controls, text: &str) {
        text.chars().for_each(|character| assert_eq!(controls.press(Key::Char(character)), Asked::Draw));
    }

    #[test]
    fn columns_are_chosen_round_and_round() {
        let mut controls = controls();
        press(&mut controls, "<");
        assert_eq!(controls.order, Order::Failed);
        press(&mut controls, ">>>r");
        assert_eq!((controls.order, controls.reversed), (Order::Pid, true));
        let _ = (controls.press(Key::Left), controls.press(Key::Char('r')));
        assert_eq!((controls.order, controls.reversed), (Order::State, false));
    }

    #[test]
    fn a_filter_is_typed_kept_and_cleared() {
        let mut controls = controls();
        press(&mut controls, "/qp");
        assert_eq!((controls.filter.as_str(), controls.paused), ("qp", false), "keys are text");
        let _ = controls.press(Key::Backspace);
        let _ = controls.press(Key::Enter);
        assert_eq!((controls.filter.as_str(), controls.typing), ("q", false));
        assert_eq!(controls.press(Key::Escape), Asked::Draw);
        assert_eq!(controls.filter, "", "the first Esc clears");
        assert_eq!(controls.press(Key::Escape), Asked::Quit, "the second quits");
        press(&mut controls, "/x");
        let _ = controls.press(Key::Escape);
        assert_eq!((controls.filter.as_str(), controls.typing), ("", false));
        press(&mut controls, "/");
        let _ = controls.press(Key::Backspace);
        assert!(!controls.typing);
        press(&mut controls, &format!("/{}", "x".repeat(100)));
        assert_eq!(controls.filter.len(), LONGEST_FILTER);
    }

    #[test]
    fn control_keys_work_everywhere() {
        for before in ["", "/x", "?"] {
            let mut controls = controls();
            press(&mut controls, before);
            assert_eq!(controls.press(Key::Control('c')), Asked::Quit);
            assert_eq!(controls.press(Key::Control('z')), Asked::Suspend);
        }
        assert_eq!(controls().press(Key::Char('q')), Asked::Quit);
    }

    #[test]
    fn any_key_ends_the_explanation_and_nothing_else() {
        let mut controls = controls();
        press(&mut controls, "?");
        assert!(controls.help);
        press(&mut controls, "q");
        assert!(!controls.help);
    }

    #[test]
    fn the_window_stays_on_the_rows() {
        let mut controls = controls();
        controls.fit(10, 64);
        let mut after = |key| {
            let _ = controls.press(key);
            controls.first
        };
        assert_eq!(
            [Key::Up, Key::Down, Key::PageDown, Key::End, Key::Down].map(&mut after),
            [0, 1, 11, 54, 54]
        );
        assert_eq!([Key::PageUp, Key::Home, Key::PageUp].map(&mut after), [44, 0, 0]);
        let _ = controls.press(Key::End);
        controls.fit(60, 64);
        assert_eq!(controls.first, 4, "in a larger window no room is left empty");
        controls.fit(60, 3);
        assert_eq!(controls.first, 0);
    }

    #[test]
    fn intervals_have_steps_and_ends() {
        let mut controls = controls();
        press(&mut controls, "--");
        assert_eq!(controls.interval, Duration::from_millis(200));
        press(&mut controls, "----");
        assert_eq!(controls.interval, LEAST_INTERVAL);
        controls.interval = Duration::from_millis(1500);
        press(&mut controls, "+");
        assert_eq!(controls.interval, Duration::from_secs(2));
        press(&mut controls, "=======");
        assert_eq!(controls.interval, Duration::from_secs(60));
        controls.interval = MOST_INTERVAL;
        press(&mut controls, "+");
        assert_eq!(controls.interval, MOST_INTERVAL);
    }
}
