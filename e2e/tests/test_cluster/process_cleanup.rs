//! No process or file is left, however the caller ends. The caller is this test binary, which runs only [`a_caller`].

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use job_handler_e2e::{Cluster, ClusterOptions, wait_for};

const CALLER_END: &str = "E2E_LEFTOVERS_CALLER";
const SOON: Duration = Duration::from_secs(60);

/// Not a test by itself: the other tests start it. Boots a cluster, prints its folder, and ends as the variable says.
#[tokio::test]
async fn a_caller() {
    let Ok(end) = std::env::var(CALLER_END) else { return };
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    println!("\nfolder: {}", cluster.dir().display());
    assert_ne!(end, "panic", "as requested");
    if end == "return" {
        return;
    }
    std::future::pending::<()>().await;
}

/// Starts a caller and returns it with its cluster's folder, once the cluster runs, and with the pipe that it may still
/// write to.
fn start(end: &str) -> (Child, PathBuf, BufReader<ChildStdout>) {
    // A background job of a shell ignores Ctrl-C, and its children inherit that.
    let mut caller = Command::new("env")
        .arg("--default-signal=INT")
        .arg(std::env::current_exe().unwrap())
        .args(["process_cleanup::a_caller", "--exact", "--nocapture"])
        .env(CALLER_END, end)
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(caller.stdout.take().unwrap());
    let mut lines = output.by_ref().lines().map(Result::unwrap);
    let folder = lines.find_map(|line| line.strip_prefix("folder: ").map(PathBuf::from));
    (caller, folder.expect("the caller prints the folder of its cluster"), output)
}

/// The processes that have the folder in their command line.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().map(Result::unwrap);
    entries
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&folder))
        .collect()
}

async fn wait_cleaned_up(folder: &Path) {
    wait_for(SOON, "all processes and the folder to be removed", || async {
        let running = processes(folder);
        if running.is_empty() && !folder.exists() {
            Ok(())
        } else {
            Err(format!("{running:?} {}", folder.exists()))
        }
    })
    .await
    .unwrap();
}

async fn ends_by_signal(end: &str, signal: &str) {
    let (mut caller, folder, _output) = start(end);
    assert!(folder.exists() && processes(&folder).len() >= 6, "{:?}", processes(&folder));
    // To the process group, like a terminal on Ctrl-C.
    let group = format!("-{}", caller.id());
    assert!(Command::new("kill").args([signal, "--", &group]).status().unwrap().success());
    caller.wait().unwrap();
    wait_cleaned_up(&folder).await;
}

#[tokio::test]
async fn no_process_is_left_when_the_caller_is_killed() {
    ends_by_signal("wait", "-KILL").await;
}

#[tokio::test]
async fn no_process_is_left_when_the_caller_gets_ctrl_c() {
    ends_by_signal("wait", "-INT").await;
}

#[tokio::test]
async fn no_process_is_left_when_the_caller_panics() {
    let (mut caller, folder, _output) = start("panic");
    assert!(!caller.wait().unwrap().success());
    wait_cleaned_up(&folder).await;
}

#[tokio::test]
async fn no_process_is_left_when_the_caller_returns() {
    let (mut caller, folder, _output) = start("return");
    assert!(caller.wait().unwrap().success());
    wait_cleaned_up(&folder).await;
}
