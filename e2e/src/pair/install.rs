//! Applies `manifests/` to a cluster and changes nothing but the webhook's address.

use std::path::{Path, PathBuf};
use std::time::Duration;

use job_handler_shared::keys::{
    MUTATING_CONFIGURATION, MUTATING_WEBHOOK, NAMESPACE, SINK_ACCOUNT, WEBHOOK_ACCOUNT,
};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::kubeconfig::write_private;
use crate::harness::wait::wait_for;
use crate::net::metrics;

/// Lifetime of the programs' tokens, longer than any test or demo.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// Label of the ValidatingWebhookConfigurations for limits.
const LIMITS_LABEL: &str = "app.kubernetes.io/name=job-handler";

/// The installed manifests.
#[derive(Debug)]
pub(super) struct Installation {
    folder: PathBuf,
    /// Set on an existing cluster: how to uninstall.
    remove_with: Option<UninstallCommand>,
}

#[derive(Debug)]
struct UninstallCommand {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

/// Applies the local overlay with the webhook's address, and creates kubeconfigs with tokens of the two programs'
/// ServiceAccounts.
pub(super) async fn apply(cluster: &Cluster, url: &str) -> Result<Installation> {
    let folder = cluster.dir().join("pair");
    std::fs::create_dir_all(&folder).map_err(Error::io("creating the folder for the pair"))?;
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/local");
    let kustomization = kustomization(&folder, &overlay, url)?;
    write_private(&folder.join("kustomization.yaml"), &kustomization)?;
    // The namespace of an earlier run may still be terminating.
    wait_for(Duration::from_secs(60), "kubectl apply -k of the manifests", || async {
        match cluster.kubectl(&["apply", "-k", &folder.display().to_string()]).await {
            Err(error) if error.to_string().contains("is being terminated") => Err(error.to_string()),
            other => Ok(other),
        }
    })
    .await??;
    let crds = [
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
        "-l",
        "app.kubernetes.io/part-of=job-handler",
    ];
    cluster.kubectl(&crds).await?;
    let installed = Installation {
        folder,
        remove_with: (!cluster.is_own()).then(|| UninstallCommand {
            kubectl: cluster.kubectl_path().to_owned(),
            kubeconfig: cluster.kubeconfig().to_owned(),
        }),
    };
    for account in [WEBHOOK_ACCOUNT, SINK_ACCOUNT] {
        let token = token(cluster, account).await?;
        let kubeconfig = with_token(cluster.kubeconfig(), &token)?;
        write_private(&installed.kubeconfig(account), &kubeconfig)?;
    }
    Ok(installed)
}

impl Installation {
    /// The folder with kubeconfigs and sockets.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kubeconfig with the rights of a ServiceAccount.
    pub(super) fn kubeconfig(&self, account: &str) -> PathBuf {
        self.folder.join(format!("{account}.kubeconfig"))
    }
}

/// Waits until the API server calls the webhook and gets an answer. It loads a webhook configuration with a delay,
/// and ignores failures by failurePolicy.
pub(super) async fn wait_called(cluster: &Cluster, within: Duration) -> Result<()> {
    let probe = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"generateName": "is-the-webhook-called-", "namespace": "default"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}],
        }}},
    })
    .to_string();
    wait_for(within, "the API server to call the webhook", || async {
        let before = calls(cluster).await?;
        let create = ["create", "--dry-run=server", "-f", "-", "-o", "name"];
        cluster.kubectl_with_input(&create, &probe).await.map_err(|error| error.to_string())?;
        let after = calls(cluster).await?;
        match (after.answered > before.answered, after.failed > before.failed) {
            (_, true) => Err(format!("calls fail, ignored by failurePolicy; {}", last_failure(cluster))),
            (false, _) => Err("not called yet".to_owned()),
            (true, false) => Ok(()),
        }
    })
    .await
}

