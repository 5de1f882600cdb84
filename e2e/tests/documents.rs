//! The commands in the documents exist, with these flags, and the files that the documents name exist.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use job_handler_e2e::build::pair_programs;

/// The maximum number of lines of the top-level README.
const README_LINES: usize = 120;
/// Programs that are not ours: their flags are not checked.
const OTHER_PROGRAMS: [&str; 14] = [
    "cat",
    "cd",
    "cosign",
    "curl",
    "docker",
    "export",
    "git",
    "grep",
    "helm",
    "jq",
    "kustomize",
    "openssl",
    "podman",
    "promtool",
];
const KUBECTL_VERBS: [&str; 24] = [
    "annotate",
    "api-resources",
    "apply",
    "auth",
    "config",
    "cp",
    "create",
    "delete",
    "describe",
    "diff",
    "edit",
    "events",
    "exec",
    "explain",
    "get",
    "kustomize",
    "label",
    "logs",
    "patch",
    "port-forward",
    "replace",
    "rollout",
    "scale",
    "wait",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Each Markdown file below a folder, with its text.
fn documents(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && (!name.starts_with('.') || name == ".github") {
            found.extend(documents(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// The fenced `sh` blocks of a document.
fn shell_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        let block: Vec<&str> =
            lines.by_ref().take_while(|line| !line.trim_start().starts_with("```")).collect();
        if ["sh", "bash", "shell", "console"].contains(&language.trim()) {
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

/// The commands of a block, each as its words, without comments, redirections and variables that are set for it.
fn commands(block: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote, mut comment): (Option<String>, Option<char>, bool) = (None, None, false);
    let block = block.replace("\\\n", " ") + "\n";
    for c in block.chars() {
        let ends_command = c == '\n' || (quote.is_none() && ['|', ';', '&'].contains(&c));
        comment &= c != '\n';
        match c {
            _ if comment => {}
            '"' | '\'' if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '#' if quote.is_none() && word.is_none() => comment = true,
            c if quote.is_none() && (c.is_whitespace() || ends_command) => {
                commands.last_mut().unwrap().extend(word.take());
                if ends_command {
                    commands.push(Vec::new());
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    for command in &mut commands {
        let variables = command.iter().take_while(|word| is_assignment(word)).count();
        command.drain(..variables);
        if let Some(end) = command.iter().position(|word| word.starts_with(['>', '<'])) {
            command.truncate(end);
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

/// Checks a command without running it.
fn check(command: &[String]) -> Result<(), String> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    check_files(&words)?;
    match words[..] {
        ["cargo", ref rest @ ..] => check_cargo(rest),
        ["kubectl", "job-results", ref rest @ ..] => check_program("kubectl-job_results", rest),
        ["kubectl", verb, ..] if KUBECTL_VERBS.contains(&verb) => Ok(()),
        [program, ref rest @ ..] if program.starts_with("job-handler-") => check_program(program, rest),
        [program, ..] if OTHER_PROGRAMS.contains(&program) => Ok(()),
        // A script of the repository.
        [program, ..] if program.contains('/') && root().join(program).is_file() => Ok(()),
        _ => Err("neither the program nor the subcommand is known to this test".to_owned()),
    }
}

fn check_cargo(words: &[&str]) -> Result<(), String> {
    let name = *words.first().ok_or("expected a subcommand of cargo")?;
    let rest: Vec<&str> = words[1..].iter().copied().skip_while(|word| *word == "--").collect();
    let aliases = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
    if aliases.lines().any(|line| line.starts_with(&format!("{name} = "))) {
        return check_program(name, &rest);
    }
    let list = Command::new(env!("CARGO")).arg("--list").output().unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    match list.lines().any(|line| line.split_whitespace().next() == Some(name)) {
        true => Ok(()),
        false => Err(format!("cargo has neither an alias nor a subcommand `{name}`")),
    }
}

/// Lets one of our programs parse its arguments. `--help` at the end prevents any other effect.
fn check_program(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = program_path(program);
    let output = Command::new(&path).args(arguments).arg("--help").output();
    let output = output.map_err(|error| format!("{}: {error}", path.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A program of the workspace. Cargo has built those of this package before its tests.
fn program_path(program: &str) -> PathBuf {
    if program.starts_with("job-handler-") || program.starts_with("kubectl-") {
        return pair_programs().unwrap().join(program);
    }
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join(program)
}

/// Files and folders of the repository that a command names.
fn check_files(words: &[&str]) -> Result<(), String> {
    for pair in words.windows(2) {
        let (flag, value) = (pair[0], pair[1]);
        let path = root().join(value);
        let missing = match flag {
            _ if value == "-" || value.contains("://") || value.contains("github.com/") => false,
            "-k" => !path.join("kustomization.yaml").exists(),
            "-f" | "--filename" if value.contains('/') => !path.exists(),
            _ => false,
        };
        if missing {
            return Err(format!("{flag} {value}: there is no such file"));
        }
    }
    Ok(())
}

/// Targets of relative links outside of fenced blocks.
fn link_targets(text: &str) -> Vec<String> {
    let prose: Vec<&str> = text.split("\n```").step_by(2).collect();
    let targets =
        prose.iter().flat_map(|part| part.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    let relative = targets.filter(|target| !target.contains("://") && !target.starts_with(['#', '<']));
    relative.map(|target| target.split('#').next().unwrap().to_owned()).collect()
}

#[test]
fn every_shell_command_in_the_documents_parses() {
    let mut errors = Vec::new();
    for (path, text) in documents(&root()) {
        for block in shell_blocks(&text) {
            let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            shell.stdin.take().unwrap().write_all(block.as_bytes()).unwrap();
            if !shell.wait().unwrap().success() {
                errors.push(format!("{}: sh cannot parse:\n{block}", path.display()));
            }
            for command in commands(&block) {
                if let Err(error) = check(&command) {
                    errors.push(format!("{}: `{}`: {error}", path.display(), command.join(" ")));
                }
            }
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn every_link_in_the_documents_leads_to_a_file() {
    let mut errors = Vec::new();
    for (path, text) in documents(&root()) {
        for target in link_targets(&text) {
            if !path.parent().unwrap().join(&target).exists() {
                errors.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines, at most {README_LINES} are allowed");
}

#[test]
fn commands_are_split_like_in_a_shell() {
    let block =
        "A=1 kubectl apply -k x   # why\nhelm a 'b c' | jq \"d # e\" > f && cargo \\\n  test\n# only this";
    let found: Vec<String> = commands(block).into_iter().map(|words| words.join("_")).collect();
    assert_eq!(found, ["kubectl_apply_-k_x", "helm_a_b c", "jq_d # e", "cargo_test"]);
}
