//! The pair as users install it: an image, `manifests/base` as it is, pods on a real node.

use std::path::Path;
use std::time::Duration;

use crate::build::{pair_programs, run_cancellable};
use crate::cluster::Cluster;
use crate::harness::error::Result;
use crate::pair::install::wait_called;
use crate::pair::installed_pair::wait_default_policy;
use crate::real_node::Image;

/// As `manifests/base/deployment.yaml` names it.
const IMAGE: &str = "job-handler:0.1.0";
const PROGRAMS: [&str; 2] = ["job-handler-webhook", "job-handler-sink"];

/// Builds an image of the pair from its programs, without a shell, imports it into the cluster's real node, applies
/// the base, and waits until the API server calls the webhook and the default policy is in force.
///
/// # Errors
/// If the cluster has no real node, a build or `kubectl apply` fails, or the pods do not become ready.
pub async fn install_in_pods(cluster: &Cluster) -> Result<()> {
    let node = cluster.real_node()?;
    let built = run_cancellable(pair_programs).await?;
    node.import(&Image {
        name: IMAGE,
        programs: PROGRAMS.map(|name| (built.join(name), format!("/usr/local/bin/{name}"))).to_vec(),
        links: Vec::new(),
        command: &[],
        user: "65532:65532",
    })?;
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base");
    cluster.kubectl(&["apply", "-k", &base.display().to_string()]).await?;
    let rollout =
        ["-n", "job-handler-system", "rollout", "status", "deployment/job-handler", "--timeout=180s"];
    cluster.kubectl(&rollout).await?;
    wait_called(cluster, Duration::from_secs(120)).await?;
    wait_default_policy(cluster, Duration::from_secs(120)).await
}
