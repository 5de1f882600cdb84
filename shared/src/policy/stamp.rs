//! `spec.stamp`: what the webhook sets on new Jobs.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{names, policy::schema};

/// Defaults and maxima that are set on new Jobs.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Seconds after which a finished Job is deleted (`spec.ttlSecondsAfterFinished`). Where a policy asks for results,
    /// the TTL starts once the result is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::range_schema")]
    pub ttl_seconds_after_finished: Option<Range>,
    /// Seconds that a Job may be active (`spec.activeDeadlineSeconds`). A Job without a deadline gets the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_range_schema")]
    pub active_deadline_seconds: Option<Range>,
    /// Retries before a Job counts as failed (`spec.backoffLimit`). The apiserver sets 6 where the Job states none, so 6
    /// counts as not stated unless the Job has the annotation `job-handler/keep: backoffLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::range_schema")]
    pub backoff_limit: Option<Range>,
    /// Labels added to the Job and its pod template where the key is absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// Requests and limits for containers that state neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::container_resources_schema")]
    pub container_resources: Option<ContainerResources>,
}

/// Requests and limits of a container, by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ContainerResources {
    /// Maximum amounts that the container may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Amount>,
    /// Amounts reserved for the container; Kubernetes uses the limits where absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Amount>,
}

/// An amount of a resource as written in YAML: `500m`, `4Gi`, or a number without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Amount(pub String);

/// A stamp that would make every selected Job invalid. The CRD rejects it; one that was stored under an older CRD is left out
/// and reported. The rest of its policy applies: its limits must not end with an upgrade.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// A label that the Job controller sets itself.
    #[error("{0} belongs to the Job controller")]
    ReservedLabel(String),
    /// A label key that the apiserver does not take.
    #[error("{0} is not a label key")]
    InvalidLabel(String),
    /// A resource that no container has.
    #[error("{0} is not a resource of a container")]
    UnknownResource(String),
    /// An amount that no container can have, and what it must be.
    #[error("the amount of {0} must be {1}")]
    InvalidAmount(String, &'static str),
    /// A resource that cannot be overcommitted, without a limit that equals the request.
    #[error("{0} is requested without an equal limit")]
    NoEqualLimit(String),
    /// Hugepages without cpu or memory.
    #[error("hugepages need cpu or memory beside them")]
    HugepagesAlone,
}

impl StampError {
    /// The field, below `spec`.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::ReservedLabel(_) | Self::InvalidLabel(_) => "stamp.labels",
            Self::UnknownResource(_)
            | Self::InvalidAmount(..)
            | Self::NoEqualLimit(_)
            | Self::HugepagesAlone => "stamp.containerResources",
        }
    }
}

impl Stamp {
    /// Checks label keys and resources again as the CRD does, and removes what is wrong; see [`StampError`]. For label values
    /// and numbers, the first CRD had the same rules.
    pub(crate) fn remove_invalid(&mut self) -> Vec<StampError> {
        let wrong = |key: &String| match key.as_str() {
            "job-name" | "controller-uid" => Some(StampError::ReservedLabel(key.clone())),
            own if own.starts_with("batch.kubernetes.io/") => Some(StampError::ReservedLabel(key.clone())),
            other => (!names::is_label_key(other)).then(|| StampError::InvalidLabel(key.clone())),
        };
        let mut removed: Vec<StampError> = self.labels.keys().filter_map(wrong).collect();
        self.labels.retain(|key, _| wrong(key).is_none());
        if let Some(Err(error)) = self.container_resources.as_ref().map(ContainerResources::check) {
            self.container_resources = None;
            removed.push(error);
        }
        removed
    }
}

