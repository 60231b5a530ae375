//! `--markdown`: the tables within a page.

use std::{
    fmt::{self, Write as _},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::report::{Machine, Report, Section, figure};

/// In the page, before the tables.
const BEGIN: &str = "<!-- bench: figures -->\n";
/// And after them.
const END: &str = "<!-- bench: end -->";

/// Puts the tables between the marks of a page.
pub fn insert(report: &Report, page: &Path) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let mut tables = String::new();
    write_report(&mut tables, report)?;
    let new = replace(&text, &tables)
        .with_context(|| format!("no lines `{}` and `{END}` in {}", BEGIN.trim_end(), page.display()))?;
    fs::write(page, new).with_context(|| format!("write {}", page.display()))
}

fn replace(page: &str, tables: &str) -> Option<String> {
    let (head, rest) = page.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{tables}{END}{tail}"))
}

fn write_report(f: &mut String, report: &Report) -> fmt::Result {
    let Machine { cpu, cpus, kernel } = &report.machine;
    writeln!(f, "Measured on: {cpu}, {cpus} CPUs, Linux {kernel}; in {:.0} s.", report.took_s)?;
    if report.quick {
        writeln!(f, "**Quick: it works; the figures are rough.**")?;
    }
    writeln!(f)?;
    report.sections.iter().try_for_each(|section| write_section(f, section))
}

fn write_section(f: &mut String, section: &Section) -> fmt::Result {
    writeln!(f, "### {}\n", section.title)?;
    if !section.rows.is_empty() {
        write_head(f, &section.columns)?;
        for row in &section.rows {
            let values = row.values.iter().map(|value| value.map_or_else(String::new, figure));
            write_row(f, &row.case, values)?;
        }
        writeln!(f)?;
    }
    if !section.bars.is_empty() {
        write_head(f, &["bar", "is", "at most", "holds"].map(String::from))?;
        for bar in &section.bars {
            let holds = if bar.holds { "yes" } else { "**no**" };
            write_row(f, &bar.what, [figure(bar.ratio), figure(bar.at_most), holds.into()].into_iter())?;
        }
        writeln!(f)?;
    }
    for note in &section.notes {
        writeln!(f, "- {note}")?;
    }
    if section.notes.is_empty() { Ok(()) } else { writeln!(f) }
}

/// Figures stand on the right.
fn write_head(f: &mut String, columns: &[String]) -> fmt::Result {
    writeln!(f, "| {} |", columns.join(" | "))?;
    writeln!(f, "|---|{}", "---:|".repeat(columns.len().saturating_sub(1)))
}

fn write_row(f: &mut String, first: &str, values: impl Iterator<Item = String>) -> fmt::Result {
    let cells: Vec<_> = std::iter::once(first.to_owned()).chain(values).collect();
    writeln!(f, "| {} |", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Bar;

    #[test]
    fn tables_stand_between_the_marks_again_and_again() {
        let page = format!("# Page\n{BEGIN}old\n{END}\nmore\n");
        let once = replace(&page, "new\n").expect("the marks are there");
        assert_eq!(once, format!("# Page\n{BEGIN}\nnew\n{END}\nmore\n"));
        assert_eq!(replace(&once, "new\n"), Some(once));
        assert_eq!(replace("# Page\n", "new\n"), None);
    }

    #[test]
    fn a_section_is_a_table() {
        let mut section = Section::new("Times", &["", "ms", "spread ms"]);
        section.row("a build", [Some(1.0), None]);
        section.bars.push(Bar::new("a build, ms", 1.0, 0.5));
        section.note("of a kind");
        let mut text = String::new();
        write_section(&mut text, &section).expect("a string takes all");
        let expected = "### Times\n\n|  | ms | spread ms |\n|---|---:|---:|\n| a build | 1.00 |  |\n\n\
                        | bar | is | at most | holds |\n|---|---:|---:|---:|\n| a build, ms | 1.00 | 0.50 | **no** |\n\n\
                        - of a kind\n\n";
        assert_eq!(text, expected);
    }
}
