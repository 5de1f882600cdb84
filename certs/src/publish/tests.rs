use job_handler_shared::testing::apiserver::Apiserver;

use super::*;

const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";
const NOW: u64 = 1_790_000_000;

fn configuration(bundles: &[Option<&str>]) -> MutatingWebhookConfiguration {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let webhooks: Vec<Value> = bundles
        .iter()
        .enumerate()
        .map(|(n, bundle)| {
            json!({
                "name": format!("w{n}.example"),
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {"url": "https://127.0.0.1", "caBundle": bundle.map(|b| STANDARD.encode(b))},
            })
        })
        .collect();
    serde_json::from_value(json!({"metadata": {"name": "c", "resourceVersion": "7"}, "webhooks": webhooks}))
        .unwrap()
}

#[test]
fn the_patch_has_only_differences_and_tests_the_revision() {
    assert_eq!(patch_for(&configuration(&[Some("ca")]), "ca", None), None);
    let patch = patch_for(&configuration(&[None, Some("ca"), Some("old")]), "ca", None).unwrap();
    assert_eq!(
        patch,
        json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "Y2E="},
            {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "Y2E="},
        ])
    );
    let patch = patch_for(&configuration(&[Some("ca")]), "ca", Some("s")).unwrap();
    assert_eq!(
        patch[1],
        json!({"op": "add", "path": "/webhooks/0/clientConfig/url", "value": "https://127.0.0.1/s/mutate"})
    );
}

/// A configuration of two webhooks behind a Service, and a publisher of it.
struct PublisherFixture {
    server: Apiserver,
    publisher: Publisher,
    keys: Vec<PathKey>,
}

impl PublisherFixture {
    fn new() -> Self {
        let server = Apiserver::default();
        let webhook = |name: &str| {
            json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": "job-handler", "namespace": "ns"}}})
        };
        let webhooks = [webhook("creates.example"), webhook("updates.example")];
        server.put(MUTATING, json!({"metadata": {"name": "job-handler"}, "webhooks": webhooks}));
        let publisher = Publisher::new(server.client(), "job-handler");
        Self { server, publisher, keys: vec![PathKey::derived_from(b"ca")] }
    }

    async fn publish(&self, now: u64, replace: bool) -> Publication {
        let plan = PathPlan { keys: self.keys.clone(), replace, now };
        self.publisher.publish_with_path("ca", Some(plan), || {}).await.unwrap()
    }

    fn paths(&self) -> Vec<String> {
        let configuration = self.server.get(MUTATING, "", "job-handler").unwrap();
        let webhooks = configuration["webhooks"].as_array().unwrap().clone();
        let path = |webhook: Value| webhook["clientConfig"]["service"]["path"].as_str().unwrap().to_owned();
        webhooks.into_iter().map(path).collect()
    }