impl ContainerResources {
    /// The rules of `k8s.io/kubernetes/pkg/apis/core/validation`, validateResourceRequirements.
    fn check(&self) -> Result<(), StampError> {
        self.limits.iter().chain(&self.requests).try_for_each(|(name, amount)| check_amount(name, amount))?;
        for (name, amount) in &self.requests {
            let limit = self.limits.get(name).filter(|limit| !limit.is_same(&amount.0));
            if limit.is_some_and(|limit| parse_amount(&amount.0) > parse_amount(&limit.0)) {
                return Err(StampError::InvalidAmount(name.clone(), "at most its limit"));
            }
            if is_indivisible(name) && (limit.is_some() || !self.limits.contains_key(name)) {
                return Err(StampError::NoEqualLimit(name.clone()));
            }
        }
        let has = |name: &str| self.limits.contains_key(name) || self.requests.contains_key(name);
        match self.limits.keys().any(|name| is_hugepages(name)) && !has("cpu") && !has("memory") {
            true => Err(StampError::HugepagesAlone),
            false => Ok(()),
        }
    }
}

/// The rules of the same file, validateContainerResourceName and validateResourceQuantityHugePageValue.
fn check_amount(resource: &str, amount: &Amount) -> Result<(), StampError> {
    let has_domain = || {
        let domain = resource.split_once('/').map(|(domain, _)| domain);
        let fits = domain.is_some_and(|domain| domain.len() <= schema::RESOURCE_PREFIX_MAX);
        fits && !resource.starts_with("requests.") && names::is_label_key(resource)
    };
    let is_native = ["cpu", "memory", "ephemeral-storage"].contains(&resource) || is_hugepages(resource);
    if !is_native && !has_domain() {
        return Err(StampError::UnknownResource(resource.to_owned()));
    }
    let must_be = |what: &'static str| Err(StampError::InvalidAmount(resource.to_owned(), what));
    let number = parse_amount(&amount.0).filter(|number| number.is_finite() && *number >= 0.0);
    let Some(number) = number else { return must_be("a number that is not negative") };
    let whole = number.round();
    if is_indivisible(resource) && (number - whole).abs() > number * 1e-9 {
        return must_be("a whole number");
    }
    let Some(size) = resource.strip_prefix(HUGEPAGES) else { return Ok(()) };
    let is_in_pages = |page: f64| page >= 1.0 && page.fract() == 0.0 && whole % page == 0.0;
    if parse_amount(size).is_some_and(is_in_pages) { Ok(()) } else { must_be("a multiple of the page size") }
}

/// Prefix of a resource name; a page size such as `2Mi` follows.
const HUGEPAGES: &str = "hugepages-";

fn is_hugepages(resource: &str) -> bool {
    resource.starts_with(HUGEPAGES)
}

/// Hugepages and extended resources.
fn is_indivisible(resource: &str) -> bool {
    is_hugepages(resource) || (resource.contains('/') && !resource.contains("kubernetes.io/"))
}

impl Amount {
    /// Whether `other` is the same amount, in any notation: `0.5` and `500m`.
    pub fn is_same(&self, other: &str) -> bool {
        match (parse_amount(&self.0), parse_amount(other)) {
            (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * 1e-9,
            _ => self.0 == other,
        }
    }
}

fn parse_amount(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    // `1e3` is a number, `1E` is exa.
    if let Ok(plain) = text.parse::<f64>() {
        return Some(plain);
    }
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
    // An exponent stands in place of a suffix.
    if number.contains(['e', 'E']) {
        return None;
    }
    number.parse::<f64>().ok().map(|number| number * factor)
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum TextOrNumber {
            Text(String),
            Number(serde_json::Number),
        }
        Ok(Self(match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(number) => number.to_string(),
        }))
    }
}

