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
    let told = Arc::new(Mutex::new(String::new()));
    let (errors, theirs) = (BufReader::new(playground.stderr.take().unwrap()), Arc::clone(&told));
    std::thread::spawn(move || {
        for line in errors.lines().map_while(Result::ok) {
            theirs.lock().push_str(&format!("{line}\n"));
        }
    });
    let mut lines = BufReader::new(playground.stdout.take().unwrap()).lines().map(Result::unwrap);
    let kubeconfig = lines.find_map(|line| line.strip_prefix("export KUBECONFIG=").map(PathBuf::from));
    let kubeconfig = kubeconfig.unwrap_or_else(|| panic!("{}", told.lock()));
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

    let died = process(&folder, "--replica=webhook-0").expect("the webhook runs");
    assert!(Command::new("kill").args(["-KILL", &died.to_string()]).status().unwrap().success());
    wait_for(SOON, "the webhook to be started again", || async {
        let told = told.lock().clone();
        let said =
            told.contains("webhook-0 ended (signal: 9 (SIGKILL))") && told.contains("it is started again");
        match process(&folder, "--replica=webhook-0") {
            Some(process) if process != died && said => Ok(()),
            other => Err(format!("{other:?}\n{told}")),
        }
    })
    .await
    .unwrap();

    assert!(Command::new("kill").args(["-INT", &playground.id().to_string()]).status().unwrap().success());
    assert!(playground.wait().unwrap().success());
    let gone = async || if folder.exists() { Err("its folder is there") } else { Ok(()) };
    wait_for(SOON, "nothing to be left", gone).await.unwrap();
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
