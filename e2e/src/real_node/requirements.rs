//! What the machine must have for a real node.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Programs, each with its Debian package.
const PROGRAMS: [(&str, &str); 12] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("tar", "tar"),
];
const CNI_PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];
const CNI_PACKAGE: &str = "containernetworking-plugins";
/// Where Debian's package and the project's own archive put the plugins.
const CNI_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// What this machine lacks for a real node, with what to do; none if it lacks nothing.
pub fn missing_for_real_node() -> Option<String> {
    // The owner of a process's folder is its effective user.
    if !std::fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0) {
        return Some("run it as root".to_owned());
    }
    let mut packages: Vec<&str> =
        PROGRAMS.iter().filter(|(name, _)| program(name).is_none()).map(|(_, package)| *package).collect();
    if cni_folder().is_none() {
        packages.push(CNI_PACKAGE);
    }
    packages.dedup();
    if !packages.is_empty() {
        return Some(format!("install {} (names of Debian's packages)", packages.join(", ")));
    }
    let mut probe = Command::new("unshare");
    // As in most containers: root, but without the right to make namespaces.
    probe.args(["--fork", "--pid", "--mount", "--net", "--uts", "--ipc", "--mount-proc", "true"]);
    let output = probe.stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "run it where root may create namespaces ({})",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("run it where root may create namespaces ({error})")),
    }
}

/// The path of an installed program.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

/// The folder with the CNI plugins.
pub(super) fn cni_folder() -> Option<PathBuf> {
    let mut folders = CNI_FOLDERS.iter().map(PathBuf::from);
    folders.find(|folder| CNI_PLUGINS.iter().all(|plugin| folder.join(plugin).is_file()))
}
