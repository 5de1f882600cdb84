//! The entries that each configuration should have, compared with those that are stored. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhook;

use crate::enforce::{
    configurations::Configurations,
    placement::Placement,
    restored_entries::TamperedEntries,
    webhook_entries::{EntryDigest, EntryPair},
};

/// The entries that were last seen or written correctly: their configuration and digest, by name.
pub(crate) type CorrectEntries = HashMap<String, (usize, EntryDigest)>;

/// The entries that each configuration should have.
pub(crate) struct WantedEntries<'a> {
    of_configuration: BTreeMap<usize, Vec<&'a EntryPair>>,
    /// The configuration of each entry, by name.
    place_of: HashMap<&'a str, usize>,
    /// Names of the entries of policies about which the apiserver has not decided: what stands of them stays.
    undecided: HashSet<String>,
}

impl<'a> WantedEntries<'a> {
    /// The entries of `accepted` policies that have a place.
    pub(crate) fn new(accepted: &'a [EntryPair], placement: &Placement, undecided: HashSet<String>) -> Self {
        let mut wanted = Self { of_configuration: BTreeMap::new(), place_of: HashMap::new(), undecided };
        for pair in accepted {
            let Some(index) = placement.get(pair.uid()) else { continue };
            wanted.of_configuration.entry(index).or_default().push(pair);
            wanted.place_of.extend(pair.names().map(|(name, _)| (name, index)));
        }
        wanted
    }

    /// All policies, each with the number of its configuration.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, &'a EntryPair)> {
        self.of_configuration.iter().flat_map(|(index, pairs)| pairs.iter().map(|pair| (*index, *pair)))
    }

    /// The entries of one configuration.
    pub(crate) fn entries(&self, index: usize) -> Vec<ValidatingWebhook> {
        self.of(index).iter().flat_map(|pair| pair.entries.iter().cloned()).collect()
    }

    /// The policies whose entries one configuration should have.
    pub(crate) fn uids(&self, index: usize) -> impl Iterator<Item = &'a str> {
        self.of(index).iter().map(|pair| pair.uid())
    }

    /// The configurations that have other entries than they should.
    pub(crate) fn dirty(&self, stored: &Configurations) -> Vec<usize> {
        let mut indexes: BTreeSet<usize> = stored.existing().collect();
        indexes.extend(self.of_configuration.keys());
        indexes.into_iter().filter(|index| !self.is_clean(*index, stored)).collect()
    }

    fn is_clean(&self, index: usize, stored: &Configurations) -> bool {
        let pairs = self.of(index);
        let Some(entries) = stored.entries(index) else { return pairs.is_empty() };
        let belongs =
            |name: &String| self.place_of.get(name.as_str()) == Some(&index) || self.undecided.contains(name);
        pairs.iter().all(|pair| stored.has(index, pair)) && entries.keys().all(belongs)
    }

    /// Names of further entries that a write of this configuration must not remove: undecided ones, and those that are
    /// moving to another configuration and are not there yet.
    pub(crate) fn kept(&self, index: usize, stored: &Configurations) -> HashSet<String> {
        let is_moving = |name: &str| {
            let place = self.place_of.get(name).filter(|place| **place != index);
            place.is_some_and(|place| stored.entries(*place).is_none_or(|there| !there.contains_key(name)))
        };
        let names = stored.entries(index).into_iter().flat_map(HashMap::keys);
        names.filter(|name| self.undecided.contains(*name) || is_moving(name)).cloned().collect()
    }

    /// The policies whose entries were correct, are still wanted, and are now missing or different: someone else changed
    /// them.
    pub(crate) fn tampered(&self, correct: &CorrectEntries, stored: &Configurations) -> Vec<TamperedEntries> {
        let is_tampered = |index: usize, pair: &EntryPair| {
            pair.names().any(|(name, digest)| {
                let was_correct = correct.get(name) == Some(&(index, digest));
                let now = stored.entries(index).and_then(|entries| entries.get(name));
                was_correct && now != Some(&digest)
            })
        };
        let tampered =
            self.pairs().filter(|(index, pair)| pair.policy.enforced() && is_tampered(*index, pair));
        tampered
            .map(|(configuration, pair)| TamperedEntries {
                policy: pair.policy.reference.clone(),
                configuration,
                deleted: stored.entries(configuration).is_none(),
            })
            .collect()
    }

    fn of(&self, index: usize) -> &[&'a EntryPair] {
        self.of_configuration.get(&index).map(Vec::as_slice).unwrap_or_default()
    }
}
