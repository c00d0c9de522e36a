//! What a terminal can show: with or without colours, with or without characters beyond ASCII.

use std::ffi::OsString;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;

use crate::top::rows::State;

/// What this terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Colours. Nothing is said by them alone.
    pub colours: bool,
    /// Nothing beyond ASCII.
    pub ascii: bool,
}

/// Bars of nine heights, in ASCII.
const BARS: bar::Set<'_> = bar::Set {
    full: "#",
    seven_eighths: "*",
    three_quarters: "+",
    five_eighths: "=",
    half: "-",
    three_eighths: ":",
    one_quarter: ".",
    one_eighth: "_",
    empty: " ",
};

impl Theme {
    /// What the environment says.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(|value| value.to_string_lossy().to_ascii_lowercase())
        };
        let terminal = text("TERM").unwrap_or_default();
        // https://no-color.org; the names that terminfo(5) gives to terminals without colours.
        let is_plain = ["vt1", "vt2", "vt3", "vt4", "vt5"].iter().any(|vt| terminal.starts_with(vt))
            || terminal.ends_with("-m")
            || terminal.contains("-mono");
        // The first of these that is set decides (locale(7)).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| text(name));
        let is_utf8 = locale.is_some_and(|locale| locale.contains("utf-8") || locale.contains("utf8"));
        Self {
            colours: text("NO_COLOR").is_none() && !is_plain,
            // The fonts of the kernel's console have no bars of nine heights.
            ascii: !is_utf8 || terminal == "linux",
        }
    }

    /// Whether there is a terminal that can be drawn on at all.
    #[must_use]
    pub fn is_drawable(terminal: Option<OsString>) -> bool {
        terminal.is_some_and(|terminal| !terminal.is_empty() && terminal != "dumb")
    }

    fn coloured(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    /// The first line.
    #[must_use]
    pub fn title(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// What must not be overlooked.
    #[must_use]
    pub fn alarm(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::REVERSED | Modifier::BOLD)
    }

    /// A heading.
    #[must_use]
    pub fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The heading of the column that the table is sorted by.
    #[must_use]
    pub fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// A rule.
    #[must_use]
    pub fn rule(self) -> Style {
        self.coloured(Color::Cyan)
    }

    /// A graph.
    #[must_use]
    pub fn graph(self) -> Style {
        self.coloured(Color::Green)
    }

    /// What a process is doing.
    #[must_use]
    pub fn state(self, state: State) -> Style {
        match state {
            State::Stopped | State::Down => self.coloured(Color::Red).add_modifier(Modifier::BOLD),
            State::Suspect => self.coloured(Color::Yellow).add_modifier(Modifier::BOLD),
            State::Draining | State::Starting => self.coloured(Color::Cyan),
            State::Ready | State::Running => self.coloured(Color::Green),
        }
    }

    /// What bars are made of.
    #[must_use]
    pub fn bars(self) -> bar::Set<'static> {
        if self.ascii { BARS } else { bar::NINE_LEVELS }
    }

    /// A piece of a line.
    #[must_use]
    pub fn line(self) -> &'static str {
        if self.ascii { "-" } else { "─" }
    }

    /// Puts question marks in place of all that the terminal cannot show, wherever it came from.
    pub fn restrict(self, buffer: &mut Buffer) {
        if self.ascii {
            buffer.content.iter_mut().filter(|cell| !cell.symbol().is_ascii()).for_each(|cell| {
                cell.set_char('?');
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theme(variables: &[(&str, &str)]) -> (bool, bool) {
        let value = |name: &str| {
            variables.iter().find(|variable| variable.0 == name).map(|variable| variable.1.into())
        };
        let Theme { colours, ascii } = Theme::of(value);
        (colours, !ascii)
    }

    #[test]
    fn colours_are_for_terminals_that_have_them_and_people_who_want_them() {
        let with = |more| theme(&[("TERM", "xterm-256color"), ("LANG", "C.UTF-8"), more]);
        assert_eq!(with(("X", "")), (true, true));
        assert_eq!(with(("NO_COLOR", "1")), (false, true));
        assert_eq!(with(("NO_COLOR", "")), (true, true), "empty is as not set");
        for name in ["vt100", "vt220", "xterm-mono", "screen-m"] {
            assert_eq!(theme(&[("TERM", name), ("LANG", "de_DE.utf8")]), (false, true), "{name}");
        }
        assert_eq!(theme(&[("TERM", "vte-256color"), ("LANG", "de_DE.utf8")]), (true, true));
    }

    #[test]
    fn characters_go_by_the_locale() {
        let with = |variables: &[_]| theme(&[&[("TERM", "xterm")], variables].concat()).1;
        assert!(!with(&[]));
        assert!(!with(&[("LANG", "C")]) && !with(&[("LANG", "de_DE.ISO-8859-1")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "C.UTF-8")]));
        assert!(with(&[("LC_ALL", ""), ("LC_CTYPE", "en_GB.UTF-8"), ("LANG", "C")]));
        assert!(!theme(&[("TERM", "linux"), ("LANG", "C.UTF-8")]).1);
    }

    #[test]
    fn some_terminals_cannot_be_drawn_on() {
        assert!(Theme::is_drawable(Some("vt100".into())));
        assert!(![None, Some("".into()), Some("dumb".into())].into_iter().any(Theme::is_drawable));
    }
}
