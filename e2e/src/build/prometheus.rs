//! Prometheus and promtool, for the tests of `manifests/monitoring`.
//!
//! Any version that has the functions of the rules works, so the first of these is used: named by the user, on the
//! PATH, from Debian's package (seconds; nothing is installed), or built from the Go module (minutes).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::go::GoProgram;
use crate::build::{cache, named_by};
use crate::harness::error::{Error, Result};
use crate::harness::progress::print_line;

/// Names a folder that holds `promtool` and `prometheus`.
pub const PROMETHEUS_BIN_DIR: &str = "JOB_HANDLER_PROMETHEUS_BIN_DIR";

/// The paths of Prometheus' programs.
#[derive(Clone, Debug)]
pub struct PrometheusTools {
    /// Tests rules.
    pub promtool: PathBuf,
    /// The server.
    pub prometheus: PathBuf,
}

/// Finds, fetches or builds Prometheus (`e2e/prometheus` pins the version that is built).
///
/// # Errors
/// If it has to be built and `go` is missing or a build fails.
pub fn prometheus_tools() -> Result<PrometheusTools> {
    if let Some(folder) = named_by(PROMETHEUS_BIN_DIR)? {
        return Ok(in_folder(&folder));
    }
    if let Some(folder) = on_path() {
        return Ok(in_folder(&folder));
    }
    match from_package() {
        Ok(tools) => return Ok(tools),
        Err(error) => print_line(&format!("no Prometheus from a Debian package ({error}), building it")),
    }
    Ok(PrometheusTools { promtool: built("promtool")?, prometheus: built("prometheus")? })
}

fn in_folder(folder: &Path) -> PrometheusTools {
    PrometheusTools { promtool: folder.join("promtool"), prometheus: folder.join("prometheus") }
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .find(|folder| folder.join("promtool").is_file() && folder.join("prometheus").is_file())
}

/// Unpacks the programs from the package without installing it, so that no service is set up and no rights are needed.
fn from_package() -> Result<PrometheusTools> {
    let take = |name: &str| {
        cache::build_once("prometheus-debian", name, |target| {
            let folder = tempfile::tempdir().map_err(Error::io("creating a folder for the package"))?;
            print_line("fetching Debian's package prometheus (20 MB, once)");
            if run(&folder, "apt-get", &["download", "prometheus"]).is_err() {
                // A fresh machine has no package lists; only root may fetch them.
                run(&folder, "apt-get", &["update", "-qq"])?;
                run(&folder, "apt-get", &["download", "prometheus"])?;
            }
            let package = std::fs::read_dir(folder.path())
                .map_err(Error::io("reading a folder with a package"))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
                .ok_or_else(|| Error::Invalid("apt-get downloaded no package".to_owned()))?;
            run(&folder, "dpkg-deb", &["-x", &package.to_string_lossy(), "unpacked"])?;
            let program = folder.path().join("unpacked/usr/bin").join(name);
            std::fs::copy(&program, target)
                .map(drop)
                .map_err(Error::io(format!("extracting {name} from the package")))
        })
    };
    Ok(PrometheusTools { promtool: take("promtool")?, prometheus: take("prometheus")? })
}

fn run(folder: &tempfile::TempDir, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .current_dir(folder.path())
        .args(arguments)
        .output()
        .map_err(Error::io(format!("running {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Invalid(format!("{program} {}: {}", arguments.join(" "), said.trim())))
}

fn built(name: &str) -> Result<PathBuf> {
    GoProgram {
        what: name,
        duration: "about 8 minutes on 2 cores",
        module: "prometheus",
        package: &format!("github.com/prometheus/prometheus/cmd/{name}"),
        program: name,
        ..GoProgram::default()
    }
    .find_or_build()
}
