//! The variants of stamping that creates are measured with. Each has a namespace of its own.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use job_handler_shared::keys;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams, PropagationPolicy};
use kube::core::GroupVersionKind;
use kube::{Api, discovery::ApiResource};
use serde_json::{Value, json};

use crate::bench::server::{BenchServer, Handler};
use crate::bench::{native_policy, reviews};
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::net::metrics::sum;
use crate::pair::{Pair, PairOptions, patch_stamping_webhooks};

/// How Jobs are stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Not at all.
    Bare,
    /// By a `MutatingAdmissionPolicy`: CEL within the apiserver.
    Native,
    /// A webhook that allows every Job and changes nothing.
    Null,
    /// A webhook that always answers the same patch.
    SamePatch,
    /// Our webhook.
    Ours,
}

/// The programs that run for the variants.
pub struct VariantSetup {
    pub(super) pair: Pair,
    pub(super) null: BenchServer,
    pub(super) same_patch: BenchServer,
}

impl Variant {
    /// In the order of the tables.
    pub const ALL: [Self; 5] = [Self::Bare, Self::Native, Self::Null, Self::SamePatch, Self::Ours];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "no webhook",
            Self::Native => "native policy (CEL)",
            Self::Null => "null webhook",
            Self::SamePatch => "same patch",
            Self::Ours => "ours",
        }
    }

    /// Its namespace.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::Bare => "bench-bare",
            Self::Native => "bench-native",
            Self::Null => "bench-null",
            Self::SamePatch => "bench-same-patch",
            Self::Ours => "bench-ours",
        }
    }

    /// Whether its Jobs are stamped.
    pub fn stamps(self) -> bool {
        !matches!(self, Self::Bare | Self::Null)
    }

    /// The webhook's name in the apiserver's metrics.
    pub fn webhook(self) -> Option<&'static str> {
        match self {
            Self::Bare | Self::Native => None,
            Self::Null => Some("null.bench.job-handler.io"),
            Self::SamePatch => Some("same-patch.bench.job-handler.io"),
            Self::Ours => Some(keys::MUTATING_WEBHOOK),
        }
    }
}

/// Creates the namespaces, starts the servers, and waits until each variant is in force. `program` is `bench-all`.
///
/// # Errors
/// If something does not start, is refused or does not come into force.
pub async fn set_up(cluster: &Cluster, program: &Path) -> Result<VariantSetup> {
    for variant in Variant::ALL {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": variant.namespace()}});
        create(cluster, "", "v1", "Namespace", &namespace).await?;
    }
    // CRDs first: the apiserver then spends some seconds on its OpenAPI document.
    let pair =
        Pair::install(cluster, PairOptions { log: "warn".to_owned(), ..PairOptions::default() }).await?;
    stamp_only_our_namespace(cluster, &pair).await?;
    let null = BenchServer::start(program, Handler::Null, Variant::Null.namespace())?;
    let same_patch = BenchServer::start(program, Handler::SamePatch, Variant::SamePatch.namespace())?;
    for (variant, server) in [(Variant::Null, &null), (Variant::SamePatch, &same_patch)] {
        let configuration = webhook_configuration(variant, server);
        create(cluster, "admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", &configuration)
            .await?;
    }
    for (kind, object) in native_policy::objects(Variant::Native.namespace()) {
        create(cluster, "admissionregistration.k8s.io", "v1", kind, &object).await?;
    }
    for variant in Variant::ALL {
        wait_in_force(cluster, variant).await?;
    }
    Ok(VariantSetup { pair, null, same_patch })
}

/// How often the apiserver has called a webhook with success.
///
/// # Errors
/// If its metrics cannot be read.
pub async fn calls(cluster: &Cluster, webhook: &str) -> Result<u64> {
    let text = metrics(cluster).await?;
    let labels = [&format!("name=\"{webhook}\"") as &str, "code=\"200\""];
    Ok(sum(&text, "apiserver_admission_webhook_request_total", &labels) as u64)
}

/// The apiserver's metrics.
///
/// # Errors
/// If they cannot be read.
pub async fn metrics(cluster: &Cluster) -> Result<String> {
    let request = http::Request::get("/metrics")
        .body(Vec::new())
        .map_err(|error| Error::Invalid(format!("requesting metrics: {error}")))?;
    cluster.client().request_text(request).await.map_err(Error::api("reading the apiserver's metrics"))
}

