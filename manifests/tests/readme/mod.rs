//! Sections of READMEs that are generated, between `<!-- generated: NAME -->` and `<!-- end -->`.

use std::{env, fs, path::Path};

use job_handler_manifests::UPDATE_COMMAND;

/// Fails unless the section of the file (a path in the repository) has this text; rewrites it if `UPDATE_MANIFESTS` is set.
pub fn assert_section(file: &str, section: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let readme = fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- generated: {section} -->\n");
    let (head, rest) = readme.split_once(&begin).unwrap_or_else(|| panic!("{file} lacks {begin}"));
    let (current, tail) =
        rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("{file}: {section} has no end"));
    if env::var_os("UPDATE_MANIFESTS").is_some() {
        fs::write(&path, format!("{head}{begin}{text}<!-- end -->{tail}")).unwrap();
    } else {
        assert!(current == text, "{file}: section «{section}» is stale. Rewrite it: {UPDATE_COMMAND}");
    }
}
