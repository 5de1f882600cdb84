//! The plugin stays small and portable: it links no server, no controller runtime and no object store.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::{fs, path::Path, process::Command};

const UNWANTED: [&str; 6] = [
    "actix-web",
    "kube-runtime",
    "object_store",
    "prometheus-client",
    "tracing-subscriber",
    "job-handler-sink",
];

#[test]
fn servers_controllers_and_object_stores_are_not_linked() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--package", env!("CARGO_PKG_NAME")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let packages: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(packages.contains(&"kube-client"), "{tree}");
    for unwanted in UNWANTED {
        assert!(!packages.contains(&unwanted), "{unwanted} is a dependency:\n{tree}");
    }
}

#[test]
fn the_sources_use_no_unix_api() {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for api in ["std::os::unix", "libc::", "signal::unix"] {
            assert!(!text.contains(api), "{} uses {api}", path.display());
        }
    }
}
