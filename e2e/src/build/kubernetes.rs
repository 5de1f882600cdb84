//! The programs of a cluster: those that are installed in the right version, and one binary for all others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::build::go::GoProgram;
use crate::build::{KUBERNETES_BIN, installed, named_by};
use crate::harness::error::Result;
use crate::harness::progress::print_line;

/// The release of Kubernetes that is built; `e2e/kubernetes/go.mod` pins it.
const KUBERNETES_VERSION: &str = "v1.36.3";
/// The components that can be left out of the binary, by the build tag `no_NAME`.
const COMPONENTS: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kwok",
    "kubelet",
    "kube-proxy",
];
/// Those of a real node, in a binary of their own: most machines never need them.
const OF_REAL_NODES: [&str; 2] = ["kubelet", "kube-proxy"];

/// Clients, controllers, nodes and command lines: what a request does not pass through in the API server.
const NOT_INLINED: [&str; 13] = [
    "k8s.io/cli-runtime/...",
    "k8s.io/client-go/...",
    "k8s.io/cloud-provider/...",
    "k8s.io/kubectl/...",
    "k8s.io/kubernetes/cmd/...",
    "k8s.io/kubernetes/pkg/controller/...",
    "k8s.io/kubernetes/pkg/generated/...",
    "k8s.io/kubernetes/pkg/kubelet/...",
    "k8s.io/kubernetes/pkg/proxy/...",
    "k8s.io/kubernetes/pkg/scheduler/...",
    "k8s.io/kubernetes/pkg/volume/...",
    "sigs.k8s.io/kustomize/...",
    "sigs.k8s.io/kwok/...",
];

/// The paths of the programs of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterPrograms {
    /// By the name of the component.
    installed: BTreeMap<&'static str, PathBuf>,
    /// The binary of all other components, which the first argument or the name of a link selects.
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
    let built = build(|component| !installed.contains_key(component) && !OF_REAL_NODES.contains(&component))?;
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

/// Finds or builds the binary that is kubelet and kube-proxy, by its first argument.
///
/// # Errors
/// As [`cluster_programs`].
pub(crate) fn node_binary() -> Result<PathBuf> {
    match named_by(KUBERNETES_BIN)? {
        Some(built) => Ok(built),
        None => build(|component| OF_REAL_NODES.contains(&component)),
    }
}

fn build(includes: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let (built, left_out): (Vec<&str>, Vec<&str>) = COMPONENTS.iter().partition(|name| includes(name));
    let what = match built.as_slice() {
        _ if left_out == OF_REAL_NODES => "Kubernetes and KWOK".to_owned(),
        [] => "node-logs".to_owned(),
        built => built.join(", "),
    };
    GoProgram {
        what: &what,
        duration: "4 to 6 minutes on 2 cores",
        module: "kubernetes",
        package: ".",
        program: "kubernetes",
        not_inlined: &NOT_INLINED,
        tags: left_out.iter().map(|name| format!("no_{}", name.replace('-', "_"))).collect(),
        variables: version_variables(),
    }
    .find_or_build()
}

/// The version that servers and clients report; the default is v0.0.0-master.
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
