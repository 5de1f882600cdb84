//! Tables, as text for the terminal and as Markdown for the file.

use std::fmt::Write;

/// A table with a title, aims and notes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The title.
    pub title: String,
    /// Conditions of the measurement, and the bottleneck.
    pub notes: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Each has one cell per column.
    pub rows: Vec<Vec<String>>,
    /// The figures to reach, and whether they were reached.
    pub aims: Vec<Aim>,
}

/// A figure to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// The figure to reach.
    pub what: String,
    /// The measured figure.
    pub found: String,
    /// Whether it was reached.
    pub met: bool,
}

/// The title of a table. A table of an unusual size has its own section in the page.
pub fn sized(title: &str, jobs: usize, usual: usize) -> String {
    if jobs == usual { title.to_owned() } else { format!("{title}, {jobs} Jobs") }
}

impl Table {
    /// A table with these columns.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&name| name.to_owned()).collect();
        Self { title: title.to_owned(), columns, ..Self::default() }
    }

    /// Text for a terminal.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n\n", self.title);
        self.lines(&mut out, "  ", "", "");
        self.closing(&mut out);
        out
    }

    /// The same table as Markdown, with a line that says when and where it was measured.
    pub fn markdown(&self, measured: &str) -> String {
        let mut out = format!("## {}\n\n{measured}\n\n", self.title);
        self.lines(&mut out, " | ", "| ", " |");
        self.closing(&mut out);
        out
    }

    fn lines(&self, out: &mut String, between: &str, before: &str, after: &str) {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.chain(self.columns.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut line = |cells: &[String]| {
            let padded: Vec<String> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                // Names are left-aligned, numbers right-aligned.
                .map(
                    |(n, (cell, &width))| {
                        if n == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            let _ = writeln!(out, "{before}{}{after}", padded.join(between));
        };
        line(&self.columns);
        let rule = |(n, &width): (usize, &usize)| {
            if n == 0 { "-".repeat(width) } else { format!("{}:", "-".repeat(width.saturating_sub(1))) }
        };
        line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>());
        self.rows.iter().for_each(|row| line(row));
    }

    fn closing(&self, out: &mut String) {
        out.push('\n');
        for Aim { what, found, met } in &self.aims {
            let _ =
                writeln!(out, "- {} Aim: {what}. Result: {found}.", if *met { "Met." } else { "MISSED." });
        }
        if !self.aims.is_empty() {
            out.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(out, "- {note}");
        }
    }
}

/// The median of the ratios within each round: a disturbance affects both sides of a round.
pub fn median_ratio(of: &[f64], to: &[f64]) -> f64 {
    median(of.iter().zip(to).map(|(of, to)| of / to))
}

/// The median, which single disturbed rounds do not change.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[odd / 2],
        even => f64::midpoint(figures[even / 2 - 1], figures[even / 2]),
    }
}

/// Bytes as MiB.
pub fn to_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes as MiB with three significant digits.
pub fn mib(bytes: u64) -> String {
    figure(to_mib(bytes))
}

/// A figure with three significant digits.
pub fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_written_as_text_and_as_markdown() {
        let mut table = Table::new("Apples", &["kind", "n"]);
        table.rows = vec![vec!["red".into(), "7".into()], vec!["green".into(), "123".into()]];
        table.aims = vec![Aim { what: "many".into(), found: "few".into(), met: false }];
        table.notes = vec!["counted by hand".into()];
        insta::assert_snapshot!(table.text(), @r"
        Apples

        kind     n
        -----  --:
        red      7
        green  123

        - MISSED. Aim: many. Result: few.

        - counted by hand
        ");
        insta::assert_snapshot!(table.markdown("Here and now."), @r"
        ## Apples

        Here and now.

        | kind  |   n |
        | ----- | --: |
        | red   |   7 |
        | green | 123 |

        - MISSED. Aim: many. Result: few.

        - counted by hand
        ");
    }

    #[test]
    fn median_and_significant_digits() {
        assert_eq!(median([5.0, 1.0, 100.0]), 5.0);
        assert_eq!(median([1.0, 2.0, 3.0, 100.0]), 2.5);
        assert!(median([]).is_nan());
        assert_eq!([figure(1234.5), figure(12.345), figure(0.8123)], ["1234", "12.3", "0.81"]);
    }
}
