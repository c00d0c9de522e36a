//! Tables whose columns go, the least important first, where there is no room for them.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// What stands at the end of a text that was cut off.
const CUT: char = '~';

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// Its width in characters.
    pub width: usize,
    /// How dispensable it is: 0 stays for longest.
    pub rank: u8,
    /// Text is on the left, numbers are on the right.
    pub is_text: bool,
}

impl Column {
    /// A column of numbers.
    #[must_use]
    pub const fn number(title: &'static str, width: usize, rank: u8) -> Self {
        Self { title, width, rank, is_text: false }
    }

    /// A column of text.
    #[must_use]
    pub const fn text(title: &'static str, width: usize, rank: u8) -> Self {
        Self { title, width, rank, is_text: true }
    }
}

/// How wide these columns are together, with a blank between each two.
#[must_use]
pub fn width(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.width + 1).sum::<usize>().saturating_sub(1)
}

/// Which columns stay in that width: the first always does, and is cut off where need be.
#[must_use]
pub fn fitting(columns: &[Column], room: usize) -> Vec<usize> {
    let mut stay: Vec<usize> = (0..columns.len()).collect();
    let width = |stay: &[usize]| stay.iter().map(|&index| columns[index].width + 1).sum::<usize>();
    while stay.len() > 1 && width(&stay) > room + 1 {
        let dispensable = stay.iter().copied().max_by_key(|&index| columns[index].rank);
        stay.retain(|&index| Some(index) != dispensable);
    }
    stay
}

/// A line of cells; a cell's text is cut off where it is too long.
pub fn line<'a>(columns: &[Column], stay: &[usize], cell: impl Fn(usize) -> (String, Style)) -> Line<'a> {
    let mut spans = Vec::with_capacity(2 * stay.len());
    for &index in stay {
        let Column { width, is_text, .. } = columns[index];
        let (text, style) = cell(index);
        let text = cut(text, width);
        let blanks = " ".repeat(width - text.chars().count());
        let text = Span::styled(text, style);
        spans.extend(if is_text { [text, blanks.into()] } else { [blanks.into(), text] });
        spans.push(" ".into());
    }
    spans.pop();
    Line::from(spans)
}

/// A line of headings.
pub fn headings<'a>(columns: &[Column], stay: &[usize], style: impl Fn(usize) -> Style) -> Line<'a> {
    line(columns, stay, |index| (columns[index].title.to_owned(), style(index)))
}

/// A text in at most so many characters.
#[must_use]
pub fn cut(text: String, width: usize) -> String {
    if text.chars().count() <= width {
        return text;
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain([CUT]).take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::text("NAME", 6, 0), Column::number("A", 4, 2), Column::number("B", 3, 1)];

    fn text(line: &Line) -> String {
        line.spans.iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn the_least_important_column_goes_first_and_the_first_never() {
        assert_eq!(width(&COLUMNS), 15);
        assert_eq!([15, 14, 10, 9, 0].map(|room| fitting(&COLUMNS, room).len()), [3, 2, 2, 1, 1]);
        assert_eq!(fitting(&COLUMNS, 14), [0, 2]);
    }

    #[test]
    fn cells_are_aligned_and_cut_off() {
        let cells = ["secondary", "12", "1234"];
        let line = line(&COLUMNS, &[0, 1, 2], |index| (cells[index].to_owned(), Style::new()));
        assert_eq!(text(&line), "secon~   12 12~");
        assert_eq!(text(&headings(&COLUMNS, &[0, 2], |_| Style::new())), "NAME     B");
        assert_eq!([0, 1, 2].map(|width| cut("abc".to_owned(), width)), ["", "~", "a~"]);
    }
}
