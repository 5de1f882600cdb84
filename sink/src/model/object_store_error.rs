//! Describes errors of the object store in results, logs and configuration errors.

use job_handler_shared::process::error_chain::error_chain;

/// Longest description, characters.
const DESCRIPTION_MAX: usize = 300;

/// Describes the error for a result, without signatures in addresses and pages of XML.
pub(crate) fn describe(error: &object_store::Error) -> String {
    let mut text = error_chain(error);
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.to_owned())
    };
    if let Some(code) = tag("Code") {
        text = format!("the store answered {code}: {}", tag("Message").unwrap_or_default());
    }
    let mut description = String::new();
    let mut hidden = false;
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        hidden = hidden && !matches!(c, ' ' | '"' | '\'' | ')' | '>');
        if !hidden {
            description.push(c);
        }
        if c == '?' && !hidden {
            description.push('…');
            hidden = true;
        }
    }
    description.chars().take(DESCRIPTION_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_shows_no_signature() {
        let error = |text: &str| object_store::Error::Generic { store: "X", source: text.to_owned().into() };
        for (text, expected, hidden) in [
            ("for url (https://a.example/b?sig=hunter2) it broke", "it broke", "hunter2"),
            (
                "403: <Error><Code>Denied</Code><Message>not you</Message><Key>hunter2</Key>",
                "Denied: not you",
                "hunter2",
            ),
            (&"long ".repeat(200), "long", &"long ".repeat(100)),
        ] {
            let description = describe(&error(text));
            assert!(description.contains(expected) && !description.contains(hidden), "{description}");
        }
    }
}
