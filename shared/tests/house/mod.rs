//! The rules of the house, checked on source text. The tests of other crates include this file by its path.
#![allow(dead_code, clippy::unwrap_used, reason = "test code; not every test uses all of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Lines that a file under `src/` may have.
const MAX_LINES: usize = 400;
/// Lines of a room's `mod.rs`, which is a map of the room.
const MAX_MAP_LINES: usize = 60;
/// Lines of a program's `main.rs`, which parses arguments and calls the library.
const MAX_MAIN_LINES: usize = 39;

/// Returns what breaks the rules in `src/` of the crate at `root`.
///
/// `layers` lists the rooms (the modules at the top of the crate), from the ground up. A room may import rooms of lower
/// layers only, so that there can be no circle between rooms. `lib.rs`, `main.rs`, `bin/` and unit tests may import all.
pub fn broken_rules(root: &str, layers: &[&[&str]]) -> Vec<String> {
    let src = Path::new(root).join("src");
    let layer_of = |room: &str| layers.iter().position(|layer| layer.contains(&room));
    let mut broken = BTreeSet::new();
    for (path, text) in rust_files(&src) {
        let name = path.strip_prefix(&src).unwrap().display().to_string();
        let parts: Vec<&str> = name.trim_end_matches(".rs").split('/').collect();
        let most = match parts[..] {
            ["main"] => MAX_MAIN_LINES,
            [.., "mod"] => MAX_MAP_LINES,
            _ => MAX_LINES,
        };
        if text.lines().count() > most {
            broken.insert(format!("{name} has {} lines, at most {most} are allowed", text.lines().count()));
        }
        let room = parts[0];
        if ["lib", "main", "bin"].contains(&room) || parts.last() == Some(&"tests") {
            continue;
        }
        let Some(own) = layer_of(room) else {
            broken.insert(format!("{name}: room {room} is not in the table of layers"));
            continue;
        };
        for used in imported_rooms(&without_unit_tests(&text)) {
            // What is not a room is an item of `lib.rs`.
            if used != room && layer_of(&used).is_some_and(|layer| layer >= own) {
                broken.insert(format!("{name} imports crate::{used}, which is not in a lower layer"));
            }
        }
    }
    broken.into_iter().collect()
}

/// Type names that are defined more than once in `src/` and `tests/` of the workspace's crates, with the files.
pub fn ambiguous_type_names(workspace: &Path) -> Vec<String> {
    let mut files_of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let members = ["shared", "webhook", "sink", "sink/plugin", "certs", "manifests", "e2e", "e2e/fuzz"];
    for folder in
        members.iter().flat_map(|member| ["src", "tests"].map(|part| workspace.join(member).join(part)))
    {
        for (path, text) in rust_files(&folder) {
            let file = path.strip_prefix(workspace).unwrap().display().to_string();
            for name in without_unit_tests(&text).lines().filter_map(defined_type) {
                files_of.entry(name.to_owned()).or_default().push(file.clone());
            }
        }
    }
    let ambiguous = files_of.into_iter().filter(|(_, files)| files.len() > 1);
    ambiguous.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
}

/// The files in `src/` of the crate at `root` whose code, without unit tests, contains one of these texts.
pub fn files_with(root: &Path, texts: &[&str]) -> BTreeSet<String> {
    let src = root.join("src");
    let files = rust_files(&src).into_iter();
    let with = files.filter(|(_, text)| texts.iter().any(|wanted| without_unit_tests(text).contains(wanted)));
    let names = with.map(|(path, _)| path.strip_prefix(&src).unwrap().display().to_string());
    names.filter(|name| !name.split('/').any(|part| part.starts_with("test"))).collect()
}

/// All Rust files in a folder and below it, with their texts.
pub fn rust_files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    files
}

/// The text without the modules of unit tests: a declaration (`mod tests;`) anywhere, or a module with a body at the end.
fn without_unit_tests(text: &str) -> String {
    const MODULE: &str = "#[cfg(test)]\nmod ";
    let (mut code, mut rest) = (String::new(), text);
    while let Some((before, module)) = rest.split_once(MODULE) {
        code.push_str(before);
        let (declaration, after) = module.split_once('\n').unwrap_or((module, ""));
        rest = if declaration.ends_with(';') { after } else { "" };
    }
    code + rest
}

/// The first segments of all `crate::…` paths, in `use` declarations and elsewhere.
pub fn imported_rooms(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut rooms = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(tree) => rooms.extend(first_segments(tree)),
            None => rooms.extend(identifier(rest)),
        }
    }
    rooms
}

/// The first segment of each path of a use tree, given from behind its opening brace.
fn first_segments(tree: &str) -> Vec<String> {
    let (mut depth, mut starts, mut rooms) = (0, true, Vec::new());
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts = true,
            c if starts && !c.is_whitespace() => {
                starts = false;
                rooms.extend(identifier(&tree[at..]));
            }
            _ => {}
        }
    }
    rooms
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// The name of the type that a line defines, except associated types.
fn defined_type(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let code = match code.strip_prefix("pub") {
        Some(rest) => rest.trim_start_matches(|c| c != ' ').trim_start(),
        None => code,
    };
    let (keyword, rest) = code.split_once(' ')?;
    let defines = ["struct", "enum", "trait", "union"].contains(&keyword)
        || (keyword == "type" && !line.starts_with(' '));
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (defines && end > 0).then(|| &rest[..end])
}
