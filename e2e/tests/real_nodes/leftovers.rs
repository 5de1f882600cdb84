//! Nothing of a node is left when its caller is killed. The caller is this test binary, which runs only [`a_caller`].

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use job_handler_e2e::{Cluster, ClusterOptions, wait_for};

use crate::fixture::{PATIENCE, scenario_without_cluster};

const CALLER: &str = "E2E_REAL_NODE_CALLER";

/// Not a test by itself: the other one starts it. Boots a cluster, prints its address and folder, and waits to be
/// killed.
#[tokio::test]
async fn a_caller() {
    if std::env::var_os(CALLER).is_none() {
        return;
    }
    let options = ClusterOptions { real_node: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await.unwrap();
    println!("\ncluster: {} {}", cluster.config().cluster_url.host().unwrap(), cluster.dir().display());
    std::future::pending::<()>().await;
}

#[test]
fn a_killed_caller_leaves_no_process_interface_cgroup_or_file() {
    scenario_without_cluster("leftovers", || async {
        let mut caller = Command::new(std::env::current_exe().unwrap())
            .args(["leftovers::a_caller", "--exact", "--nocapture"])
            .env(CALLER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(caller.stdout.take().unwrap()).lines().map_while(Result::ok);
        let started = lines.find_map(|line| line.strip_prefix("cluster: ").map(str::to_owned));
        let started = started.expect("the caller starts a cluster");
        let (address, folder) = started.split_once(' ').unwrap();
        let interface = format!("jh-e2e-{}", address.split('.').nth(2).unwrap());
        let id = caller.id();
        let before = leftovers(&interface, folder, id);
        assert_eq!(before.len(), 4, "this test sees what it looks for: {before:?}");

        caller.kill().unwrap();
        caller.wait().unwrap();
        let gone = async || match leftovers(&interface, folder, id) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        };
        wait_for(PATIENCE, "everything to be gone", gone).await.unwrap();
    });
}

/// What there is of a node.
fn leftovers(interface: &str, folder: &str, caller: u32) -> Vec<&'static str> {
    let any = |folder: &str, is: &dyn Fn(&Path) -> bool| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| is(&entry.path()))
    };
    let cgroup = format!("job-handler-e2e-node-{caller}-");
    let is_cgroup = |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with(&cgroup);
    let in_hierarchy = |path: &Path| any(&path.display().to_string(), &is_cgroup);
    let runs = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        // The shell that removes the folder names it, too, and may outlive it for a moment.
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(folder) && !line.contains("cleaner")
    };
    let found = [
        ("a process", any("/proc", &runs)),
        ("the interface", Path::new("/sys/class/net").join(interface).exists()),
        // In the only hierarchy of version 2, or in one of version 1.
        ("a cgroup", any("/sys/fs/cgroup", &|path| is_cgroup(path) || in_hierarchy(path))),
        ("the folder", Path::new(folder).exists()),
    ];
    found.into_iter().filter(|(_, exists)| *exists).map(|(name, _)| name).collect()
}
