//! The playground.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use job_handler_e2e::wait_for;
use parking_lot::Mutex;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_playground_prints_its_kubeconfig_restarts_the_pair_and_ends_on_ctrl_c() {
    let mut playground = Command::new(env!("CARGO_BIN_EXE_playground"))
        .args(["--samples"])
        .env_remove("E2E_KUBECONFIG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = Arc::new(Mutex::new(String::new()));
    let (stderr, thread_errors) = (BufReader::new(playground.stderr.take().unwrap()), Arc::clone(&errors));
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            thread_errors.lock().push_str(&format!("{line}\n"));
        }
    });
    let mut lines = BufReader::new(playground.stdout.take().unwrap()).lines().map(Result::unwrap);
    let kubeconfig = lines.find_map(|line| line.strip_prefix("export KUBECONFIG=").map(PathBuf::from));
    let kubeconfig = kubeconfig.unwrap_or_else(|| panic!("{}", errors.lock()));
    let folder = kubeconfig.parent().unwrap().to_owned();

    let kubectl = |arguments: &[&str]| {
        let output =
            Command::new(folder.join("bin/kubectl")).args(arguments).env("KUBECONFIG", &kubeconfig).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let policies = kubectl(&["get", "clusterjobpolicies,jobpolicies", "-A", "-o", "name"]);
    for policy in ["job-handler-default", "gitops-hooks", "builds"] {
        assert!(policies.contains(policy), "{policies}");
    }

    let killed = process(&folder, "--replica=webhook-0").expect("the webhook runs");
    assert!(Command::new("kill").args(["-KILL", &killed.to_string()]).status().unwrap().success());
    wait_for(SOON, "the webhook to be restarted", || async {
        let errors = errors.lock().clone();
        let reported =
            errors.contains("webhook-0 ended (signal: 9 (SIGKILL))") && errors.contains("it is restarted");
        match process(&folder, "--replica=webhook-0") {
            Some(process) if process != killed && reported => Ok(()),
            other => Err(format!("{other:?}\n{errors}")),
        }
    })
    .await
    .unwrap();

    assert!(Command::new("kill").args(["-INT", &playground.id().to_string()]).status().unwrap().success());
    assert!(playground.wait().unwrap().success());
    let deleted = async || if folder.exists() { Err("its folder exists") } else { Ok(()) };
    wait_for(SOON, "the folder to be deleted", deleted).await.unwrap();
    assert_eq!(process(&folder, ""), None);
}

/// A process that has the folder and this argument in its command line.
fn process(folder: &Path, argument: &str) -> Option<u32> {
    let folder = folder.display().to_string();
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.ok()?.path();
        let line = String::from_utf8_lossy(&std::fs::read(path.join("cmdline")).ok()?).into_owned();
        let process = path.file_name()?.to_str()?.parse().ok()?;
        (line.contains(&folder) && line.contains(argument)).then_some(process)
    })
}
