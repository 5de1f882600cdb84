//! Programs that are installed on this machine in a matching version, so that they need not be built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder that controller-runtime's envtest and its `setup-envtest` use for programs of the control plane.
const KUBEBUILDER_ASSETS: &str = "KUBEBUILDER_ASSETS";

/// A program that may be installed.
pub(super) struct Candidate {
    pub(super) name: &'static str,
    /// The arguments that print its version.
    version_arguments: &'static [&'static str],
    /// The prefix of the output if the version matches: the minor release that is built here.
    version: &'static str,
}

const CANDIDATES: [Candidate; 6] = [
    Candidate { name: "etcd", version_arguments: &["--version"], version: "etcd Version: 3.6." },
    Candidate { name: "kube-apiserver", version_arguments: &["--version"], version: "Kubernetes v1.36." },
    Candidate {
        name: "kube-controller-manager",
        version_arguments: &["--version"],
        version: "Kubernetes v1.36.",
    },
    Candidate { name: "kube-scheduler", version_arguments: &["--version"], version: "Kubernetes v1.36." },
    Candidate {
        name: "kubectl",
        version_arguments: &["version", "--client"],
        version: "Client Version: v1.36.",
    },
    Candidate { name: "kwok", version_arguments: &["--version"], version: "kwok version v0.8." },
];

/// Where programs are searched, in this order: the folder of envtest, then the PATH.
pub(super) fn folders() -> Vec<PathBuf> {
    let assets = std::env::var_os(KUBEBUILDER_ASSETS).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets.into_iter().chain(std::env::split_paths(&path)).collect()
}

/// Returns the first match of each program with a matching version, by name. `print_version` runs a program with
/// arguments; it returns nothing if there is no such program.
pub(super) fn find(
    folders: &[PathBuf],
    print_version: impl Fn(&Path, &[&str]) -> Option<String>,
) -> BTreeMap<&'static str, PathBuf> {
    let fits = |candidate: &Candidate, path: &Path| {
        let printed = print_version(path, candidate.version_arguments);
        printed.is_some_and(|printed| printed.trim_start().starts_with(candidate.version))
    };
    CANDIDATES
        .iter()
        .filter_map(|candidate| {
            let paths = folders.iter().map(|folder| folder.join(candidate.name));
            Some((candidate.name, paths.into_iter().find(|path| fits(candidate, path))?))
        })
        .collect()
}

/// Runs a program and returns the version that it prints.
pub(super) fn printed_version(program: &Path, arguments: &[&str]) -> Option<String> {
    if !program.is_file() {
        return None;
    }
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Finds programs among (path, what it prints).
    fn found(programs: &[(&str, &str)]) -> Vec<(&'static str, PathBuf)> {
        let printed = |path: &Path, _: &[&str]| {
            programs
                .iter()
                .find(|(program, _)| Path::new(program) == path)
                .map(|(_, text)| (*text).to_owned())
        };
        find(&["/assets".into(), "/bin".into()], printed).into_iter().collect()
    }

    #[test]
    fn nothing_is_found_where_nothing_is_installed() {
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn the_first_program_of_a_version_that_fits_is_found() {
        let programs = [
            ("/assets/etcd", "etcd Version: 3.5.21\nGit SHA: a17edfd\n"),
            ("/bin/etcd", "etcd Version: 3.6.8\nGit SHA: Not provided\n"),
            ("/assets/kube-apiserver", "Kubernetes v1.36.0\n"),
            ("/bin/kube-apiserver", "Kubernetes v1.36.3\n"),
            ("/bin/kube-scheduler", "Kubernetes v1.35.2\n"),
            ("/bin/kubectl", "Client Version: v1.36.3\nKustomize Version: v5.8.1\n"),
            ("/bin/kwok", "kwok version v0.8.0\n"),
        ];
        let expected = [
            ("etcd", "/bin/etcd"),
            ("kube-apiserver", "/assets/kube-apiserver"),
            ("kubectl", "/bin/kubectl"),
            ("kwok", "/bin/kwok"),
        ];
        assert_eq!(found(&programs), expected.map(|(name, path)| (name, PathBuf::from(path))));
    }

    #[test]
    fn a_version_is_not_taken_for_another_that_begins_alike() {
        assert_eq!(
            found(&[("/bin/etcd", "etcd Version: 3.60.1"), ("/bin/kwok", "kwok version v0.80.0")]),
            []
        );
    }

    #[test]
    fn programs_on_a_path_are_run_with_their_own_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let install = |name: &str, script: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        install("kubectl", r#"[ "$*" = "version --client" ] && echo "Client Version: v1.36.1""#);
        install("kube-scheduler", r#"[ "$*" = "--version" ] && echo "Kubernetes v1.36.3""#);
        install("etcd", "exit 1");
        // A folder with the name of a program.
        std::fs::create_dir(folder.path().join("kwok")).unwrap();
        let found = find(&["/nowhere".into(), folder.path().to_owned()], printed_version);
        assert_eq!(found.into_keys().collect::<Vec<_>>(), ["kube-scheduler", "kubectl"]);
    }
}