    /// Copies the path into a configuration of limits, as the sink does.
    fn copy_into(&self, name: &str) {
        let path = webhook_address::with_endpoint(&self.paths()[0], keys::VALIDATE_PATH);
        let client = json!({"service": {"name": "job-handler", "namespace": "ns", "path": path}});
        let entry = json!({"name": "p.example", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": client});
        self.server.put(VALIDATING, json!({"metadata": {"name": name}, "webhooks": [entry]}));
    }
}

#[tokio::test]
async fn all_webhooks_get_the_same_path_and_keep_it() {
    let cluster = PublisherFixture::new();
    let first = cluster.publish(NOW, false).await;
    let numbers = PathNumbers { number: NOW, oldest: NOW };
    assert_eq!(first, Publication { wrote: true, path: Some(numbers), ..Publication::default() });
    let expected = format!("/{}/mutate", cluster.keys[0].secret(numbers));
    assert_eq!(cluster.paths(), [expected.as_str(), expected.as_str()]);
    let again = cluster.publish(NOW + 1000, false).await;
    assert_eq!(again, Publication { path: Some(numbers), ..Publication::default() });
}

#[tokio::test]
async fn a_path_is_replaced_once_the_limits_have_it() {
    let cluster = PublisherFixture::new();
    cluster.server.put(VALIDATING, json!({"metadata": {"name": "of-somebody-else"}, "webhooks": []}));
    cluster.publish(NOW, false).await;
    for name in ["job-handler-limits", "job-handler-limits-1"] {
        cluster.copy_into(name);
    }
    let second = cluster.publish(NOW, true).await;
    let numbers = PathNumbers { number: NOW + 1, oldest: NOW };
    assert_eq!(
        second,
        Publication { wrote: true, path: Some(numbers), ..Publication::default() },
        "the clock stands still"
    );
    // The sink is away, and then has changed one of two configurations.
    for _ in 0..2 {
        let third = cluster.publish(NOW + 500, true).await;
        assert_eq!(third, Publication { path: Some(numbers), postponed: true, ..Publication::default() });
        cluster.copy_into("job-handler-limits");
    }
    cluster.copy_into("job-handler-limits-1");
    let third = cluster.publish(NOW + 500, true).await;
    assert_eq!(third.path, Some(PathNumbers { number: NOW + 500, oldest: NOW + 1 }));
}

/// The webhook has 256 MiB, and each configuration up to 512 KiB. Those of others are none of its business.
#[tokio::test]
async fn the_limits_are_read_one_by_one_and_by_name() {
    let cluster = PublisherFixture::new();
    cluster.publish(NOW, false).await;
    cluster.copy_into("job-handler-limits-old");
    cluster.copy_into("job-handler-limits-63");
    let second = cluster.publish(NOW + 100, true).await;
    assert_eq!((second.wrote, second.postponed), (true, false));
    let third = cluster.publish(NOW + 200, true).await;
    assert!(third.postponed, "the last configuration has the first path");
    cluster.copy_into("job-handler-limits-63");
    let third = cluster.publish(NOW + 300, true).await;
    assert_eq!((third.wrote, third.postponed), (true, false), "job-handler-limits-old is not ours");
    assert_eq!(cluster.server.lists(VALIDATING), 0);
}

#[tokio::test]
async fn a_path_that_somebody_removed_comes_back_and_the_limits_stay_accepted() {
    let mut cluster = PublisherFixture::new();
    cluster.publish(NOW, false).await;
    cluster.copy_into("job-handler-limits");
    let remove = |configuration: &mut Value| {
        configuration["webhooks"][0]["clientConfig"]["service"]["path"] = "/mutate".into();
    };
    cluster.server.change(MUTATING, "", "job-handler", remove);
    let restored = cluster.publish(NOW + 60, false).await;
    assert_eq!(restored.path, Some(PathNumbers { number: NOW + 60, oldest: NOW }));
    // So it is with a new CA: its key is another.
    cluster.copy_into("job-handler-limits");
    cluster.keys.insert(0, PathKey::derived_from(b"another ca"));
    let renewed = cluster.publish(NOW + 90, false).await;
    assert_eq!(renewed.path, Some(PathNumbers { number: NOW + 90, oldest: NOW + 60 }));
    assert!(renewed.older_key_in_use);
    cluster.copy_into("job-handler-limits");
    for replace in [false, true] {
        let next = cluster.publish(NOW + 120, replace).await;
        assert_eq!((next.wrote, next.postponed, next.older_key_in_use), (replace, false, false));
    }
}

#[tokio::test]
async fn only_a_missing_or_wrong_path_is_reported_as_a_difference() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let cluster = PublisherFixture::new();
    let differences = AtomicUsize::new(0);
    for (replace, expected) in [(false, 1), (true, 1), (true, 1)] {
        let plan = PathPlan { keys: cluster.keys.clone(), replace, now: NOW };
        let count = || _ = differences.fetch_add(1, Ordering::Relaxed);
        assert!(cluster.publisher.publish_with_path("ca", Some(plan), count).await.unwrap().wrote);
        assert_eq!(differences.load(Ordering::Relaxed), expected);
    }
}
