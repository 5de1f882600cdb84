//! The programs of a cluster: those that are installed in the right version, and one binary that is all others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::build::go::GoProgram;
use crate::build::{KUBERNETES_BIN, installed, named_by};
use crate::harness::error::Result;
use crate::harness::progress::print_line;

/// The release of Kubernetes that is built; `e2e/kubernetes/go.mod` pins it.
const KUBERNETES_VERSION: &str = "v1.36.3";
/// The components that can be left out of the binary, by the build tag `no_NAME`.
const COMPONENTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok"];

/// Where the programs of a cluster are.
#[derive(Clone, Debug)]
pub struct ClusterPrograms {
    /// By the name of the component.
    installed: BTreeMap<&'static str, PathBuf>,
    /// Is every other component, chosen by the first argument or by the name of a link.
    built: PathBuf,
}

impl ClusterPrograms {
    /// The executable of a component, and the argument that makes it that component.
    pub(crate) fn command<'a>(&'a self, component: &'a str) -> (&'a Path, Option<&'a str>) {
        match self.installed.get(component) {
            Some(path) => (path, None),
            None => (&self.built, Some(component)),
        }
    }
}

/// Finds or builds the programs of a cluster. The first build takes minutes and prints its progress.
///
/// # Errors
/// If `go` is missing or a build fails.
pub fn cluster_programs() -> Result<ClusterPrograms> {
    if let Some(built) = named_by(KUBERNETES_BIN)? {
        return Ok(ClusterPrograms { installed: BTreeMap::new(), built });
    }
    let installed = installed::find(&installed::folders(), installed::printed_version);
    for (name, path) in &installed {
        print_line(&format!("using the installed {name}, {}", path.display()));
    }
    let built = build(|component| !installed.contains_key(component))?;
    Ok(ClusterPrograms { installed, built })
}

/// Finds or builds a kubectl alone. The path is for a link named `kubectl`.
///
/// # Errors
/// As [`cluster_programs`].
pub(crate) fn kubectl() -> Result<PathBuf> {
    match named_by(KUBERNETES_BIN)? {
        Some(built) => Ok(built),
        None => build(|component| component == "kubectl"),
    }
}

fn build(includes: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let (built, left_out): (Vec<&str>, Vec<&str>) = COMPONENTS.iter().partition(|name| includes(name));
    let what = match built.as_slice() {
        _ if left_out.is_empty() => "Kubernetes and KWOK".to_owned(),
        [] => "node-logs".to_owned(),
        built => built.join(", "),
    };
    GoProgram {
        what: &what,
        duration: "4 to 9 minutes on 2 cores",
        module: "kubernetes",
        package: ".",
        program: "kubernetes",
        tags: left_out.iter().map(|name| format!("no_{}", name.replace('-', "_"))).collect(),
        variables: version_variables(),
    }
    .find_or_build()
}

/// What servers and clients say they are; without it, v0.0.0-master.
fn version_variables() -> Vec<String> {
    let version = [
        ("gitVersion", KUBERNETES_VERSION),
        ("gitMajor", "1"),
        ("gitMinor", "36"),
        ("gitTreeState", "clean"),
        ("gitCommit", "0000000"),
    ];
    ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .iter()
        .flat_map(|package| version.map(|(name, value)| format!("{package}.{name}={value}")))
        .collect()
}
