//! Requests and limits that a policy sets on containers that have none.
//!
//! For pods, the apiserver sets missing requests to the limits (`pkg/apis/core/v1/defaults.go`, `SetDefaults_Pod`); a pod
//! template stays as written. The apiserver writes amounts in canonical form: `0.5` becomes `500m`.

use std::collections::BTreeMap;

use job_handler_shared::policy::stamp::{Amount, ContainerResources};
use serde_json::{Map, Value};

use crate::job_view::ContainerView;

/// The resources to set, and the containers to set them on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StampedResources {
    /// `limits` and `requests`; a field without amounts is absent.
    pub resources: Map<String, Value>,
    /// The containers without resources.
    pub containers: Vec<ContainerPath>,
}

/// Where a container is in the pod spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerPath {
    /// `initContainers` or `containers`.
    pub list: &'static str,
    /// Index in that list.
    pub index: usize,
    /// The container has a field `resources`.
    pub(crate) has_resources: bool,
}

/// The resources to set on the containers that have neither requests nor limits. None if there is nothing to set.
pub(super) fn stamp(containers: &[ContainerView], wanted: &ContainerResources) -> Option<StampedResources> {
    let containers: Vec<ContainerPath> = containers
        .iter()
        .filter(|container| !container.has_amounts())
        .map(|c| ContainerPath { list: c.list, index: c.index, has_resources: c.has_resources })
        .collect();
    let field = |name: &str, amounts: &BTreeMap<String, Amount>| {
        let values = amounts.iter().map(|(key, amount)| (key.clone(), amount.0.clone().into()));
        (!amounts.is_empty()).then(|| (name.to_owned(), Value::Object(values.collect())))
    };
    let resources: Map<String, Value> =
        field("limits", &wanted.limits).into_iter().chain(field("requests", &wanted.requests)).collect();
    (!containers.is_empty() && !resources.is_empty()).then_some(StampedResources { resources, containers })
}

/// Readable text: `limits cpu 2, memory 4Gi, requests cpu 1`.
pub(super) fn describe(wanted: &ContainerResources) -> String {
    let part = |name: &str, amounts: &BTreeMap<String, Amount>| {
        let amounts = amounts.iter().map(|(key, amount)| format!("{key} {}", amount.0));
        let amounts: Vec<String> = amounts.collect();
        (!amounts.is_empty()).then(|| format!("{name} {}", amounts.join(", ")))
    };
    let parts = part("limits", &wanted.limits).into_iter().chain(part("requests", &wanted.requests));
    parts.collect::<Vec<_>>().join(", ")
}

/// Whether a container has exactly the wanted resources, in any notation, possibly with the requests that the apiserver
/// adds.
pub(super) fn has_exactly(container: &ContainerView, wanted: &ContainerResources) -> bool {
    let same = |have: &BTreeMap<String, String>, want: &BTreeMap<String, Amount>| {
        have.len() == want.len()
            && have.iter().all(|(key, amount)| want.get(key).is_some_and(|w| is_same(amount, &w.0)))
    };
    let ContainerResources { limits, requests } = wanted;
    let mut defaulted = limits.clone();
    defaulted.extend(requests.clone());
    same(&container.limits, limits)
        && (same(&container.requests, requests) || same(&container.requests, &defaulted))
}

/// Whether two amounts are equal, in any notation.
fn is_same(a: &str, b: &str) -> bool {
    match (parse_amount(a), parse_amount(b)) {
        (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * 1e-9,
        _ => a == b,
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
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job_view::JobView;

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
            assert_eq!(is_same(a, b), same, "{a} {b}");
        }
    }

    #[test]
    fn only_containers_without_resources_in_pods_without_pod_level_resources_are_stamped() {
        let stamped = |spec: serde_json::Value| {
            let job: JobView = serde_json::from_value(json!({"spec": {"template": {"spec": spec}}})).unwrap();
            let wanted = json!({"limits": {"cpu": "2"}, "requests": {}});
            stamp(&job.template.containers, &serde_json::from_value(wanted).unwrap())
        };
        let lists = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": 1}}}, {"name": "b", "resources": {}},
                {"name": "c", "resources": {"claims": [{"name": "gpu"}]}}],
        });
        let found = stamped(lists.clone()).unwrap();
        assert_eq!(Value::Object(found.resources), json!({"limits": {"cpu": "2"}}));
        let paths: Vec<_> = found.containers.iter().map(|p| (p.list, p.index, p.has_resources)).collect();
        assert_eq!(paths, [("initContainers", 0, false), ("containers", 1, true), ("containers", 2, true)]);
        let mut pod_level = lists;
        pod_level["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert_eq!(stamped(pod_level), None);
    }
}
