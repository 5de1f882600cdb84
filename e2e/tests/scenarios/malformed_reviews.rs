//! Malformed requests to the webhook: the answer names the error, without a panic or a hanging connection.

use std::net::{Ipv4Addr, SocketAddr};

use job_handler_e2e::{HttpsClient, pair::review_path};
use job_handler_shared::keys;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::fixtures::scenario;

#[test]
fn every_malformed_review_gets_a_clear_answer_and_the_webhook_keeps_running() {
    scenario(|fixture| async move {
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), "job-handler-system");
        let ca = secrets.get("job-handler-ca").await.unwrap().data.unwrap()["ca.crt"].0.clone();
        let port = fixture.pair.webhook(0).port();
        let webhook = HttpsClient::new(ca, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let other =
            r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#;
        let table: [(&str, Vec<u8>); 6] = [
            ("not JSON", b"stamp me".to_vec()),
            ("empty", Vec::new()),
            ("no request", br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#.to_vec()),
            ("wrong apiVersion", other.as_bytes().to_vec()),
            ("deep nesting", deep.into_bytes()),
            ("over 8 MiB", vec![b' '; 9 << 20]),
        ];
        for endpoint in [keys::MUTATE_PATH, keys::VALIDATE_PATH] {
            for (name, body) in &table {
                let path = review_path(fixture.client(), endpoint).await.unwrap();
                let answer = webhook.post(&path, body.clone()).await.unwrap();
                assert!([400, 413].contains(&answer.status), "{name} at {path}: {answer:?}");
                assert!(!answer.body.trim().is_empty(), "{name} at {path}: the answer has no body");
            }
        }
        assert_eq!(fixture.pair.webhook(0).get("/healthz").await.unwrap().0, 200);
    });
}
