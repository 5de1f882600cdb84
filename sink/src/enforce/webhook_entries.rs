//! Keeps the webhook entries of each policy with a limit, or of one that in mode Warn only tells, in the
//! ValidatingWebhookConfiguration `job-handler-limits`: exactly as they should be, whoever edits them.
//!
//! There are two per policy: one for creates, all of which are sent, and one for updates, of which only those are that
//! its matchConditions see. In one entry the apiserver would look at each create by these, too, and that takes it a
//! tenth of all that it does for a create: it makes an unstructured copy of the Job first
//! (`apiserver/pkg/admission/plugin/cel.newActivation`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use job_handler_shared::kube::watch as kube_watch;
use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    names,
    policy::{
        parsed::Policy,
        reference::{PolicyKind, PolicyRef},
        set::PolicySet,
        status::OVER_LIMIT,
    },
    process::jitter::jitter,
};
use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchCondition, MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhook,
        ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use kube::{
    Api, Client,
    api::PostParams,
    core::ObjectMeta,
    runtime::watcher::{self, watcher},
};
use tokio::sync::watch;

use crate::{
    enforce::match_conditions::{self, Deciding},
    model::text::whole_seconds,
    notify::{
        recorder::{EventSpec, EventType, Recorder},
        refusal_series::policy_reference,
    },
    observe::store::Store,
};

/// Label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// In the names of the entries for updates.
const UPDATE: &str = "update";
/// Seconds the apiserver waits for an answer.
const TIMEOUT_SECONDS: i32 = 10;
/// The same for an answer that can be done without.
const WARN_TIMEOUT_SECONDS: i32 = 2;
/// How often the configurations are looked at, for what a watch may have missed.
const LOOK: Duration = Duration::from_secs(5);
/// Least time between two looks.
const EVERY: Duration = Duration::from_millis(200);
/// So long after somebody touched an entry its policy is not `Ready`: the apiservers take our own write up, and whoever
/// looks sees that there was a gap.
const SETTLE: Duration = Duration::from_secs(3);

/// What the status needs to know of the entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// Policy uid -> generation whose entry has been read back as it should be.
    pub written: BTreeMap<String, i64>,
    /// Why nothing could be written.
    pub fault: Option<String>,
}

