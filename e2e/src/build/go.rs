//! Builds Go programs from the modules in `e2e/` into the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::KUBERNETES_BIN;
use crate::build::builder::Builder;
use crate::build::cache;
use crate::harness::error::{Error, Result};

/// Without debug information, which nobody reads here: a seventh of the compile time.
const COMPILER_FLAGS: &str = "-gcflags=all=-dwarf=false";
const LINKER_FLAGS: &str = "-s -w";

/// A Go program that is built once for each state of its module's sources.
#[derive(Default)]
pub(super) struct GoProgram<'a> {
    /// What progress lines and errors call it.
    pub(super) what: &'a str,
    /// How long a build takes when nothing of it is in Go's cache.
    pub(super) duration: &'a str,
    /// The module's folder in `e2e/`.
    pub(super) module: &'a str,
    /// The package to build, as seen from that folder.
    pub(super) package: &'a str,
    /// The executable's name.
    pub(super) program: &'a str,
    /// Build tags.
    pub(super) tags: Vec<String>,
    /// Values for string variables, as the linker's `-X` takes them.
    pub(super) variables: Vec<String>,
}

impl GoProgram<'_> {
    /// Returns the path of the program in the user's cache; builds it if it is not there.
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

    /// What decides the result, besides the sources.
    fn flags(&self) -> Vec<String> {
        let mut linker_flags = LINKER_FLAGS.to_owned();
        for variable in &self.variables {
            linker_flags.push_str(&format!(" -X {variable}"));
        }
        vec![
            "-buildvcs=false".to_owned(),
            COMPILER_FLAGS.to_owned(),
            format!("-tags={}", self.tags.join(",")),
            format!("-ldflags={linker_flags}"),
        ]
    }

    /// Counts the packages that Go's own cache does not hold: each is a line of `go build -v`.
    fn uncached_packages(&self, folder: &Path) -> Result<Option<usize>> {
        let mut command = go("list", folder)?;
        command.args(["-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}"]).args(self.flags());
        let output = command
            .arg(self.package)
            .output()
            .map_err(Error::io(format!("counting packages of {}", self.what)))?;
        // Only for the percentage: what is wrong with the module is for the build to say.
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().count()))
    }
}

fn go(subcommand: &str, folder: &Path) -> Result<Command> {
    match Command::new("go").arg("version").output() {
        Ok(_) => {
            let mut command = Command::new("go");
            // No C compiler is needed, and no workspace of the user's gets in.
            command.arg(subcommand).current_dir(folder).env("GOWORK", "off").env("CGO_ENABLED", "0");
            Ok(command)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::MissingTool(format!(
            "`go` is not on the PATH. The test cluster is built from the Kubernetes sources: install Go 1.26 \
             or newer (go.dev/dl, or your system's package `golang`), or name a ready program by {KUBERNETES_BIN}"
        ))),
        Err(error) => Err(Error::io("running `go version`")(error)),
    }
}
