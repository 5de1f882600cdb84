//! Another mutating webhook changes the Job after ours, so that the apiserver calls ours again.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use job_handler_webhook::admission::{response::HttpReply, server::serve};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, batch::v1::Job};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, job, refusal, scenario};

/// The other webhook is called for Jobs with this label; the value selects what it changes.
const LABEL: &str = "other-webhook";

/// A webhook on a thread of its own.
struct OtherWebhook {
    port: u16,
    ca: String,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OtherWebhook {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = serve(listener, tls, |_, body, _| {
                    std::future::ready(HttpReply::json(answer(body.as_ref())))
                });
                let server = server.unwrap();
                let handle = server.handle();
                let running = actix_web::rt::spawn(server);
                // The sender sends or is dropped when the test ends.
                let _ = stopped.await;
                handle.stop(false).await;
                running.await.unwrap().unwrap();
            });
        });
        Self { port, ca: certified.cert.pem(), stop: Some(stop), thread: Some(thread) }
    }

    /// The apiserver calls webhooks in the order of their names; this one comes after ours.
    fn configuration(&self, name: &str, namespace: &str) -> MutatingWebhookConfiguration {
        let configuration = json!({
            "metadata": {"name": name},
            "webhooks": [{
                "name": "other-webhook.e2e.job-handler.io", "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "url": format!("https://127.0.0.1:{}/mutate", self.port), "caBundle": STANDARD.encode(&self.ca),
                },
                "rules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "objectSelector": {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]},
                "failurePolicy": "Fail", "sideEffects": "None", "reinvocationPolicy": "Never",
            }],
        });
        serde_json::from_value(configuration).unwrap()
    }
}

impl Drop for OtherWebhook {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn answer(review: &[u8]) -> Vec<u8> {
    let review: Value = serde_json::from_slice(review).unwrap();
    let patch = match review["request"]["object"]["metadata"]["labels"][LABEL].as_str() {
        Some("deadline") => json!([{"op": "add", "path": "/spec/activeDeadlineSeconds", "value": 9000}]),
        _ => {
            json!([{"op": "add", "path": "/metadata/annotations/e2e.job-handler.io~1other-webhook", "value": "changed"}])
        }
    };
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"], "allowed": true,
            "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string()),
        },
    });
    serde_json::to_vec(&answer).unwrap()
}

async fn wait_called(fixture: &Fixture, namespace: &str) {
    fixture
        .wait("the other webhook to be called", || async {
            let created = dry_run(fixture, namespace, "note").await.map_err(|error| error.to_string())?;
            let changed = annotation(&created, "e2e.job-handler.io/other-webhook") == "changed";
            if changed { Ok(()) } else { Err(format!("{:?}", created.annotations())) }
        })
        .await;
}

async fn dry_run(fixture: &Fixture, namespace: &str, change: &str) -> kube::Result<Job> {
    let labels: Vec<(&str, &str)> =
        [("id", "7")].into_iter().chain((!change.is_empty()).then_some((LABEL, change))).collect();
    let one = serde_json::from_value(job("dry-run", &labels, &[])).unwrap();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    fixture.jobs(namespace).create(&params, &one).await
}

#[test]
fn a_job_that_another_webhook_changes_after_us_is_stamped_once_and_within_its_maxima() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("other-webhook").await.unwrap();
        let spec = json!({
            "stamp": {
                "activeDeadlineSeconds": {"default": 1800, "max": 7200},
                "backoffLimit": {"default": 0}, "labels": {"team": "build"},
            },
            "group": {"type": "Labels", "labelKeys": ["id"]},
            "limits": [{"name": "few", "maxActiveJobs": 1}],
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        let other_webhook = OtherWebhook::start();
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(fixture.client());
        let name = format!("other-webhook-{}", ns.name());
        configurations
            .create(&PostParams::default(), &other_webhook.configuration(&name, &ns))
            .await
            .unwrap();
        wait_called(fixture, &ns).await;

        // A change of other fields does not change our stamps: the answer to the second call has no patch.
        let (unchanged, annotated) =
            (dry_run(fixture, &ns, "").await.unwrap(), dry_run(fixture, &ns, "note").await.unwrap());
        let ours = |job: &Job| -> BTreeMap<String, String> {
            let all = job.annotations().iter().filter(|(key, _)| key.starts_with("job-handler/"));
            all.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        assert_eq!(ours(&unchanged), ours(&annotated));
        assert_eq!(unchanged.spec.unwrap().active_deadline_seconds, Some(1800));

        // A value above a maximum is lowered, with one warning.
        let simulation = [("end", "Hang")];
        let made =
            fixture.create(&ns, &job("one", &[("id", "7"), (LABEL, "deadline")], &simulation)).await.unwrap();
        let stamped = annotation(&made, "job-handler/stamped").to_owned();
        assert_eq!(stamped.matches("activeDeadlineSeconds").count(), 1, "{stamped}");
        assert_eq!(stamped.matches("group").count(), 1, "{stamped}");
        let labels = made.labels().clone();
        assert_eq!((labels["team"].as_str(), labels.contains_key("job-handler/group")), ("build", true));
        let spec = made.spec.unwrap();
        assert_eq!((spec.active_deadline_seconds, spec.backoff_limit), (Some(7200), Some(0)), "{stamped}");

        // It took one slot.
        let two = job("two", &[("id", "8"), (LABEL, "deadline")], &simulation);
        let (code, message) = refusal(fixture.create(&ns, &two).await);
        assert!(code == 403 && message.contains("1 active jobs, max allowed: 1"), "{message}");
        configurations.delete(&name, &DeleteParams::default()).await.unwrap();
    });
}