/// The entries that should be there. `client` is how the webhook is reached; the pair's own namespace is left out.
pub fn build(
    policies: &PolicySet,
    client: &WebhookClientConfig,
    own_namespace: &str,
) -> Vec<ValidatingWebhook> {
    let mut entries: Vec<ValidatingWebhook> = policies
        .iter()
        .filter(|policy| policy.has_limits() && !is_excluded(policy, own_namespace))
        .flat_map(|policy| {
            // What a policy that only warns says decides nothing for those that are enforced.
            let near = policies.iter().filter(|other| other.enforced() || !policy.enforced());
            let deciding = Deciding::of(policy, near.map(AsRef::as_ref));
            let [creates, updates] = entry_names(policy);
            let (create, update) = ("CREATE", "UPDATE");
            [
                entry(policy, creates, create, None, client, own_namespace),
                entry(
                    policy,
                    updates,
                    update,
                    Some(match_conditions::build(&deciding)),
                    client,
                    own_namespace,
                ),
            ]
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

/// Whether a policy lives where Jobs are never touched.
pub fn is_excluded(policy: &Policy, own_namespace: &str) -> bool {
    let namespace = policy.reference.namespace.as_deref();
    namespace.is_some_and(|ns| ns == own_namespace || keys::EXCLUDED_NAMESPACES.contains(&ns))
}

fn entry(
    policy: &Policy,
    name: String,
    operation: &str,
    conditions: Option<Vec<MatchCondition>>,
    client: &WebhookClientConfig,
    own_namespace: &str,
) -> ValidatingWebhook {
    let enforced = policy.enforced();
    // Every default is spelt out, so that what is read back compares equal.
    ValidatingWebhook {
        name,
        admission_review_versions: vec!["v1".to_owned()],
        client_config: if enforced { client.clone() } else { warning(client) },
        // Nobody's Job hangs on a policy that is only tried out.
        failure_policy: Some(if enforced { "Fail" } else { "Ignore" }.to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        side_effects: "NoneOnDryRun".to_owned(),
        timeout_seconds: Some(if enforced { TIMEOUT_SECONDS } else { WARN_TIMEOUT_SECONDS }),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec!["batch".to_owned()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec![operation.to_owned()]),
            resources: Some(vec!["jobs".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        namespace_selector: Some(namespace_selector(policy, own_namespace)),
        object_selector: Some(policy.spec.job_selector.clone().unwrap_or_default()),
        match_conditions: conditions,
    }
}

fn namespace_selector(policy: &Policy, own_namespace: &str) -> LabelSelector {
    if let Some(namespace) = &policy.reference.namespace {
        let labels = [(NAMESPACE_NAME.to_owned(), namespace.clone())].into();
        return LabelSelector { match_labels: Some(labels), match_expressions: None };
    }
    let mut selector = policy.namespace_selector().cloned().unwrap_or_default();
    let mut excluded: Vec<String> = keys::EXCLUDED_NAMESPACES.iter().map(|ns| (*ns).to_owned()).collect();
    excluded.push(own_namespace.to_owned());
    selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
        key: NAMESPACE_NAME.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(excluded),
    });
    selector
}

/// Of the entry for creates `<name>.<namespace>.jobpolicy.limit.job-handler.io`, or `<name>.clusterjobpolicy.limit.…`: a
/// refused author reads it. Of the one for updates the same with `.update` before `.limit`. A namespace has no dots, so
/// that no two policies share one. Names that would be too long go by the uid.
fn entry_names(policy: &Policy) -> [String; 2] {
    let reference = &policy.reference;
    let suffix = if policy.enforced() { keys::LIMIT_WEBHOOK_SUFFIX } else { keys::WARN_WEBHOOK_SUFFIX };
    let whose = match (reference.kind, &reference.namespace) {
        (PolicyKind::JobPolicy, Some(namespace)) => format!("{}.{namespace}.jobpolicy", reference.name),
        _ => format!("{}.clusterjobpolicy", reference.name),
    };
    [String::new(), format!("{UPDATE}.")].map(|of| {
        let name = format!("{whose}.{of}{suffix}");
        if name.len() <= names::OBJECT_NAME_MAX { name } else { format!("{}.{of}{suffix}", reference.uid) }
    })
}

/// How to reach `/warn`, from how `/validate` is reached.
fn warning(validate: &WebhookClientConfig) -> WebhookClientConfig {
    let mut client = validate.clone();
    if let Some(service) = &mut client.service {
        service.path = Some(keys::WARN_PATH.to_owned());
    }
    if let Some(url) = &mut client.url {
        let base = url.strip_suffix(keys::VALIDATE_PATH).unwrap_or(url);
        *url = format!("{base}{}", keys::WARN_PATH);
    }
    client
}

/// How to reach `/validate`, from how `/mutate` is reached; tells what is missing.
fn client_config(mutating: Option<&MutatingWebhookConfiguration>) -> Result<WebhookClientConfig, String> {
    let name = keys::MUTATING_CONFIGURATION;
    let missing = || format!("MutatingWebhookConfiguration {name} is missing: apply manifests/base");
    let webhooks = mutating.ok_or_else(missing)?.webhooks.as_deref().unwrap_or_default();
    let webhook =
        webhooks.iter().find(|webhook| webhook.name == keys::MUTATING_WEBHOOK).ok_or_else(|| {
            format!("MutatingWebhookConfiguration {name} has no webhook {}", keys::MUTATING_WEBHOOK)
        })?;
    let mut client = webhook.client_config.clone();
    if client.ca_bundle.as_ref().is_none_or(|bundle| bundle.0.is_empty()) {
        return Err(format!(
            "MutatingWebhookConfiguration {name} has no caBundle yet: no webhook replica has published its CA"
        ));
    }
    if let Some(service) = &mut client.service {
        service.path = Some(keys::VALIDATE_PATH.to_owned());
        service.port = service.port.or(Some(443));
    }
    if let Some(url) = &mut client.url {
        let base = url.strip_suffix(keys::MUTATE_PATH).unwrap_or(url.trim_end_matches('/'));
        *url = format!("{base}{}", keys::VALIDATE_PATH);
    }
    Ok(client)
}

/// Keeps the entries for ever: on every change of a policy, on every touch of the two configurations, and every few
/// seconds for what a watch may have missed.
pub async fn keep(
    client: Client,
    store: Store,
    own_namespace: Arc<str>,
    recorder: Recorder,
    kept: watch::Sender<Kept>,
) {
    let mut changes = store.changes();
    let mut touches = std::pin::pin!(touches(&client));
    let mut told: Option<String> = None;
    // The entries as they were last seen or written right: what differs from them was done by somebody else.
    let mut right: Vec<ValidatingWebhook> = Vec::new();
    let mut restored: Option<Restored> = None;
    loop {
        let policies = store.policies();
        let known = revision(&policies);
        let state = match look(&client, &policies, &own_namespace).await {
            Err(error) => Err(error),
            Ok(looked) if looked.is_right() => Ok(looked.wanted),
            Ok(looked) => {
                let touched = touched(&right, &looked.wanted, looked.entries());
                let gone = looked.there.is_none();
                let now = (!touched.is_empty()).then(|| Restored::of(&touched, gone, &policies));
                if let Some(now) = &now {
                    kept.send_replace(now.kept(&policies));
                    tracing::warn!("webhook entries: {}", now.why);
                }
                let written = write(&client, looked).await;
                if let Some(now) = now {
                    now.tell(&recorder, &policies).await;
                    restored = Some(now);
                }
                written
            }
        };
        restored = restored.filter(|restored| restored.at.elapsed() < SETTLE);
        let state = match (state, &restored) {
            (Ok(wanted), restored) => {
                told = None;
                right = wanted;
                match restored {
                    Some(restored) => restored.kept(&policies),
                    None => Kept { written: known.iter().cloned().collect(), fault: None },
                }
            }
            (Err(error), _) => {
                let fault = error.to_string();
                if told.as_ref() != Some(&fault) {
                    tracing::warn!("webhook entries: {fault}; trying again");
                    told = Some(fault.clone());
                }
                Kept { written: BTreeMap::new(), fault: Some(fault) }
            }
        };
        let well = state.fault.is_none();
        kept.send_if_modified(|before| {
            let changed = *before != state;
            *before = state;
            changed
        });
        tokio::time::sleep(EVERY).await;
        let pause = if well { LOOK } else { jitter(Duration::from_secs(1)) };
        let end = tokio::time::Instant::now() + pause;
        // Changes of Jobs wake us up too: only another set of policies is a reason to write.
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => break,
                Some(()) = touches.next() => break,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if known != revision(&store.policies()) {
                        break;
                    }
                }
            }
        }
    }
}

fn revision(policies: &PolicySet) -> Vec<(String, i64)> {
    policies.iter().map(|policy| (policy.reference.uid.clone(), policy.generation)).collect()
}

/// An item whenever one of the two configurations changes, also by our own writes.
fn touches(client: &Client) -> impl Stream<Item = ()> {
    fn of<K>(client: &Client, name: &str) -> impl Stream<Item = ()> + use<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
        K: serde::de::DeserializeOwned,
    {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        kube_watch::events(watcher(Api::<K>::all(client.clone()), config), &K::plural(&())).filter_map(
            |event| {
                let changed = matches!(event, watcher::Event::Apply(_) | watcher::Event::Delete(_));
                std::future::ready(changed.then_some(()))
            },
        )
    }
    stream::select(
        of::<ValidatingWebhookConfiguration>(client, keys::LIMITS_CONFIGURATION),
        of::<MutatingWebhookConfiguration>(client, keys::MUTATING_CONFIGURATION),
    )
}

/// Names of the entries that were right, should still be so, and are gone or other now.
fn touched(
    right: &[ValidatingWebhook],
    wanted: &[ValidatingWebhook],
    there: &[ValidatingWebhook],
) -> Vec<String> {
    let same = wanted.iter().filter(|entry| right.contains(entry) && !there.contains(entry));
    same.map(|entry| entry.name.clone()).collect()
}

/// Entries that somebody deleted or edited, and that were written again.
#[derive(Debug)]
struct Restored {
    policies: Vec<PolicyRef>,
    why: String,
    at: tokio::time::Instant,
    wall: Timestamp,
}

impl Restored {
    fn of(touched: &[String], all_gone: bool, policies: &PolicySet) -> Self {
        let wall = whole_seconds(Timestamp::now());
        let how = if all_gone { "was deleted" } else { "was edited" };
        let why = format!(
            "ValidatingWebhookConfiguration {} {how} by someone, seen at {wall}, and is written again; Jobs created \
             meanwhile were not checked, but count",
            keys::LIMITS_CONFIGURATION
        );
        let is_hit = |policy: &Policy| entry_names(policy).iter().any(|name| touched.contains(name));
        let hit = policies.iter().filter(|policy| policy.enforced() && is_hit(policy));
        let policies = hit.map(|policy| policy.reference.clone()).collect();
        Self { policies, why, at: tokio::time::Instant::now(), wall }
    }

    /// Those whose entries were touched do not count as written.
    fn kept(&self, policies: &PolicySet) -> Kept {
        let mut written: BTreeMap<String, i64> = revision(policies).into_iter().collect();
        written.retain(|uid, _| !self.policies.iter().any(|policy| policy.uid == *uid));
        Kept { written, fault: Some(self.why.clone()) }
    }

    async fn tell(&self, recorder: &Recorder, policies: &PolicySet) {
        for policy in policies.iter().filter(|policy| self.policies.contains(&policy.reference)) {
            let policy = &policy.reference;
            let hash = names::short_hash([policy.uid.as_str(), &self.wall.to_string()]);
            let told = EventSpec {
                namespace: policy.namespace.clone().unwrap_or_else(|| "default".to_owned()),
                name: names::object_name(&policy.name, &format!(".{hash}.{}", REASON.to_ascii_lowercase())),
                event_type: EventType::Warning,
                reason: REASON,
                action: "Restored",
                note: format!("{}; condition {OVER_LIMIT} tells where there are too many", self.why),
                regarding: policy_reference(policy),
                related: None,
            };
            if let Err(error) = recorder.publish(&told).await {
                tracing::warn!(%policy, "an Event about its webhook entry: {error}");
            }
        }
    }
}

/// Reason of Events about entries that somebody deleted or edited.
const REASON: &str = "LimitEntryMissing";

/// Why the entries are not as they should be.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{0}")]
    Waits(String),
    #[error("ValidatingWebhookConfiguration {} was read back other than written", keys::LIMITS_CONFIGURATION)]
    ReadBack,
}

