//! The namespaces that the sink serves: all of the cluster, or those of `--namespaces`.
//!
//! Elsewhere it needs no right to ConfigMaps, Secrets, pods, logs and Events, and none to change Jobs: it watches these in
//! each served namespace by itself. Jobs and policies of the whole cluster are watched, and dropped unless served.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use kube::{Api, Client, Resource};

/// Label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The served namespaces; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ServedNamespaces(Arc<OnceLock<BTreeSet<String>>>);

/// The namespaces of one watch or list: one of the served ones, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceScope(Option<String>);

impl ServedNamespaces {
    /// Serves only these; none = all of the cluster. Has an effect once, before the watches begin.
    pub fn restrict(&self, names: impl IntoIterator<Item = String>) {
        let names: BTreeSet<String> = names.into_iter().filter(|name| !name.is_empty()).collect();
        if !names.is_empty() {
            let _: Result<_, _> = self.0.set(names);
        }
    }

    pub(crate) fn contains(&self, namespace: &str) -> bool {
        self.0.get().is_none_or(|names| names.contains(namespace))
    }

    /// What has to be watched to see all of them.
    pub(crate) fn scopes(&self) -> Vec<NamespaceScope> {
        match self.0.get() {
            Some(names) => names.iter().map(|name| NamespaceScope(Some(name.clone()))).collect(),
            None => vec![NamespaceScope::default()],
        }
    }

    /// The `namespaceSelector` of a ClusterJobPolicy, restricted to them.
    pub(crate) fn select(&self, selector: Option<LabelSelector>) -> Option<LabelSelector> {
        let Some(names) = self.0.get() else { return selector };
        let mut selector = selector.unwrap_or_default();
        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
            key: NAMESPACE_NAME.to_owned(),
            operator: "In".to_owned(),
            values: Some(names.iter().cloned().collect()),
        });
        Some(selector)
    }
}

impl NamespaceScope {
    /// The API for objects of this scope.
    pub(crate) fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }

    /// The namespace; none for all.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.0.as_deref()
    }

    pub(crate) fn covers(&self, namespace: &str) -> bool {
        self.namespace().is_none_or(|own| own == namespace)
    }

    /// The name of something that exists once per scope.
    pub(crate) fn name_of<'a>(&self, what: &'a str) -> Cow<'a, str> {
        match &self.0 {
            Some(namespace) => format!("{what} in {namespace}").into(),
            None => what.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_namespaces_are_served_unless_some_are_named() {
        for names in [vec![], vec![String::new()]] {
            let served = ServedNamespaces::default();
            served.restrict(names);
            assert!(served.contains("ci") && served.contains("kube-system"));
            assert_eq!(served.scopes(), [NamespaceScope::default()]);
            assert_eq!(served.select(None), None);
        }
        let served = ServedNamespaces::default();
        let clone = served.clone();
        served.restrict(["ci".to_owned(), "cd".to_owned()]);
        assert!(clone.contains("ci") && clone.contains("cd") && !clone.contains("prod"));
        let scopes = clone.scopes();
        let names: Vec<_> = scopes.iter().map(|scope| scope.name_of("pods")).collect();
        assert_eq!(names, ["pods in cd", "pods in ci"]);
        assert!(scopes[1].covers("ci") && !scopes[1].covers("cd"));
        assert!(NamespaceScope::default().covers("any"));
    }

    #[test]
    fn the_selector_of_a_cluster_policy_selects_served_namespaces_only() {
        let served = ServedNamespaces::default();
        served.restrict(["ci".to_owned()]);
        let labels = Some([("team".to_owned(), "x".to_owned())].into());
        let selector =
            served.select(Some(LabelSelector { match_labels: labels.clone(), match_expressions: None }));
        let selector = selector.unwrap();
        assert_eq!(selector.match_labels, labels);
        let [only] = &selector.match_expressions.unwrap()[..] else { panic!("one expression") };
        assert_eq!((only.key.as_str(), only.operator.as_str()), (NAMESPACE_NAME, "In"));
        assert_eq!(only.values, Some(vec!["ci".to_owned()]));
    }
}
