//! Names, requests and limits of the containers in a pod template.

use std::collections::BTreeMap;

use job_handler_shared::policy::stamp::Amount;
use serde::Deserialize;

use crate::job_view::first_of::{FirstEntries, FirstOf};

/// Most containers that are read of either list; further ones get no defaults.
const MAX_CONTAINERS: usize = 1_000;
/// Most resources that are read of a container.
const MAX_RESOURCES: usize = 16;

/// A container of a pod template: its name, position and resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerView {
    /// The container's name.
    pub name: String,
    /// The field of the pod spec that lists the container: `initContainers` or `containers`.
    pub list: &'static str,
    /// Index in that list.
    pub index: usize,
    /// The container has a field `resources`.
    pub(crate) has_resources: bool,
    /// `resources.limits`.
    pub limits: BTreeMap<String, String>,
    /// `resources.requests`.
    pub requests: BTreeMap<String, String>,
}

impl ContainerView {
    /// Whether the container has any request or limit.
    pub(crate) fn has_amounts(&self) -> bool {
        !self.limits.is_empty() || !self.requests.is_empty()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawPodSpec {
    init_containers: Option<FirstOf<RawContainer, MAX_CONTAINERS>>,
    containers: Option<FirstOf<RawContainer, MAX_CONTAINERS>>,
    resources: Option<RawResources>,
}

#[derive(Deserialize)]
struct RawContainer {
    name: Option<String>,
    resources: Option<RawResources>,
}

/// Amounts by resource.
type Amounts = FirstEntries<Amount, MAX_RESOURCES>;

#[derive(Default, Deserialize)]
struct RawResources {
    limits: Option<Amounts>,
    requests: Option<Amounts>,
}

impl RawPodSpec {
    /// The init containers, then the containers. Empty if the pod spec has pod-level resources, because those bound the
    /// resources of its containers.
    pub(super) fn into_containers(self) -> Vec<ContainerView> {
        let pod_level = self.resources.unwrap_or_default();
        if !texts(pod_level.limits).is_empty() || !texts(pod_level.requests).is_empty() {
            return Vec::new();
        }
        let list = |list: &'static str, raw: Option<FirstOf<RawContainer, MAX_CONTAINERS>>| {
            raw.unwrap_or_default().0.into_iter().enumerate().map(move |(index, raw)| {
                let has_resources = raw.resources.is_some();
                let resources = raw.resources.unwrap_or_default();
                let (limits, requests) = (texts(resources.limits), texts(resources.requests));
                let name = raw.name.unwrap_or_default();
                ContainerView { name, list, index, has_resources, limits, requests }
            })
        };
        list("initContainers", self.init_containers).chain(list("containers", self.containers)).collect()
    }
}

fn texts(amounts: Option<Amounts>) -> BTreeMap<String, String> {
    amounts.into_iter().flat_map(|amounts| amounts.0).map(|(key, amount)| (key, amount.0)).collect()
}