/// A default and a maximum for a numeric field of a Job. The schema keeps both within `int32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Range {
    /// Value for Jobs that state none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<i64>,
    /// Larger values are lowered to this maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn amounts_are_compared_in_any_notation() {
        for (a, b, same) in [
            ("2", "2000m", true),
            ("0.1", "100m", true),
            ("4Gi", "4096Mi", true),
            ("1e3", "1k", true),
            ("1E", "1000P", true),
            ("1G", "1Gi", false),
            ("soon", "soon", true),
            ("soon", "1", false),
        ] {
            assert_eq!(Amount(a.to_owned()).is_same(b), same, "{a} {b}");
        }
    }

    #[test]
    fn stamps_that_make_every_job_invalid_are_errors() {
        let check = |stamp: Value| {
            let mut stamp: Stamp = serde_json::from_value(stamp).unwrap();
            let removed = stamp.remove_invalid();
            assert_eq!(stamp.remove_invalid(), [], "it is removed");
            removed.into_iter().next().map_or(Ok(()), Err)
        };
        for key in ["job-name", "controller-uid", "batch.kubernetes.io/job-name", "batch.kubernetes.io/x"] {
            let reserved = Err(StampError::ReservedLabel(key.to_owned()));
            assert_eq!(check(json!({"labels": {key: "x"}})), reserved);
        }
        let long = format!("{}/x", "a".repeat(254));
        assert_eq!(check(json!({"labels": {&long: "x"}})), Err(StampError::InvalidLabel(long)));
        let resources = |limits: Value, requests: Value| {
            check(json!({"containerResources": {"limits": limits, "requests": requests}}))
        };
        for name in ["gpu", "requests.example.com/gpu", "a b/c", &format!("{}/gpu", "a".repeat(245))] {
            let unknown = Err(StampError::UnknownResource(name.to_owned()));
            assert_eq!(resources(json!({name: 1}), json!({})), unknown);
            assert_eq!(resources(json!({}), json!({name: 1})), unknown);
        }
        for (name, amount, expected) in [
            ("cpu", "-1", "a number that is not negative"),
            ("cpu", "soon", "a number that is not negative"),
            ("cpu", "1e3Ki", "a number that is not negative"),
            ("memory", "inf", "a number that is not negative"),
            ("example.com/gpu", "500m", "a whole number"),
            ("hugepages-2Mi", "0.5", "a whole number"),
            ("hugepages-2Mi", "3Mi", "a multiple of the page size"),
            ("hugepages-none", "2Mi", "a multiple of the page size"),
            ("hugepages-0", "2Mi", "a multiple of the page size"),
        ] {
            let invalid = Err(StampError::InvalidAmount(name.to_owned(), expected));
            assert_eq!(resources(json!({name: amount}), json!({})), invalid, "{name} {amount}");
        }
        let above = Err(StampError::InvalidAmount("cpu".to_owned(), "at most its limit"));
        assert_eq!(resources(json!({"cpu": "500m"}), json!({"cpu": 1})), above);
        let unequal = |name: &str| Err(StampError::NoEqualLimit(name.to_owned()));
        assert_eq!(resources(json!({}), json!({"example.com/gpu": 1})), unequal("example.com/gpu"));
        assert_eq!(
            resources(json!({"example.com/gpu": 2}), json!({"example.com/gpu": 1})),
            unequal("example.com/gpu")
        );
        assert_eq!(resources(json!({"cpu": 1}), json!({"hugepages-2Mi": "4Mi"})), unequal("hugepages-2Mi"));
        assert_eq!(resources(json!({"hugepages-2Mi": "4Mi"}), json!({})), Err(StampError::HugepagesAlone));
        for (limits, requests) in [
            (json!({"example.com/gpu": 1}), json!({})),
            (json!({"example.com/gpu": "1k"}), json!({"example.com/gpu": 1000})),
            (json!({"hugepages-2Mi": "4Mi", "memory": "1Gi"}), json!({"hugepages-2Mi": "4096Ki"})),
            (json!({"hugepages-2Mi": "4Mi"}), json!({"cpu": "1"})),
            (json!({"cpu": "2"}), json!({"cpu": "1", "memory": "1Gi"})),
            (json!({"cpu": "1"}), json!({"cpu": "1000m", "ephemeral-storage": "0"})),
            (json!({"example.com/gpu": "3000m", "kubernetes.io/x": "1"}), json!({})),
            (json!({"hugepages-1Gi": "2147483648", "cpu": 1}), json!({})),
        ] {
            assert_eq!(resources(limits.clone(), requests.clone()), Ok(()), "{limits} {requests}");
        }
        assert_eq!(check(json!({"labels": {"team": "job-name"}})), Ok(()));
    }
}