/// The configuration as it is, and the entries that should be in it.
struct Looked {
    there: Option<ValidatingWebhookConfiguration>,
    wanted: Vec<ValidatingWebhook>,
}

impl Looked {
    fn entries(&self) -> &[ValidatingWebhook] {
        self.there.as_ref().and_then(|there| there.webhooks.as_deref()).unwrap_or_default()
    }

    fn is_right(&self) -> bool {
        self.entries() == self.wanted
    }
}

async fn look(client: &Client, policies: &PolicySet, own_namespace: &str) -> Result<Looked, EntryError> {
    let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let limited = policies.iter().any(|p| p.has_limits() && !is_excluded(p, own_namespace));
    let what = format!("get validatingwebhookconfiguration {}", keys::LIMITS_CONFIGURATION);
    let there = call(&what, api.get_opt(keys::LIMITS_CONFIGURATION)).await?;
    let wanted = if limited {
        let what = format!("get mutatingwebhookconfiguration {}", keys::MUTATING_CONFIGURATION);
        let found = call(&what, mutating.get_opt(keys::MUTATING_CONFIGURATION)).await?;
        build(policies, &client_config(found.as_ref()).map_err(EntryError::Waits)?, own_namespace)
    } else {
        Vec::new()
    };
    Ok(Looked { there, wanted })
}

