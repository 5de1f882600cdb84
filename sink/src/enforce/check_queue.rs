//! The entries that wait for their check. Pure.
//!
//! The namespaces take turns, and a policy keeps its turn when it changes: a tenant whose policies change all the time
//! does not keep those of others waiting.

use std::collections::{HashMap, VecDeque};

use crate::enforce::webhook_entries::EntryPair;

/// The waiting entries by namespace (none for cluster-wide policies).
#[derive(Default)]
pub(crate) struct CheckQueue {
    waiting: HashMap<Option<String>, VecDeque<EntryPair>>,
    /// Each namespace with waiting entries once.
    turns: VecDeque<Option<String>>,
}

impl CheckQueue {
    /// Replaces what waits by `due`. Who waits already keeps his turn.
    pub(crate) fn update(&mut self, due: Vec<EntryPair>) {
        let mut newest: HashMap<String, (usize, EntryPair)> =
            due.into_iter().enumerate().map(|(n, pair)| (pair.uid().to_owned(), (n, pair))).collect();
        for pairs in self.waiting.values_mut() {
            pairs.retain_mut(|pair| match newest.remove(pair.uid()) {
                Some((_, new)) => {
                    *pair = new;
                    true
                }
                None => false,
            });
        }
        let mut added: Vec<(usize, EntryPair)> = newest.into_values().collect();
        added.sort_by_key(|(n, _)| *n);
        self.waiting.retain(|_, pairs| !pairs.is_empty());
        self.turns.retain(|namespace| self.waiting.contains_key(namespace));
        for (_, pair) in added {
            let namespace = &pair.policy.reference.namespace;
            if !self.waiting.contains_key(namespace) {
                self.turns.push_back(namespace.clone());
            }
            self.waiting.entry(namespace.clone()).or_default().push_back(pair);
        }
    }

    /// Takes the entries whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<EntryPair> {
        let namespace = self.turns.pop_front()?;
        let pairs = self.waiting.get_mut(&namespace)?;
        let pair = pairs.pop_front();
        if pairs.is_empty() {
            self.waiting.remove(&namespace);
        } else {
            self.turns.push_back(namespace);
        }
        pair
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{policy::set::PolicySet, testing::policies::job_policy};
    use k8s_openapi::api::admissionregistration::v1::WebhookClientConfig;
    use serde_json::json;

    use super::*;
    use crate::enforce::webhook_entries::build;

    fn pair(namespace: &str, name: &str, generation: i64) -> EntryPair {
        let metadata = json!({"name": name, "namespace": namespace, "uid": name, "generation": generation});
        let policy = job_policy(metadata, json!({"limits": [{"name": "l", "maxActiveJobs": 1}]}));
        build(&PolicySet::new([policy]), &WebhookClientConfig::default(), "ours").remove(0)
    }

    fn taken(queue: &mut CheckQueue, count: usize) -> Vec<(String, i64)> {
        let pairs = std::iter::from_fn(|| queue.pop()).take(count);
        pairs.map(|pair| (pair.uid().to_owned(), pair.policy.generation)).collect()
    }

    #[test]
    fn namespaces_take_turns_and_changed_policies_keep_theirs() {
        let mut queue = CheckQueue::default();
        queue.update(vec![pair("a", "a1", 1), pair("a", "a2", 1), pair("a", "a3", 1), pair("b", "b1", 1)]);
        assert_eq!(taken(&mut queue, 1), [("a1".to_owned(), 1)]);
        // All of `a` changes, `b1` is gone, and `c1` is new.
        queue.update(vec![pair("a", "a1", 2), pair("a", "a2", 2), pair("a", "a3", 2), pair("c", "c1", 1)]);
        let order = taken(&mut queue, 9);
        let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a2", "c1", "a3", "a1"]);
        assert!(order.iter().all(|(name, generation)| (name == "c1") == (*generation == 1)), "{order:?}");
        assert!(queue.pop().is_none() && queue.turns.is_empty() && queue.waiting.is_empty());
    }
}
