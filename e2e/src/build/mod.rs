//! The programs a cluster is made of, built once into the user's cache.

mod beside;
mod cache;
mod object_store;
mod prometheus;
mod watched;

pub(crate) use beside::beside;
pub use object_store::{VERSITYGW_BIN, object_store};
pub use prometheus::{PROMETHEUS_BIN_DIR, PrometheusTools, prometheus_tools};

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::error::{Error, Result};
use parking_lot::Mutex;

/// Names a ready Kubernetes binary (as built from `e2e/kubernetes`) instead of building one.
pub const KUBERNETES_BIN: &str = "JOB_HANDLER_KUBERNETES_BIN";
/// Names a ready `kwok` binary instead of building one.
pub const KWOK_BIN: &str = "JOB_HANDLER_KWOK_BIN";
/// Names a folder that holds `job-handler-webhook` and `job-handler-sink` instead of building them.
pub const PAIR_BIN_DIR: &str = "JOB_HANDLER_BIN_DIR";

/// The Kubernetes release that is built; go.mod says the same.
const KUBERNETES_VERSION: &str = "v1.36.3";
/// The release of KWOK that plays the nodes.
const KWOK_VERSION: &str = "v0.8.0";

/// Where the programs of a cluster are.
#[derive(Clone, Debug)]
pub struct ClusterPrograms {
    /// All components of the control plane and kubectl, chosen by the first argument.
    pub kubernetes: PathBuf,
    /// The simulated nodes.
    pub kwok: PathBuf,
}

/// Finds or builds the programs of a cluster. The first build takes minutes and says so.
///
/// # Errors
/// If `go` is missing or a build fails.
pub fn cluster_programs() -> Result<ClusterPrograms> {
    Ok(ClusterPrograms {
        kubernetes: match named(KUBERNETES_BIN)? {
            Some(path) => path,
            None => kubernetes()?,
        },
        kwok: match named(KWOK_BIN)? {
            Some(path) => path,
            None => kwok()?,
        },
    })
}

/// Finds or builds the pair, and returns the folder that holds both programs. Once per process: what is
/// edited while a test runs does not get into the middle of it.
///
/// # Errors
/// If the build fails.
pub fn pair_programs() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock();
    if let Some(folder) = &*built {
        return Ok(folder.clone());
    }
    let folder = build_pair()?;
    *built = Some(folder.clone());
    Ok(folder)
}

fn build_pair() -> Result<PathBuf> {
    if let Some(folder) = named(PAIR_BIN_DIR)? {
        return Ok(folder);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let release = !cfg!(debug_assertions);
    let mut command = Command::new(cargo);
    command.current_dir(&root).args(["build", "--message-format=json-render-diagnostics"]);
    command.args(["-p", "job-handler-webhook", "-p", "job-handler-sink", "--bins"]);
    if release {
        command.arg("--release");
    }
    // Set by an enclosing `cargo run` or `cargo test` for its own package; a nested build must not see it.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CARGO_PKG_") || key == "CARGO_MANIFEST_DIR" {
            command.env_remove(key);
        }
    }
    let messages = watched::run(command, "the pair (job-handler-webhook, job-handler-sink)", "")?;
    executables(&messages)
        .find_map(|path| path.parent().map(Path::to_path_buf))
        .ok_or_else(|| Error::Invalid("cargo built the pair but named no executable".to_owned()))
}

/// The executables that cargo's JSON messages name.
fn executables(messages: &str) -> impl Iterator<Item = PathBuf> + '_ {
    messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    })
}

/// Finds or builds the receiver of CloudEvents (`e2e/cloudevents`, on the official Go SDK).
///
/// # Errors
/// If `go` is missing or the build fails.
pub fn event_receiver() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cloudevents");
    let key = cache::digest(&source, &[])?;
    cache::build_once(&format!("cloudevents-{key}"), "receiver", |target| {
        let mut command = go()?;
        command.current_dir(&source).env("GOWORK", "off");
        command.args(["build", "-v", "-buildvcs=false", "-ldflags", "-s -w", "-o"]).arg(target).arg(".");
        watched::run(command, "the receiver of CloudEvents", "under a minute, once").map(drop)
    })
}

fn kubernetes() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes");
    let mut flags = vec!["-s -w".to_owned()];
    // Both: what the servers and what the clients say they are; else v0.0.0-master.
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", KUBERNETES_VERSION),
            ("gitMajor", "1"),
            ("gitMinor", "36"),
            ("gitTreeState", "clean"),
            ("gitCommit", "0000000"),
        ] {
            flags.push(format!("-X {package}.{name}={value}"));
        }
    }
    let flags = flags.join(" ");
    let key = cache::digest(&source, &[&flags])?;
    cache::build_once(&format!("kubernetes-{key}"), "kubernetes", |target| {
        let mut command = go()?;
        command.current_dir(&source).args(["build", "-v", "-buildvcs=false", "-ldflags", &flags, "-o"]);
        command.arg(target).arg(".");
        let what = format!("Kubernetes {KUBERNETES_VERSION}");
        watched::run(command, &what, "about 6 minutes on 2 cores, once").map(drop)
    })
}

fn kwok() -> Result<PathBuf> {
    cache::build_once(&format!("kwok-{KWOK_VERSION}"), "kwok", |target| {
        let folder = target.parent().unwrap_or(target);
        let bin = folder.join(format!("{}.bin", file_name(target)));
        let mut command = go()?;
        command.current_dir(folder).env("GOBIN", &bin).env("GOWORK", "off");
        command.args(["install", "-v", &format!("sigs.k8s.io/kwok/cmd/kwok@{KWOK_VERSION}")]);
        watched::run(command, &format!("KWOK {KWOK_VERSION}"), "about a minute, once")?;
        std::fs::rename(bin.join("kwok"), target).map_err(Error::io("taking the built kwok"))?;
        std::fs::remove_dir(&bin).map_err(Error::io("removing kwok's build folder"))
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    match path.canonicalize() {
        Ok(path) => Ok(Some(path)),
        Err(error) => Err(Error::io(format!("{variable} names {}", path.display()))(error)),
    }
}

fn go() -> Result<Command> {
    match Command::new("go").arg("version").output() {
        Ok(_) => Ok(Command::new("go")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::MissingTool(format!(
            "`go` is not on the PATH. The test cluster is built from the Kubernetes sources: install Go 1.26 \
             or newer (go.dev/dl, or your system's package `golang`), or name ready programs by {KUBERNETES_BIN} \
             and {KWOK_BIN}"
        ))),
        Err(error) => Err(Error::io("running `go version`")(error)),
    }
}
