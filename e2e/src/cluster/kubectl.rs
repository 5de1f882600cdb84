//! Runs `kubectl`.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};

/// The outcome of a `kubectl` call.
#[derive(Clone, Debug)]
pub struct KubectlOutput {
    /// Whether it exited with 0.
    pub success: bool,
    /// The exit status, for messages.
    pub status: String,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cluster {
    /// Runs `kubectl` as admin and returns its standard output.
    ///
    /// # Errors
    /// [`Error::Command`] with its standard error.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "").await
    }

    /// Like [`Cluster::kubectl`], with standard input (for `-f -`).
    ///
    /// # Errors
    /// [`Error::Command`] with its standard error.
    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.try_kubectl(arguments, input.as_bytes()).await?;
        if output.success {
            return Ok(output.stdout);
        }
        Err(Error::Command {
            command: format!("kubectl {}", arguments.join(" ")),
            status: output.status,
            stderr: output.stderr,
        })
    }

    /// Runs `kubectl` and returns its outcome, success or failure.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn try_kubectl(&self, arguments: &[&str], input: &[u8]) -> Result<KubectlOutput> {
        let output = self.kubectl_bytes(arguments, input).await?;
        Ok(KubectlOutput {
            success: output.status.success(),
            status: output.status.to_string(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `kubectl` and returns its output as bytes.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn kubectl_bytes(&self, arguments: &[&str], input: &[u8]) -> Result<std::process::Output> {
        let starting = || Error::io("running kubectl");
        let mut child = Command::new(self.kubectl_path())
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            // kubectl caches API resources per server address, and our addresses are reused.
            .env("KUBECACHEDIR", self.dir().join("kubectl-cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(starting())?;
        let stdin = child.stdin.take();
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A kubectl that reads nothing closes the pipe, which is not an error.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        output.map_err(starting())
    }
}