/// Restricts our webhook to its namespace, and lets the apiserver call it directly instead of through the load
/// balancer. The rest of the configuration stays as in the manifests.
async fn stamp_only_our_namespace(cluster: &Cluster, pair: &Pair) -> Result<()> {
    let namespace = Variant::Ours.namespace();
    let mut policy = reviews::builds(namespace)?;
    // Without limits and backoff, which need a second call: only stamping is compared.
    policy.spec.policy.limits.clear();
    policy.spec.policy.failure_backoff = None;
    let policy =
        serde_json::to_value(policy).map_err(|error| Error::Invalid(format!("the policy: {error}")))?;
    create(cluster, keys::API_GROUP, keys::API_VERSION, "JobPolicy", &policy).await?;
    let url = url(pair.webhook(0).port());
    let fields = [("namespaceSelector", only(namespace)), ("clientConfig/url", url.into())];
    patch_stamping_webhooks(cluster.client(), &fields).await
}

fn webhook_configuration(variant: Variant, server: &BenchServer) -> Value {
    let name = variant.webhook().unwrap_or_default();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": url(server.address().port()), "caBundle": STANDARD.encode(server.ca())},
            "rules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}],
            "namespaceSelector": only(variant.namespace()),
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "timeoutSeconds": 2,
        }],
    })
}

/// With this address the apiserver speaks HTTP/1.1, as to a Service; to 127.0.0.1 or `localhost` it would speak HTTP/2
/// (`k8s.io/apiserver/pkg/util/webhook/client.go`, `isLocalHost`). A connection to 0.0.0.0 goes to this machine.
fn url(port: u16) -> String {
    url_at(port, "mutate")
}

pub(super) fn url_at(port: u16, path: &str) -> String {
    format!("https://{}:{port}/{path}", Ipv4Addr::UNSPECIFIED)
}

fn only(namespace: &str) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}})
}

/// Waits until a create shows the variant's effect.
async fn wait_in_force(cluster: &Cluster, variant: Variant) -> Result<()> {
    let jobs = api(cluster, "batch", "v1", "Job", Some(variant.namespace()));
    let probe = |n: u32| reviews::job(variant.namespace(), &format!("probe-{n}"));
    let mut n = 0;
    wait_for(Duration::from_secs(60), &format!("{} to be in force", variant.name()), || {
        n += 1;
        let (jobs, probe) = (jobs.clone(), probe(n));
        async move {
            let before = match variant.webhook() {
                Some(webhook) => calls(cluster, webhook).await.map_err(|error| error.to_string())?,
                None => 0,
            };
            let probe: DynamicObject = serde_json::from_value(probe).map_err(|error| error.to_string())?;
            let job = jobs.create(&PostParams::default(), &probe).await.map_err(|error| error.to_string())?;
            if variant.stamps() {
                let job = serde_json::to_value(job).map_err(|error| error.to_string())?;
                reviews::ensure_stamped(&job).map_err(|error| error.to_string())?;
            }
            if let Some(webhook) = variant.webhook() {
                let after = calls(cluster, webhook).await.map_err(|error| error.to_string())?;
                if after == before {
                    return Err(format!("the apiserver has not called {webhook}"));
                }
            }
            Ok(())
        }
    })
    .await
}

/// Deletes all Jobs of a namespace, their pods in the background.
pub(super) async fn delete_jobs(cluster: &Cluster, namespace: &str) -> Result<()> {
    let params =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    let jobs = api(cluster, "batch", "v1", "Job", Some(namespace));
    jobs.delete_collection(&params, &ListParams::default())
        .await
        .map(drop)
        .map_err(Error::api("deleting the Jobs"))
}

pub(super) async fn create(
    cluster: &Cluster,
    group: &str,
    version: &str,
    kind: &str,
    object: &Value,
) -> Result<()> {
    let namespace = object["metadata"]["namespace"].as_str();
    let what = format!("creating the {kind} {}", object["metadata"]["name"]);
    let object =
        serde_json::from_value(object.clone()).map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
    let api = api(cluster, group, version, kind, namespace);
    api.create(&PostParams::default(), &object).await.map(drop).map_err(Error::api(what))
}

pub(super) fn api(
    cluster: &Cluster,
    group: &str,
    version: &str,
    kind: &str,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let resource = match kind {
        // kube guesses the plural by appending an s.
        "MutatingAdmissionPolicy" | "JobPolicy" => {
            let plural = format!("{}ies", kind.to_lowercase().trim_end_matches('y'));
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural)
        }
        _ => ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)),
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(cluster.client(), namespace, &resource),
        None => Api::all_with(cluster.client(), &resource),
    }
}
