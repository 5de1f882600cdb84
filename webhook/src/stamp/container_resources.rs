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
            && have.iter().all(|(key, amount)| want.get(key).is_some_and(|wanted| wanted.is_same(amount)))
    };
    let ContainerResources { limits, requests } = wanted;
    let mut defaulted = limits.clone();
    defaulted.extend(requests.clone());
    same(&container.limits, limits)
        && (same(&container.requests, requests) || same(&container.requests, &defaulted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job_view::JobView;

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
