//! `kubectl job-results`, for a user who may only read ConfigMaps.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use job_handler_e2e::build::pair_programs;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::fixtures::{Fixture, job, scenario};

/// A user with a kubeconfig and the plugin on the PATH.
pub struct PluginUser {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    path: String,
}

impl PluginUser {
    /// A user with the rights `rules` in a namespace.
    pub async fn new(fixture: &Fixture, ns: &str, rules: Value) -> Self {
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "plugin-user", "namespace": ns}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
             "metadata": {"name": "plugin-user", "namespace": ns}, "rules": rules},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
             "metadata": {"name": "plugin-user", "namespace": ns},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "plugin-user"},
             "subjects": [{"kind": "ServiceAccount", "name": "plugin-user", "namespace": ns}]},
        ]});
        let cluster = &fixture.cluster;
        cluster.kubectl_with_input(&["apply", "-f", "-"], &objects.to_string()).await.unwrap();
        let folder = cluster.dir().join(format!("plugin-user-{ns}"));
        std::fs::create_dir_all(&folder).unwrap();
        let kubeconfig = folder.join("kubeconfig");
        let config = cluster.kubectl(&["config", "view", "--raw", "--flatten", "--minify"]).await.unwrap();
        std::fs::write(&kubeconfig, config).unwrap();
        let token = cluster.kubectl(&["create", "token", "plugin-user", "-n", ns]).await.unwrap();
        let file = format!("--kubeconfig={}", kubeconfig.display());
        let credentials = format!("--token={}", token.trim());
        cluster.kubectl(&["config", &file, "set-credentials", "plugin-user", &credentials]).await.unwrap();
        let namespace = format!("--namespace={ns}");
        cluster
            .kubectl(&["config", &file, "set-context", "--current", "--user=plugin-user", &namespace])
            .await
            .unwrap();
        let plugin = folder.join("kubectl-job_results");
        std::os::unix::fs::symlink(pair_programs().unwrap().join("kubectl-job_results"), &plugin).unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let user = Self { kubectl: cluster.kubectl_path().to_owned(), kubeconfig, path };
        // Completion is set up as the plugin's help describes.
        let script = user.ok(&["job-results", "completion", "kubectl"]).await;
        install(&folder.join("kubectl_complete-job_results"), &script);
        user
    }

    pub async fn kubectl(&self, words: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(&self.kubectl);
        command.args(words).env("KUBECONFIG", &self.kubeconfig).env("PATH", &self.path);
        command.kill_on_drop(true).output().await.unwrap()
    }

    /// A user who may only read results in ConfigMaps.
    pub async fn reader(fixture: &Fixture, ns: &str) -> Self {
        Self::new(
            fixture,
            ns,
            json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]),
        )
        .await
    }

    /// Standard output and standard error of a successful call.
    pub async fn output_and_errors(&self, words: &[&str]) -> (String, String) {
        let output = self.kubectl(words).await;
        assert!(output.status.success(), "kubectl {words:?}: {output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub async fn ok(&self, words: &[&str]) -> String {
        let output = self.kubectl(words).await;
        assert!(output.status.success(), "kubectl {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a failing call.
    pub async fn fails(&self, words: &[&str]) -> String {
        let output = self.kubectl(words).await;
        assert_eq!(output.status.code(), Some(1), "kubectl {words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn install(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn results_can_be_read_through_kubectl_with_the_right_to_read_config_maps() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("read").await.unwrap();
        let logs = json!({"maxBytesPerContainer": "3Mi", "maxBytesPerJob": "4Mi"});
        fixture.apply_policy(&ns, "results", json!({"results": {"logs": logs}})).await;
        let with_escapes =
            [("run", "200ms"), ("exit-code", "3"), ("log", "\u{1b}[31mred\u{1b}[0m\ncannot go on\n")];
        let mut failing = job("failing", &[], &with_escapes);
        failing["spec"]["backoffLimit"] = json!(0);
        fixture.create(&ns, &failing).await.unwrap();
        fixture.create(&ns, &job("large", &[], &[("run", "200ms"), ("log-bytes", "2Mi")])).await.unwrap();
        let mut again = job("again", &[], &[("run", "200ms"), ("restarts", "1"), ("log", "it runs\n")]);
        again["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
        fixture.create(&ns, &again).await.unwrap();
        for name in ["failing", "large", "again"] {
            fixture.wait_result(&ns, name).await;
        }

        let user = PluginUser::reader(fixture, &ns).await;
        let listed = user.ok(&["job-results", "list", "--sort-by", "name"]).await;
        let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows[0],
            ["NAME", "OUTCOME", "REASON", "DURATION", "FINISHED", "SIZE", "LOST", "TRUNCATED"]
        );
        assert_eq!(&rows[1][..2], ["again", "completed"]);
        assert_eq!(&rows[2][..3], ["failing", "failed", "BackoffLimitExceeded"]);
        let failed = user.ok(&["job-results", "list", "--outcome=failed", "-o", "name"]).await;
        assert_eq!(failed, "configmap/failing-results\n");

        let shown = user.ok(&["job-results", "show", "failing"]).await;
        assert!(shown.contains("Outcome:    Failed (BackoffLimitExceeded), cause: error"), "{shown}");
        assert!(shown.contains("exit code 3") && !shown.contains('\u{1b}'), "{shown}");
        let escaped = user.ok(&["job-results", "logs", "job/failing", "-c", "main"]).await;
        assert_eq!(escaped, "\\x1b[31mred\\x1b[0m\ncannot go on\n");
        let raw = user.ok(&["job-results", "logs", "failing", "-c", "main", "--raw"]).await;
        assert_eq!(raw, "\u{1b}[31mred\u{1b}[0m\ncannot go on\n");

        let shown: Value =
            serde_json::from_str(&user.ok(&["job-results", "show", "large", "-o", "json"]).await).unwrap();
        let log = &shown["pods"][0]["containers"][0]["logs"][0];
        let read = user.kubectl(&["job-results", "logs", "large", "--raw", "-c", "main"]).await;
        assert_eq!(read.stdout.len(), 2 << 20);
        assert_eq!(log["sha256"], format!("{:x}", Sha256::digest(&read.stdout)), "the log of the container");
        assert_eq!(user.ok(&["job-results", "logs", "again", "-c", "main"]).await, "attempt 2\nit runs\n");
        let before = user.ok(&["job-results", "logs", "again", "--previous"]).await;
        assert_eq!(before, "attempt 1\nit runs\n");

        let error = user.fails(&["job-results", "logs", "agian"]).await;
        assert!(error.contains("no result of Job agian in namespace"), "{error}");
        assert!(error.contains("the namespace has 3 results, of Jobs again"), "{error}");
        let error = user.fails(&["job-results", "list", "-n", "kube-system"]).await;
        assert!(error.contains("no right to list configmaps in namespace kube-system"), "{error}");
        let completions = user.ok(&["__complete", "job-results", "logs", ""]).await;
        assert!(completions.contains("again\tcompleted") && completions.contains("large\t"), "{completions}");
        let completions = user.ok(&["__complete", "job-results", "logs", "again", "-c", "m"]).await;
        assert!(completions.starts_with("main\n:4"), "{completions}");

        let edited = json!({"data": {"logs": "nothing happened\n"}});
        fixture.edit_past_admission_policy(&ns, "configmap/failing-results", &edited).await;
        let error = user.fails(&["job-results", "logs", "failing"]).await;
        assert!(error.contains("the digest doesn't match"), "{error}");
        // The user has no other rights.
        let can_list = user.kubectl(&["auth", "can-i", "list", "jobs"]).await;
        assert_eq!(String::from_utf8(can_list.stdout).unwrap().trim(), "no");
    });
}
