//! Requests and limits of a template's containers: what is there, and what a policy sets where there is none.
//!
//! The apiserver sets requests that are absent to the limits (`pkg/apis/core/v1/defaults.go`, `SetDefaults_Pod`, for pods;
//! a template stays as written), and writes amounts in their canonical form: `0.5` comes back as `500m`.

use std::collections::BTreeMap;

use job_handler_shared::policy::spec::{Amount, ContainerResources};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A container of a template, as far as its resources go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Which list it is in: `initContainers` or `containers`.
    pub list: &'static str,
    /// Its place there.
    pub index: usize,
    /// `resources` is there.
    pub has_resources: bool,
    /// `resources.limits`.
    pub limits: BTreeMap<String, String>,
    /// `resources.requests`.
    pub requests: BTreeMap<String, String>,
}

/// What is to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// `limits` and `requests`, those that there are.
    pub resources: Map<String, Value>,
    /// Where.
    pub at: Vec<Place>,
}

/// A container that is to get resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `initContainers` or `containers`.
    pub list: &'static str,
    /// Its place there.
    pub index: usize,
    /// It has a field `resources`.
    pub has_resources: bool,
}

/// What is set on the containers that state neither requests nor limits, init containers among them; none where there is
/// nothing to do.
pub fn stamp(containers: &[Container], wanted: &ContainerResources) -> Option<Stamped> {
    let at: Vec<Place> = containers
        .iter()
        .filter(|container| !container.states_any())
        .map(|c| Place { list: c.list, index: c.index, has_resources: c.has_resources })
        .collect();
    let field = |name: &str, amounts: &BTreeMap<String, Amount>| {
        let values = amounts.iter().map(|(key, amount)| (key.clone(), amount.0.clone().into()));
        (!amounts.is_empty()).then(|| (name.to_owned(), Value::Object(values.collect())))
    };
    let resources: Map<String, Value> =
        field("limits", &wanted.limits).into_iter().chain(field("requests", &wanted.requests)).collect();
    (!at.is_empty() && !resources.is_empty()).then_some(Stamped { resources, at })
}

/// For people: `limits cpu 2, memory 4Gi, requests cpu 1`.
pub fn describe(wanted: &ContainerResources) -> String {
    let part = |name: &str, amounts: &BTreeMap<String, Amount>| {
        let amounts = amounts.iter().map(|(key, amount)| format!("{key} {}", amount.0));
        let amounts: Vec<String> = amounts.collect();
        (!amounts.is_empty()).then(|| format!("{name} {}", amounts.join(", ")))
    };
    let parts = part("limits", &wanted.limits).into_iter().chain(part("requests", &wanted.requests));
    parts.collect::<Vec<_>>().join(", ")
}

impl Container {
    /// Whether its author, or somebody before us, states requests or limits.
    pub fn states_any(&self) -> bool {
        !self.limits.is_empty() || !self.requests.is_empty()
    }

    /// Whether it has what a policy sets, in whatever notation, and no more than what defaulting makes of it.
    pub fn is(&self, wanted: &ContainerResources) -> bool {
        let same = |have: &BTreeMap<String, String>, want: &BTreeMap<String, Amount>| {
            have.len() == want.len()
                && have.iter().all(|(key, amount)| want.get(key).is_some_and(|w| is_same(amount, &w.0)))
        };
        let ContainerResources { limits, requests } = wanted;
        let mut defaulted = limits.clone();
        defaulted.extend(requests.clone());
        same(&self.limits, limits) && (same(&self.requests, requests) || same(&self.requests, &defaulted))
    }
}

/// Whether two amounts are the same, in whatever notation.
fn is_same(a: &str, b: &str) -> bool {
    match (amount(a), amount(b)) {
        (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * 1e-9,
        _ => a == b,
    }
}

fn amount(text: &str) -> Option<f64> {
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

/// What is read of a pod's spec.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    init_containers: Option<Vec<Raw>>,
    containers: Option<Vec<Raw>>,
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct Raw {
    name: Option<String>,
    resources: Option<Resources>,
}

#[derive(Default, Deserialize)]
struct Resources {
    limits: Option<BTreeMap<String, Amount>>,
    requests: Option<BTreeMap<String, Amount>>,
}

impl PodSpec {
    /// Init containers first, as they run; none where the pod as a whole states resources, which bound its containers'.
    pub(crate) fn containers(self) -> Vec<Container> {
        let whole = self.resources.unwrap_or_default();
        if texts(whole.limits).is_empty() && texts(whole.requests).is_empty() {
            let list = |list: &'static str, raw: Option<Vec<Raw>>| {
                raw.into_iter().flatten().enumerate().map(move |(index, raw)| {
                    let has_resources = raw.resources.is_some();
                    let resources = raw.resources.unwrap_or_default();
                    let (limits, requests) = (texts(resources.limits), texts(resources.requests));
                    let name = raw.name.unwrap_or_default();
                    Container { name, list, index, has_resources, limits, requests }
                })
            };
            list("initContainers", self.init_containers).chain(list("containers", self.containers)).collect()
        } else {
            Vec::new()
        }
    }
}

fn texts(amounts: Option<BTreeMap<String, Amount>>) -> BTreeMap<String, String> {
    amounts.into_iter().flatten().map(|(key, amount)| (key, amount.0)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_are_the_same_in_any_notation() {
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
    fn only_those_that_state_nothing_and_no_pod_that_states_something_itself() {
        let containers = |spec: serde_json::Value| {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let wanted = json!({"limits": {"cpu": "2"}, "requests": {}});
            stamp(&spec.containers(), &serde_json::from_value(wanted).unwrap())
        };
        let lists = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": 1}}}, {"name": "b", "resources": {}},
                {"name": "c", "resources": {"claims": [{"name": "gpu"}]}}],
        });
        let stamped = containers(lists.clone()).unwrap();
        assert_eq!(Value::Object(stamped.resources), json!({"limits": {"cpu": "2"}}));
        let at: Vec<_> = stamped.at.iter().map(|p| (p.list, p.index, p.has_resources)).collect();
        assert_eq!(at, [("initContainers", 0, false), ("containers", 1, true), ("containers", 2, true)]);
        let mut whole = lists;
        whole["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert_eq!(containers(whole), None);
    }
}
