//! Rows that line up.

/// One cell: already escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    paint: Paint,
}

/// How a text stands out. The words say the same: colour is never the only sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Bold,
    Good,
    Bad,
    Doubtful,
}

impl Paint {
    /// The text, coloured if that is wanted (ECMA-48 SGR).
    pub(super) fn on(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            _ if !colour || text.is_empty() => return text.to_owned(),
            Self::Bold => 1,
            Self::Good => 32,
            Self::Bad => 31,
            Self::Doubtful => 33,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

pub(super) fn cell(text: impl Into<String>) -> Cell {
    painted(text, Paint::Plain)
}

pub(super) fn painted(text: impl Into<String>, paint: Paint) -> Cell {
    Cell { text: text.into(), paint }
}

/// A column's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// The rows, columns two blanks apart, without blanks at the ends of lines. Every row is as long as `aligns`.
pub(super) fn table<const N: usize>(aligns: [Align; N], rows: &[[Cell; N]], colour: bool) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].text.chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        // Blanks that are due before the next text.
        let mut due = 0;
        for ((cell, width), align) in row.iter().zip(widths).zip(aligns) {
            let free = width - cell.text.chars().count();
            let (before, after) = if align == Align::Left { (0, free) } else { (free, 0) };
            if cell.text.is_empty() {
                due += free + 2;
                continue;
            }
            line.extend(std::iter::repeat_n(' ', due + before));
            line.push_str(&cell.paint.on(&cell.text, colour));
            due = after + 2;
        }
        out.push_str(&line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [[&str; 3]; 3] = [["NAME", "N", "NOTE"], ["a", "1,000", ""], ["long name", "", "ü"]];

    fn rows() -> Vec<[Cell; 3]> {
        ROWS.iter().map(|row| row.map(|text| painted(text, Paint::Bad))).collect()
    }

    #[test]
    fn columns_line_up_and_lines_end_with_their_text() {
        let text = table([Align::Left, Align::Right, Align::Left], &rows(), false);
        assert_eq!(text, "NAME           N  NOTE\na          1,000\nlong name         ü\n");
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let aligns = [Align::Left, Align::Right, Align::Left];
        let coloured = table(aligns, &rows(), true);
        assert_eq!(coloured.replace("\x1b[31m", "").replace("\x1b[0m", ""), table(aligns, &rows(), false));
        assert!(coloured.contains("\x1b[31m1,000\x1b[0m"));
    }
}
