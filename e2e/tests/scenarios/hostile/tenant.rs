//! A user with the role `edit` in one namespace.

use job_handler_e2e::cluster::KubectlOutput;
use serde_json::Value;

use crate::fixtures::Fixture;

/// A user with the role `edit` in one namespace, and no other rights.
pub struct Tenant<'a> {
    fixture: &'a Fixture,
    namespace: String,
    impersonation: String,
}

impl<'a> Tenant<'a> {
    pub async fn new(fixture: &'a Fixture, namespace: &str) -> Self {
        let user = format!("tenant-of-{namespace}");
        let to = format!("--user={user}");
        let bind = ["create", "rolebinding", "tenant", "--clusterrole=edit", &to, "-n", namespace];
        fixture.cluster.kubectl(&bind).await.unwrap();
        let tenant = Self { fixture, namespace: namespace.to_owned(), impersonation: format!("--as={user}") };
        // The apiserver's cache of role bindings takes a moment.
        fixture
            .wait("the rights of the tenant", || async {
                let answer = tenant.kubectl(&["auth", "can-i", "create", "configmaps"], "").await;
                if answer.success { Ok(()) } else { Err(answer.stdout) }
            })
            .await;
        tenant
    }

    /// Runs kubectl as this user, in the namespace.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> KubectlOutput {
        let mut own = vec!["-n", &*self.namespace, &*self.impersonation];
        own.extend(arguments);
        self.fixture.cluster.try_kubectl(&own, input.as_bytes()).await.unwrap()
    }

    pub async fn create(&self, object: &Value) -> KubectlOutput {
        self.kubectl(&["create", "-f", "-"], &object.to_string()).await
    }

    pub async fn patch(&self, resource: &str, name: &str, change: &Value) -> KubectlOutput {
        self.kubectl(&["patch", resource, name, "--type=merge", "-p", &change.to_string()], "").await
    }
}

/// Fails unless the call was denied with this message.
pub fn assert_denied(what: &str, answer: &KubectlOutput, message: &str) {
    assert!(!answer.success && answer.stderr.contains(message), "{what}: {answer:?}");
}

/// Fails unless the call succeeded.
pub fn assert_allowed(what: &str, answer: &KubectlOutput) {
    assert!(answer.success, "{what}: {answer:?}");
}
