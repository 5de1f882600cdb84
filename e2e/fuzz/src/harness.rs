//! What several targets need.

use std::{fs, future::Future, path::Path};

use job_handler_shared::text::is_unsafe;
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

/// Checks that a terminal shows the text as it is: it is UTF-8 without characters that act on it or cannot be seen, except
/// for line ends and tabs.
pub(crate) fn assert_printable(text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    let is_unsafe = |c: char| is_unsafe(c) && !matches!(c, '\n' | '\r' | '\t');
    assert!(!text.chars().any(is_unsafe), "{text:?}");
    assert_eq!(text.matches('\r').count(), text.matches("\r\n").count(), "{text:?}");
}
