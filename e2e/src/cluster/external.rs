//! Connects to an existing cluster.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use crate::build::{kubectl, run_cancellable};
use crate::cluster::options::E2E_KUBECONFIG;
use crate::cluster::test_cluster::{Cluster, link_kubectl, load};
use crate::harness::error::{Error, Result};
use crate::harness::process::TempFolder;

/// Connects to the cluster of a kubeconfig without starting anything. Uses `kubectl` from the PATH, or builds ours.
pub(super) async fn connect(kubeconfig: &Path) -> Result<Cluster> {
    let folder = TempFolder::new()?;
    std::fs::create_dir(folder.path().join("logs")).map_err(Error::io("creating the folder for logs"))?;
    let kubectl = match on_path("kubectl") {
        Some(path) => path,
        None => {
            let built = run_cancellable(kubectl).await?;
            link_kubectl(folder.path(), &built)?
        }
    };
    let kubeconfig = kubeconfig.canonicalize().map_err(Error::io(format!(
        "{} names {}",
        E2E_KUBECONFIG,
        kubeconfig.display()
    )))?;
    let config = load(&kubeconfig).await?;
    let cluster = Cluster { processes: HashMap::new(), layout: None, kubeconfig, kubectl, config, folder };
    cluster.wait_ready(Duration::from_secs(30)).await?;
    Ok(cluster)
}

/// The path of a program on the PATH.
pub fn on_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}
