//! The Secret and the MutatingWebhookConfiguration in an in-memory apiserver.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
pub use job_handler_shared::testing::apiserver::Apiserver;
use kube::Client;
use serde_json::{Value, json};

pub const SECRETS_PATH: &str = "/api/v1/namespaces/ns/secrets";
pub const SECRET_PATH: &str = "/api/v1/namespaces/ns/secrets/ca";
pub const CONFIGURATIONS: &str = "mutatingwebhookconfigurations";
pub const CONFIGURATION_PATH: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/job-handler";

/// An empty apiserver and a client of it.
pub fn start() -> (Apiserver, Client) {
    let apiserver = Apiserver::default();
    let client = apiserver.client();
    (apiserver, client)
}

/// Reads the two objects.
pub trait CertObjects {
    fn secret(&self) -> Option<Value>;
    fn configuration(&self) -> Option<Value>;

    /// One value of the Secret.
    fn secret_value(&self, key: &str) -> String {
        let secret = self.secret().expect("the Secret exists");
        String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap()
    }

    /// The PEM in the configuration's first caBundle.
    fn published(&self) -> Option<String> {
        let bundle = self.configuration()?["webhooks"][0]["clientConfig"]["caBundle"].as_str()?.to_owned();
        Some(String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap())
    }
}

impl CertObjects for Apiserver {
    fn secret(&self) -> Option<Value> {
        self.get("secrets", "ns", "ca")
    }

    fn configuration(&self) -> Option<Value> {
        self.get(CONFIGURATIONS, "", "job-handler")
    }
}

/// Waits until `condition` holds, at most ten seconds.
pub async fn until(apiserver: &Apiserver, what: &str, condition: impl Fn(&Apiserver) -> bool) {
    let poll = async {
        while !condition(apiserver) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), poll).await;
    waited.unwrap_or_else(|_| panic!("timed out waiting for {what}; writes: {:?}", apiserver.calls()));
}

/// A MutatingWebhookConfiguration as the base install has it, cut down.
pub fn configuration() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "job-handler"},
        "webhooks": [{
            "name": "stamp.job-handler.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"service": {"name": "job-handler", "namespace": "ns", "path": "/mutate"}},
        }],
    })
}
