//! Builds Go programs from the modules in `e2e/` into the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::KUBERNETES_BIN;
use crate::build::builder::Builder;
use crate::build::cache;
use crate::harness::error::{Error, Result};

/// Omits debug information, which is not needed here and takes a seventh of the compile time.
const COMPILER_FLAGS: &str = "-dwarf=false";
/// The heap growth, in percent, after which a compiler collects garbage: most end before that.
const COMPILER_GOGC: &str = "400";
const LINKER_FLAGS: &str = "-s -w";

/// A Go program that is built once for each state of its module's sources.
#[derive(Default)]
pub(super) struct GoProgram<'a> {
    /// The name in progress lines and errors.
    pub(super) what: &'a str,
    /// The duration of a build with an empty Go cache, as text.
    pub(super) duration: &'a str,
    /// The module's folder in `e2e/`.
    pub(super) module: &'a str,
    /// The package to build, relative to that folder.
    pub(super) package: &'a str,
    /// The executable's name.
    pub(super) program: &'a str,
    /// Patterns of packages whose speed does not matter. Without inlining they compile in two thirds of the time.
    pub(super) not_inlined: &'a [&'a str],
    /// Build tags.
    pub(super) tags: Vec<String>,
    /// Values for string variables, as the linker's `-X` takes them.
    pub(super) variables: Vec<String>,
}

impl GoProgram<'_> {
    /// Returns the path of the program in the user's cache; builds it if it does not exist.
    pub(super) fn find_or_build(&self) -> Result<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(self.module);
        let flags = self.flags();
        let digest = cache::digest(&folder, &flags)?;
        cache::build_once(&format!("{}-{digest}", self.module), self.program, |target| {
            let steps = self.uncached_packages(&folder)?;
            let mut command = go("build", &folder)?;
            command.arg("-v").args(&flags).arg("-o").arg(target).arg(self.package);
            Builder { what: self.what, duration: self.duration, steps }.run(command).map(drop)
        })
    }

    /// The inputs of the build besides the sources.
    fn flags(&self) -> Vec<String> {
        let mut linker_flags = LINKER_FLAGS.to_owned();
        for variable in &self.variables {
            linker_flags.push_str(&format!(" -X {variable}"));
        }
        let mut flags = vec![
            "-buildvcs=false".to_owned(),
            format!("-tags={}", self.tags.join(",")),
            format!("-ldflags={linker_flags}"),
            format!("-gcflags=all={COMPILER_FLAGS}"),
        ];
        // The last pattern that matches a package counts.
        flags
            .extend(self.not_inlined.iter().map(|pattern| format!("-gcflags={pattern}={COMPILER_FLAGS} -l")));
        flags
    }

    /// Counts the packages that are not in Go's cache: `go build -v` prints a line for each.
    fn uncached_packages(&self, folder: &Path) -> Result<Option<usize>> {
        let mut command = go("list", folder)?;
        command.args(["-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}"]).args(self.flags());
        let output = command
            .arg(self.package)
            .output()
            .map_err(Error::io(format!("counting packages of {}", self.what)))?;
        // The count is only for the percentage; the build reports errors of the module.
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().count()))
    }
}

fn go(subcommand: &str, folder: &Path) -> Result<Command> {
    match Command::new("go").arg("version").output() {
        Ok(_) => {
            let mut command = Command::new("go");
            // Without cgo no C compiler is needed; without go.work no workspace of the user applies.
            command.arg(subcommand).current_dir(folder);
            command.env("GOWORK", "off").env("CGO_ENABLED", "0").env("GOGC", COMPILER_GOGC);
            Ok(command)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::MissingTool(format!(
            "`go` is not on the PATH. The test cluster is built from the Kubernetes sources: install Go 1.26 \
             or newer (go.dev/dl, or your system's package `golang`), or name a ready program by {KUBERNETES_BIN}"
        ))),
        Err(error) => Err(Error::io("running `go version`")(error)),
    }
}
