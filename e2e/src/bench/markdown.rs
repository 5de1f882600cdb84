//! The page with all tables. Each table has its own section, so that a run of some parts replaces only their tables.

const HEAD: &str = "# Benchmarks\n\nWritten by `cargo bench-all`; do not edit. `cargo bench-all limits` measures one part \
                    and replaces its tables alone.\n";
const SECTION: &str = "\n## ";

/// The page `before` in which the given sections (title, text) replace those of the same title. New ones are appended.
pub(super) fn merged<'a>(before: &str, now: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut sections: Vec<(String, String)> = before
        .split(SECTION)
        .skip(1)
        .map(|text| {
            let title = text.lines().next().unwrap_or_default();
            (title.to_owned(), format!("## {}\n", text.trim_end()))
        })
        .collect();
    for (title, text) in now {
        let text = format!("{}\n", text.trim_end());
        match sections.iter_mut().find(|(known, _)| known == title) {
            Some(section) => section.1 = text,
            None => sections.push((title.to_owned(), text)),
        }
    }
    sections.into_iter().fold(HEAD.to_owned(), |page, (_, text)| page + "\n" + &text)
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn only_measured_sections_are_replaced() {
        let first = merged("", [("A", "## A\n\n1\n".to_owned()), ("B", "## B\n\n2\n\n".to_owned())]);
        let second = merged(&first, [("C", "## C\n\n3\n".to_owned()), ("A", "## A\n\n4\n".to_owned())]);
        let sections = second.split_once("\n\n## ").unwrap().1;
        assert_eq!(sections, "A\n\n4\n\n## B\n\n2\n\n## C\n\n3\n");
        assert_eq!(merged(&second, []), second);
    }
}
