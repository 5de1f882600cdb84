//! The key of the seal: a Secret in the namespace of job-handler. The first sink creates it; all others read it.
//!
//! If it is deleted, the next sink that starts creates another one. Results that were stored before have lost their seal
//! then: they stay and expire, but what they have not announced yet is not announced.

use std::time::Duration;

use job_handler_shared::{
    keys::SEAL_SECRET,
    kube::error::{ApiError, call},
    process::{admin::ReadyHandle, failure_log::FailureLog, jitter::jitter},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use ring::rand::{SecureRandom, SystemRandom};

use crate::result::seal::Seal;

/// Key in the Secret's data.
const DATA_KEY: &str = "key";
/// Length of the key: that of the HMAC (RFC 2104, section 3).
const KEY_BYTES: usize = 32;
/// Pause between two attempts.
const RETRY: Duration = Duration::from_secs(5);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
enum SealKeyError {
    /// A call failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The Secret has no valid key.
    #[error(
        "Secret {0}/{SEAL_SECRET} has no {DATA_KEY} of at least {KEY_BYTES} bytes; delete it, and the sink creates it again"
    )]
    Invalid(String),
    /// The operating system has no random bytes.
    #[error("the operating system provides no random bytes for the key of Secret {0}/{SEAL_SECRET}")]
    Random(String),
}

impl Seal {
    /// Reads the key, or creates it; retries until it has it.
    pub(crate) async fn load(&self, client: &Client, namespace: &str, ready: &ReadyHandle) {
        let mut failures = FailureLog::default();
        while !self.has_key() {
            match read_or_create(client, namespace).await {
                Ok(key) => self.set_key(&key),
                Err(error) => {
                    let error = error.to_string();
                    if failures.is_due(&error) {
                        tracing::warn!("no key to recognise results by: {error}; retrying");
                    }
                    ready.set_not_ready(error);
                    tokio::time::sleep(jitter(RETRY)).await;
                }
            }
        }
    }
}

async fn read_or_create(client: &Client, namespace: &str) -> Result<Vec<u8>, SealKeyError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("secret {namespace}/{SEAL_SECRET}");
    loop {
        if let Some(found) = call(&format!("get {name}"), api.get_opt(SEAL_SECRET)).await? {
            let key = found.data.and_then(|mut data| data.remove(DATA_KEY)).map(|key| key.0);
            let key = key.filter(|key| key.len() >= KEY_BYTES);
            return key.ok_or_else(|| SealKeyError::Invalid(namespace.to_owned()));
        }
        let mut key = vec![0; KEY_BYTES];
        SystemRandom::new().fill(&mut key).map_err(|_| SealKeyError::Random(namespace.to_owned()))?;
        match call(&format!("create {name}"), api.create(&PostParams::default(), &secret(&key))).await {
            Ok(_) => return Ok(key),
            // Another sink was faster.
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn secret(key: &[u8]) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(SEAL_SECRET.to_owned()), ..ObjectMeta::default() },
        data: Some([(DATA_KEY.to_owned(), ByteString(key.to_vec()))].into()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{process::admin::Readiness, testing::apiserver::Apiserver};
    use serde_json::json;

    use super::*;

    async fn load(apiserver: &Apiserver) -> Seal {
        let seal = Seal::default();
        seal.load(&apiserver.client(), "job-handler", &Readiness::default().register("results")).await;
        seal
    }

    fn sealed_by(seal: &Seal) -> ObjectMeta {
        let mut metadata = ObjectMeta::default();
        seal.put(&mut metadata);
        metadata
    }

    #[tokio::test]
    async fn sinks_that_start_together_share_one_key() {
        let apiserver = Apiserver::default();
        let seals = futures::future::join_all((0..4).map(|_| load(&apiserver))).await;
        assert_eq!(apiserver.all("secrets").len(), 1);
        let sealed = sealed_by(&seals[0]);
        assert!(seals.iter().all(|seal| seal.holds(&sealed)));
        assert!(load(&apiserver).await.holds(&sealed), "also after a restart");
        apiserver.remove("secrets", "job-handler", SEAL_SECRET);
        assert!(!load(&apiserver).await.holds(&sealed), "with a new key");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_key_is_not_used() {
        let apiserver = Apiserver::default();
        apiserver.put(
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": SEAL_SECRET, "namespace": "job-handler"}, "data": {DATA_KEY: "YQ=="}}),
        );
        let readiness = Readiness::default();
        let (seal, ready) = (Seal::default(), readiness.register("results"));
        let client = apiserver.client();
        let load = seal.load(&client, "job-handler", &ready);
        assert!(tokio::time::timeout(3 * RETRY, load).await.is_err() && !seal.has_key());
        let why = readiness.not_ready().concat();
        assert!(why.contains("at least 32 bytes") && why.contains("delete it"), "{why}");
        apiserver.remove("secrets", "job-handler", SEAL_SECRET);
        seal.load(&client, "job-handler", &ready).await;
        assert!(seal.has_key());
    }
}