async fn write(client: &Client, looked: Looked) -> Result<Vec<ValidatingWebhook>, EntryError> {
    let Looked { there, wanted } = looked;
    let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let version = there.as_ref().and_then(|there| there.metadata.resource_version.clone());
    let mut metadata = there.map(|there| there.metadata).unwrap_or_default();
    metadata.managed_fields = None;
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("app.kubernetes.io/name".to_owned(), keys::APP.to_owned());
    let metadata = ObjectMeta { name: Some(keys::LIMITS_CONFIGURATION.to_owned()), ..metadata };
    let written = ValidatingWebhookConfiguration { metadata, webhooks: Some(wanted.clone()) };
    let what = format!("write validatingwebhookconfiguration {}", keys::LIMITS_CONFIGURATION);
    let params = PostParams::default();
    let answer = if version.is_some() {
        call(&what, api.replace(keys::LIMITS_CONFIGURATION, &params, &written)).await?
    } else {
        call(&what, api.create(&params, &written)).await?
    };
    tracing::info!(entries = wanted.len(), "wrote the webhook entries of the limits");
    if answer.webhooks.unwrap_or_default() == wanted { Ok(wanted) } else { Err(EntryError::ReadBack) }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::policy::spec::{
        ClusterJobPolicy, ClusterJobPolicySpec, JobPolicy, JobPolicySpec,
    };
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn namespaced(name: &str, namespace: &str, spec: serde_json::Value) -> Arc<Policy> {
        let spec: JobPolicySpec = serde_json::from_value(spec).unwrap();
        let mut policy = JobPolicy::new(name, spec);
        policy.metadata.namespace = Some(namespace.into());
        policy.metadata.uid = Some(format!("{namespace}-{name}"));
        Arc::new(Policy::namespaced(&policy).unwrap())
    }

    fn cluster(name: &str, spec: serde_json::Value) -> Arc<Policy> {
        let spec: ClusterJobPolicySpec = serde_json::from_value(spec).unwrap();
        let mut policy = ClusterJobPolicy::new(name, spec);
        policy.metadata.uid = Some(name.into());
        Arc::new(Policy::cluster(&policy).unwrap())
    }

    #[test]
    fn creates_and_updates_have_entries_of_their_own_and_a_warning_holds_nobody_up() {
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let warn = json!({"mode": "Warn", "limits": [{"name": "l", "maxActiveJobs": 1}]});
        let set = PolicySet::new([
            namespaced("builds", "ci", limit.clone()),
            namespaced("warned", "ci", warn),
            namespaced("plain", "ci", json!({})),
            namespaced("system", "kube-system", limit.clone()),
            namespaced("ours", "job-handler-system", limit.clone()),
            cluster(
                "all",
                json!({"limits": [{"name": "l", "maxActiveJobs": 1}],
                "namespaceSelector": {"matchLabels": {"team": "a"}}}),
            ),
        ]);
        let entries = build(&set, &WebhookClientConfig::default(), "job-handler-system");
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "all.clusterjobpolicy.limit.job-handler.io",
                "all.clusterjobpolicy.update.limit.job-handler.io",
                "builds.ci.jobpolicy.limit.job-handler.io",
                "builds.ci.jobpolicy.update.limit.job-handler.io",
                "warned.ci.jobpolicy.update.warn.job-handler.io",
                "warned.ci.jobpolicy.warn.job-handler.io",
            ]
        );
        let fails: Vec<_> =
            entries.iter().map(|e| (e.failure_policy.as_deref(), e.timeout_seconds)).collect();
        let (enforced, warned) = ((Some("Fail"), Some(10)), (Some("Ignore"), Some(2)));
        assert_eq!(fails[2..], [enforced, enforced, warned, warned]);
        for entry in &entries {
            let operations = entry.rules.as_ref().unwrap()[0].operations.clone().unwrap();
            let (operation, conditions) =
                if entry.name.contains(".update.") { ("UPDATE", 2) } else { ("CREATE", 0) };
            assert_eq!(operations, [operation], "{}", entry.name);
            assert_eq!(entry.match_conditions.iter().flatten().count(), conditions, "{}", entry.name);
        }
        let selector = serde_json::to_value(&entries[0].namespace_selector).unwrap();
        assert_eq!(selector["matchLabels"], json!({"team": "a"}));
        assert_eq!(selector["matchExpressions"][0]["values"], json!(["kube-system", "job-handler-system"]));
        let selector = serde_json::to_value(&entries[2].namespace_selector).unwrap();
        assert_eq!(selector["matchLabels"], json!({"kubernetes.io/metadata.name": "ci"}));
    }

    #[test]
    fn only_what_was_right_and_should_be_so_still_was_touched_by_somebody() {
        let entry = |name: &str, timeout| ValidatingWebhook {
            name: name.into(),
            timeout_seconds: Some(timeout),
            ..ValidatingWebhook::default()
        };
        let right = [entry("a", 10), entry("b", 10)];
        let named = |wanted: &[_], there: &[_]| touched(&right, wanted, there).join(" ");
        assert_eq!(named(&right, &[]), "a b", "deleted");
        assert_eq!(named(&right, &[entry("a", 10), entry("b", 1)]), "b", "edited");
        assert_eq!(named(&right, &[entry("a", 10), entry("b", 10), entry("c", 10)]), "", "one too many");
        assert_eq!(named(&[entry("a", 10), entry("b", 9)], &right), "", "ours is another now");
        assert_eq!(touched(&[], &right, &[]), Vec::<String>::new(), "a leader that has just begun");
    }

    #[test]
    fn a_policy_whose_entry_was_touched_does_not_count_as_written() {
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let set = PolicySet::new([namespaced("a", "ci", limit.clone()), namespaced("b", "ci", limit)]);
        for name in ["b.ci.jobpolicy.limit.job-handler.io", "b.ci.jobpolicy.update.limit.job-handler.io"] {
            let kept = Restored::of(&[name.to_owned()], false, &set).kept(&set);
            assert_eq!(kept.written.keys().collect::<Vec<_>>(), ["ci-a"]);
            assert!(kept.fault.unwrap().contains("was edited by someone"));
        }
    }

    #[test]
    fn the_address_is_that_of_mutate_with_another_path() {
        let config = |client: serde_json::Value| {
            let config: MutatingWebhookConfiguration = serde_json::from_value(json!({
                "metadata": {}, "webhooks": [{"name": "stamp.job-handler.io", "admissionReviewVersions": ["v1"],
                    "sideEffects": "None", "clientConfig": client}]}))
            .unwrap();
            client_config(Some(&config))
        };
        let url = config(json!({"url": "https://127.0.0.1:8443/mutate", "caBundle": "YQ=="})).unwrap();
        assert_eq!(url.url.unwrap(), "https://127.0.0.1:8443/validate");
        assert_eq!(url.ca_bundle, Some(ByteString(b"a".to_vec())));
        let service = json!({"service": {"name": "job-handler", "namespace": "x", "path": "/mutate"}, "caBundle": "YQ=="});
        assert_eq!(config(service).unwrap().service.unwrap().path.unwrap(), "/validate");
        assert!(config(json!({"url": "https://a/mutate"})).unwrap_err().contains("no caBundle yet"));
        let validate =
            WebhookClientConfig { url: Some("https://a/validate".into()), ..WebhookClientConfig::default() };
        assert_eq!(warning(&validate).url.unwrap(), "https://a/warn");
        assert!(client_config(None).unwrap_err().contains("manifests/base"));
    }
}