impl Drop for Installation {
    fn drop(&mut self) {
        let Some(UninstallCommand { kubectl, kubeconfig }) = &self.remove_with else { return };
        let delete = |what: &[&std::ffi::OsStr]| {
            let mut command = std::process::Command::new(kubectl);
            command
                .args(["delete", "--ignore-not-found", "--wait=false"])
                .args(what)
                .env("KUBECONFIG", kubeconfig);
            command.output().is_ok_and(|output| output.status.success())
        };
        // The configurations for limits first: without the pair they would refuse every Job under a limit.
        let limits = ["validatingwebhookconfigurations".as_ref(), "-l".as_ref(), LIMITS_LABEL.as_ref()];
        if !(delete(&limits) && delete(&["-k".as_ref(), self.folder.as_os_str()])) {
            crate::harness::progress::print_line(&format!(
                "could not uninstall job-handler from the cluster; run:\n\
                 kubectl delete validatingwebhookconfigurations -l {LIMITS_LABEL}\n\
                 kubectl delete -k manifests/base"
            ));
        }
    }
}

/// The API server's log line about the last failed call.
fn last_failure(cluster: &Cluster) -> String {
    let log = std::fs::read_to_string(cluster.dir().join("logs/kube-apiserver.log")).unwrap_or_default();
    let mut failures = log.lines().filter(|line| line.contains("ailed calling webhook"));
    failures.next_back().unwrap_or("its log has no reason").to_owned()
}

/// The number of calls of our mutating webhook by the API server.
struct WebhookCalls {
    answered: f64,
    failed: f64,
}

async fn calls(cluster: &Cluster) -> Result<WebhookCalls, String> {
    let text = cluster.kubectl(&["get", "--raw", "/metrics"]).await.map_err(|error| error.to_string())?;
    let webhook = format!("name=\"{MUTATING_WEBHOOK}\"");
    let sum = |metric: &str| metrics::sum(&text, metric, &[&webhook]);
    Ok(WebhookCalls {
        answered: sum("apiserver_admission_webhook_admission_duration_seconds_count"),
        failed: sum("apiserver_admission_webhook_fail_open_count"),
    })
}

/// The kustomization on top of the local overlay.
fn kustomization(folder: &Path, overlay: &Path, url: &str) -> Result<String> {
    let absolute =
        |path: &Path| path.canonicalize().map_err(Error::io(format!("looking for {}", path.display())));
    let (folder, overlay) = (absolute(folder)?, absolute(overlay)?);
    // kustomize does not accept absolute paths.
    let up: PathBuf = folder.components().skip(1).map(|_| "..").collect();
    let base = up.join(overlay.strip_prefix("/").unwrap_or(&overlay));
    // One webhook is for creates, one for updates.
    let patches: String = [0, 1]
        .map(|n| {
            format!(
                "\x20   - {{op: remove, path: /webhooks/{n}/clientConfig/service}}\n\
                 \x20   - {{op: add, path: /webhooks/{n}/clientConfig/url, value: '{url}'}}\n"
            )
        })
        .concat();
    Ok(format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: ['{}']\npatches:\n\
         - target: {{kind: MutatingWebhookConfiguration, name: {MUTATING_CONFIGURATION}}}\n  patch: |\n\
         {patches}",
        base.display()
    ))
}

async fn token(cluster: &Cluster, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(Error::api(format!("a token for the ServiceAccount {account}")))?;
    answer
        .status
        .map(|status| status.token)
        .ok_or_else(|| Error::Invalid(format!("the token request for {account} came back without a token")))
}

/// A copy of a kubeconfig that authenticates with a token.
fn with_token(kubeconfig: &Path, token: &str) -> Result<String> {
    let text = std::fs::read_to_string(kubeconfig)
        .map_err(Error::io(format!("reading {}", kubeconfig.display())))?;
    let wrong = |what: &str| Error::Invalid(format!("{}: {what}", kubeconfig.display()));
    let config: Value = serde_norway::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
    let named = |list: &str, name: &Value| {
        config[list].as_array().into_iter().flatten().find(|entry| entry["name"] == *name).cloned()
    };
    let context =
        named("contexts", &config["current-context"]).ok_or_else(|| wrong("it has no current context"))?;
    let mut cluster = named("clusters", &context["context"]["cluster"])
        .ok_or_else(|| wrong("its context has no cluster"))?;
    if let Some(file) = cluster["cluster"]["certificate-authority"].as_str() {
        // Relative to the kubeconfig; the copy is in another folder.
        let file = kubeconfig.parent().unwrap_or(Path::new("/")).join(file);
        cluster["cluster"]["certificate-authority"] = file.display().to_string().into();
    }
    cluster["name"] = "e2e".into();
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "e2e", "clusters": [cluster],
        "users": [{"name": "e2e", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
    })
    .to_string())
}
