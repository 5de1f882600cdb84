//! What several targets need.

use std::{fs, future::Future, path::Path};

use serde_json::{Deserializer, Value};

/// The corpus of a target: the name and the content of each file.
///
/// # Panics
/// If the corpus cannot be read.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// The JSON documents in `bytes`, one after another, up to the first that is none.
pub fn documents(bytes: &[u8]) -> impl Iterator<Item = Value> + '_ {
    Deserializer::from_slice(bytes).into_iter().map_while(Result::ok)
}

/// Runs a future on a runtime of its own, whose time is virtual: it passes at once while everything waits for it.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(future)
}

/// Checks that a terminal shows the text as it is: it is UTF-8 without control characters, except for line ends and
/// tabs, and without characters that change the direction of text.
pub(crate) fn assert_printable(text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    let is_unsafe = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.chars().any(is_unsafe), "{text:?}");
    assert_eq!(text.matches('\r').count(), text.matches("\r\n").count(), "{text:?}");
}
