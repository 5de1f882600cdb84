//! Generated files are what the code would write now.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::{env, fs, path::Path};

use job_handler_manifests::{UPDATE_COMMAND, crds};

#[test]
fn generated_files_are_up_to_date_and_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = env::var_os("UPDATE_MANIFESTS").is_some();
    let mut stale = Vec::new();
    for file in crds().unwrap() {
        let path = root.join(&file.path);
        if update {
            fs::write(&path, &file.text).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&file.text) {
            stale.push(file.path);
        }
    }
    assert!(stale.is_empty(), "not what the types say: {stale:?}. Rewrite them: {UPDATE_COMMAND}");

    // A CRD of a type that is gone must not stay behind, and each one has to be installed.
    let folder = root.join("crds");
    let mut found: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("crd-"))
        .collect();
    found.sort();
    let mut generated: Vec<String> =
        crds().unwrap().into_iter().map(|file| file.path.replace("crds/", "")).collect();
    generated.sort();
    assert_eq!(found, generated);
    let kustomization = fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    for file in generated {
        assert!(kustomization.contains(&file), "crds/kustomization.yaml does not list {file}");
    }
}
