//! The command lines of `cargo demo`, `cargo playground` and `cargo bench-all`.

use std::ffi::OsString;

use clap::Parser;

/// Parses the command line of this process. A leading `--` is dropped: the aliases in `.cargo/config.toml` end in one,
/// so that `cargo demo --json FILE` works, and the usual `cargo demo -- --json FILE` then brings a second one.
pub fn parse<Args: Parser>() -> Args {
    Args::parse_from(without_separator(std::env::args_os()))
}

fn without_separator(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments
        .enumerate()
        .filter(|(index, argument)| *index != 1 || argument != "--")
        .map(|(_, argument)| argument)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[derive(Debug, Parser, PartialEq)]
    struct ExampleArgs {
        parts: Vec<String>,
        #[arg(long)]
        json: Option<PathBuf>,
    }

    fn parsed(arguments: &[&str]) -> Result<ExampleArgs, clap::Error> {
        let arguments = ["program"].iter().chain(arguments).map(OsString::from);
        ExampleArgs::try_parse_from(without_separator(arguments))
    }

    #[test]
    fn arguments_are_the_same_with_and_without_a_separator() {
        for arguments in [&[][..], &["--json", "file"], &["webhook", "--json", "file", "limits"]] {
            let separated = [&["--"], arguments].concat();
            assert_eq!(parsed(arguments).unwrap(), parsed(&separated).unwrap(), "{arguments:?}");
        }
        assert_eq!(parsed(&["--", "--json", "file"]).unwrap().json, Some(PathBuf::from("file")));
    }

    #[test]
    fn only_a_leading_separator_is_dropped() {
        let arguments = parsed(&["--json", "file", "--", "--json"]).unwrap();
        assert_eq!(arguments, ExampleArgs { parts: vec!["--json".to_owned()], json: Some("file".into()) });
    }
}
