//! The simulated nodes and KWOK's stages.

use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::harness::error::{Error, Result};
use crate::harness::kubeconfig::write_private;

/// KWOK's configuration: one file per group of stages.
const STAGES: [&str; 4] = [
    include_str!("../../kwok/options.yaml"),
    include_str!("../../kwok/node.yaml"),
    include_str!("../../kwok/pod-run.yaml"),
    include_str!("../../kwok/pod-end.yaml"),
];

/// Writes KWOK's configuration into a folder.
pub(super) fn write_stages(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("creating the folder for KWOK"))?;
    write_private(&folder.join("kwok.yaml"), &STAGES.join("\n---\n"))
}

/// Registers the nodes; KWOK reports them ready.
pub(super) async fn register(client: &kube::Client, count: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    for index in 0..count {
        let name = format!("node-{index}");
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            }},
        });
        let node: Node = serde_json::from_value(node)
            .map_err(|error| Error::Invalid(format!("the node {name} is not a valid node: {error}")))?;
        match nodes.create(&PostParams::default(), &node).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(Error::api(format!("registering {name}"))(error)),
        }
    }
    Ok(())
}

/// Whether all nodes are ready; the error has their number.
pub(super) async fn all_ready(client: &kube::Client, count: usize) -> Result<(), String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes.list(&kube::api::ListParams::default()).await.map_err(|error| error.to_string())?;
    let ready = list.items.iter().filter(|node| is_ready(node)).count();
    if ready >= count { Ok(()) } else { Err(format!("{ready} of {count} nodes are ready")) }
}

fn is_ready(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
